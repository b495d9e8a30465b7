"""Pools as context managers: which slot a block holds."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from slotline.pools.slot import Slot
from slotline.steps import run_awaiting, run_blocking

if TYPE_CHECKING:
    from slotline.pools.limit import Limit

Held = TypeVar("Held", bound=Slot)

# The blocks that are open in this thread or task, the innermost last. A task started inside a block sees the block,
# but what it enters and leaves itself stays its own.
_open: ContextVar[tuple[tuple[Blocks[Any], str], ...]] = ContextVar("slotline_open_pools", default=())


class Blocks(Generic[Held]):
    """The open blocks of one pool."""

    def __init__(self) -> None:
        self._slots: dict[str, Held] = {}

    def enter(self, slot: Held) -> Held:
        """Open a block with ``slot``."""
        # One that was left in another context is still noted in this one.
        still_open = [(of, token) for of, token in _open.get() if token in of._slots]  # noqa: SLF001 - of this class
        _open.set((*still_open, (self, slot.token)))
        self._slots[slot.token] = slot  # the last step: a signal's exception before it leaves nothing
        return slot

    def leave(self, pool: Limit[Held]) -> Held:
        """Close the innermost block of the running thread or task and return its slot.

        A framework may leave a block in another context than it entered it in (a fixture, a dependency that runs in a
        thread pool): then it is the pool's newest block, and since all of them hold the same kind of slot, any will do.
        """
        blocks = _open.get()
        for at in range(len(blocks) - 1, -1, -1):
            if blocks[at][0] is self:
                _open.set(blocks[:at] + blocks[at + 1 :])
                slot = self._slots.pop(blocks[at][1], None)
                if slot is not None:
                    return slot
        if not self._slots:
            raise RuntimeError(f"{pool!r} is left more often than it was entered")
        return self._slots.popitem()[1]


class HeldSlot(Generic[Held]):
    """Gives a slot back at the end of a block, for ``with`` and ``async with``."""

    def __init__(self, pool: Limit[Held], slot: Held) -> None:
        self._pool, self._slot = pool, slot

    def __enter__(self) -> Held:
        return self._slot

    def __exit__(self, *exc: object) -> None:
        run_blocking(self._pool.closing(self._slot))

    async def __aenter__(self) -> Held:
        return self._slot

    async def __aexit__(self, *exc: object) -> None:
        await run_awaiting(self._pool.closing(self._slot))


class SlotContext(Generic[Held]):
    """Waits for a slot on entering and gives it back on leaving; works with ``with`` and ``async with``, once."""

    def __init__(self, pool: Limit[Held], **options: Any) -> None:
        self._pool, self._options = pool, options
        self._slot: Held | None = None

    def __enter__(self) -> Held:
        self._unused()
        self._slot = self._pool.sync.acquire(**self._options)
        return self._slot

    def __exit__(self, *exc: object) -> None:
        run_blocking(self._pool.closing(self._held()))

    async def __aenter__(self) -> Held:
        self._unused()
        self._slot = await self._pool.acquire(**self._options)
        return self._slot

    async def __aexit__(self, *exc: object) -> None:
        await run_awaiting(self._pool.closing(self._held()))

    def _unused(self) -> None:
        if self._slot is not None:
            raise RuntimeError("pool.slot() is good for one block; call it again for the next")

    def _held(self) -> Held:
        if self._slot is None:
            raise RuntimeError("this block was never entered")
        return self._slot
