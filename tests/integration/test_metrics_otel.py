"""Figures as an SDK of OpenTelemetry collects them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from slotline import Pool, PoolFullError, configure
from slotline.metrics import OpenTelemetryMetrics
from slotline.metrics.exporter import BUCKETS


@pytest.fixture
def reader() -> Iterator[InMemoryMetricReader]:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    configure(metrics=OpenTelemetryMetrics(provider), metrics_pools=["otel:{tenant}"])
    yield reader
    provider.shutdown()


def collected(reader: InMemoryMetricReader) -> dict[str, Any]:
    data = reader.get_metrics_data()
    (scope,) = data.resource_metrics[0].scope_metrics
    assert scope.scope.name == "slotline"
    return {metric.name: metric for metric in scope.metrics}


def points(metric: Any) -> dict[tuple[str, ...], Any]:
    return {tuple(value for _, value in sorted(point.attributes.items())): point for point in metric.data.data_points}


def test_what_happens_and_what_the_store_says_is_collected(reader, store):
    pool = Pool("otel:acme", 1, store=store)
    with pool:
        with pytest.raises(PoolFullError):
            pool.sync.acquire()
        now = collected(reader)
    assert {labels: point.value for labels, point in points(now["slotline.pool.slots"]).items()} == {
        ("otel:{tenant}", "used"): 1, ("otel:{tenant}", "waiting"): 0,
    }  # fmt: skip
    assert points(now["slotline.pool.limit"])["otel:{tenant}",].value == 1
    decisions = points(now["slotline.pool.decisions"])
    assert {labels: point.value for labels, point in decisions.items()} == {
        ("admitted", "otel:{tenant}"): 1, ("refused", "otel:{tenant}"): 1,
    }  # fmt: skip
    held = collected(reader)["slotline.pool.hold"]
    assert held.unit == "s"
    assert points(held)["otel:{tenant}",].count == 1


@pytest.mark.needs("opentelemetry-sdk>=1.30", reason="before that the API cannot say what bounds a histogram has")
def test_histograms_have_bounds_in_seconds(reader, store):
    with Pool("otel:acme", 1, store=store):
        pass
    (point,) = points(collected(reader)["slotline.pool.hold"]).values()
    assert point.explicit_bounds == BUCKETS
