"""The command line: what can be said, and what becomes of errors."""

from __future__ import annotations

import sys
from argparse import SUPPRESS, ArgumentParser, ArgumentTypeError, Namespace, _SubParsersAction
from collections.abc import Callable, Sequence
from typing import TypeAlias

from slotline import _checks, settings
from slotline._version import __version__
from slotline.cli import _caches, _explain, _metrics, _pools, _top
from slotline.cli._console import Console
from slotline.errors import InvalidOptionError, SlotlineError
from slotline.pools._purging import Answer
from slotline.stores.base import Store

Commands: TypeAlias = "_SubParsersAction[ArgumentParser]"
_FAILED, _MISUSED, _INTERRUPTED = 1, 2, 130


def main(
    argv: Sequence[str] | None = None,
    *,
    store: Store | None = None,
    prog: str = "slotline",
    setting: str = "--redis-url, or SLOTLINE_REDIS_URL",
    answer: Answer | None = None,
) -> int:
    """Run one command of the operator's and return the exit status.

    Args:
        argv: The arguments; default those of the process.
        store: Where to look; ``None``: the configured store, or what ``--redis-url`` and ``--prefix`` say.
        prog: What help texts call the command.
        setting: Where the server is named, for errors.
        answer: What tells those who wait for the result of a message that it was removed.

    Returns:
        0; 1 where something is not there, or the store cannot be asked; 2 for arguments that cannot be used.
    """
    parser = _parser(prog, chooses=store is None)
    args = parser.parse_args(argv, Namespace(json=False, redis_url=None, prefix=None, answer=answer))
    status: int
    try:
        shared = _shared(store or _store(args), setting)
        status = args.run(Console(as_json=args.json), shared, args)
        sys.stdout.flush()
    except InvalidOptionError as error:
        return _complain(prog, error, _MISUSED)
    except (SlotlineError, _pools.NotFoundError) as error:
        return _complain(prog, error, _FAILED)
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:  # `slotline holders x | head`
        sys.stderr.close()
        return _FAILED
    return status


def _complain(prog: str, error: Exception, status: int) -> int:
    sys.stderr.write(f"{prog}: {error}\n")
    return status


def _store(args: Namespace) -> Store:
    if args.redis_url is not None or args.prefix is not None:
        named = {"redis_url": args.redis_url, "prefix": args.prefix}
        settings.configure(**{name: value for name, value in named.items() if value is not None})
    return settings.default_store()


def _shared(store: Store, setting: str) -> Store:
    if not store.shared:
        where = "limits and caches are in each process's own memory here"
        raise _pools.NotFoundError(f"{where}; name a server: {setting}")
    return store


def _parser(prog: str, *, chooses: bool) -> ArgumentParser:
    # May stand before the command and behind it; without defaults, by which the one behind would undo the one before.
    common = ArgumentParser(add_help=False, argument_default=SUPPRESS)
    common.add_argument("--json", action="store_true", help="write JSON, for scripts")
    if chooses:
        common.add_argument("--redis-url", metavar="URL", help="the server; default: SLOTLINE_REDIS_URL")
        common.add_argument("--prefix", help="the first part of every key; default: SLOTLINE_PREFIX, else slotline")
    parser = ArgumentParser(prog=prog, description="Looks at the limits and caches of all workers.", parents=[common])
    parser.add_argument("--version", action="version", version=f"slotline {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_pools(commands, common)
    _add_metrics(_command(commands, common, "metrics", "show the pools to Prometheus", _metrics.metrics))
    caches = _command(commands, common, "cache", "look at a cache, remove entries", None)
    _add_caches(caches.add_subparsers(title="commands", metavar="COMMAND", required=True), common)
    return parser


Run: TypeAlias = Callable[[Console, Store, Namespace], int]


def _command(commands: Commands, common: ArgumentParser, name: str, says: str, run: Run | None) -> ArgumentParser:
    parser = commands.add_parser(name, parents=[common], help=says, description=says[0].upper() + says[1:] + ".")
    if run is not None:
        parser.set_defaults(run=run)
    return parser


def _add_pools(commands: Commands, common: ArgumentParser) -> None:
    def about_one(name: str, says: str, run: Run) -> ArgumentParser:
        parser = _command(commands, common, name, says, run)
        parser.add_argument("key", metavar="KEY", help="the pool")
        parser.add_argument("--group", help="its group, where it has one")
        return parser

    def about_all(name: str, says: str, run: Run) -> ArgumentParser:
        parser = _command(commands, common, name, says, run)
        parser.add_argument("--match", metavar="PATTERN", help="only pools whose keys are like this: 'api:*'")
        parser.add_argument("--all", action="store_true", help="also the lines of those who wait for a cached value")
        return parser

    about_all("pools", "list the pools: limit, used, waiting, oldest wait", _pools.pools)
    for name, says, run in (
        ("holders", "list who holds the slots of a pool", _pools.holders),
        ("waiting", "list who waits for a pool, those who came first", _pools.waiting),
    ):
        about_one(name, says, run).add_argument("--most", type=_whole, default=100, help="how many to list (100)")
    explain = _command(commands, common, "explain", "say why a task does not run yet", _explain.explain)
    explain.add_argument("task_id", metavar="TASK_ID", help="the id, or a part of the owner's name")
    resize = about_one("resize", "change a pool's limit at once, until another size is declared in code", _pools.resize)
    resize.add_argument("size", metavar="N", type=_whole, help="how many slots it has from now on")
    about_one("pause", "let nobody into a pool; holders are left alone, waiters keep their places", _pools.pause)
    about_one("resume", "let callers into a paused pool again", _pools.resume)
    says = "remove the messages that are parked for a pool; what runs goes on, callers keep their places"
    purge = about_one("purge", says, _pools.purge)
    purge.add_argument("--yes", action="store_true", help="do not ask whether that is meant")
    evict = about_one("evict", "tell a holder to end; its slot counts until it has", _pools.evict)
    evict.add_argument("--fence", type=_whole, help="its fence, where the token comes without")
    beside = "free a slot at once, also that of a holder that lives: the next one runs beside it"
    for parser in (evict, about_one("release", beside, _pools.release)):
        shown = "as slotline holders shows it, with its fence: nobody is meant who has the slot after it"
        parser.add_argument("run_meant", metavar="TOKEN", type=_pools.Run.read, help=shown)
    top = about_all("top", "show the pools live, the busiest first", _top.top)
    top.add_argument("--interval", type=_seconds, default=2.0, help="seconds between two looks (2)")
    top.add_argument("--count", type=_whole, help="how many looks; default: until interrupted")


def _add_metrics(parser: ArgumentParser) -> None:
    called = "what pools are called that fit it, a key or a template: 'crm:{tenant}'; may be given again"
    parser.add_argument("--name", action="append", metavar="TEMPLATE", help=called)
    parser.add_argument("--port", type=_whole, help="serve at this port; default: write once")
    parser.add_argument("--address", default="127.0.0.1", help="where to serve (127.0.0.1)")


def _add_caches(commands: Commands, common: ArgumentParser) -> None:
    def about_one(name: str, says: str, run: Run) -> ArgumentParser:
        parser = _command(commands, common, name, says, run)
        parser.add_argument("--namespace", default="cache", help="the cache's namespace (cache)")
        return parser

    about_one("stats", "say what there is in a cache", _caches.stats)
    invalidate = about_one("invalidate", "remove an entry, or all with a tag", _caches.invalidate)
    what = invalidate.add_mutually_exclusive_group(required=True)
    what.add_argument("key", metavar="KEY", nargs="?", help="the entry")
    what.add_argument("--tag", help="the tag")
    about_one("clear", "remove all entries of a cache, and nothing else", _caches.clear)


def _whole(text: str) -> int:
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise ArgumentTypeError(f"{text!r} must be a whole number of at least 1")


def _seconds(text: str) -> float:
    try:
        return _checks.seconds("--interval", float(text))
    except (ValueError, InvalidOptionError):
        raise ArgumentTypeError(f"{text!r} must be a number of seconds greater than zero") from None
