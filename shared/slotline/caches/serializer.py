"""Values as bytes: what comes out equals what went in, in value and in type, or it does not go in."""

from __future__ import annotations

import hashlib
import hmac
import pickle
import struct
import zlib
from dataclasses import dataclass
from typing import Any, NamedTuple

from slotline._checks import flag, refuse, whole_number
from slotline.caches._plain import decode, encode
from slotline.caches._typed import adapter_for, typed_dump, typed_load
from slotline.errors import SerializationError

VERSION = 1
"""The first byte of every entry; raised when the format changes, so that older entries are misses."""

_TYPED, _COMPRESSED, _SIGNED, _PICKLED, _ERROR, _TIMED = 1, 2, 4, 8, 16, 32
_KNOWN = 63
_TIMES = struct.Struct(">QI")
_MAC_BYTES = 32
_LARGEST_DELTA_MS = 2**32 - 1


class CorruptEntryError(Exception):
    """Bytes that are no entry of this version, or were changed on the way, or cannot be read with this type."""


class Entry(NamedTuple):
    """One stored entry, its value read.

    Attributes:
        value: The value, or the exception where ``error`` is set.
        error: Whether the creator failed and its exception is what was stored.
        grace_ms: How many milliseconds of the entry's life are grace.
        delta_ms: How many milliseconds its creator took.
    """

    value: Any
    error: bool = False
    grace_ms: int = 0
    delta_ms: int = 0


@dataclass(slots=True, frozen=True, kw_only=True)
class Serializer:
    """Turns values into bytes and back.

    Exact are ``None``, bool, int, float, str, bytes, list, tuple, set, frozenset, dict, datetime, date, time,
    timedelta, Decimal and UUID, nested at will; models, dataclasses and whatever else pydantic knows by the declared
    type. A value that would not come back equal is refused.

    Args:
        compress_above: Size in bytes above which the payload is compressed (default 16 KiB); ``None`` never.
        max_value_bytes: The largest entry in bytes (default 16 MiB); ``None`` sets no limit.
        signing_key: At least 16 secret bytes. Entries are then signed together with their key, and whatever was not
            signed with it is a miss.
        allow_pickle: Pickle what nothing else can store; needs a ``signing_key``, and is verified before it is loaded.

    Raises:
        InvalidOptionError: An option is impossible.
    """

    compress_above: int | None = 16 * 1024
    max_value_bytes: int | None = 16 * 1024 * 1024
    signing_key: bytes | None = None
    allow_pickle: bool = False

    def __post_init__(self) -> None:
        if self.compress_above is not None:
            whole_number("compress_above", self.compress_above, at_least=0)
        if self.max_value_bytes is not None:
            whole_number("max_value_bytes", self.max_value_bytes)
        if self.signing_key is not None and (not isinstance(self.signing_key, bytes) or len(self.signing_key) < 16):  # noqa: PLR2004 - documented
            raise refuse("signing_key", "...", "at least 16 bytes, or None")  # a secret stays out of logs
        if flag("allow_pickle", self.allow_pickle) and self.signing_key is None:
            raise refuse("allow_pickle", True, "False where no signing_key is set")  # noqa: FBT003 - the value that is refused

    def dump(self, key: str, entry: Entry, returns: Any = None) -> bytes:
        """Return the bytes for an entry.

        Args:
            key: The entry's key; a signature covers it.
            entry: What to store.
            returns: The declared type of the value, or a prepared ``pydantic.TypeAdapter``.

        Raises:
            SerializationError: The value would not come back equal, or is too large; the error names its type.
        """
        flags = _ERROR if entry.error else 0
        try:
            payload = encode(entry.value)
        except SerializationError:
            payload, extra = self._otherwise(entry.value, returns)
            flags |= extra
        if self.compress_above is not None and len(payload) > self.compress_above:
            smaller = zlib.compress(payload, 1)
            if len(smaller) < len(payload):
                payload, flags = smaller, flags | _COMPRESSED
        times = b""
        if entry.grace_ms or entry.delta_ms:
            times, flags = _TIMES.pack(entry.grace_ms, min(entry.delta_ms, _LARGEST_DELTA_MS)), flags | _TIMED
        if self.signing_key is not None:
            flags |= _SIGNED
        raw = bytes((VERSION, flags)) + times + payload
        if self.signing_key is not None:
            raw += self._mac(self.signing_key, key, raw)
        if self.max_value_bytes is not None and len(raw) > self.max_value_bytes:
            raise SerializationError(
                _name(entry.value), f"it takes {len(raw)} bytes, more than max_value_bytes={self.max_value_bytes}"
            )
        return raw

    def load(self, key: str, raw: bytes, returns: Any = None) -> Entry:
        """Return the entry that the bytes hold.

        Raises:
            CorruptEntryError: They hold none that can be read with this version, this type and this signing key.
        """
        flags = self._verified_flags(key, raw)
        at, end = 2, len(raw) - _MAC_BYTES if flags & _SIGNED else len(raw)
        try:
            grace_ms = delta_ms = 0
            if flags & _TIMED:
                grace_ms, delta_ms = _TIMES.unpack_from(raw, at)
                at += _TIMES.size
            payload = raw[at:end]
            if flags & _COMPRESSED:
                payload = self._decompressed(payload)
            if flags & _PICKLED:
                return Entry(pickle.loads(payload), bool(flags & _ERROR), grace_ms, delta_ms)  # noqa: S301 - its signature was verified
            value = decode(payload)
            if flags & _TYPED:
                value = _typed(returns, value)
        except CorruptEntryError:
            raise
        except Exception as error:  # anything may come out of bytes that somebody else wrote
            raise CorruptEntryError(f"{type(error).__name__}: {error}") from error
        return Entry(value, bool(flags & _ERROR), grace_ms, delta_ms)

    def _otherwise(self, value: Any, returns: Any) -> tuple[bytes, int]:
        """Store what is not plain: by its declared type, else pickled where that is allowed."""
        adapter = adapter_for(returns)
        try:
            if adapter is None:
                encode(value)  # raises again, with the type that is the reason
                raise AssertionError
            return typed_dump(adapter, value), _TYPED
        except SerializationError:
            if not self.allow_pickle:
                raise
        try:
            return pickle.dumps(value), _PICKLED
        except Exception as error:
            raise SerializationError(_name(value), f"it cannot be pickled ({error})") from error

    def _verified_flags(self, key: str, raw: bytes) -> int:
        if len(raw) < 3 or raw[0] != VERSION or raw[1] & ~_KNOWN:  # noqa: PLR2004 - version, flags and something
            raise CorruptEntryError("it is not an entry of this version")
        flags = raw[1]
        if self.signing_key is not None:
            if not flags & _SIGNED:
                raise CorruptEntryError("it is not signed")
            if not hmac.compare_digest(self._mac(self.signing_key, key, raw[:-_MAC_BYTES]), raw[-_MAC_BYTES:]):
                raise CorruptEntryError("its signature does not fit")
        elif flags & _SIGNED:
            raise CorruptEntryError("it is signed, and this reader has no signing_key")
        if flags & _PICKLED and not self.allow_pickle:
            raise CorruptEntryError("it is pickled, and allow_pickle is off")
        return flags

    def _decompressed(self, payload: bytes) -> bytes:
        inflater = zlib.decompressobj()
        # A limit of its own: a few bytes can unfold into gigabytes.
        limit = 0 if self.max_value_bytes is None else self.max_value_bytes * 32
        plain = inflater.decompress(payload, limit)
        if inflater.unconsumed_tail or not inflater.eof:
            raise CorruptEntryError("it is cut short, or unfolds into too much")
        return plain

    @staticmethod
    def _mac(signing_key: bytes, key: str, raw: bytes) -> bytes:
        name = key.encode("utf-8", "surrogatepass")
        return hmac.digest(signing_key, len(name).to_bytes(4, "big") + name + raw, hashlib.sha256)


def _typed(returns: Any, plain: Any) -> Any:
    adapter = adapter_for(returns)
    if adapter is None:
        raise CorruptEntryError("it was stored by its declared type, and the reader declares none")
    return typed_load(adapter, plain)


def _name(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")


__all__ = ["VERSION", "CorruptEntryError", "Entry", "Serializer"]
