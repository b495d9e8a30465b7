"""Scripts with a mistake in them: what the soak run knows of a server tells each."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from slotline import Limits, Pool, PoolFullError, RedisStore
from slotline.stores import _scripts
from tests.faults.soak_journal import keep_journal
from tests.faults.soak_ledger import Ledger, ledgers


@pytest.fixture
def mistake(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], None]]:
    """A function that puts a mistake into every script that has a text in it."""
    right, mistakes = _scripts._with_includes, {}

    def wrong(name: str) -> str:
        text = right(name)
        for before, after in mistakes.items():
            text = text.replace(before, after)
        return text

    def put(before: str, after: str) -> None:
        assert before in right("pool_acquire"), "the scripts have this text no more"
        mistakes[before] = after
        _scripts.load.cache_clear()

    monkeypatch.setattr(_scripts, "_with_includes", wrong)
    yield put
    monkeypatch.undo()
    _scripts.load.cache_clear()


async def a_rate(store: RedisStore) -> None:
    pool = Pool("p", None, rate="1/m", burst=2, store=store)
    for _ in range(3):
        await pool.acquire()


async def weights(store: RedisStore) -> None:
    pool = Pool("p", 3, store=store)
    for _ in range(2):
        await pool.acquire(weight=2)


async def a_smaller_size(store: RedisStore) -> None:
    pool = Pool("p", 3, store=store)
    await pool.acquire()
    await pool.resize(1)
    await pool.acquire()


async def a_pause(store: RedisStore) -> None:
    pool = Pool("p", 3, store=store)
    await pool.pause()
    await pool.acquire(weight=2)


async def shares(store: RedisStore) -> None:
    pool = Pool("p", 3, max_per_partition=1, store=store)
    for _ in range(2):
        await pool.acquire(partition="x")


async def several(store: RedisStore) -> None:
    pools = Pool("p", 1, store=store, group="g"), Pool("q", 2, store=store, group="g")
    for _ in range(2):
        await Limits(*pools).acquire()


async def ledger_after(make_redis: Any, use: Callable[[RedisStore], Any], directory: Path) -> Ledger:
    server = make_redis(keep_data=True)
    async with asyncio.timeout(30):
        store = RedisStore(server.url)
        try:
            await use(store)
        finally:
            await store.close()
    return ledgers(keep_journal(server.directory, directory / "journal"))["p"]


@pytest.mark.parametrize(
    ("use", "before", "after", "says"),
    [
        (a_rate, "if not interval_us then return math.huge, 0 end", "if true then return math.huge, 0 end", "us early"),
        (weights, "return max - held - extra, allowed", "return max - held, allowed", "makes 4"),
        (a_smaller_size, "if held >= max then return nil end", "", "makes 2"),
        (a_pause, "if paused or allowed == 0 then", "if allowed == 0 then", "paused"),
        (shares, "return share - used", "return share + used", "makes 2 of its partition"),
        (several, "return max - held - extra, allowed", "return 9, allowed", "makes 2"),
    ],
)
async def test_what_a_script_with_a_mistake_gives_against_a_limit_is_in_the_ledger(
    make_redis: Any, mistake: Callable[[str, str], None], tmp_path: Path, use: Any, before: str, after: str, says: str
) -> None:
    mistake(before, after)
    (broken,) = (await ledger_after(make_redis, use, tmp_path)).broken
    assert says in broken


@pytest.mark.parametrize("use", [a_rate, weights, a_smaller_size, a_pause, shares, several])
async def test_the_scripts_as_they_are_give_nothing_against_a_limit(
    make_redis: Any, tmp_path: Path, use: Callable[[RedisStore], Any]
) -> None:
    async def refused(store: RedisStore) -> None:
        with pytest.raises(PoolFullError):
            await use(store)

    ledger = await ledger_after(make_redis, refused, tmp_path)
    assert ledger.broken == []


async def test_starts_of_those_who_want_several_pools_are_never_earlier_than_the_rates_allow(
    make_redis: Any, tmp_path: Path
) -> None:
    wants = ["p", "q", "r", "s", "pq", "pr", "ps", "qr", "rs", "pqrs"]
    begun = Counter[str]()

    async def contend(store: RedisStore) -> None:
        pools = {
            "p": Pool("p", 2, rate="30/s", store=store, group="g"),
            "q": Pool("q", 2, store=store, group="g"),
            "r": Pool("r", 3, rate="50/s", burst=3, store=store, group="g"),
            "s": Pool("s", 1, store=store, group="g"),
        }

        async def go_on(keys: str) -> None:
            limit = Limits(*(pools[key] for key in keys)) if len(keys) > 1 else pools[keys]
            while min(begun[one] for one in wants) < 5:
                async with limit.slot(timeout=60):
                    begun[keys] += 1
                    await asyncio.sleep(0.01)

        await asyncio.gather(*(go_on(keys) for keys in wants * 2))

    ledger = await ledger_after(make_redis, contend, tmp_path)
    assert ledger.broken == []
    assert any(grant.kept for grant in ledger.grants.values())
