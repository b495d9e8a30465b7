"""The commands about caches."""

from __future__ import annotations

from argparse import Namespace

from slotline.caches import RedisCacheAdapter
from slotline.caches._keyspace import survey
from slotline.cli._console import Console
from slotline.cli._pools import NotFoundError
from slotline.steps import run_blocking
from slotline.stores.base import Store


def stats(console: Console, store: Store, args: Namespace) -> int:
    """Say what there is in a cache; hits and misses are each process's own (``get_stats()``)."""
    cache = _cache(store, args)
    found = run_blocking(survey(store, cache.names))
    told = f"{found.entries} entries, {found.tags} tags, {found.claims} being made"
    console.tell(f"Cache {args.namespace!r} in {store.name}: {told}.", {"namespace": args.namespace, **found._asdict()})
    return 0


def invalidate(console: Console, store: Store, args: Namespace) -> int:
    """Remove one entry, or all with a tag."""
    cache = _cache(store, args)
    if args.tag is not None:
        count = cache.sync.invalidate_tag(args.tag)
        console.tell(f"{count} entries had the tag {args.tag!r}.", {"tag": args.tag, "removed": count})
    elif cache.sync.invalidate(args.key):
        console.tell(f"Entry {args.key!r} is removed.", {"key": args.key, "removed": 1})
    else:
        raise NotFoundError(f"there is no entry {args.key!r} in cache {args.namespace!r} in {store.name}")
    return 0


def clear(console: Console, store: Store, args: Namespace) -> int:
    """Remove all entries of a cache, and nothing else."""
    _cache(store, args).sync.clear()
    console.tell(f"Cache {args.namespace!r} in {store.name} is empty.", {"namespace": args.namespace, "cleared": True})
    return 0


def _cache(store: Store, args: Namespace) -> RedisCacheAdapter:
    return RedisCacheAdapter(store=store, namespace=args.namespace)
