"""``taskiq slotline app:broker ...``: the operator's commands on the store of a broker's middlewares.

Each ``taskiq`` command imports this module; what only this one needs is imported when it runs.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from taskiq.abc.cmd import TaskiqCMD

if TYPE_CHECKING:
    from collections.abc import Sequence

    from taskiq.abc.broker import AsyncBroker

    from slotline.stores import Store

_PROG = "taskiq slotline MODULE:BROKER"
_USAGE = f"usage: {_PROG} [-h] [--json] COMMAND ..."
_MISUSED = 2


class SlotlineCommand(TaskiqCMD):
    """The subcommand ``slotline`` of ``taskiq``."""

    short_help = "Look at limits and caches: pools, holders, waiting, explain, resize, purge, ..."

    def exec(self, args: Sequence[str]) -> int:
        """Run a command and return the exit status."""
        from taskiq.abc.broker import AsyncBroker  # noqa: PLC0415 - see above
        from taskiq.cli.utils import import_object  # noqa: PLC0415 - see above

        from slotline.cli import main  # noqa: PLC0415 - see above
        from taskiq_ext._purging import Failing  # noqa: PLC0415 - see above

        if not args or ":" not in args[0]:
            helps = "-h" in args or "--help" in args
            (sys.stdout if helps else sys.stderr).write(f"{_USAGE}\n\n{self.short_help}\n")
            return 0 if helps else _MISUSED
        try:
            broker = import_object(args[0])
        except (ImportError, AttributeError, ValueError) as error:
            sys.stderr.write(f"taskiq slotline: {args[0]!r} cannot be imported: {error}\n")
            return _MISUSED
        if not isinstance(broker, AsyncBroker):
            sys.stderr.write(f"taskiq slotline: {args[0]!r} must be a broker, and is of {type(broker)}\n")
            return _MISUSED
        store, setting = _store_of(broker), "PoolLimitMiddleware(RedisStore(url))"
        with Failing(broker) as answer:
            return main(args[1:], store=store, prog=_PROG, setting=setting, answer=answer)


def _store_of(broker: AsyncBroker) -> Store:
    from slotline.caches import RedisCacheAdapter  # noqa: PLC0415 - see above
    from slotline.settings import default_store  # noqa: PLC0415 - see above
    from taskiq_ext.cache import CacheMiddleware  # noqa: PLC0415 - see above
    from taskiq_ext.pools import PoolLimitMiddleware  # noqa: PLC0415 - see above

    limits = [one for one in broker.middlewares if isinstance(one, PoolLimitMiddleware)]
    if limits:
        return limits[0].store or default_store()
    caches = [one.cache for one in broker.middlewares if isinstance(one, CacheMiddleware)]
    shared = [cache.store for cache in caches if isinstance(cache, RedisCacheAdapter)]
    return shared[0] if shared else default_store()
