"""What every test is checked for when it has ended: it leaves no key, process, thread or event loop behind.

A test that must leave something says so, with the reason: ``@pytest.mark.leaves("keys", reason="...")``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Generator, Iterator
from importlib.metadata import version

import pytest
import redis
from packaging.requirements import Requirement

from tests.harness import guardian, leaks, workers
from tests.harness.lowest import depends_on_versions

KINDS = ("keys", "processes", "threads", "loops")

permanent: set[int] = set()
"""Pids of servers that serve the whole run."""


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        f"leaves(kind, ..., reason): what this test may leave behind ({', '.join(KINDS)}), and why",
    )
    config.addinivalue_line(
        "markers",
        'needs(requirement, reason): skip this test where another version is installed: needs("taskiq>=0.12.2", ...)',
    )
    leaks.watch_loops()


def pytest_unconfigure() -> None:
    guardian.close()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        allowed_leftovers(item)
        if " at 0x" in item.nodeid:
            raise pytest.UsageError(f"{item.nodeid}: name its values, for what fails is tried again by its name")
        for mark in item.iter_markers("needs"):
            item.add_marker(_skip_unless_installed(item, *mark.args, **mark.kwargs))
        if depends_on_versions(item):
            item.add_marker("lowest")


def _skip_unless_installed(item: pytest.Item, requirement: str, *, reason: str = "") -> pytest.MarkDecorator:
    if not reason.strip():
        raise pytest.UsageError(f"{item.nodeid}: say needs({requirement!r}, reason='why'); the reason is not optional")
    needed = Requirement(requirement)
    installed = version(needed.name)
    fits = needed.specifier.contains(installed, prereleases=True)
    return pytest.mark.skipif(not fits, reason=f"needs {requirement}, {installed} is installed: {reason}")


def allowed_leftovers(item: pytest.Item) -> set[str]:
    """Return the kinds of things that a test may leave; a mark without a known kind or a reason is an error."""
    allowed: set[str] = set()
    for mark in item.iter_markers("leaves"):
        reason = mark.kwargs.get("reason")
        if not isinstance(reason, str) or not reason.strip() or not mark.args or set(mark.kwargs) != {"reason"}:
            raise pytest.UsageError(f"{item.nodeid}: say leaves(kind, ..., reason='why'); the reason is not optional")
        unknown = set(mark.args) - set(KINDS)
        if unknown:
            raise pytest.UsageError(f"{item.nodeid}: leaves() knows {', '.join(KINDS)}, not {unknown}")
        allowed.update(mark.args)
    return allowed


def reset_slotline() -> None:
    """Forget the configured store and settings of this process, and close the default store."""
    settings = sys.modules.get("slotline.settings")
    if settings is not None:
        settings.reset()


def check_keys(item: pytest.Item, client: redis.Redis) -> None:
    """Fail a test that leaves keys which would stay for ever."""
    if "keys" in allowed_leftovers(item):
        return
    reset_slotline()
    left = leaks.keys_without_ttl(client)
    if left:
        pytest.fail(f"left {len(left)} key(s) without a TTL in Redis: {', '.join(left[:20])}", pytrace=False)


@pytest.fixture(autouse=True)
def _leaves_nothing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in [name for name in os.environ if name.startswith("SLOTLINE_")]:
        monkeypatch.delenv(name)
    workers.started.clear()
    before = leaks.Snapshot()
    yield
    reset_slotline()
    looks = {
        "processes": lambda: before.new_processes(except_pids=permanent),
        "threads": before.new_threads,
        "loops": before.new_loops,
    }
    allowed = allowed_leftovers(request.node)
    left = {kind: found for kind, look in looks.items() if kind not in allowed and (found := leaks.remaining(look))}
    if left:
        lines = [f"left {kind} behind: {'; '.join(found)}" for kind, found in left.items()]
        pytest.fail("\n".join(lines), pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        for worker in workers.started:
            report.sections.append((f"log of {worker.name} ({' '.join(worker.command())})", worker.log[-20_000:]))
    return report
