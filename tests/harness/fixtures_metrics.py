"""Figures as they are told, in a form that tests can look at."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

import pytest


@pytest.fixture
def figures() -> Any:
    """What is told from now on, by name and labels: ``figures.counts["pool_decisions", "crm", "admitted"]``."""
    from slotline import configure
    from slotline.metrics import Exporter

    class Recording(Exporter):
        def __init__(self) -> None:
            self.counts: Counter[tuple[str, ...]] = Counter()
            self.seconds: defaultdict[tuple[str, ...], list[float]] = defaultdict(list)

        def count(self, metric: Any, labels: tuple[str, ...], by: int) -> None:
            self.counts[metric.name, *labels] += by

        def observe(self, metric: Any, labels: tuple[str, ...], seconds: float) -> None:
            self.seconds[metric.name, *labels].append(seconds)

    recording = Recording()
    configure(metrics=recording)
    return recording
