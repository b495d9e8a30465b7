"""Figures about pools, leases, caches and worker processes, for Prometheus and OpenTelemetry.

They are asked for by the setting ``metrics``: ``SLOTLINE_METRICS=prometheus``, or ``configure(metrics=...)``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from slotline._lazy import looked_up

if TYPE_CHECKING:
    from slotline.metrics._telling import sample_pools
    from slotline.metrics.exporter import Exporter, Metric, PoolFigures
    from slotline.metrics.otel import OpenTelemetryMetrics
    from slotline.metrics.prometheus import PoolCollector, PrometheusMetrics

__all__ = [
    "Exporter",
    "Metric",
    "OpenTelemetryMetrics",
    "PoolCollector",
    "PoolFigures",
    "PrometheusMetrics",
    "sample_pools",
]

_HOMES = {
    "Exporter": "exporter",
    "Metric": "exporter",
    "OpenTelemetryMetrics": "otel",
    "PoolCollector": "prometheus",
    "PoolFigures": "exporter",
    "PrometheusMetrics": "prometheus",
    "sample_pools": "_telling",
}

__getattr__ = looked_up(__name__, _HOMES)
