"""The waiting room does what a few lines of plain Python do, whatever is asked of it in whatever order."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from slotline import Pool, PoolFullError, RedisStore, Slot, configure
from slotline.pools import Parked, Room, Taken
from slotline.pools._tokens import digest_of, lane_id_of
from slotline.pools._wire import pool_keys
from slotline.steps import Steps
from slotline.stores import Command
from tests.harness.leaks import keys_without_ttl

LANES = ("a", "b", "z")
CALLED = ("a", "b")
"""The lanes whose workers are called for a free slot, which is then kept for them; nobody is called for lane z."""
WORKERS = (("a", "b"), ("b", "z"))
MESSAGES = [b"%d" % number for number in range(6)]
LONG_AGO = 1

Name = tuple[bytes, str]
"""A message and its lane: the same bytes in another lane are another message."""


def name_of(taken: Taken) -> Name:
    return taken.message, taken.lane


class UncalledRoom(Room):
    """A worker that looks when it is told to by the test; who is called is the test's to say, too."""

    def _listening(self) -> Steps[None]:
        yield from ()


@dataclass
class Message:
    """What the model knows of a message in the room.

    Attributes:
        taken: Who runs it; ``None``: it waits.
        lapsed: Whether its taker has said nothing for so long that the message goes back with the next look.
    """

    lane: str
    place: int
    taken: Taken | None = None
    lapsed: bool = False


class RoomMachine(RuleBasedStateMachine):
    """A pool, its room with three lanes, and two workers."""

    store: RedisStore

    def __init__(self) -> None:
        super().__init__()
        self.client = self.store.client()
        self.client.flushdb()
        self.pool = Pool("p", 2, slot_exp=None, store=self.store)
        self.slots_key, self.line_key, self.state_key, self.claims_key, _ = pool_keys(self.store, "p")
        self.rooms = [UncalledRoom(self.store, lanes) for lanes in WORKERS]
        self.called = self.client.pubsub()
        self.called.subscribe(*(self.rooms[0]._channel(lane_id_of(lane)) for lane in CALLED))
        for _ in CALLED:
            assert self.called.get_message(timeout=10)["type"] == "subscribe"
        self.size, self.paused, self.count = 2, False, 0
        self.room: dict[Name, Message] = {}
        self.held: dict[str, Slot] = {}
        self.runs: list[Taken] = []  # of those who live, and of those who came too late

    # What the model says.

    def waiting(self) -> list[tuple[Name, Message]]:
        found = [(name, message) for name, message in self.room.items() if message.taken is None]
        return sorted(found, key=lambda one: one[1].place)

    def free(self, lanes: tuple[str, ...] = ()) -> tuple[int, Name | None]:
        """How many slots are free for newcomers; and the message that a worker of ``lanes`` gets, if any."""
        free = 0 if self.paused else self.size - len(self.held)
        for name, message in self.waiting():
            if free <= 0:
                break
            if message.lane in lanes:
                return free, name
            free -= message.lane in CALLED
        return max(0, free), None

    # What is done to both.

    @initialize(lanes=st.lists(st.sampled_from(LANES), min_size=4, max_size=4))
    def fill(self, lanes: list[str]) -> None:
        """Begin where there is something to do: some wait, and a slot is free."""
        first, second = self.pool.sync.acquire(), self.pool.sync.acquire()
        self.held = {first.token: first, second.token: second}
        for name, lane in zip(MESSAGES, lanes, strict=False):
            self.park(name, lane)
        del self.held[second.token]
        self.pool.sync.release(second)

    @rule(name=st.sampled_from(MESSAGES), lane=st.sampled_from(LANES))
    def park(self, name: bytes, lane: str) -> None:
        outcome = self.rooms[0].sync.park(self.pool, name, lane=lane)
        if (name, lane) in self.room:
            assert outcome == Parked(0)
        elif self.free()[0] > 0:
            assert isinstance(outcome, Slot)
            self.held[outcome.token] = outcome
        else:
            assert outcome == Parked(sum(message.lane == lane for _, message in self.waiting()))
            self.count += 1
            self.room[name, lane] = Message(lane, self.count)

    @rule()
    def acquire(self) -> None:
        try:
            slot = self.pool.sync.acquire()
        except PoolFullError:
            assert self.free()[0] == 0
        else:
            assert self.free()[0] > 0
            self.held[slot.token] = slot

    @rule(worker=st.sampled_from(range(len(WORKERS))))
    def take(self, worker: int) -> None:
        expected = self.expected(worker)
        self.rooms[worker].call("p")
        self.got(self.rooms[worker].sync.take(), expected)

    @precondition(lambda self: self.held)
    @rule(choice=st.randoms(use_true_random=False), worker=st.sampled_from(range(len(WORKERS))))
    def pass_on(self, choice, worker: int) -> None:
        """A run ends in a worker that has capacity for another."""
        slot = self.held.pop(choice.choice(sorted(self.held)))
        expected = self.expected(worker)
        self.got(self.rooms[worker].sync.pass_on(self.pool, slot), expected)
        assert self.pool.sync.release(slot) is False

    def expected(self, worker: int) -> bytes | None:
        """What a worker gets that looks now; those that look find what the dead have left."""
        for message in self.room.values():
            if message.lapsed:
                message.taken, message.lapsed = None, False
        return self.free(WORKERS[worker])[1]

    def got(self, taken: Taken | None, expected: bytes | None) -> None:
        assert (taken and name_of(taken)) == expected
        if taken is not None:
            message = self.room[name_of(taken)]
            assert taken.lane == message.lane
            message.taken = taken
            self.runs.append(taken)
            self.held[taken.slot.token] = taken.slot

    @precondition(lambda self: self.held)
    @rule(choice=st.randoms(use_true_random=False))
    def release(self, choice) -> None:
        slot = self.held.pop(choice.choice(sorted(self.held)))
        assert self.pool.sync.release(slot) is True
        assert self.pool.sync.release(slot) is False

    @precondition(lambda self: self.runs)
    @rule(choice=st.randoms(use_true_random=False), late=st.booleans(), again=st.booleans())
    def settle(self, choice, late: bool, again: bool) -> None:
        """A run ends, or a message is dropped unrun; perhaps of one who came too late."""
        taken = self.some_run(choice, late, again)
        taken.sync.settle()
        if self.has(taken):
            del self.room[name_of(taken)]

    @precondition(lambda self: self.runs)
    @rule(choice=st.randoms(use_true_random=False), late=st.booleans(), again=st.booleans())
    def give_back(self, choice, late: bool, again: bool) -> None:
        taken = self.some_run(choice, late, again)
        taken.sync.give_back()
        self.held.pop(taken.slot.token, None)
        if self.has(taken):
            message = self.room[name_of(taken)]
            message.taken, message.lapsed = None, False

    @precondition(lambda self: any(taken.slot.token in self.held for taken in self.runs))
    @rule(choice=st.randoms(use_true_random=False))
    def undo_a_take(self, choice) -> None:
        """Its caller was cancelled, and knows only the token."""
        taken = choice.choice([taken for taken in self.runs if taken.slot.token in self.held])
        keys, token = pool_keys(self.store, "p"), taken.slot.token
        returned = self.store.sync.execute(Command("room_settle", keys, ("", token, "back")))
        assert returned == int(self.has(taken))
        del self.held[token]
        if returned:
            self.room[name_of(taken)].taken = None

    @precondition(lambda self: any(map(self.has, self.runs)))
    @rule(choice=st.randoms(use_true_random=False), worker=st.sampled_from([None, *range(len(WORKERS))]))
    def fall_silent(self, choice, worker: int | None) -> None:
        """The claim of a worker, and its slot, are not renewed; perhaps another looks at once."""
        taken = choice.choice([taken for taken in self.runs if self.has(taken)])
        taken.abandon()
        self.store.keeper.drop(taken.slot.token)
        self.client.zadd(self.claims_key, {digest_of(taken.message, lane_id_of(taken.lane)): LONG_AGO}, xx=True)
        self.client.zadd(self.slots_key, {taken.slot.token: LONG_AGO}, xx=True)
        self.held.pop(taken.slot.token, None)
        self.room[name_of(taken)].lapsed = True
        if worker is not None:
            self.take(worker)

    @rule()
    def purge(self) -> None:
        """All that waits is removed, with what the dead have left."""
        gone = [name for name, message in self.room.items() if message.taken is None or message.lapsed]
        assert self.pool.sync.purge() == len(gone)
        for name in gone:
            del self.room[name]

    @rule(size=st.integers(1, 3))
    def resize(self, size: int) -> None:
        assert self.pool.sync.resize(size) == self.size
        self.size = size

    @rule(paused=st.booleans())
    def pause(self, paused: bool) -> None:
        changed = self.pool.sync.pause() if paused else self.pool.sync.resume()
        assert changed is (paused is not self.paused)
        self.paused = paused

    def some_run(self, choice, late: bool, again: bool) -> Taken:
        """Choose a run to end; ``late``: of somebody whose message another runs, if there is such a one."""
        passed_on = [taken for taken in self.runs if name_of(taken) in self.room and not self.has(taken)]
        taken = choice.choice(passed_on if late and passed_on else self.runs)
        if not again:
            self.runs.remove(taken)
        return taken

    def has(self, taken: Taken) -> bool:
        message = self.room.get(name_of(taken))
        return message is not None and message.taken is taken

    @invariant()
    def both_show_the_same(self) -> None:
        info = self.pool.sync.info()
        assert (info.max_size, info.used, info.waiting) == (self.size, len(self.held), len(self.waiting()))
        assert {holder.token: holder.fence for holder in info.holders} == {
            token: slot.fence for token, slot in self.held.items()
        }
        assert info.paused is self.paused

    @invariant()
    def nothing_is_kept_but_what_is_there(self) -> None:
        state = self.client.hkeys(self.state_key)
        digests = {digest_of(name, lane_id_of(lane)).encode() for name, lane in self.room}
        assert {field[2:] for field in state if field[:2] == b"m:"} == digests
        taken = {name for name, message in self.room.items() if message.taken is not None}
        digests = {digest_of(name, lane_id_of(lane)).encode() for name, lane in taken}
        assert {field[2:] for field in state if field[:2] == b"o:"} == digests
        assert keys_without_ttl(self.client) == []

    @invariant()
    def workers_that_were_called_have_always_been_called_just_now(self) -> None:
        calls = [field for field in self.client.hkeys(self.state_key) if field[:2] == b"c:"]
        if calls:
            self.client.hdel(self.state_key, *calls)

    def teardown(self) -> None:
        for token, slot in self.held.items():
            self.store.keeper.drop(token)
            slot._ended = False
        for taken in self.runs:
            taken.abandon()
        self.called.close()


def test_the_room_does_what_its_model_does(redis_url):
    configure(heartbeat_lease=3600.0)
    store = RedisStore(redis_url)
    machine = type("RoomMachineHere", (RoomMachine,), {"store": store})
    try:
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=40, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
            ),
        )
    finally:
        store.sync.close()
