"""The way to OpenTelemetry, by its API; what the figures become is the affair of the meter provider."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

from slotline._version import __version__
from slotline.metrics._telling import sample_pools
from slotline.metrics.exporter import BUCKETS, LIMIT_SAYS, METRICS, SLOTS_SAY, Exporter, Metric, needs

if TYPE_CHECKING:
    from opentelemetry.metrics import CallbackOptions, Meter, MeterProvider, Observation

_PREFIX: Final = "slotline."


class OpenTelemetryMetrics(Exporter):
    """Figures for OpenTelemetry.

    The instruments are named as the metrics are, with dots: ``slotline.pool.wait`` in seconds is what Prometheus would
    call ``slotline_pool_wait_seconds``. They come into being with the first figure.

    Args:
        meter_provider: Who makes them; ``None``: the global one.

    Raises:
        ImportError: ``opentelemetry-api`` is not installed.
    """

    def __init__(self, meter_provider: MeterProvider | None = None) -> None:
        needs("opentelemetry.metrics", "otel")
        self._provider = meter_provider
        self._instruments: dict[str, Any] = {}

    def count(self, metric: Metric, labels: tuple[str, ...], by: int) -> None:
        """See :class:`Exporter`."""
        self._instrument(metric).add(by, dict(zip(metric.labels, labels, strict=True)))

    def observe(self, metric: Metric, labels: tuple[str, ...], seconds: float) -> None:
        """See :class:`Exporter`."""
        self._instrument(metric).record(seconds, dict(zip(metric.labels, labels, strict=True)))

    def _instrument(self, metric: Metric) -> Any:
        if not self._instruments:
            self._make()
        return self._instruments[metric.name]

    def _make(self) -> None:
        from opentelemetry.metrics import get_meter  # noqa: PLC0415 - an extra

        meter = get_meter("slotline", __version__, self._provider)
        for metric in METRICS:
            name = _dotted(metric.name)
            if metric.kind == "counter":
                self._instruments[metric.name] = meter.create_counter(name, description=metric.says)
            else:
                self._instruments[metric.name] = _histogram(meter, name, metric.says)
        meter.create_observable_gauge(_dotted("pool_slots"), [_slots], "{slot}", SLOTS_SAY)
        meter.create_observable_gauge(_dotted("pool_limit"), [_limits], "{slot}", LIMIT_SAYS)


def _dotted(name: str) -> str:
    return _PREFIX + name.replace("_", ".", 1)


def _histogram(meter: Meter, name: str, says: str) -> Any:
    # Later versions of the API can be told of bounds in seconds; where not, a view of the SDK can.
    takes = inspect.signature(meter.create_histogram).parameters
    hint: dict[str, Any] = (
        {"explicit_bucket_boundaries_advisory": BUCKETS} if "explicit_bucket_boundaries_advisory" in takes else {}
    )
    return meter.create_histogram(name, "s", says, **hint)


def _slots(_: CallbackOptions) -> Iterable[Observation]:
    from opentelemetry.metrics import Observation  # noqa: PLC0415 - an extra

    for pool in sample_pools():
        yield Observation(pool.used, {"pool": pool.pool, "state": "used"})
        yield Observation(pool.waiting, {"pool": pool.pool, "state": "waiting"})


def _limits(_: CallbackOptions) -> Iterable[Observation]:
    from opentelemetry.metrics import Observation  # noqa: PLC0415 - an extra

    for pool in sample_pools():
        if pool.limit is not None:
            yield Observation(pool.limit, {"pool": pool.pool})
