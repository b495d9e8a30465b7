"""What the operator's commands write."""

from __future__ import annotations

import io
import json

import pytest

from slotline.cli._console import Column, Console, Number, Seconds, duration
from slotline.cli._explain import expected_wait
from slotline.pools import PoolInfo, Waiter
from slotline.pools._finding import Ages, Found, Known
from slotline.pools.rate import Rate

COLUMNS = {"name": Column("NAME"), "count": Number("COUNT"), "age": Seconds("AGE")}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *((-1, "0.0 s"), (0, "0.0 s"), (0.44, "0.4 s"), (9.94, "9.9 s"), (9.96, "10 s"), (59.4, "59 s")),
        *((59.6, "1 min 0 s"), (3599, "59 min 59 s"), (3600, "1 h 0 min"), (90_061, "1 d 1 h")),
    ],
)
def test_a_duration_has_its_two_largest_units(seconds, text):
    assert duration(seconds) == text


def test_a_table_is_aligned_and_shows_no_control_characters():
    out = io.StringIO()
    rows = [{"name": "a\x1b[2Jb", "count": 10, "age": 2}, {"name": None, "count": 7, "age": None}]
    Console(as_json=False, out=out).table(rows, COLUMNS, "nothing")
    assert out.getvalue().splitlines() == [
        "NAME       COUNT    AGE",
        "a\\x1b[2Jb     10  2.0 s",
        "-              7      -",
    ]


def test_a_table_without_rows_is_a_sentence_and_in_json_an_empty_list():
    for as_json, written in ((False, "nothing\n"), (True, "[]\n")):
        out = io.StringIO()
        Console(as_json=as_json, out=out).table([], COLUMNS, "nothing")
        assert out.getvalue() == written


def test_json_has_all_that_is_known_and_not_only_the_columns():
    out = io.StringIO()
    Console(as_json=True, out=out).table([{"name": "a", "more": 1}], COLUMNS, "nothing")
    assert json.loads(out.getvalue()) == [{"name": "a", "more": 1}]


def known(max_size, *ages, paused=False, ann=(), **more):
    info = PoolInfo("p", max_size, len(ages), 1, paused, (), now=100.0, **more)
    of = {None: ages, "ann": ann}
    return Known(info, [], [], {name: Ages(len(its), 1000 * sum(its)) for name, its in of.items()})


def found(ahead, **waiter):
    return Found(Waiter("t", "o", 90.0, **waiter), ahead)


@pytest.mark.parametrize(
    ("pool", "waits", "seconds"),
    [
        (known(2, 3, 5), found(0), 2.0),  # each of two slots comes free every four seconds
        (known(2, 3, 5), found(9), 20.0),
        (known(2, 3, paused=True), found(0), None),
        (known(2), found(0), None),
        (known(None, 5, rate=Rate.parse("6/m", None)), found(2), 30.0),
        (known(10, 2, rate=Rate.parse("6/m", None)), found(2), 30.0),
        (known(1, 50, rate=Rate.parse("6/m", None)), found(2), 150.0),
        (known(4, 8, 0, ann=[8], max_per_partition=1), found(1, partition="ann"), 16.0),
        (known(1, 8), found(0, several=True), None),
    ],
)
def test_the_expected_wait_is_what_the_holders_ages_the_rate_and_the_partition_make_of_it(pool, waits, seconds):
    assert expected_wait(pool, waits) == seconds


@pytest.mark.parametrize("rate", ["5/s", "100/m", "1000/h", "1/d", "1/10s", "7/h"])
def test_a_rate_is_read_back_from_the_store_as_it_was_meant(rate):
    parsed = Rate.parse(rate, 2)
    read = Rate.from_wire(parsed.wire)
    assert (read.interval_us, read.burst) == (parsed.interval_us, 2)
    assert Rate.parse(read.text, 2).interval_us == parsed.interval_us


def test_no_rate_is_read_back_as_none():
    assert Rate.from_wire("") is None
