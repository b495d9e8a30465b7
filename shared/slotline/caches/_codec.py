"""What a cache does with bytes that it cannot read and values that it cannot write: it goes on, and says so once."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from slotline.caches._failures import failure_data, failure_from
from slotline.caches.serializer import CorruptEntryError, Entry, Serializer
from slotline.errors import SerializationError

if TYPE_CHECKING:
    from slotline.caches._options import EntryOptions

logger = logging.getLogger("slotline.caches")

_REMEMBERED = 1_000


class Codec:
    """Reads and writes the entries of one cache.

    Args:
        serializer: How values become bytes.
    """

    def __init__(self, serializer: Serializer) -> None:
        self.serializer = serializer
        self._told: set[str] = set()

    def read(self, key: str, raw: bytes, returns: Any) -> Entry | None:
        """Return the entry in ``raw``, ``None`` where it cannot be read; that is logged once a key."""
        try:
            entry = self.serializer.load(key, raw, returns)
            return entry._replace(value=failure_from(entry.value)) if entry.error else entry
        except CorruptEntryError as error:
            self.tell_once(key, "the entry of %r is taken for a miss: %s", key, error)
        except Exception as error:  # noqa: BLE001 - the bytes may be anybody's
            self.tell_once(key, "the entry of %r is taken for a miss: %r", key, error)
        return None

    def write(self, key: str, value: Any, options: EntryOptions, delta: float) -> bytes | None:
        """Return ``value`` as bytes, ``None`` where it cannot be stored; that is logged once a key.

        Args:
            key: The entry's key.
            value: The value.
            options: How it is kept.
            delta: Seconds that its creator took.
        """
        entry = Entry(value)
        if options.grace or options.beta:
            entry = Entry(value, grace_ms=round(options.grace * 1000), delta_ms=round(delta * 1000))
        try:
            return self.serializer.dump(key, entry, options.returns)
        except SerializationError as error:
            self.tell_once(key, "the value of %r is not stored: %s", key, error)
        except Exception as error:  # noqa: BLE001 - it may come out of the value's own methods
            self.tell_once(key, "the value of %r is not stored: %r", key, error)
        return None

    def write_error(self, key: str, error: BaseException) -> bytes:
        """Return a creator's exception as bytes."""
        return self.serializer.dump(key, Entry(failure_data(error), error=True))

    def tell_once(self, about: str, message: str, *args: Any) -> None:
        """Log a warning, unless one about the same was logged lately."""
        if about not in self._told:
            if len(self._told) >= _REMEMBERED:
                self._told.clear()
            self._told.add(about)
            logger.warning(message, *args)
