"""A long random run of both queues: whatever is killed, cut and restarted, limits hold and nothing is lost."""

from __future__ import annotations

import asyncio
import importlib
import itertools
import math
import os
import random
import time
from collections import Counter
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest
import redis
from kombu.exceptions import OperationalError
from taskiq.exceptions import SendTaskError

from slotline import Pool
from slotline.pools._passing import PASSES
from slotline.pools._wire import UNLIMITED
from tests.faults import soak_apps
from tests.faults.soak_apps import HISTORIES, KINDS
from tests.faults.soak_evidence import Sign, crowds, outlived, report, signs_of, too_many
from tests.faults.soak_journal import keep_journal, last_pushed
from tests.faults.soak_ledger import Ledger, ledgers
from tests.faults.soak_monkey import Fleet, Monkey
from tests.harness.leaks import keys_without_ttl
from tests.harness.proxy import TcpProxy
from tests.harness.redis_server import RedisServer
from tests.harness.waiting import await_until
from tests.harness.workers import CeleryWorker, TaskiqWorker
from tests.integration.celery_apps import Deployment
from tests.integration.losing_slots import ends, entries, runs

LEASE = 3.0
TENANTS = 4
SOON = {"visibility_timeout": 8}
UNABRIDGED = ("--auto-aof-rewrite-percentage", "0")
"""The server's journal keeps all that it was ever told."""
PREFORK = ((), ("--max-tasks-per-child", "20"), ("--autoscale", "4,1"))
TASKIQ = ((), ("--max-tasks-per-child", "40"), ("--use-process-pool",))
"""What workers may be started with beside the rest."""
DRAINED = 120.0
"""Seconds in which everything must have run once nothing happens any more."""


class Weather(NamedTuple):
    """What is sent, and what befalls the workers.

    Attributes:
        kinds: Those of the messages, one as likely as the other.
        seconds: How long most of them run at the most.
        rate: How many are sent in a second.
        every: Seconds between two ideas of the monkey, at least and at the most.
        only: The ideas that it may have; ``None``: all.
        reached: The pools whose limits are sure to be reached; ``None``: all.
    """

    kinds: tuple[str, ...] = KINDS
    seconds: float = 0.4
    rate: float = 25.0
    every: tuple[float, float] = (0.5, 3.0)
    only: tuple[str, ...] | None = None
    reached: tuple[str, ...] | None = None


# Short tasks that come out of the room one after the other: a worker is likely to have one in hand when Redis stops.
STANDSTILLS = Weather(
    (*["tenants"] * 6, *["both"] * 4, *["held"] * 2, *KINDS),
    0.1,
    80.0,
    (0.7, 1.5),
    only=("pause_redis_for_long",),
    reached=("tenants", "both", "held"),
)


class Run:
    """Messages to both queues, and what becomes of them.

    Args:
        made: The Celery application, whose history is everybody's.
        taskiq: The module of the Taskiq application.
        monkey: What befalls the workers.
        chance: Where everything random comes from.
        weather: What is to happen.
        pools: Those of the tasks.
    """

    def __init__(
        self,
        made: Deployment,
        taskiq: Any,
        monkey: Monkey,
        chance: random.Random,
        weather: Weather,
        pools: list[Pool],
    ) -> None:
        self._weather, self._pools = weather, pools
        self._made, self._history, self._monkey, self._chance = made, made.history, monkey, chance
        self._apps = {"celery": made.module, "taskiq": taskiq}
        self._numbers = itertools.count()
        self.sent: dict[str, dict[str, str]] = {"celery": {}, "taskiq": {}}
        self._done: set[str] = set()
        self.failed: dict[str, str] = {}

    async def storm(self, seconds: float) -> None:
        """Send messages for so long, while the monkey is at work."""
        until, next_idea = time.monotonic() + seconds, time.monotonic()
        while time.monotonic() < until:
            await self._send()
            if time.monotonic() >= next_idea:
                await asyncio.to_thread(self._monkey.do_something)
                next_idea = time.monotonic() + self._chance.uniform(*self._weather.every)
            await asyncio.sleep(self._chance.expovariate(self._weather.rate))

    async def drain(self) -> dict[str, str]:
        """Wait until everything has run, and nothing is left in the pools; return what is known of what has not run."""

        async def all_done() -> bool:
            return not await self._missing()

        try:
            await await_until("everything has run", all_done, DRAINED, 0.5)
        except AssertionError:
            return {name: self._known_of(name) for name in await self._missing()}
        finally:
            for pool in self._pools:

                async def is_empty(pool: Pool = pool) -> bool:
                    info = await pool.info()
                    return (info.used, info.waiting) == (0, 0)

                await await_until(f"nothing is left of {pool.key}", is_empty, DRAINED, 0.1)
        return {}

    def check_limits(self, logs: Path, journal: Path) -> None:
        """No slot was given against a limit, nobody lived beyond one or without a slot, and each limit was reached."""
        known = {"ended_with": self._ended_with, "deeds": self._monkey.deeds, "logs": logs, "journal": journal}
        books = ledgers(journal)
        broken = {name: book.broken[:3] for name, book in books.items() if book.broken}  # of the caches' lines, too
        assert not broken, broken
        for pool in self._pools:
            name, book = pool.key, books[pool.key]
            signs = signs_of(self._history, name)
            self._check(name, signs, book, math.inf, **known)
            if self._weather.reached is None or name in self._weather.reached:
                full = pool.max_size == UNLIMITED or max(map(book.weigh, crowds(signs))) >= pool.max_size
                assert full, f"{name}: its limit was never reached"
                assert book.used_up or not pool.rate, f"{name}: its rate was never reached"
            passes = 0 if pool.rate or pool.max_per_partition else PASSES
            strays = book.strays({sign.fence for sign in signs}, passes)
            assert not strays, f"{name}: no slot was given to a run\n{report(signs, strays, **known)}"
            if name == "tenants":
                for tenant in range(TENANTS):
                    mine = [one for one in signs if _argument_of(one.task) == str(tenant)]
                    self._check(f"tenant {tenant}", mine, book, 1, **known)

    def _check(self, name: str, signs: list[Sign], book: Ledger, most: float, **known: Any) -> None:
        runs_of = Counter(fence for fence, _, _ in {(one.fence, one.task, one.pid) for one in signs})
        assert max(runs_of.values()) == 1, f"{name}: a fence was given twice"
        late = outlived(signs, book.ends())
        assert late is None, f"{name}: a run went on without its slot\n{report(signs, late, **known)}"
        many = too_many(signs, book, most)
        assert many is None, f"{name}: more than its limit lived at once\n{report(signs, many, **known)}"

    def repetitions(self) -> dict[str, int]:
        """Return how many runs there were beside the first, by history."""
        counts = {name: runs(self._history, name) for name in HISTORIES}
        return {
            kind: sum(times - 1 for name, times in found.items() if name != "nudge") for kind, found in counts.items()
        }

    async def _send(self) -> None:
        queue, kind = self._chance.choice(("celery", "taskiq")), self._chance.choice(self._weather.kinds)
        number = next(self._numbers)
        extra = {"tenants": [self._chance.randrange(TENANTS)], "cached": [number // 50]}.get(kind, [])
        seconds = self._chance.uniform(0.02, self._weather.seconds) if self._chance.random() < 0.97 else 2 * LEASE
        arguments = [seconds, *extra]
        task, name = getattr(self._apps[queue], kind), f"{queue}-{kind}-{extra[0] if extra else ''}-{number}"
        try:
            if queue == "celery":
                await asyncio.to_thread(task.apply_async, arguments, task_id=name)
            else:
                await asyncio.wait_for(task.kicker().with_task_id(name).kiq(*arguments), 5)
        except (redis.RedisError, OSError, TimeoutError, OperationalError, SendTaskError):
            return  # nobody knows whether it was sent
        self.sent[queue][name] = kind

    async def _missing(self) -> list[str]:
        await asyncio.to_thread(self._monkey.fleet.replace_the_dead)
        # Who gets a new message from a stream looks for those of the dead.
        await self._apps["taskiq"].plain.kicker().with_task_id("nudge").kiq(0)
        for name in HISTORIES:
            self._done.update(ends(self._history, name))
        left = [(queue, name) for queue, sent in self.sent.items() for name in sent if name not in self._done]
        for queue, name in left:
            ended, error = await self._result(queue, name)
            if error is not None:
                self.failed[name] = type(error).__name__
            if error is not None or (ended and self.sent[queue][name] == "cached"):
                self._done.add(name)
        return [name for _, name in left if name not in self._done]

    async def _result(self, queue: str, name: str) -> tuple[bool, BaseException | None]:
        if queue == "celery":
            result = self._apps["celery"].app.AsyncResult(name)
            return result.state == "SUCCESS", result.result if result.state == "FAILURE" else None
        backend = self._apps["taskiq"].broker.result_backend
        ended = await backend.is_result_ready(name)
        return ended, (await backend.get_result(name)).error if ended else None

    def _ended_with(self, name: str) -> str:
        return self.failed.get(name) or ("success" if name in self._done else "nothing")

    def _known_of(self, name: str) -> str:
        signs = [
            one for written in HISTORIES for one in entries(self._history, written) if one[b"task"] == name.encode()
        ]
        lived = Counter((one[b"fence"].decode(), one[b"what"].decode()) for one in signs)
        with self._monkey.server.client() as client:
            rooms = [
                (key, field, client.hget(key, b"o:" + field[2:]), client.zscore(key[:-5] + b"claims", field[2:]))
                for key in client.scan_iter("slotline:*:state")
                for field, value in client.hgetall(key).items()
                if field.startswith(b"m:") and name.encode() in value
            ]
        return f"lived {dict(lived)}, in the room {rooms}"


def _argument_of(name: str) -> str:
    return name.split("-")[2]


@pytest.mark.soak
@pytest.mark.leaves("keys", reason="the history that the run is checked by")
@pytest.mark.parametrize(
    ("broker", "weather"),
    [
        pytest.param("rabbitmq", Weather(), marks=pytest.mark.rabbitmq, id="rabbitmq"),
        pytest.param("redis", Weather(), id="redis"),
        pytest.param("redis", STANDSTILLS, id="standstills"),
    ],
)
async def test_under_all_that_can_happen_limits_hold_and_everything_runs(
    broker: str,
    weather: Weather,
    tmp_path: Path,
    own_redis: RedisServer,
    make_redis: Any,
    app_module: Any,
    request: pytest.FixtureRequest,
) -> None:
    seconds, seed = float(os.environ.get("SOAK_SECONDS", "60")), os.environ.get("SOAK_SEED", str(time.time_ns()))
    print(f"SOAK_SEED={seed}")
    chance, server = random.Random(seed), make_redis(keep_data=True, options=UNABRIDGED)
    with ExitStack() as stack:
        proxies = [stack.enter_context(TcpProxy(server.port))]
        options: dict[str, Any] = {"broker": server.url, "transport": SOON}
        through = to_store = proxies[0].redis_url
        if broker == "rabbitmq":
            url, queue = request.getfixturevalue("amqp_url"), request.getfixturevalue("amqp_name")("soak")
            options, parts = {"broker": url, "queue": queue}, urlsplit(url)
            proxies.append(stack.enter_context(TcpProxy(parts.port or 5672, parts.hostname or "127.0.0.1")))
            through = url.replace(f"{parts.hostname}:{parts.port or 5672}", f"127.0.0.1:{proxies[1].port}")
        made = Deployment(tmp_path, own_redis, lease=LEASE, extra=soak_apps.CELERY, **options)
        stack.callback(made.close)
        app = app_module(soak_apps.TASKIQ.format(history=own_redis.url, store=server.url, lease=LEASE))
        env = {"STORE_URL": to_store, "BROKER_URL": through}

        def celery(pool: Any) -> CeleryWorker:
            args = ("-l", "DEBUG")
            args += chance.choice(PREFORK) if pool == "prefork" else ()
            return CeleryWorker(f"{made.name}:app", tmp_path, pool=pool, concurrency=3, args=args, env=env)

        def taskiq() -> TaskiqWorker:
            return TaskiqWorker(f"{app}:broker", tmp_path, workers=1, args=chance.choice(TASKIQ), env=env)

        makers = [*[partial(celery, pool) for pool in ("prefork", "prefork", "gevent")], taskiq, taskiq]
        module = importlib.import_module(app)
        pools = soak_apps.pools(module.store)
        monkey = Monkey(chance, Fleet(stack, makers), server, proxies, LEASE, pools, weather.only)
        run = Run(made, module, monkey, chance, weather, pools)
        await module.broker.startup()
        try:
            await run.storm(seconds)
            await asyncio.to_thread(monkey.let_all_go_on)
            lost = await run.drain()
        finally:
            await module.broker.shutdown()
            await module.store.close()
        with server.client() as client:
            left = [key for key in keys_without_ttl(client) if key.startswith("slotline:")]
            queued = b"".join(client.lrange("celery", 0, -1))
        again = run.repetitions()
        failed = Counter(run.failed.values())
        print(f"sent {[len(sent) for sent in run.sent.values()]}, ran again {again}, failed {dict(failed)}")
        print(f"lost {len(lost)}; {dict(monkey.done)}")
        journal = keep_journal(server.directory, tmp_path / "journal")
        run.check_limits(tmp_path, journal)
        # kombu has popped a message from Redis a moment before it notes so: a worker that is cut off then loses it.
        popped = (
            {name for name in last_pushed(journal, lost) if name.encode() not in queued} if broker == "redis" else set()
        )
        assert popped == set(lost), "; ".join(f"{name}: {known}" for name, known in lost.items())
        assert len(lost) <= sum(monkey.done.values())
        assert set(failed) <= {"SlotLostError", "WorkerLostError"}
        # What a dead worker had in hand may run again, and whatever was just to be acknowledged on a broken connection.
        assert sum(again.values()) <= 8 * sum(monkey.done.values())
        assert not left
