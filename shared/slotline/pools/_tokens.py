"""Tokens, owners, digests: who holds what, and which message is which, unmistakably, in every process."""

from __future__ import annotations

import base64
import hashlib
import itertools
import os
import socket
from functools import lru_cache

_count = itertools.count(1)


@lru_cache(maxsize=1)
def _process() -> str:
    # Short, for each parked message keeps one; and no hyphen, or a command would take some tokens for options.
    return base64.b64encode(os.urandom(9), altchars=b"._").decode()


@lru_cache(maxsize=1)
def default_owner() -> str:
    """Return ``"host:pid"``."""
    return f"{socket.gethostname()}:{os.getpid()}"


def new_token() -> str:
    """Return a token that no other process, and no other call, ever had."""
    return f"{_process()}-{next(_count)}"


def is_of_this_process(token: str) -> bool:
    """Return whether a token was made here, and not in the process that this one was forked from, or in any other."""
    return token.startswith(f"{_process()}-")


def digest_of(message: bytes, lane_id: str) -> str:
    """Return the identity of a message: a retry is another one, although it carries the same task id.

    So is the copy that an exchange has put into another queue: each of them is to run.
    """
    digest = hashlib.blake2b(message, digest_size=15, key=lane_id.encode()).digest()
    return base64.urlsafe_b64encode(digest).decode()


@lru_cache(maxsize=1024)
def lane_id_of(name: str) -> str:
    """Return what a store calls a lane."""
    digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=5).digest()
    return base64.urlsafe_b64encode(digest).decode().rstrip("=")


def _after_fork() -> None:
    _process.cache_clear()
    default_owner.cache_clear()


os.register_at_fork(after_in_child=_after_fork)
