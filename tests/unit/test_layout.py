"""What CONTRIBUTING.md says of every source file."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MOST_LINES = 400


def test_one_concept_a_file_and_none_too_long() -> None:
    sources = [
        path
        for place in ("shared", "taskiq_ext", "celery_ext", "tests", "examples")
        for path in (ROOT / place).rglob("*")
        if path.suffix in {".py", ".lua"}
    ]
    assert len(sources) > 100
    lengths = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in sources}
    assert {name: lines for name, lines in lengths.items() if lines > MOST_LINES} == {}
