"""Whether this process runs under gevent, where some things cannot work."""

from __future__ import annotations

import sys


def under_gevent() -> bool:
    """Whether the threads of this process are greenlets."""
    monkey = sys.modules.get("gevent.monkey")
    return monkey is not None and bool(monkey.is_module_patched("threading"))
