"""Every example prints what its header says."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
HEADING = "Expected output:"


def expected_output(source: str) -> str:
    """Return the indented block below the heading in a module's docstring."""
    documentation = ast.get_docstring(ast.parse(source)) or ""
    _, found, block = documentation.partition(HEADING)
    assert found, f"the docstring has no section {HEADING!r}"
    lines: list[str] = []
    for line in block.strip("\n").splitlines():
        if line and not line.startswith(" "):
            break
        lines.append(line)
    return textwrap.dedent("\n".join(lines)).strip()


def test_there_is_an_example_of_every_feature_in_both_queues():
    names = {path.stem for path in EXAMPLES.glob("*.py")}
    features = {f"{queue}_{feature}" for queue in ("taskiq", "celery") for feature in ("cache", "limits", "executor")}
    assert features | {"demo"} <= names


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*_*.py")), ids=lambda path: path.stem)
def test_prints_what_its_header_says(path, tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLOTLINE_")}
    ran = subprocess.run(
        [sys.executable, path], capture_output=True, text=True, timeout=60, cwd=tmp_path, env=environment, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == expected_output(path.read_text()), ran.stderr
