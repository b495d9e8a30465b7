"""Exceptions that come where a signal's can: whenever a function begins, and after each call of a built-in one."""

from __future__ import annotations

import sys
from collections.abc import Callable
from inspect import CO_GENERATOR
from pathlib import PurePath
from types import FrameType


class Interrupted(BaseException):
    """What a signal raises."""


class Interrupts:
    """Interrupts what runs in some files at the ``number``-th place where a signal could.

    Args:
        number: From 1 on.
        where: Whether a place counts: the end of its path, such as ``("pools", "place.py")``, and the function.

    Attributes:
        left: How many places were left to go; at 0 it was interrupted.
    """

    def __init__(self, number: int, where: Callable[[tuple[str, ...], str], bool]) -> None:
        self.left, self._where = number, where

    def __call__(self, frame: FrameType, event: str, _: object) -> None:
        """See ``sys.setprofile``."""
        code = frame.f_code
        # What a generator that is thrown away would be told, nobody hears.
        thrown_away = event == "call" and code.co_flags & CO_GENERATOR and code.co_name.startswith("<")
        if event in ("call", "c_return") and not thrown_away:
            path = PurePath(code.co_filename).parts[-2:]
            self.left -= self._where(path, code.co_name)
            if not self.left:
                sys.setprofile(None)
                raise Interrupted

    def during(self, act: Callable[[], object]) -> bool:
        """Do something; return whether it was interrupted."""
        sys.setprofile(self)
        try:
            act()
        except Interrupted:
            pass
        finally:
            sys.setprofile(None)
        return not self.left
