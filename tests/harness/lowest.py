"""Which tests `make test-lowest` runs: those that another version of a framework, or of a client, could change."""

from __future__ import annotations

import pytest

from tests.harness.workers import ROOT

FRAMEWORKS = ("test_taskiq", "test_celery")
OTHER_POOLS = {"threads", "solo", "gevent"}
OURS = (
    *("test_harness", "test_packaging", "test_imports", "test_examples", "test_cache_circles", "test_cache_processes"),
    *("test_limits_room_model", "test_pool_scripts_model"),
)
"""Modules of the integration tests in which nothing but this project takes part, or nothing that others do not show."""


def depends_on_versions(item: pytest.Item) -> bool:
    """Tell whether a test belongs to `make test-lowest`.

    Left out are faults, which take long; the memory store; the models, which compare our scripts with Python; leases
    of processes that are not billiard's; and, where a test of Celery runs in workers of each kind, all kinds but one.
    A test that says ``@pytest.mark.lowest`` itself is run as it is, on each kind.
    """
    tests, name = ROOT / "tests", item.path.stem
    if not item.path.is_relative_to(tests):
        return False
    kind = item.path.relative_to(tests).parts[0]
    values = _values(item)
    if kind == "unit":
        return name.startswith(FRAMEWORKS)
    if kind == "conformance":
        return not name.endswith("_model") and "memory" not in values
    if kind != "integration" or name.startswith(OURS):
        return False
    if name.startswith("test_leases"):
        return "billiard" in item.nodeid
    return not (name.startswith("test_celery") and OTHER_POOLS & set(values))


def _values(item: pytest.Item) -> list[str]:
    """Return the texts that a test is parametrised with."""
    callspec = getattr(item, "callspec", None)
    return [value for value in callspec.params.values() if isinstance(value, str)] if callspec is not None else []
