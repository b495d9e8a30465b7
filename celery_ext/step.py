"""The bootstep by which the gate gets into a worker."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery import bootsteps

from celery_ext._compat import check_version, warn_of_pool
from celery_ext.config import runtime
from celery_ext.freshness import Freshness
from celery_ext.gate import Gate
from celery_ext.signals import connect

if TYPE_CHECKING:
    from celery import Celery


class GateStep(bootsteps.StartStopStep):  # type: ignore[misc] # Celery ships no types
    """Builds the gate before the consumer builds its strategies, and empties it when the connection goes."""

    name = "slotline-gate"
    requires = ("celery.worker.consumer.connection:Connection",)

    def __init__(self, consumer: Any, **kwargs: Any) -> None:
        super().__init__(consumer, **kwargs)
        self.gate = Gate(consumer.controller, consumer)
        warn_of_pool(consumer.pool)
        self.freshness = Freshness(consumer) if runtime(consumer.app).config.keep_unacked_fresh else None

    def start(self, consumer: Any) -> None:  # noqa: ARG002 - the signature is Celery's
        """Begin with a fresh connection."""
        if self.freshness is not None:
            self.freshness.open()
        self.gate.open()

    def stop(self, consumer: Any) -> None:  # noqa: ARG002 - the signature is Celery's
        """Leave what is held to the broker."""
        self.gate.let_go()

    def shutdown(self, consumer: Any) -> None:  # noqa: ARG002 - the signature is Celery's
        """Give back everything; the worker's pool has ended."""
        if self.freshness is not None:
            self.freshness.close()
        self.gate.close()

    def register_with_event_loop(self, consumer: Any, hub: Any) -> None:  # noqa: ARG002 - the signature is Celery's
        """Take part in the event loop, again after each new connection."""
        self.gate.register(hub)

    def info(self, consumer: Any) -> dict[str, Any]:  # noqa: ARG002 - the signature is Celery's
        """Return what ``celery inspect stats`` shows."""
        return {"slotline": self.gate.counts()}


def setup(app: Celery) -> None:
    """Install the limits in an app whose tasks keep their own base class.

    Each worker of the app then looks for ``pool`` and the other limits among the attributes of its tasks, as set by
    ``task_annotations`` for example. Apps with ``celery_ext.Task`` need not call it; calling it again is harmless.

    Args:
        app: The app.

    Raises:
        UnsupportedFrameworkError: Celery is older than 5.4, or newer than 5.7.
    """
    check_version()
    connect()
    app.steps["consumer"].add(GateStep)
