"""Anonymous shared memory between an owner and one worker.

It is a file without a name: the kernel frees it when the last process that holds it is gone, whatever killed them,
so no kill can leak a segment. Its first page says which task the worker has begun; behind it the owner writes tasks,
and in a region far behind them the worker writes results. It is sealed against shrinking, so that no worker can take
mapped pages away from its owner.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import struct
from collections.abc import Callable, Iterable
from typing import Final

from slotline.workers import process_tree

TASKS: Final = mmap.ALLOCATIONGRANULARITY
"""Where the owner's region starts."""

RESULTS: Final = 1 << 40
"""Where the worker's region starts; the file is sparse, so the gap costs nothing."""

WINDOW: Final = 4 * 1024 * 1024
"""Bytes of each region that are mapped, once they are used; what lies behind is read and written by calls."""

KEEP: Final = 8 * 1024 * 1024
"""Bytes that stay allocated between tasks."""

_END: Final = 1 << 41
_NUMBER: Final = struct.Struct("<Q")
_CHUNK: Final = 1 << 30  # the kernel moves at most 2 GiB at once


class Arena:
    """One worker's shared memory, as both sides see it."""

    __slots__ = ("_maps", "fd")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._maps: dict[int, mmap.mmap] = {}

    @classmethod
    def create(cls) -> Arena:
        """Return a new, empty one."""
        arena = cls(os.memfd_create("slotline-arena", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
        os.ftruncate(arena.fd, _END)
        fcntl.fcntl(arena.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
        return arena

    def begin_marker(self) -> Callable[[int], None]:
        """Return what notes, for the owner to read after the worker's death, which task has been begun."""
        page = mmap.mmap(self.fd, TASKS)

        def begin(number: int) -> None:
            _NUMBER.pack_into(page, 0, number)

        return begin

    def begun(self) -> int:
        """Return the number of the last task that the worker has begun, 0 for none."""
        number: int = _NUMBER.unpack(os.pread(self.fd, _NUMBER.size, 0))[0]
        return number

    def _window(self, offset: int, size: int) -> tuple[mmap.mmap, int] | None:
        """Return the mapped part that holds ``size`` bytes from ``offset`` and where they start in it, if one does."""
        base = RESULTS if offset >= RESULTS else TASKS
        start = offset - base
        if start + size > WINDOW:
            return None
        if base not in self._maps:
            self._maps[base] = mmap.mmap(self.fd, WINDOW, offset=base)
        return self._maps[base], start

    def write(self, parts: Iterable[bytes], offset: int, size: int) -> None:
        """Copy a payload of ``size`` bytes, part after part, to ``offset``."""
        window = self._window(offset, size)
        if window is not None:
            mapped, start = window
            for part in parts:
                mapped[start : start + len(part)] = part
                start += len(part)
            return
        for part in parts:
            view = memoryview(part)
            while view:
                written = os.pwrite(self.fd, view[:_CHUNK], offset)
                offset += written
                view = view[written:]

    def read(self, offset: int, size: int) -> bytes | memoryview:
        """Return ``size`` bytes from ``offset``: a view that the next payload changes, or a copy of a long payload."""
        window = self._window(offset, size)
        if window is not None:
            mapped, start = window
            return memoryview(mapped)[start : start + size]
        parts = []
        while size > 0:
            part = os.pread(self.fd, min(size, _CHUNK), offset)
            parts.append(part)
            offset += len(part)
            size -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def trim(self) -> None:
        """Give the memory back if more than :data:`KEEP` is allocated; nobody may be reading or writing."""
        if os.fstat(self.fd).st_blocks * 512 > KEEP:
            process_tree.punch_hole(self.fd, TASKS, _END - TASKS)

    def close(self) -> None:
        """Close the descriptor and the mappings; closing twice is harmless."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)
        maps, self._maps = self._maps, {}
        for mapped in maps.values():
            with contextlib.suppress(BufferError):  # a payload is being unpacked; the mapping ends with it
                mapped.close()
