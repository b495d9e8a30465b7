"""``slotline metrics``: the state of all pools for Prometheus, once or at a port."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence

from slotline.cli._console import Console
from slotline.cli._pools import NotFoundError
from slotline.metrics._names import name_keys
from slotline.metrics._sampling import Known, infos_of, summed
from slotline.metrics.exporter import PoolFigures, needs
from slotline.metrics.prometheus import PoolCollector
from slotline.pools._finding import pools_of
from slotline.pools.fleeting import is_line
from slotline.steps import run_blocking
from slotline.stores.base import Store

_AT_ONCE = 500
"""How many pools are asked about in one batch."""


def metrics(console: Console, store: Store, args: Namespace) -> int:
    """Write what Prometheus reads, or serve it until interrupted."""
    name_keys(args.name or (), option="--name")
    if console.as_json and args.port is None:
        console.tell("", [figures._asdict() for figures in _sample(store)])
        return 0
    try:
        needs("prometheus_client", "metrics")
    except ImportError as error:
        raise NotFoundError(error) from None
    from prometheus_client import CollectorRegistry, generate_latest, start_http_server  # noqa: PLC0415 - an extra

    registry = CollectorRegistry()
    PoolCollector(registry, sample=lambda: _sample(store))
    if args.port is None:
        console.out.write(generate_latest(registry).decode())
        return 0
    _sample(store)  # says now what is wrong with the server
    try:
        _, thread = start_http_server(args.port, args.address, registry)
    except (OSError, OverflowError) as error:  # the latter for a port that there cannot be
        raise NotFoundError(f"nothing can be served at {args.address}:{args.port}: {error}") from None
    console.tell(f"Serving http://{args.address}:{args.port}/metrics", {"address": args.address, "port": args.port})
    console.out.flush()
    thread.join()
    return 0


def _sample(store: Store) -> Sequence[PoolFigures]:
    pools = [pool for pool in run_blocking(pools_of(store)) if not is_line(pool.key)]
    known = [Known(pool.key, pool.keys, pool.max_size) for pool in pools]
    parts = (known[start : start + _AT_ONCE] for start in range(0, len(known), _AT_ONCE))
    return summed(info for part in parts for info in infos_of(store, part))
