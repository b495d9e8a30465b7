"""What the settings ``metrics`` and ``metrics_pools`` stand for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from slotline._checks import refuse
from slotline.keys import KeyTemplate
from slotline.metrics._names import name_keys
from slotline.metrics._telling import install
from slotline.metrics.exporter import Exporter

_CHOICES: Final = "'prometheus', 'otel', an Exporter, or None"
_NAMES: Final = "keys of pools, and templates of such keys"
_made: dict[str, Exporter] = {}


def checked_choice(option: str, value: Any) -> str | Exporter | None:
    """Return a value of ``metrics`` that is possible.

    Raises:
        InvalidOptionError: It is none.
    """
    if value is None or isinstance(value, Exporter) or (isinstance(value, str) and value in ("prometheus", "otel")):
        return value
    raise refuse(option, value, _CHOICES)


def checked_names(option: str, value: Any) -> tuple[str, ...]:
    """Return a value of ``metrics_pools``: several texts, or one with commas between them.

    Raises:
        InvalidOptionError: It is something else, or one of them is no template.
    """
    if isinstance(value, str):
        value = value.split(",")
    if not isinstance(value, Iterable):
        raise refuse(option, value, _NAMES)
    names = tuple(value)
    if not all(isinstance(name, str) for name in names):
        raise refuse(option, names, _NAMES)
    names = tuple(name.strip() for name in names if name.strip())
    for name in names:
        KeyTemplate(name, option=option)
    return names


def use(choice: str | Exporter | None, names: Iterable[str]) -> None:
    """Have what happens told to the exporter that is meant; a name means the same one each time.

    Raises:
        ImportError: Its library is not installed; nothing has changed then.
    """
    if isinstance(choice, str):
        choice = _made.get(choice) or _made.setdefault(choice, _make(choice))
    name_keys(names)
    install(choice)


def _make(choice: str) -> Exporter:
    if choice == "otel":
        from slotline.metrics.otel import OpenTelemetryMetrics  # noqa: PLC0415 - an extra

        return OpenTelemetryMetrics()
    from slotline.metrics.prometheus import PrometheusMetrics  # noqa: PLC0415 - an extra

    return PrometheusMetrics()
