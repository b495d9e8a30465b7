"""The parts of the process pool that need no processes."""

import os
import pickle
import threading
import time

import pytest

from slotline.workers import ApplyResult, TaskExitError, UnpicklableError, outcome, wire
from slotline.workers.arena import KEEP, RESULTS, TASKS, WINDOW, Arena
from slotline.workers.chunks import cut, default_size, run_chunk, run_star_chunk
from slotline.workers.courier import Courier
from slotline.workers.mapping import MapResults
from slotline.workers.places import Places
from slotline.workers.restarts import RestartPolicy
from tests.harness.waiting import wait_until


def test_a_payload_comes_back_as_it_went():
    value = {"a": [1, 2.5, None, "text", b"bytes"], "long": b"x" * 200_000, "str": "y" * 200_000}
    parts = wire.dump("result", value)
    assert len(parts) > 1
    assert wire.size_of(parts) == len(b"".join(parts))
    assert wire.load("result", b"".join(parts)) == value


def test_a_part_of_a_payload_is_a_copy_of_what_can_change():
    data = bytearray(b"x" * 200_000)
    parts = wire.dump("task or argument", (len, (data,), {}))
    data[:] = b"y" * 200_000
    assert wire.load("task or argument", b"".join(parts))[1][0] == b"x" * 200_000


def test_what_cannot_be_pickled_is_named():
    with pytest.raises(UnpicklableError) as caught:
        wire.dump("task or argument", (lambda: None, (), {}))
    assert "lambda" in str(caught.value)
    assert isinstance(caught.value, pickle.PicklingError)
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize("value", [None, 1, 2.5, "a\x93b", b"\x93\x93", True, [1, "x"], {"a": (1, 2)}], ids=repr)
def test_built_in_values_are_plain(value):
    assert wire.is_plain(value, wire.dump("result", value))


@pytest.mark.parametrize("value", [time.struct_time(range(9)), ValueError("x"), [threading.ThreadError]], ids=repr)
def test_values_that_rebuild_objects_are_not_plain(value):
    assert not wire.is_plain(value, wire.dump("result", value))


def test_an_error_travels_with_its_type_and_its_remote_traceback():
    try:
        raise KeyError("missing")
    except KeyError as error:
        packed = outcome.pack_error(error)
    error = outcome.unpack_error(b"".join(packed))
    assert type(error) is KeyError
    assert error.args == ("missing",)
    assert "test_an_error_travels" in str(error.__cause__)


@pytest.mark.parametrize("raised", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()], ids=repr)
def test_what_would_end_the_caller_arrives_as_an_error_that_says_so(raised):
    error = outcome.unpack_error(b"".join(outcome.pack_error(raised)))
    assert isinstance(error, TaskExitError)
    assert repr(raised) in str(error)


def test_an_error_whose_text_fails_is_still_reported():
    class MuteError(Exception):
        def __str__(self):
            raise RuntimeError("no words")

    error = outcome.unpack_error(b"".join(outcome.pack_error(MuteError())))
    assert isinstance(error, UnpicklableError)
    assert "Mute" in str(error)


def test_errors_of_this_package_survive_pickling():
    for error in (UnpicklableError("result", "Foo", "because"), TaskExitError("SystemExit(1)")):
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is type(error)
        assert str(again) == str(error)


@pytest.mark.parametrize("length", [10, WINDOW - 8, WINDOW + 1], ids=["short", "mapped", "long"])
def test_an_arena_returns_what_was_written(length):
    arena = Arena.create()
    try:
        for offset in (TASKS, RESULTS):
            arena.write([b"head", b"x" * length, b"tail"], offset, length + 8)
            assert bytes(arena.read(offset, length + 8)) == b"head" + b"x" * length + b"tail"
    finally:
        arena.close()
        arena.close()


def test_an_arena_gives_memory_back_and_cannot_be_shrunk():
    arena = Arena.create()
    try:
        arena.write([b"x" * (KEEP + 1)], TASKS, KEEP + 1)
        assert os.fstat(arena.fd).st_blocks * 512 > KEEP
        arena.trim()
        assert os.fstat(arena.fd).st_blocks * 512 < KEEP
        assert bytes(arena.read(TASKS, 3)) == bytes(3)
        with pytest.raises(PermissionError):
            os.ftruncate(arena.fd, 0)
    finally:
        arena.close()


def test_an_arena_says_which_task_was_begun():
    arena = Arena.create()
    try:
        assert arena.begun() == 0
        arena.begin_marker()(1 << 40)
        assert arena.begun() == 1 << 40
        arena.trim()
        assert arena.begun() == 1 << 40
    finally:
        arena.close()


def test_a_small_arena_is_left_alone():
    arena = Arena.create()
    try:
        arena.write([b"abc"], TASKS, 3)
        arena.trim()
        assert bytes(arena.read(TASKS, 3)) == b"abc"
    finally:
        arena.close()


def test_chunks_hold_every_item_once_and_in_order():
    assert list(cut(range(7), 3)) == [(0, 1, 2), (3, 4, 5), (6,)]
    assert list(cut([], 3)) == []
    assert run_chunk(abs, (-1, -2)) == [1, 2]
    assert run_star_chunk(pow, ((2, 3), (3, 2))) == [8, 9]
    assert default_size(0, 2) == 1
    assert default_size(100, 2) == 13


def test_a_list_of_results_is_an_iterator_too():
    results = MapResults([1, 4])
    assert results == [1, 4]
    assert [next(results), next(results)] == [1, 4]
    with pytest.raises(StopIteration):
        next(results)
    assert list(results) == [1, 4]


def test_places_wait_grow_shrink_and_open():
    places = Places(1)
    assert places.acquire()
    assert not places.acquire(blocking=False)
    places.grow()
    assert places.acquire(blocking=False)
    places.shrink()
    places.release()
    assert not places.acquire(blocking=False)
    waiting = threading.Thread(target=places.acquire, daemon=True)
    waiting.start()
    places.clear()
    waiting.join(5)
    assert not waiting.is_alive()


def test_restarts_beyond_the_limit_end_the_executor():
    policy = RestartPolicy(2, max_restarts=3, max_restart_freq=60)
    assert [policy.lost(was_ready=True) for _ in range(3)] == [None] * 3
    assert "3 restarts" in policy.lost(was_ready=True)


def test_a_task_that_was_taken_starts_the_count_anew():
    policy = RestartPolicy(2, max_restarts=2, max_restart_freq=60)
    for _ in range(10):
        assert policy.lost(was_ready=True) is None
        policy.accepted()


def test_restarts_are_counted_within_the_frequency_only():
    policy = RestartPolicy(2, max_restarts=1, max_restart_freq=0.001)
    for _ in range(5):
        assert policy.lost(was_ready=True) is None
        wait_until("the window has passed", lambda: time.monotonic() - policy._since >= 0.001)


def test_without_a_limit_only_failed_starts_in_a_row_count():
    policy = RestartPolicy(1, max_restarts=None, max_restart_freq=1)
    assert [policy.lost(was_ready=True) for _ in range(100)] == [None] * 100
    assert [policy.lost(was_ready=False) for _ in range(9)] == [None] * 9
    policy.started()
    assert [policy.lost(was_ready=False) for _ in range(9)] == [None] * 9
    assert "before they were ready" in policy.lost(was_ready=False)


def test_a_courier_runs_callbacks_in_order_in_a_thread_of_its_own():
    courier, seen = Courier(threaded=True), []
    for number in range(100):
        courier.put(seen.append, number)
    courier.put(lambda: seen.append(threading.current_thread().name))
    courier.close(5)
    assert seen == [*range(100), "slotline-callbacks"]


def test_a_failing_callback_is_logged_and_the_next_one_runs(caplog):
    courier, seen = Courier(threaded=True), []

    def fails():
        raise ValueError("callback trouble")

    courier.put(fails)
    courier.put(seen.append, 1)
    courier.close(5)
    assert seen == [1]
    assert "callback trouble" in caplog.text


def test_a_courier_without_a_thread_runs_callbacks_where_it_is_drained():
    courier, seen = Courier(threaded=False), []
    courier.put(lambda: seen.append(threading.current_thread()))
    assert seen == []
    courier.drain()
    assert seen == [threading.current_thread()]
    courier.put(seen.append, "at the end")
    courier.close()
    assert seen[-1] == "at the end"


def test_results_have_the_names_of_both_worlds():
    for name in (
        "get",
        "wait",
        "ready",
        "successful",
        "terminate",
        "result",
        "exception",
        "cancel",
        "done",
        "add_done_callback",
    ):
        assert callable(getattr(ApplyResult, name))
