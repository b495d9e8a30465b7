"""What becomes of a message whose limit or cache cannot be asked."""

from __future__ import annotations

import asyncio
import logging
import random
from typing import TYPE_CHECKING, TypeVar

from slotline import settings
from slotline._checks import one_of
from slotline.errors import StoreUnavailableError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from slotline.settings import OnStoreError

T = TypeVar("T")
logger = logging.getLogger(__name__)

_POLICIES: tuple[OnStoreError, ...] = ("wait", "open", "fail")
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0


class Outage:
    """The choice between holding a message until the store is back, running it regardless, and failing it.

    Args:
        policy: ``"wait"``, ``"open"`` or ``"fail"``; ``None``: ``on_store_error`` of the settings.

    Raises:
        InvalidOptionError: The policy is none of these.
    """

    def __init__(self, policy: OnStoreError | None) -> None:
        self._policy = None if policy is None else one_of("on_store_error", policy, _POLICIES)

    @property
    def policy(self) -> OnStoreError:
        """What holds now."""
        return self._policy or settings.current().on_store_error

    async def ride_out(self, ask: Callable[[], Awaitable[T]], what: str) -> T | None:
        """Return what ``ask()`` returns, asking again while the store is away; ``None``: go on without an answer.

        Raises:
            StoreUnavailableError: The store is away, and the policy is to fail.
        """
        pause = _FIRST_PAUSE
        while True:
            try:
                return await ask()
            except StoreUnavailableError as error:
                if self.policy == "fail":
                    raise
                if self.policy == "open":
                    logger.warning("%s goes on without it: %s", what, error)
                    return None
                logger.warning("%s waits for it: %s", what, error)
            await asyncio.sleep(pause * random.uniform(0.75, 1.25))  # noqa: S311 - jitter, not a secret
            pause = min(2 * pause, _LONGEST_PAUSE)
