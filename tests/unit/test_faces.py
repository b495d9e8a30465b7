"""Both faces of a thing have the same methods, parameters and defaults."""

from __future__ import annotations

import inspect

import pytest

from slotline.pools import Limits, Place, Pool, Room, SyncLimit, SyncPlace, SyncPool, SyncRoom, SyncTaken, Taken
from slotline.stores import Store, SyncStore

PAIRS = [
    (Pool, SyncPool),
    (Limits, SyncLimit),
    (Place, SyncPlace),
    (Room, SyncRoom),
    (Taken, SyncTaken),
    (Store, SyncStore),
]


def coroutines(cls: type) -> dict[str, inspect.Signature]:
    """The public coroutine methods of a class; context managers work on the object itself."""
    found = inspect.getmembers(cls, inspect.iscoroutinefunction)
    return {name: inspect.signature(method) for name, method in found if not name.startswith("_")}


def methods(cls: type) -> dict[str, inspect.Signature]:
    found = inspect.getmembers(cls, inspect.isfunction)
    return {name: inspect.signature(method) for name, method in found if not name.startswith("_")}


@pytest.mark.parametrize(("async_face", "sync_face"), PAIRS, ids=lambda cls: cls.__name__)
def test_the_blocking_face_has_every_coroutine_method_with_the_same_signature(async_face, sync_face):
    assert coroutines(async_face)
    assert coroutines(async_face) == methods(sync_face)
