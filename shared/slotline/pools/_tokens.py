"""Tokens and owners: who holds what, unmistakably, in every process."""

from __future__ import annotations

import base64
import itertools
import os
import socket
from functools import lru_cache

_count = itertools.count(1)


@lru_cache(maxsize=1)
def _process() -> str:
    return base64.urlsafe_b64encode(os.urandom(9)).decode()  # short: each parked message keeps one


@lru_cache(maxsize=1)
def default_owner() -> str:
    """Return ``"host:pid"``."""
    return f"{socket.gethostname()}:{os.getpid()}"


def new_token() -> str:
    """Return a token that no other process, and no other call, ever had."""
    return f"{_process()}-{next(_count)}"


def _after_fork() -> None:
    _process.cache_clear()
    default_owner.cache_clear()


os.register_at_fork(after_in_child=_after_fork)
