"""Runs the benchmarks: ``python -m tests.bench`` all of them, ``python -m tests.bench pools cache`` some.

Each prints ratios against the physical limit and against peers, measured side by side in one run. Times on a shared
machine are noise; ratios and counted commands are not.
"""

from __future__ import annotations

import importlib
import sys
import time
from pathlib import Path


def main(names: list[str]) -> int:
    known = sorted(path.stem.removeprefix("bench_") for path in Path(__file__).parent.glob("bench_*.py"))
    unknown = set(names) - set(known)
    if unknown:
        print(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(known)}", file=sys.stderr)
        return 2
    for name in names or known:
        print(f"\n=== {name}", flush=True)
        started = time.perf_counter()
        importlib.import_module(f"tests.bench.bench_{name}").main()
        print(f"    ({time.perf_counter() - started:.0f} s)", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
