"""Questions that may have to be asked again after a moment, in the worker's main process, which must not sleep.

Whoever does not wait is refused for no slot that only rests between two runs, and nobody is told to end for one: see
``Relay``. To find out can take a third of a second, once an hour and pool, in which the worker has other things to do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery.utils.log import get_logger

from celery_ext.held import Held, owner_of
from slotline.errors import StoreError
from slotline.steps import Paused, Steps, run_to_pause

if TYPE_CHECKING:
    from celery_ext.mailbox import Mailbox
    from celery_ext.store_watch import StoreWatch
    from slotline.pools import Slot

logger = get_logger(__name__)


class Pausing:
    """Asks pools for those who do not wait, and for those for whom another is to end.

    Args:
        consumer: The worker's consumer, whose timer goes on where a thread would sleep.
        mailbox: Where that posts.
        watch: The way to the store.
    """

    def __init__(self, consumer: Any, mailbox: Mailbox, watch: StoreWatch) -> None:
        self._consumer, self._mailbox, self._watch = consumer, mailbox, watch

    def acquire(self, held: Held) -> Slot | Paused:
        """Return a slot, or a pause after which to ask anew.

        Raises:
            PoolFullError: There is none.
            StoreError: The store cannot be asked.
        """
        steps = held.pool.acquiring(owner_of(held.request), 0.0, **held.limit.share, evict=False)
        outcome: Slot | Paused = self._watch.ask(lambda: run_to_pause(steps))
        if isinstance(outcome, Paused):
            steps.close()
        return outcome

    def evict(self, held: Held) -> None:
        """Have those end, now or after a moment, that one who waits by now needs to end."""
        self._go_on(held, held.pool.evicting(None, held.pool.shares_of(**held.limit.share)))

    def _go_on(self, held: Held, steps: Steps[Any]) -> None:
        try:
            outcome = self._watch.ask(lambda: run_to_pause(steps))
        except StoreError as error:  # it waits as others do
            logger.warning("%s waits without an eviction: %s", held.request, error)
        else:
            if isinstance(outcome, Paused):
                self._consumer.timer.call_after(outcome.seconds, self._mailbox.post, (self._go_on, held, steps))
