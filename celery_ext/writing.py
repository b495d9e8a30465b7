"""A task that has its slot is written to a free child at once.

A prefork pool writes what it is given when the event loop has come round: after everything else that there is to do,
such as the ends of other tasks and the broker's next messages. A slot stands idle meanwhile, and the loop looks at all
children for it.
"""

from __future__ import annotations

from typing import Any

from celery.utils.log import get_logger

logger = get_logger(__name__)


def write_now(consumer: Any) -> None:
    """Have a prefork pool write what it has been given, as far as it has children that are free; other pools have none.

    Called in the event loop's thread. Where Celery has other names for what this needs, the loop writes as ever.
    """
    pool: Any = getattr(consumer.pool, "_pool", None)
    write = getattr(consumer.hub, "consolidate_callback", None)
    if write is None or not getattr(pool, "outbound_buffer", None):
        return
    try:
        free = pool._all_inqueues - pool._busy_workers - pool._active_writes  # noqa: SLF001 - a pool does not show them
    except AttributeError:
        return
    if free:
        try:
            write(list(free))
        except OSError as error:  # its child has just died, as the pool will find out
            logger.debug("a task could not be written at once: %s", error)
