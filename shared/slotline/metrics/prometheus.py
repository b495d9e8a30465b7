"""The way to Prometheus, by ``prometheus_client``, in one process or in several that share a directory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final

from slotline.metrics._telling import sample_pools
from slotline.metrics.exporter import BUCKETS, LIMIT_SAYS, METRICS, SLOTS_SAY, Exporter, Metric, PoolFigures, needs

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric as Family

_PREFIX: Final = "slotline_"


class PrometheusMetrics(Exporter):
    """Figures for Prometheus.

    Its families come into being with the first figure: by then ``PROMETHEUS_MULTIPROC_DIR`` is set, which the library
    reads when it is imported, and which Taskiq's ``PrometheusMiddleware`` sets.

    Args:
        registry: Where they are registered; ``None``: in the library's own, which its servers show.

    Raises:
        ImportError: ``prometheus_client`` is not installed.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        needs("prometheus_client", "metrics")
        self._registry = registry
        self._families: dict[str, Any] = {}
        self._children: dict[tuple[str, tuple[str, ...]], Any] = {}

    def count(self, metric: Metric, labels: tuple[str, ...], by: int) -> None:
        """See :class:`Exporter`."""
        self._child(metric, labels).inc(by)

    def observe(self, metric: Metric, labels: tuple[str, ...], seconds: float) -> None:
        """See :class:`Exporter`."""
        self._child(metric, labels).observe(seconds)

    def _child(self, metric: Metric, labels: tuple[str, ...]) -> Any:
        child = self._children.get((metric.name, labels))
        if child is None:
            if not self._families:
                self._make()
            family = self._families[metric.name]
            child = self._children[metric.name, labels] = family.labels(*labels) if labels else family
        return child

    def _make(self) -> None:
        from prometheus_client import REGISTRY, Counter, Histogram  # noqa: PLC0415 - see the class

        registry = REGISTRY if self._registry is None else self._registry
        for metric in METRICS:
            name, says, labels = _PREFIX + metric.name, metric.says, metric.labels
            if metric.kind == "counter":
                self._families[metric.name] = Counter(name, says, labels, registry=registry)
            else:
                self._families[metric.name] = Histogram(
                    f"{name}_seconds", says, labels, registry=registry, buckets=BUCKETS
                )
        PoolCollector(registry)


class PoolCollector:
    """Shows the state of the pools that this process uses, as their stores say when it is looked at.

    ``PrometheusMetrics`` registers one. A registry with a ``MultiProcessCollector``, which shows nothing else, needs
    one of its own, in one of the processes.

    Args:
        registry: Where it is registered; ``None``: nowhere.
        sample: What tells of the pools; default: those that this process uses.
    """

    def __init__(
        self, registry: CollectorRegistry | None = None, *, sample: Callable[[], Iterable[PoolFigures]] = sample_pools
    ) -> None:
        self._sample = sample
        if registry is not None:
            registry.register(self)

    def describe(self) -> Iterable[Family]:
        """Name what there may be to see; asks no store."""
        return self._families(())

    def collect(self) -> Iterator[Family]:
        """Ask, and show what there is."""
        yield from self._families(self._sample())

    def _families(self, figures: Iterable[PoolFigures]) -> tuple[Family, ...]:
        from prometheus_client.metrics_core import GaugeMetricFamily  # noqa: PLC0415 - see PrometheusMetrics

        slots = GaugeMetricFamily(f"{_PREFIX}pool_slots", SLOTS_SAY, labels=("pool", "state"))
        limit = GaugeMetricFamily(f"{_PREFIX}pool_limit", LIMIT_SAYS, labels=("pool",))
        for pool in figures:
            slots.add_metric((pool.pool, "used"), pool.used)
            slots.add_metric((pool.pool, "waiting"), pool.waiting)
            if pool.limit is not None:
                limit.add_metric((pool.pool,), pool.limit)
        return slots, limit
