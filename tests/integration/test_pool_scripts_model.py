"""Whatever is sent to the scripts, again and late, and whatever lapses: what is counted is what is held."""

from __future__ import annotations

import itertools
from collections import Counter
from types import SimpleNamespace
from typing import Any, ClassVar

import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from slotline import Limits, Pool, RedisStore, configure
from slotline.pools import Limit
from slotline.pools._several import Ask
from slotline.pools._tokens import digest_of, lane_id_of, new_token
from slotline.stores import Command
from slotline.stores._scripts import load
from slotline.stores.base import undoing

LEASE = 3.0
LIMITS = {"a": (2, None), "b": (3, 1), "c": (3, 2)}
"""The size of each pool, and the most that a partition of it may have."""
KINDS = st.sampled_from(["a", "b", "b", "b", "c", "c", "ab", "bc", "abc"])
PARTITIONS = st.sampled_from([None, "x", "x", "y"])
LANES = st.sampled_from(["q", "r"])
CHANNELS = "heard:"
PICK = st.integers(0, 999)
CLOCK = "redis.call('HMGET', 'clock', 's', 'us')"


class Scripts(RuleBasedStateMachine):
    """The scripts, by a clock that the test sets; of three pools, two have shares."""

    client: ClassVar[redis.Redis]
    store: ClassVar[RedisStore]

    def __init__(self) -> None:
        super().__init__()
        self.client.flushdb()
        self.scripts: dict[str, Any] = {}
        self.now_us = 1_700_000_000_000_000
        self.pass_time(0)
        self.ears = self.client.pubsub()
        self.ears.subscribe("awake", *(CHANNELS + lane_id_of(lane) for lane in "q"))
        for _ in "qq":
            assert self.ears.get_message(timeout=10)["type"] == "subscribe"
        self.pools = {
            key: Pool(key, size, slot_exp=None, store=self.store, max_per_partition=share)
            for key, (size, share) in LIMITS.items()
        }
        self.sent: list[Command] = []
        self.tokens: list[tuple[Limit[Any], str, Any]] = []
        self.taken: list[tuple[Limit[Any], str, str, Command]] = []
        self.numbers = itertools.count()
        self.seen: dict[str, dict[bytes, bytes]] = {key: {} for key in LIMITS}

    def send(self, command: Command) -> Any:
        self.now_us += 7
        self.client.hset("clock", mapping={"s": self.now_us // 1_000_000, "us": self.now_us % 1_000_000})
        self.sent.append(command)
        name = command.script
        if name not in self.scripts:
            text = load(name).text
            self.scripts[name] = self.client.register_script(text.replace("redis.call('TIME')", CLOCK))
        return self.scripts[name](keys=command.keys, args=command.args)

    def limit(self, keys: str) -> Limit[Any]:
        return self.pools[keys] if len(keys) == 1 else Limits(*(self.pools[key] for key in keys))

    def asked(self, keys: str, heavy: bool, partition: str | None) -> tuple[Limit[Any], Any]:
        limit = self.limit(keys)
        weight = {key: 2 if heavy and key != "b" else 1 for key in keys}
        return limit, limit.shares_of(weight if len(keys) > 1 else weight[keys], partition)

    @rule(
        keys=KINDS, heavy=st.booleans(), partition=PARTITIONS, patience=st.sampled_from([0, 3000]), awake=st.booleans()
    )
    def acquire(self, keys: str, heavy: bool, partition: str | None, patience: int, awake: bool) -> None:
        limit, shares = self.asked(keys, heavy, partition)
        token = f"t{next(self.numbers)}"
        place: Any = SimpleNamespace(token=token, owner="owner", shares=shares)
        self.tokens.append((limit, token, shares))
        self.send(limit.acquire_command(place, patience, ("awake" if awake else "asleep") if patience else ""))

    @rule(keys=KINDS, heavy=st.booleans(), partition=PARTITIONS, lane=LANES)
    def park(self, keys: str, heavy: bool, partition: str | None, lane: str) -> None:
        limit, shares = self.asked(keys, heavy, partition)
        token = f"t{next(self.numbers)}"
        message = f"m{token}".encode()
        self.tokens.append((limit, token, shares))
        lane_id = lane_id_of(lane)
        digest = digest_of(message, lane_id)
        self.send(limit.park_command(token, "o|o", lane_id, digest, message, CHANNELS, shares))

    @rule(name=st.sampled_from(list(LIMITS)), lanes=st.sampled_from(["q", "r", "qr"]), passes=st.none() | PICK)
    def take(self, name: str, lanes: str, passes: int | None) -> None:
        """Take a message, perhaps together with giving a slot back."""
        token, pool, lease_ms = f"t{next(self.numbers)}", self.pools[name], int(LEASE * 1000)
        mine = [held for limit, held, _ in self.tokens[-8:] if limit is pool]
        if passes is None or not mine:
            take = Command("room_take", pool.keys, (token, lease_ms, *map(lane_id_of, lanes)))
        else:
            freed = mine[passes % len(mine)]
            take = Command("room_pass", pool.keys, (token, lease_ms, freed, *map(lane_id_of, lanes)))
        reply = self.send(take)
        if reply[0] == 1:
            self.tokens.append((pool, token, None))
            back = Command("room_settle", pool.keys, (reply[3], token, "back"))
            self.taken.append((pool, token, reply[3], back))
        elif reply[0] == 2:
            ask = Ask.read(reply[1:])
            limits = Limits(*(self.pools[one] for one in ask.names))
            about = ask.of_message(token, lease_ms, CHANNELS)
            reply = self.send(Command("several_take", limits.keys, about))
            if reply[0]:
                self.tokens.append((limits, token, ask.shares))
                back = Command("several_back", limits.keys, (*about, reply[3]))
                self.taken.append((limits, token, reply[3], back))

    @rule(pick=PICK)
    def release(self, pick: int) -> None:
        if self.tokens:
            limit, token, shares = self.tokens[-1 - pick % min(8, len(self.tokens))]
            self.send(limit.release_command(token, shares))

    @rule(pick=PICK, back=st.booleans())
    def settle(self, pick: int, back: bool) -> None:
        if self.taken:
            limit, token, digest, give_back = self.taken[-1 - pick % min(5, len(self.taken))]
            mine = token if isinstance(limit, Pool) else f"{token}.1"
            done = Command("room_settle", limit.pools[0].keys, (digest, mine, "done"))
            self.send(give_back if back else done)

    @rule(pick=PICK)
    def renew(self, pick: int) -> None:
        if self.tokens:
            limit, token, _ = self.tokens[-1 - pick % min(8, len(self.tokens))]
            for at, pool in enumerate(limit.pools, 1):
                mine = token if isinstance(limit, Pool) else f"{token}.{at}"
                self.send(Command("pool_renew", pool.keys, (mine, int(LEASE * 1000))))

    @rule(pick=PICK)
    def renew_a_claim(self, pick: int) -> None:
        if self.taken:
            limit, token, digest, _ = self.taken[-1 - pick % min(5, len(self.taken))]
            mine = token if isinstance(limit, Pool) else f"{token}.1"
            self.send(Command("room_renew", limit.pools[0].keys, (digest, mine, int(LEASE * 1000))))

    @rule(pick=PICK, undo=st.booleans())
    def repeat_or_undo(self, pick: int, undo: bool) -> None:
        """What was on its way for long arrives; or a caller gives up without an answer."""
        if self.sent:
            command = self.sent[-1 - pick % min(40, len(self.sent))]
            self.send((undoing(command) if undo else None) or command)

    @rule(pick=PICK, name=st.sampled_from(list(LIMITS)), partition=PARTITIONS)
    def evict(self, pick: int, name: str, partition: str | None) -> None:
        token = self.tokens[-1 - pick % len(self.tokens)][1] if self.tokens and pick % 2 else ""
        self.send(Command("pool_evict", self.pools[name].keys, (token, "evict", 1, partition or "", "", new_token())))

    @rule(name=st.sampled_from(list(LIMITS)), change=st.sampled_from([-1, 0, 0, 1]))
    def resize(self, name: str, change: int) -> None:
        size = LIMITS[name][0] + change
        self.send(Command("pool_resize", self.pools[name].keys, (size, self.pools[name].declaring()[0])))

    @rule(name=st.sampled_from(list(LIMITS)), pause=st.integers(0, 1))
    def pause(self, name: str, pause: int) -> None:
        self.send(Command("pool_pause", self.pools[name].keys, (pause, self.pools[name].declaring()[0])))

    @rule(ms=st.sampled_from([1, 300, 1100, 2900, 3100]))
    def pass_time(self, ms: int) -> None:
        self.now_us += ms * 1000

    @invariant()
    def what_is_counted_is_what_is_held(self) -> None:
        while self.ears.get_message(timeout=0) is not None:
            pass
        for key, pool in self.pools.items():
            slots, state = self.client.zrange(pool.keys[0], 0, -1, withscores=True), self.client.hgetall(pool.keys[2])
            records = {field[2:]: value.split(b"|") for field, value in state.items() if field[:2] == b"h:"}
            assert {token for token, _ in slots} == set(records)
            counted: Counter[bytes] = Counter()
            for _, _, _, weight, partition, _ in (record[:6] for record in records.values()):
                counted[partition] += int(weight)
            shares = {field[2:]: int(value) for field, value in state.items() if field[:2] == b"u:"}
            assert shares == {name: weight for name, weight in counted.items() if name}
            assert int(state.get(b"extra", 0)) == sum(int(record[3]) - 1 for record in records.values())
            fences = {token: record[0] for token, record in records.items()}
            assert len(set(fences.values())) == len(fences)
            if any(self.seen[key].get(token) != fence for token, fence in fences.items()):  # somebody was let in
                assert counted.total() <= int(state[b"max"])
                most = LIMITS[key][1] or counted.total()
                assert all(weight <= most for weight in shares.values())
            self.seen[key] = fences

    def teardown(self) -> None:
        self.ears.close()
        self.client.delete("clock")


def test_what_is_counted_is_what_is_held(redis_url: str, redis_client: redis.Redis) -> None:
    configure(heartbeat_lease=LEASE)
    store = RedisStore(redis_url)
    machine = type("ScriptsHere", (Scripts,), {"client": redis_client, "store": store})
    quiet = list(HealthCheck)
    try:
        run_state_machine_as_test(
            machine,
            settings=settings(max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=quiet),
        )
    finally:
        store.sync.close()
