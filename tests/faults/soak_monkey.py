"""The workers of the soak run, and what befalls them."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Collection
from contextlib import ExitStack

from slotline import Pool
from slotline.pools._wire import UNLIMITED
from tests.harness.proxy import TcpProxy
from tests.harness.redis_server import RedisServer
from tests.harness.workers import CeleryWorker, Worker


class Fleet:
    """Workers that are replaced when they end.

    Args:
        stack: Ends what is left.
        makers: Make one worker each, all of which run at the same time.
    """

    def __init__(self, stack: ExitStack, makers: list[Callable[[], Worker]]) -> None:
        self._stack, self._makers = stack, makers
        self.workers = [self._start(maker) for maker in makers]
        for worker in self.workers:
            worker.wait_ready()

    def replace_the_dead(self) -> None:
        """Start a worker, without waiting for it, for each that has ended."""
        for at, worker in enumerate(self.workers):
            if not worker.alive:
                worker.close()
                self.workers[at] = self._start(self._makers[at])

    def _start(self, maker: Callable[[], Worker]) -> Worker:
        worker = maker()
        self._stack.callback(worker.close)
        worker.start(wait=False)
        return worker


class Monkey:
    """Does harm to a fleet, its Redis, and its connections.

    Args:
        chance: Where its ideas come from.
        fleet: The workers.
        server: The Redis that has the slots, the room, the caches and one queue.
        proxies: What all connections go through.
        lease: The heartbeat's lease.
        pools: Those that it may pause and resize, as they are declared.
        only: The names of the ideas that it may have; default: all.

    Attributes:
        fleet: The workers.
        server: The Redis.
        done: How often it did what.
        deeds: When it did what (us).
    """

    def __init__(
        self,
        chance: random.Random,
        fleet: Fleet,
        server: RedisServer,
        proxies: list[TcpProxy],
        lease: float,
        pools: list[Pool],
        only: Collection[str] | None = None,
    ) -> None:
        self.server, self._chance, self.fleet, self._proxies, self._lease = server, chance, fleet, proxies, lease
        self._pools = pools
        self._paused: list[Pool] = []
        self.done: Counter[str] = Counter()
        self.deeds: list[tuple[int, str]] = []
        ideas: dict[Callable[[], str | None], int] = {
            self.kill_worker: 4,
            self.kill_child: 4,
            self.kill_main_process: 2,
            self.end_worker: 2,
            self.cut: 4,
            self.stall: 1,
            self.restart_redis: 2,
            self.pause_redis: 2,
            self.pause_redis_for_long: 1,
            self.pause_pool: 3,
            self.resize_pool: 3,
        }
        self._ideas = {idea: often for idea, often in ideas.items() if only is None or idea.__name__ in only}

    def do_something(self) -> None:
        """Have an idea, and put it into practice."""
        (idea,) = self._chance.choices(list(self._ideas), list(self._ideas.values()))
        self.done[idea.__name__] += 1
        self.deeds.append((time.time_ns() // 1000, idea.__name__))
        what = idea() or ""
        self.deeds.append((time.time_ns() // 1000, f"{idea.__name__} {what} is over"))
        self.fleet.replace_the_dead()

    def kill_worker(self) -> None:
        self._anyone().kill_all()

    def kill_child(self) -> None:
        worker = self._anyone()
        children = worker.children()
        if children:
            worker.kill_child(self._chance.choice(children))

    def kill_main_process(self) -> None:
        worker = self._anyone()
        if isinstance(worker, CeleryWorker):  # Taskiq's only watches over the others
            worker.kill()
        else:
            worker.kill_all()

    def end_worker(self) -> None:
        self._anyone().terminate(None)

    def cut(self) -> None:
        self._chance.choice(self._proxies).cut()

    def stall(self) -> None:
        proxy = self._chance.choice(self._proxies)
        proxy.stall()
        time.sleep(self._chance.uniform(0.2, self._lease / 2))
        proxy.resume()

    def restart_redis(self) -> None:
        self.server.kill()
        time.sleep(self._chance.uniform(0, 0.5))
        self.server.restart()

    def pause_redis(self) -> None:
        self._pause(self._chance.uniform(0.2, self._lease / 2))

    def pause_redis_for_long(self) -> None:
        self._pause(self._lease + 2)

    def pause_pool(self) -> str:
        """Pause a pool, or let the one go on that is paused."""
        if self._paused:
            pool = self._paused.pop()
            pool.sync.resume()
            return f"{pool.key}, which goes on,"
        pool = self._chance.choice(self._pools)
        pool.sync.pause()
        self._paused.append(pool)
        return pool.key

    def resize_pool(self) -> str:
        pool = self._chance.choice([pool for pool in self._pools if pool.max_size < UNLIMITED])
        size = self._chance.randint(1, pool.max_size + 1)
        pool.sync.resize(size)
        return f"{pool.key} to {size}"

    def let_all_go_on(self) -> None:
        """Leave all pools as they are declared."""
        for pool in self._pools:
            pool.sync.resume()
            pool.sync.resize(pool.max_size)

    def _pause(self, seconds: float) -> None:
        self.server.pause()
        time.sleep(seconds)
        self.server.resume()

    def _anyone(self) -> Worker:
        return self._chance.choice([worker for worker in self.fleet.workers if worker.alive])
