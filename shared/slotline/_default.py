"""The value that means "as configured", where ``None`` has a meaning of its own."""

from __future__ import annotations

from enum import Enum
from typing import Final, Literal, TypeAlias


class _Default(Enum):
    DEFAULT = "as configured"

    def __repr__(self) -> str:
        return "DEFAULT"


Default: TypeAlias = Literal[_Default.DEFAULT]
DEFAULT: Final = _Default.DEFAULT
