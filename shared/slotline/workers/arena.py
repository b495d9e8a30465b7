"""Anonymous shared memory between an owner and one worker.

It is a file without a name: the kernel frees it when the last process that holds it is gone, whatever killed them,
so no kill can leak a segment. Its first page says which task the worker has begun; behind it the owner writes tasks,
and in a region far behind them the worker writes results.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Callable, Iterable
from typing import Final

TASKS: Final = 4096
"""Where the owner's region starts."""

RESULTS: Final = 1 << 40
"""Where the worker's region starts; the file is sparse, so the gap costs nothing."""

KEEP: Final = 8 * 1024 * 1024
"""Bytes that stay allocated between tasks."""

_NUMBER: Final = struct.Struct("<Q")
_CHUNK: Final = 1 << 30  # the kernel moves at most 2 GiB at once


class Arena:
    """One worker's shared memory, as a descriptor and the two things that are done with it."""

    __slots__ = ("_map", "fd")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._map: mmap.mmap | None = None

    @classmethod
    def create(cls) -> Arena:
        """Return a new, empty one."""
        arena = cls(os.memfd_create("slotline-arena", os.MFD_CLOEXEC))
        os.ftruncate(arena.fd, TASKS)
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

    def write(self, parts: Iterable[bytes], offset: int) -> None:
        """Copy a payload, part after part, to ``offset``."""
        for part in parts:
            view = memoryview(part)
            while view:
                written = os.pwrite(self.fd, view[:_CHUNK], offset)
                offset += written
                view = view[written:]

    def view(self, size: int) -> memoryview:
        """Return ``size`` bytes of the tasks' region without a copy; for the worker, whom a vanished page may kill."""
        if self._map is None or len(self._map) < TASKS + size:
            self._map = mmap.mmap(self.fd, TASKS + size, prot=mmap.PROT_READ)
        return memoryview(self._map)[TASKS : TASKS + size]

    def read(self, offset: int, size: int) -> bytes:
        """Return ``size`` bytes from ``offset``.

        Raises:
            EOFError: there are fewer.
        """
        parts = []
        while size > 0:
            part = os.pread(self.fd, min(size, _CHUNK), offset)
            if not part:
                raise EOFError("the shared memory of a worker ended within a payload")
            parts.append(part)
            offset += len(part)
            size -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def trim(self) -> None:
        """Give the memory back if more than :data:`KEEP` is allocated; nobody may be reading or writing."""
        if os.fstat(self.fd).st_blocks * 512 > KEEP:
            os.ftruncate(self.fd, TASKS)

    def close(self) -> None:
        """Close the descriptor; closing twice is harmless."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)
