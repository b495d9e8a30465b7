"""Fixtures that write an application's module and start workers of it."""

from __future__ import annotations

import importlib
import sys
import textwrap
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness.workers import CeleryWorker, TaskiqWorker, Worker


@pytest.fixture
def app_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """A function that writes a module and returns its name, which workers and ``importlib.import_module`` find."""
    names: list[str] = []
    monkeypatch.syspath_prepend(tmp_path)

    def write(source: str) -> str:
        name = f"app_{uuid.uuid4().hex[:10]}"
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(source))
        importlib.invalidate_caches()
        names.append(name)
        return name

    yield write
    for name in names:
        sys.modules.pop(name, None)


@pytest.fixture
def taskiq_worker(tmp_path: Path) -> Iterator[Callable[..., TaskiqWorker]]:
    """A function that starts a :class:`TaskiqWorker`: ``taskiq_worker("module:broker", workers=2)``."""
    yield from _starting(TaskiqWorker, tmp_path)


@pytest.fixture
def celery_worker(tmp_path: Path) -> Iterator[Callable[..., CeleryWorker]]:
    """A function that starts a :class:`CeleryWorker`: ``celery_worker("module", pool="threads")``."""
    yield from _starting(CeleryWorker, tmp_path)


def _starting(kind: type[Any], directory: Path) -> Iterator[Callable[..., Any]]:
    made: list[Worker] = []

    def start(app: str, *, wait: bool = True, **options: Any) -> Worker:
        worker: Worker = kind(app, options.pop("directory", directory), **options)
        made.append(worker)
        worker.start(wait=wait)
        return worker

    yield start
    for worker in made:
        worker.close()
