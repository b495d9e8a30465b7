"""A worker that has been told to end begins nothing more out of the room.

It may be a while until its consumer stops: a soft shutdown lets run what runs, for as long as that is allowed. Each run
that ends meanwhile would bring the next parked message, which others can run.
"""

from __future__ import annotations

from typing import Any

from celery.worker import state


class Ending:
    """Knows from the first moment on that a worker is to end.

    Args:
        worker: The ``WorkController``.
    """

    def __init__(self, worker: Any) -> None:
        self._softly = False
        self._wait: Any = getattr(worker, "wait_for_soft_shutdown", None)
        if self._wait is not None:  # Celery 5.4 has no soft shutdown
            worker.wait_for_soft_shutdown = self._end_softly

    def _end_softly(self) -> None:  # in a signal handler
        self._softly = True
        self._wait()

    @property
    def has_begun(self) -> bool:
        """Whether nothing is to begin any more."""
        flags = state.should_stop, state.should_terminate  # an exit code, which may be 0, once they are set
        return self._softly or any(flag is not None and flag is not False for flag in flags)
