"""One test body uses an object through both of its faces."""

from __future__ import annotations

import threading

import pytest


class Both:
    """An object with two faces that notes who used it."""

    def __init__(self) -> None:
        self.used = []
        self.sync = _Blocking(self)

    async def add(self, a: int, *, b: int) -> int:
        self.used.append("async")
        return a + b

    async def __aenter__(self) -> str:
        self.used.append("enter async")
        return "value"

    async def __aexit__(self, kind: object, *rest: object) -> bool:
        self.used.append(f"exit async {kind and kind.__name__}")
        return kind is KeyError

    def __enter__(self) -> str:
        assert threading.current_thread() is not threading.main_thread()
        self.used.append("enter sync")
        return "value"

    def __exit__(self, kind: object, *rest: object) -> bool:
        self.used.append(f"exit sync {kind and kind.__name__}")
        return kind is KeyError


class _Blocking:
    def __init__(self, owner: Both) -> None:
        self.owner = owner

    def add(self, a: int, *, b: int) -> int:
        assert threading.current_thread() is not threading.main_thread()
        self.owner.used.append("sync")
        return a + b


async def test_call_uses_the_face_of_this_run(call):
    both = Both()
    assert await call(both, "add", 1, b=2) == 3
    assert both.used == [call.face]


async def test_using_enters_and_leaves_through_the_face_of_this_run(call):
    both = Both()
    async with call.using(both) as value:
        assert value == "value"
    assert both.used == [f"enter {call.face}", f"exit {call.face} None"]


async def test_using_hands_the_error_to_the_manager(call):
    both = Both()
    with pytest.raises(ValueError, match="mine"):
        async with call.using(both):
            raise ValueError("mine")
    async with call.using(both):
        raise KeyError("swallowed")
    assert both.used[1::2] == [f"exit {call.face} ValueError", f"exit {call.face} KeyError"]
