"""The README's programs run as it says and print what it says, and what the pages name is there."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import NamedTuple

import pytest

from celery_ext.options import NAMES as CELERY_OPTIONS
from slotline.settings import Settings
from taskiq_ext import _labels
from tests.harness.clean_env import CleanEnvironment, build
from tests.harness.workers import ROOT, CeleryWorker, TaskiqWorker, Worker

README = (ROOT / "README.md").read_text()
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")])


class Program(NamedTuple):
    """What the README says about one queue.

    Attributes:
        source: The file.
        extras: The extras of its ``pip install``.
        also: What that installs besides.
        worker: The words of the worker's command.
        output: What running the file prints.
    """

    source: str
    extras: tuple[str, ...]
    also: tuple[str, ...]
    worker: tuple[str, ...]
    output: str


def program(heading: str) -> Program:
    """Read the section under ``heading``: its Python block, its two commands, and what the file prints."""
    _, found, section = README.partition(f"\n## {heading}\n")
    assert found, heading
    section = section.partition("\n## ")[0]
    (source,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    setup, run = re.findall(r"```console\n(.*?)```", section, re.DOTALL)
    install, worker = (shlex.split(line.removeprefix("$ ")) for line in setup.splitlines())
    first, output = run.split("\n", 1)
    assert first == "$ python shop.py"
    assert install[:2] == ["pip", "install"]
    extras = re.fullmatch(r"\.\[(.*)\]", install[2])
    assert extras, install
    return Program(source, tuple(extras[1].split(",")), tuple(install[3:]), tuple(worker), output)


class ReadmeTaskiqWorker(TaskiqWorker):
    """A Taskiq worker with the README's command."""

    words: tuple[str, ...] = ()

    def command(self) -> list[str]:
        return list(self.words)


class ReadmeCeleryWorker(CeleryWorker):
    """A Celery worker with the README's command."""

    words: tuple[str, ...] = ()

    def command(self) -> list[str]:
        return list(self.words)

    def ready(self) -> bool:
        return " ready." in self.log


def worker_for(queue: str, said: Program, directory: Path, commands: Path, env: Mapping[str, str]) -> Worker:
    """Make a worker that starts as a user starts it: by the command in ``commands``, in the directory of the file."""
    worker: ReadmeTaskiqWorker | ReadmeCeleryWorker
    if queue == "Taskiq":
        assert said.worker[:3] == ("taskiq", "worker", "shop:broker")
        processes = int(said.worker[said.worker.index("--workers") + 1])
        worker = ReadmeTaskiqWorker(said.worker[2], directory, workers=processes, env=env)
    else:
        worker = ReadmeCeleryWorker("shop", directory, env=env)
    worker.words = (str(commands / said.worker[0]), *said.worker[1:])
    return worker


def write_command(name: str, environment: CleanEnvironment) -> Path:
    """Write the command that pip would have, and return its directory; ``python -m`` finds more modules than it."""
    (entry,) = entry_points(group="console_scripts", name=name)
    script = environment.python.parent / name
    lines = (
        f"#!{environment.python}",
        "import sys",
        f"from {entry.module} import {entry.attr}",
        'if __name__ == "__main__":',  # processes that are spawned import it again
        f"    sys.exit({entry.attr}())",
    )
    script.write_text("\n".join(lines))
    script.chmod(0o755)
    return script.parent


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Program], CleanEnvironment]:
    """A function that installs the wheel as a section says, and nothing else."""
    wheel = build("wheel", tmp_path_factory.mktemp("wheel"))

    def install(said: Program) -> CleanEnvironment:
        directory = tmp_path_factory.mktemp("-".join(said.extras))
        return CleanEnvironment(directory / "venv", wheel, said.extras, said.also)

    return install


@pytest.mark.leaves("keys", reason="what the brokers themselves keep: Taskiq's stream, kombu's bindings")
@pytest.mark.parametrize("queue", ["Taskiq", "Celery"])
def test_the_readmes_file_and_commands_print_what_it_says(
    queue: str, clean: Callable[[Program], CleanEnvironment], redis_url: str, tmp_path: Path
) -> None:
    said = program(f"In {queue}")
    (tmp_path / "shop.py").write_text(said.source)
    environment = clean(said)
    assert not environment.names & ({"celery", "kombu"} if queue == "Taskiq" else {"taskiq", "taskiq-redis"})
    commands = write_command(said.worker[0], environment)
    env = {"REDIS_URL": redis_url, "PYTHONPATH": ""}
    with worker_for(queue, said, tmp_path, commands, env) as worker:
        ran = subprocess.run(
            [str(commands / "python"), "shop.py"],
            cwd=tmp_path, env={**os.environ, **env}, capture_output=True, text=True, timeout=90, check=False,
        )  # fmt: skip
        assert (ran.stdout, ran.returncode) == (said.output, 0), ran.stderr
        assert worker.terminate() == 0  # with its executors' processes


def test_both_sections_promise_the_same() -> None:
    assert program("In Taskiq").output == program("In Celery").output


@pytest.mark.parametrize(
    "name", sorted({*_labels.CACHE_LABELS, *_labels.POOL_LABELS, *_labels.EXECUTOR_LABELS, *CELERY_OPTIONS})
)
def test_the_readmes_table_has_every_option(name: str) -> None:
    table = README.partition("\n## What for what\n")[2].partition("\n## ")[0]
    assert f"`{name}=" in table


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text())
    targets = [link.partition("#")[0] for link in links if "://" not in link and not link.startswith("#")]
    missing = [target for target in targets if not (page.parent / target).exists()]
    assert not missing


def test_the_index_lists_every_page() -> None:
    index = ROOT / "docs" / "README.md"
    listed = set(re.findall(r"\]\((\w+\.md)\)", index.read_text()))
    assert listed == {page.name for page in PAGES if page.parent == index.parent} - {"README.md"}


def test_the_configuration_page_names_every_setting() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text()
    assert all(f"`SLOTLINE_{name.upper()}`" in page for name in Settings.model_fields)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_on_the_pages_is_python(page: Path) -> None:
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        compile(block, page.name, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
