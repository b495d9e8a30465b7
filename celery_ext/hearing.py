"""What a worker's children report is heard before the broker's next message.

An event loop goes through what has happened in the order in which it is told of it. While it parks one message after
the other, the next one is always told first: the end of a run, with whose slot one of them begins, would wait for two.
"""

from __future__ import annotations

from typing import Any


def hear_now(consumer: Any) -> None:
    """Have a prefork pool read what its children have sent by now; other pools have none.

    Called in the event loop's thread.
    """
    hub: Any = consumer.hub
    hear: Any = getattr(getattr(consumer.pool, "_pool", None), "handle_result_event", None)
    if hub is None or hear is None:
        return
    for descriptor, _ in hub.poller.poll(0) or ():
        reader: Any = hub.readers.get(descriptor)
        if reader is not None and reader[0] is hear:  # and not in the middle of a report
            hear(descriptor)
