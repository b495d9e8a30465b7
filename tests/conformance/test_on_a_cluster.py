"""The essentials of pools, rooms and caches once more, on a Redis Cluster of three masters."""

from __future__ import annotations

import pytest

from slotline import InvalidOptionError, Limits, Pool, RedisStore
from slotline.caches import RedisCacheAdapter, TieredCacheAdapter
from slotline.caches.testing import CacheAdapterConformance
from tests.conformance.test_limits import (  # noqa: F401 - run here with this module's store
    limits,
    pools,
    test_a_full_pool_keeps_nobody_from_the_others,
    test_a_holding_has_the_slot_of_each_pool,
    test_a_pool_of_a_group_is_another_pool,
    test_many_tasks_and_threads_never_exceed_any_limit,
    test_nobody_starves_between_two_pools_that_are_never_free_together,
    test_takes_a_slot_of_each_pool_or_none,
    test_two_that_want_the_same_pools_in_another_order_do_not_block_each_other,
)
from tests.conformance.test_pool_rates import (  # noqa: F401 - run here with this module's store
    test_a_paused_pool_lets_nobody_in_and_a_resumed_one_serves_its_waiters_at_once,
    test_starts_are_spaced_and_waiters_served_in_order_at_the_rates_pace,
)
from tests.conformance.test_pools import (  # noqa: F401 - run here with this module's store
    test_a_cancelled_waiter_leaves_the_line_and_a_cancelled_holder_its_slot,
    test_a_place_grants_a_waiting_caller_its_slot_by_callback,
    test_a_released_slot_can_be_taken_again,
    test_a_waiter_gets_the_slot_that_expires,
    test_any_text_is_a_key_and_keys_do_not_mix,
    test_fences_grow_within_a_pool_even_after_it_was_empty,
    test_many_tasks_and_threads_never_exceed_the_limit,
    test_resizing_serves_waiters_at_once_and_takes_nothing_from_holders,
    test_takes_as_many_slots_as_it_has_and_then_says_who_holds_them,
    test_waiters_are_served_in_the_order_in_which_they_came,
    test_waiting_ends_with_an_error_after_the_timeout_and_leaves_no_place_behind,
)
from tests.harness.waiting import await_until
from tests.integration.test_limits_room import (  # noqa: F401 - run here with this module's store
    test_a_message_takes_a_slot_of_each_pool_or_is_parked_and_taken_byte_for_byte,
    test_what_a_dead_worker_has_taken_is_taken_by_another_within_the_lease,
    test_what_is_given_back_stands_at_its_old_place_and_its_slots_are_free,
)
from tests.integration.test_reclaimed import (  # noqa: F401 - run here with this module's store
    test_a_message_of_a_dead_worker_counts_with_its_slot,
    test_of_several_pools_each_slot_counts,
)
from tests.integration.test_room import (  # noqa: F401 - run here with this module's store
    test_a_freed_slot_goes_to_the_longest_parked_message_byte_for_byte,
    test_a_lane_that_nobody_serves_blocks_neither_other_lanes_nor_callers,
    test_a_message_is_not_parked_twice_neither_in_line_nor_while_it_runs,
    test_a_slot_that_expires_with_its_holder_goes_to_what_is_parked,
    test_a_worker_is_told_when_there_is_something_to_take,
    test_a_worker_takes_only_from_its_lanes_and_the_oldest_first_across_them,
    test_a_worker_that_starts_later_finds_what_is_parked,
    test_what_is_given_back_stands_at_its_old_place,
)


@pytest.fixture
async def store(redis_cluster):
    store = RedisStore(redis_cluster.url)
    yield store
    await store.close()


async def test_pools_without_a_common_group_are_refused_with_the_reason(store):
    alone, grouped, other = Pool("a", 1, store=store), *(Pool("b", 1, store=store, group=group) for group in "gh")
    for pair in ((alone, Pool("b", 1, store=store)), (alone, grouped), (grouped, other)):
        with pytest.raises(InvalidOptionError, match=r"^pools=.*group: a Redis Cluster"):
            Limits(*pair)


@pytest.mark.leaves("keys", reason="entries with ttl 0 or None stay by intention")
class TestCache(CacheAdapterConformance):
    @pytest.fixture(autouse=True)
    def _servers(self, redis_cluster):
        self.url = redis_cluster.url

    async def make_cache(self):
        return RedisCacheAdapter(self.url)


async def test_copies_in_memory_hear_of_every_server_and_clearing_reaches_all(store, redis_cluster):
    one, other = (TieredCacheAdapter(RedisCacheAdapter(store=store)) for _ in range(2))
    for cache in (one, other):
        cache._announcements.start()
        await await_until("copies can be used", lambda cache=cache: cache._announcements.heard)
    keys = [f"k{number}" for number in range(30)]
    assert len({redis_cluster.owner(one.shared.names.base(key)).port for key in keys}) == 3
    for key in keys:
        await one.set(key, 1, 60)
        assert await other.get(key) == 1
        await one.set(key, 2, 60)
    for key in keys:

        async def renewed(key=key) -> bool:
            return await other.get(key) == 2

        await await_until("the copy is gone", renewed)
    assert set(await one.shared.stored_keys()) == set(keys)
    await one.clear()
    assert await one.shared.stored_keys() == []
    for cache in (one, other):
        await cache.close()


async def test_a_tag_names_entries_on_every_server(store):
    cache = RedisCacheAdapter(store=store)
    for number in range(30):
        await cache.get_or_create(f"k{number}", lambda: 1, 60, tags=("t",))
    assert await cache.invalidate_tag("t") == 30
    assert await cache.stored_keys() == []
