"""The serializer: what comes out equals what went in, in value and type; bytes of others are misses."""

from __future__ import annotations

import math
import uuid
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, PrivateAttr

from slotline.caches.serializer import CorruptEntryError, Entry, Serializer
from slotline.errors import InvalidOptionError, SerializationError

serializer = Serializer()
SECRET = b"sixteen secret b"


def round_trip(value, returns=None, via=serializer):
    return via.load("k", via.dump("k", Entry(value), returns), returns).value


def same(left, right):
    """Equal in value and in type, all the way down; nan equals nan."""
    if type(left) is not type(right):
        return False
    if isinstance(left, float):
        return repr(left) == repr(right)  # every nan is "nan", whatever its sign; zero's sign counts
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict):
        return len(left) == len(right) and all(map(same, left.items(), right.items()))
    if isinstance(left, set | frozenset):
        return left == right and {*map(type, left)} == {*map(type, right)}
    return left == right


VALUES = [
    None,
    True,
    False,
    0,
    -1,
    10**30,
    -(10**5000),
    1.5,
    -0.0,
    math.inf,
    -math.inf,
    math.nan,
    math.copysign(math.nan, -1),
    "",
    "é\n\u2028",
    "\ud800",
    "\ud83d\ude00",
    b"",
    b"\x00\xff",
    [],
    [1, [2, [3]]],
    (),
    (1,),
    ((1, 2), [3]),
    set(),
    {1, "a", None},
    frozenset({(1, 2)}),
    {},
    {"a": {"b": None}},
    {1: "int", "1": "str", None: 0, 1.5: 0},
    {(1, 2): [3]},
    {"$": 1},
    {"$": ["t", [1]]},
    {"a": '{"$":["t",[1]]}'},
    [math.nan, (math.inf,)],
    {"a": [math.copysign(math.nan, -1)]},
    datetime.fromisoformat("2026-05-01T12:30:01.000005"),
    datetime(2026, 5, 1, tzinfo=UTC),
    datetime(2026, 10, 25, 2, 30, tzinfo=ZoneInfo("Europe/Zurich"), fold=1),
    datetime(2026, 5, 1, tzinfo=timezone(timedelta(hours=-3, minutes=-30))),
    date(2026, 5, 1),
    time(1, 2, 3, 4),
    time(1, tzinfo=UTC),
    timedelta(days=-1, seconds=5, microseconds=7),
    Decimal("1.20"),
    Decimal("-Infinity"),
    uuid.UUID(int=5),
    [10**5000, Decimal(1)],
]


@pytest.mark.parametrize("value", VALUES, ids=[f"{at}-{type(value).__name__}" for at, value in enumerate(VALUES)])
def test_a_value_comes_back_equal_in_value_and_type(value):
    back = round_trip(value)
    assert same(back, value)
    if isinstance(value, datetime):
        assert (back.utcoffset(), back.fold, type(back.tzinfo)) == (value.utcoffset(), value.fold, type(value.tzinfo))


hashable = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.decimals(allow_nan=False)
)
anything = st.recursive(
    hashable | st.floats() | st.datetimes() | st.dates() | st.timedeltas() | st.uuids(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(hashable, inner, max_size=4)
        | st.frozensets(hashable, max_size=4)
        | st.sets(hashable, max_size=4)
    ),
    max_leaves=15,
)


@given(anything)
def test_any_mix_of_them_comes_back(value):
    assert same(round_trip(value), value)


@given(st.binary(max_size=60))
def test_any_bytes_are_an_entry_or_a_corrupt_one_and_never_another_error(raw):
    for reader in (serializer, Serializer(signing_key=SECRET)):
        try:
            reader.load("k", raw)
        except CorruptEntryError:
            continue


@given(anything, st.integers(min_value=0), st.integers(1, 255))
def test_a_signed_entry_with_any_changed_byte_is_refused(value, at, change):
    signed = Serializer(signing_key=SECRET)
    raw = bytearray(signed.dump("k", Entry(value)))
    raw[at % len(raw)] ^= change
    with pytest.raises(CorruptEntryError):
        signed.load("k", bytes(raw))


class Colour(Enum):
    RED = "red"


class Base(BaseModel):
    a: int


class Derived(Base):
    b: int = 2


class Rich(BaseModel):
    raw: bytes
    share: float
    when: datetime
    many: tuple[int, ...]
    names: set[str]
    renamed: int = Field(alias="reNamed")
    inner: Base


@dataclass
class Pair:
    left: int
    right: list[datetime] = field(default_factory=list)


@dataclass(eq=False)
class ByIdentity:
    a: int


class Incomparable(BaseModel):
    a: int

    def __eq__(self, other):
        raise ZeroDivisionError

    __hash__ = None


@dataclass
class Priced:
    price: float


class Named(NamedTuple):
    x: int
    y: Any


class Level(IntEnum):
    LOW = 1


class Word(StrEnum):
    A = "a"


class Holder(BaseModel):
    held: Any
    hidden: int = Field(default=5, exclude=True)
    _private: int = PrivateAttr(default=0)


class Slices(BaseModel):
    shares: set[float] = set()
    kept: deque[Base] = deque()


def with_private(number):
    holder = Holder(held=1)
    holder._private = number
    return holder


RICH = Rich(
    raw=b"\xff",
    share=math.inf,
    when=datetime(2026, 5, 1, tzinfo=UTC),
    many=(1,),
    names={"a"},
    reNamed=4,
    inner=Base(a=1),
)


@pytest.mark.parametrize(
    ("value", "returns"),
    [
        (RICH, Rich),
        ([Base(a=1)], list[Base]),
        ({"k": Pair(1, [datetime(2026, 5, 1, tzinfo=UTC)])}, dict[str, Pair]),
        (None, Base | None),
        (Base(a=1), Base | None),
        (Colour.RED, Colour),
        ([1, Base(a=1)], list[int | Base]),
        ((Base(a=1), 2), tuple[Base, int]),
        ("text", Base),
        (Holder(held=(1, 2)), Holder),
        (Slices(shares={0.5, math.inf}, kept=[Base(a=1)]), Slices),
    ],
)
def test_models_and_dataclasses_come_back_by_their_declared_type(value, returns):
    back = round_trip(value, returns)
    assert back == value
    assert type(back) is type(value)


def test_what_says_nothing_of_its_equality_comes_back_by_its_parts():
    assert round_trip(ByIdentity(3), ByIdentity).a == 3
    assert round_trip(Incomparable(a=3), Incomparable).a == 3
    (share,) = round_trip(Slices(shares={math.nan}), Slices).shares
    assert math.isnan(share)


@pytest.mark.parametrize("zone", [timezone(timedelta(hours=1), "CET"), timezone(timedelta(0), "GMT"), UTC])
def test_a_time_zone_keeps_its_name(zone):
    assert round_trip(datetime(2026, 5, 1, tzinfo=zone)).tzname() == zone.tzname(None)
    assert round_trip(time(1, tzinfo=zone)).tzname() == zone.tzname(None)


def test_an_int_where_a_float_is_declared_comes_back_as_that_float():
    back = round_trip(Priced(5), Priced)
    assert back == Priced(5)
    assert type(back.price) is float


@pytest.mark.parametrize(
    ("value", "returns", "name"),
    [
        (object(), None, "object"),
        (Base(a=1), None, "Base"),
        (Derived(a=1), Base, "Derived"),
        ([Derived(a=1)], list[Base], "list"),
        (Pair(1), int, "Pair"),
        (Colour.RED, None, "Colour"),
        (Named(1, 2), None, "Named"),
        (OrderedDict(a=1), None, "OrderedDict"),
        (1 + 2j, None, "complex"),
        (bytearray(b"a"), None, "bytearray"),
        (Exception, Any, "type"),
        ([1, {2: object()}], None, "object"),
        (lambda: 1, object, "function"),
        ([Base(a=1)], list, "list"),
        ({"k": Pair(1)}, dict, "dict"),
        ({"k": Word.A}, dict, "dict"),
        ([Level.LOW, Base(a=1)], list[int | Base], "list"),
        (Named(1, Named(2, 3)), Named, "Named"),
        (Holder(held=Base(a=1)), Holder, "Holder"),
        (Holder(held=1, hidden=6), Holder, "Holder"),
        (with_private(7), Holder, "Holder"),
        (Pair(True), Pair, "Pair"),
        ([ByIdentity(1)], list[Base | ByIdentity], "list"),
    ],
)
def test_what_would_not_come_back_equal_is_refused_by_type(value, returns, name):
    with pytest.raises(SerializationError, match=name):
        serializer.dump("k", Entry(value), returns)


def test_cyclic_values_are_refused():
    plain: list = []
    plain.append(plain)
    tagged: dict = {1: 2}
    tagged["self"] = tagged
    for value in (plain, tagged):
        with pytest.raises(SerializationError, match="contains itself"):
            serializer.dump("k", Entry(value))


def test_a_typed_entry_is_a_miss_without_the_type_or_with_another():
    raw = serializer.dump("k", Entry(Base(a=1)), Base)
    for returns in (None, Pair, int):
        with pytest.raises(CorruptEntryError):
            serializer.load("k", raw, returns)


def test_entries_of_another_version_and_foreign_bytes_are_corrupt():
    raw = serializer.dump("k", Entry({"a": 1}))
    for other in (b"", b"\x01", b"hello world", b"\x02" + raw[1:], b"\x01\xff" + raw[2:], raw[:-1], b"\x80\x04N."):
        with pytest.raises(CorruptEntryError):
            serializer.load("k", other)


def test_what_an_entry_says_about_itself_comes_back():
    raw = serializer.dump("k", Entry("v", error=True, grace_ms=2**40, delta_ms=70))
    assert serializer.load("k", raw) == Entry("v", True, 2**40, 70)
    assert serializer.load("k", serializer.dump("k", Entry(1, delta_ms=2**40))).delta_ms == 2**32 - 1


def test_large_values_are_compressed_and_too_large_ones_refused():
    small = Serializer(compress_above=100, max_value_bytes=1000)
    text = "a" * 50_000
    raw = small.dump("k", Entry(text))
    assert len(raw) < 1000
    assert round_trip(text, via=Serializer(compress_above=None)) == text
    with pytest.raises(SerializationError, match="max_value_bytes=1000"):
        small.dump("k", Entry("".join(uuid.uuid4().hex for _ in range(100))))


def test_a_small_entry_cannot_unfold_into_a_huge_one():
    bomb = Serializer(max_value_bytes=None).dump("k", Entry("a" * 5_000_000))
    with pytest.raises(CorruptEntryError, match="unfolds"):
        Serializer(max_value_bytes=10_000).load("k", bomb)


def test_a_signature_binds_an_entry_to_its_key_and_its_secret():
    signed = Serializer(signing_key=SECRET)
    raw = signed.dump("mine", Entry(1))
    assert signed.load("mine", raw).value == 1
    for reader, key, entry in [
        (signed, "yours", raw),
        (Serializer(signing_key=b"another secret b"), "mine", raw),
        (signed, "mine", serializer.dump("mine", Entry(1))),
        (serializer, "mine", raw),
    ]:
        with pytest.raises(CorruptEntryError, match="sign"):
            reader.load(key, entry)


def test_pickle_is_used_only_where_allowed_and_only_with_a_signature():
    pickling = Serializer(signing_key=SECRET, allow_pickle=True)
    assert round_trip(1 + 2j, via=pickling) == 1 + 2j
    assert pickling.dump("k", Entry(1))[1] & 8 == 0  # plain values are not pickled
    raw = pickling.dump("k", Entry(1 + 2j))
    with pytest.raises(CorruptEntryError, match="allow_pickle is off"):
        Serializer(signing_key=SECRET).load("k", raw)
    with pytest.raises(SerializationError, match="function"):
        pickling.dump("k", Entry(lambda: 1))


@pytest.mark.parametrize(
    "options",
    [
        {"compress_above": -1},
        {"compress_above": True},
        {"max_value_bytes": 0},
        {"max_value_bytes": 1.5},
        {"signing_key": b"short"},
        {"signing_key": "x" * 20},
        {"allow_pickle": True},
        {"allow_pickle": 1, "signing_key": SECRET},
    ],
)
def test_impossible_options_are_refused_and_secrets_not_shown(options):
    with pytest.raises(InvalidOptionError) as refused:
        Serializer(**options)
    assert "short" not in str(refused.value)
