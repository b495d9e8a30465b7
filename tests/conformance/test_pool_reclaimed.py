"""A slot that comes to the end of its ``slot_exp`` is counted once, on every store and through both faces."""

from __future__ import annotations

from slotline import Limits, Pool, configure
from tests.harness.waiting import await_until


async def test_slots_that_come_to_the_end_of_their_slot_exp_are_counted_once(figures, store, call):
    configure(metrics=figures, heartbeat_lease=9)
    pool, other = (Pool(key, 2, slot_exp=0.2, store=store, group="g") for key in ("p", "other"))
    slots = [await call(pool, "acquire") for _ in range(2)]
    holding = await call(Limits(other, pool), "acquire", timeout=9)

    async def counted() -> bool:
        await call(pool, "resize", 2)
        await call(other, "resize", 2)
        return figures.counts["lease_reclaimed", "slot_exp"] == 4

    await await_until("all have ended, and are counted", counted)
    for slot in slots:
        assert await call(pool, "release", slot) is False
    assert await call(Limits(other, pool), "release", holding) is False
    assert {labels for labels in figures.counts if labels[0] == "lease_reclaimed"} == {("lease_reclaimed", "slot_exp")}
    assert figures.counts["lease_reclaimed", "slot_exp"] == 4


async def test_a_slot_that_is_given_back_in_time_is_not_counted(figures, store, call):
    pool = Pool("p", 1, slot_exp=60, store=store)
    async with call.using(pool):
        pass
    async with call.using(pool):
        pass
    assert not any(labels[0] == "lease_reclaimed" for labels in figures.counts)
