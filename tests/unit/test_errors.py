"""Errors carry their facts through pickling and through the result backends of the queues."""

from __future__ import annotations

import json
import pickle

import pytest

from slotline import errors

CASES = [
    errors.InvalidOptionError("max_size", "0", "a whole number of at least 1"),
    errors.PoolFullError("api", 2, ("ann", "bob")),
    errors.PoolTimeoutError("api", 2, ("ann",), 1.5),
    errors.MessagePurgedError("api"),
    errors.SlotLostError("api", "token"),
    errors.StoreUnavailableError("redis://host", "ConnectionError: refused"),
    errors.MessageTooLargeError(2000, 1000, "api"),
    errors.SerializationError("module.Type", "give it a model"),
    errors.UnsupportedFrameworkError("celery 4.0", "a consumer step"),
]


@pytest.mark.parametrize("error", CASES, ids=lambda error: type(error).__name__)
def test_survives_pickling_with_its_facts(error):
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert (str(copy), vars(copy)) == (str(error), vars(error))


@pytest.mark.parametrize("error", CASES, ids=lambda error: type(error).__name__)
def test_is_made_anew_from_its_arguments_as_json(error):
    copy = type(error)(*json.loads(json.dumps(error.args)))
    assert str(copy) == str(error)


def test_a_pool_that_lets_nobody_in_is_not_said_to_be_taken():
    assert "its one slot is taken, held by ann" in str(errors.PoolFullError("api", 1, ["ann"]))
    assert "all of its 2 slots are taken, held by ann, bob" in str(errors.PoolFullError("api", 2, ["ann", "bob"]))
    for holders in ([], ["ann"]):  # it is paused, or others wait
        assert "it is paused, others wait" in str(errors.PoolFullError("api", 2, holders))


def test_full_and_unavailable_share_no_class_but_the_root():
    shared = set(errors.PoolFullError.__mro__) & set(errors.StoreUnavailableError.__mro__)
    assert shared == {errors.SlotlineError, Exception, BaseException, object}
