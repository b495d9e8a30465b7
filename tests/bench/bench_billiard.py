"""The process pool beside raw pipes and beside its peers.

Run it with ``python -m tests.bench billiard``. Raw pipes are two processes that send back what they get over
``os.pipe`` pairs, driven in lockstep by one thread. The contenders take turns for many short
rounds, so that the machine's noise falls on all of them alike; the median round of each counts. The ratios matter, the
times do not.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import os
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, wait
from typing import Any, NamedTuple, TypeAlias

import billiard
import billiard.pool

from slotline.workers import BilliardExecutor

ROUNDS = 15
TRIPS, TASKS, LONG_TRIPS, WARM_UP = 300, 4000, 20, 5
SHORT, LONG = os.urandom(100), os.urandom(1 << 20)
GOALS = {"round trip": 4.0, "throughput": 2.2, "1 MB": 0.3}


def echo(data: bytes) -> bytes:
    return data


def pid() -> int:
    return os.getpid()


def send_back(reader: Any, writer: Any) -> None:
    while True:
        try:
            writer.send_bytes(reader.recv_bytes())
        except EOFError:
            return


class Contender(NamedTuple):
    """One pool: a round trip, and many tasks handed in at once."""

    name: str
    trip: Callable[[bytes], Any]
    many: Callable[[int], Any]
    long: bool = True


@contextlib.contextmanager
def raw_pipes() -> Iterator[Contender]:
    context = billiard.get_context("spawn")
    ends, processes = [], []
    for _ in range(2):
        to_read, to_write = context.Pipe(duplex=False)
        back_read, back_write = context.Pipe(duplex=False)
        process = context.Process(target=send_back, args=(to_read, back_write))
        process.start()
        to_read.close()
        back_write.close()
        processes.append(process)
        ends.append((to_write, back_read))

    def trip(data: bytes) -> bytes:
        ends[0][0].send_bytes(data)
        return ends[0][1].recv_bytes()

    def many(count: int) -> None:
        for _ in range(count // 2):
            for writer, _ in ends:
                writer.send_bytes(SHORT)
            for _, reader in ends:
                reader.recv_bytes()

    yield Contender("raw pipes", trip, many)
    for writer, reader in ends:
        writer.close()
        reader.close()
    for process in processes:
        process.join()


@contextlib.contextmanager
def slotline() -> Iterator[Contender]:
    with BilliardExecutor(2) as executor:
        yield Contender(
            "BilliardExecutor",
            lambda data: executor.submit(echo, data).result(),
            lambda count: wait([executor.submit(echo, SHORT) for _ in range(count)]),
        )


@contextlib.contextmanager
def billiard_pool() -> Iterator[Contender]:
    pool = billiard.pool.Pool(2)

    def many(count: int) -> None:
        for result in [pool.apply_async(echo, (SHORT,)) for _ in range(count)]:
            result.get()

    yield Contender("billiard.Pool", lambda data: pool.apply(echo, (data,)), many)
    pool.terminate()
    pool.join()


@contextlib.contextmanager
def standard_library() -> Iterator[Contender]:
    with ProcessPoolExecutor(2) as executor:
        yield Contender(
            "ProcessPoolExecutor",
            lambda data: executor.submit(echo, data).result(),
            lambda count: wait([executor.submit(echo, SHORT) for _ in range(count)]),
        )


@contextlib.contextmanager
def loky_executor() -> Iterator[Contender]:
    from loky import ProcessPoolExecutor as Loky  # type: ignore[import-not-found] # an optional peer

    with Loky(2) as executor:
        yield Contender(
            "loky",
            lambda data: executor.submit(echo, data).result(),
            lambda count: wait([executor.submit(echo, SHORT) for _ in range(count)]),
        )


@contextlib.contextmanager
def pebble_pool() -> Iterator[Contender]:
    from pebble import ProcessPool  # type: ignore[import-not-found] # an optional peer

    with ProcessPool(2) as pool:
        yield Contender(
            "pebble",
            lambda data: pool.schedule(echo, args=(data,)).result(),
            lambda count: wait([pool.schedule(echo, args=(SHORT,)) for _ in range(count)]),
        )


def timed(call: Callable[[], Any], times: int) -> float:
    """Return seconds for each call, after a few calls that wake the other side up."""
    for _ in range(WARM_UP if times > 1 else 0):
        call()
    start = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - start) / times


def ratios() -> None:
    """Print round trips and throughput against raw pipes."""
    makers = [raw_pipes, slotline, billiard_pool, standard_library]
    makers += [
        maker for name, maker in (("loky", loky_executor), ("pebble", pebble_pool)) if importlib.util.find_spec(name)
    ]
    with contextlib.ExitStack() as stack:
        contenders = [stack.enter_context(maker()) for maker in makers]
        for contender in contenders:
            contender.many(200)
            contender.trip(LONG)
        columns = {
            "round trip": lambda c: timed(lambda: c.trip(SHORT), TRIPS),
            "throughput": lambda c: timed(lambda: c.many(TASKS), 1) / TASKS,
            "1 MB": lambda c: timed(lambda: c.trip(LONG), LONG_TRIPS),
        }
        table: dict[str, dict[str, tuple[float, float]]] = {contender.name: {} for contender in contenders}
        for column, measure in columns.items():
            rounds = [{contender.name: measure(contender) for contender in contenders} for _ in range(ROUNDS)]
            middle = {
                contender.name: statistics.median(one[contender.name] for one in rounds) for contender in contenders
            }
            for name, took in middle.items():
                table[name][column] = took, took / middle["raw pipes"]
    print(f"{'2 workers, x raw pipes':24}" + "".join(f"{column:>22}" for column in columns))
    for name, cells in table.items():
        print(f"{name:24}" + "".join(f"{took * 1e6:12.0f} us {ratio:5.2f} x" for took, ratio in cells.values()))
    reached = table["BilliardExecutor"]
    print(f"{'goal':24}" + "".join(f"{'<=':>16}{GOALS[column]:5.2f} " for column in columns))
    missed = [column for column in columns if reached[column][1] > GOALS[column]]
    print("every goal reached" if not missed else f"missed: {', '.join(missed)}")


Submit: TypeAlias = Callable[..., Callable[[], Any]]
"""Hands in a call, with a ``timeout`` or ``None``; what it returns waits for the outcome."""


@contextlib.contextmanager
def slotline_submit() -> Iterator[Submit]:
    with BilliardExecutor(1) as executor:
        yield lambda fn, *args, timeout=None: executor.options(timeout=timeout).submit(fn, *args).result


@contextlib.contextmanager
def billiard_submit() -> Iterator[Submit]:
    pool = billiard.pool.Pool(1, enable_timeouts=True)
    yield lambda fn, *args, timeout=None: pool.apply_async(fn, args, timeout=timeout).get
    pool.terminate()
    pool.join()


@contextlib.contextmanager
def pebble_submit() -> Iterator[Submit]:
    from pebble import ProcessPool

    with ProcessPool(1) as pool:
        yield lambda fn, *args, timeout=None: pool.schedule(fn, args=args, timeout=timeout).result


@contextlib.contextmanager
def standard_submit() -> Iterator[Submit]:
    with ProcessPoolExecutor(1) as executor:
        yield lambda fn, *args, timeout=None: executor.submit(fn, *args).result


@contextlib.contextmanager
def loky_submit() -> Iterator[Submit]:
    from loky import ProcessPoolExecutor as Loky

    with Loky(1) as executor:
        yield lambda fn, *args, timeout=None: executor.submit(fn, *args).result


def after_the_deadline(submit: Submit) -> float:
    """Return the seconds from a task's deadline to its error."""
    submit(pid)()
    start = time.perf_counter()
    with contextlib.suppress(Exception):
        submit(time.sleep, 60, timeout=0.2)()
    return time.perf_counter() - start - 0.2


def after_a_kill(submit: Submit) -> tuple[float, float]:
    """Return the seconds from a worker's death to its task's error, and to the next task's result."""
    victim = submit(pid)()
    outcome = submit(time.sleep, 60)
    time.sleep(0.05)
    start = time.perf_counter()
    os.kill(victim, signal.SIGKILL)
    with contextlib.suppress(Exception):
        outcome()
    failed = time.perf_counter() - start
    try:
        submit(pid)()
    except Exception:  # the pool is broken for good
        return failed, math.inf
    return failed, time.perf_counter() - start


def reactions() -> None:
    """Print how long errors and replacements take; a pool is made for each round."""
    rows: list[tuple[str, Callable[[], Any], int, bool]] = [
        ("BilliardExecutor", slotline_submit, 15, True),
        ("billiard.Pool", billiard_submit, 1, True),  # which takes its time
        ("ProcessPoolExecutor", standard_submit, 5, False),
    ]
    rows += [("pebble", pebble_submit, 5, True)] if importlib.util.find_spec("pebble") else []
    rows += [("loky", loky_submit, 5, False)] if importlib.util.find_spec("loky") else []
    print(f"\n{'ms, median and worst':24}{'deadline to error':>24}{'SIGKILL to error':>24}{'to the next result':>24}")
    for name, make, rounds, has_limits in rows:
        columns: list[list[float]] = [[], [], []]
        for _ in range(rounds):
            with make() as submit:
                columns[0].append(after_the_deadline(submit) if has_limits else math.nan)
            with make() as submit:
                failed, went_on = after_a_kill(submit)
                columns[1].append(failed)
                columns[2].append(went_on)
        cells = (f"{statistics.median(took) * 1e3:14.1f} {max(took) * 1e3:9.1f}" for took in columns)
        print(f"{name:24}" + "".join(cells))
    print(f"{'goal':24}{'<= 50':>24}{'<= 50':>24}{'<= 200':>24}")


def main() -> None:
    """Print both tables."""
    ratios()
    reactions()


if __name__ == "__main__":
    main()
