"""``slotline top``: the pools, live."""

from __future__ import annotations

import itertools
import time
from argparse import Namespace

from slotline.cli._console import Console
from slotline.cli._pools import list_rows, show_rows
from slotline.stores.base import Store

_HOME_AND_CLEAR = "\x1b[H\x1b[2J"


def top(console: Console, store: Store, args: Namespace) -> int:
    """Show the pools again and again, the busiest first, until interrupted."""
    screens = itertools.count() if args.count is None else range(args.count)
    for screen in screens:
        if screen:
            time.sleep(args.interval)
        rows = list_rows(store, args.match, everything=args.all)
        rows.sort(key=lambda row: (-row["waiting"], -row["used"], row["pool"]))
        if not console.as_json:
            begin = _HOME_AND_CLEAR if console.out.isatty() else ""
            console.write(
                f"{begin}{store.name}  {time.strftime('%H:%M:%S')}  {len(rows)} pools, all {args.interval:g} s"
            )
        show_rows(console, store, rows)
        console.out.flush()
    return 0
