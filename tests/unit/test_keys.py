"""Keys made from calls: equal calls have equal keys, different calls have different ones, whatever wire they took."""

from __future__ import annotations

import inspect
import json
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, IntEnum
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from slotline.errors import InvalidOptionError, SerializationError
from slotline.keys import CallSignature, KeyTemplate, call_key


def f(x, y=2, *rest, flag=False, **more): ...
def plain(x, y=2): ...


def key(*args, **kwargs):
    return call_key("f", plain, args, kwargs)


class Point(BaseModel):
    x: int
    tag: str = "a"


@dataclass
class Pair:
    left: int
    right: str


class Colour(Enum):
    RED = "red"


class Level(IntEnum):
    LOW = 1


def test_positional_named_and_default_arguments_make_one_key():
    assert key(1) == key(x=1) == key(1, 2) == key(y=2, x=1) == key(1, y=2)


def test_every_argument_counts():
    calls = [
        ((1,), {}),
        ((2,), {}),
        ((1, 3), {}),
        ((1, 2, 3), {}),
        ((1,), {"flag": True}),
        ((1,), {"z": 1}),
        ((1,), {"z": 2}),
    ]
    assert len({call_key("f", f, *call) for call in calls}) == len(calls)


def test_types_that_python_takes_for_equal_are_different_keys():
    values = [1, "1", True, 1.0, None, "", 0, False, [1], ["1"], {"1": 1}, b"1", Decimal(1)]
    assert len({key(value) for value in values}) == len(values)


def test_exact_types_are_not_their_text():
    when = datetime(2026, 5, 1, 12, tzinfo=UTC)
    uuid = UUID(int=1)
    for value, text in [
        (when, when.isoformat()),
        (date(2026, 5, 1), "2026-05-01"),
        (uuid, str(uuid)),
        (Decimal(1), "1"),
    ]:
        assert key(value) != key(text)
    values = [b"a", time(1), timedelta(seconds=1), {1, 2}, frozenset({1}), Decimal("1.0"), Decimal("1.00")]
    assert len({key(value) for value in values}) == len(values)


def test_a_value_has_one_key_before_and_after_json():
    for value in [
        (1, (2, 3)),
        {1: "a", 2: "b", 10: "c"},
        {"b": 1, "a": [1.5, None]},
        {1: 1, "a": 2},
        [{"x": (1,)}],
        1.0,
        "é",
    ]:
        assert key(value) == key(json.loads(json.dumps(value)))


def test_models_dataclasses_and_enums_are_their_dumps():
    assert key(Point(x=1)) == key({"x": 1, "tag": "a"})
    assert key(Pair(1, "b")) == key({"left": 1, "right": "b"})
    assert key([Point(x=1)]) == key([{"tag": "a", "x": 1}])
    assert key(Colour.RED) == key("red")
    assert key(Level.LOW) == key(1)
    assert key({Colour.RED: Decimal(1)}) == key({"red": Decimal(1)})


def test_declared_types_bring_back_what_a_wire_made_text_of():
    def declared(when: datetime, ids: set[int], amount: Decimal | None = None): ...

    when, ids, amount = datetime(2026, 5, 1, tzinfo=UTC), {3, 1, 2}, Decimal("1.20")
    before = call_key("d", declared, (when, ids, amount), {})
    assert before == call_key("d", declared, ("2026-05-01T00:00:00Z", [2, 3, 1], "1.20"), {})
    assert before != call_key("d", declared, (when, {1, 2}, amount), {})


def test_the_order_of_sets_and_dicts_does_not_count():
    assert key({"a", "b", "c"}) == key({"c", "b", "a"}) == key(frozenset({"b", "a", "c"}))
    assert key({"a": Decimal(1), "b": 2}) == key({"b": 2, "a": Decimal(1)})
    assert key({(1, 2): 3, (0, 1): 4}) == key({(0, 1): 4, (1, 2): 3})


def test_tagged_values_cannot_be_imitated_by_plain_data():
    assert key(Decimal(1)) != key({"!": ["decimal", "1"]})
    assert key([Decimal(1), {"!": ["decimal", "1"]}]) != key([{"!": ["decimal", "1"]}, Decimal(1)])


def test_name_and_version_are_part_of_the_key():
    keys = {call_key(name, plain, (1,), {}, version=version) for name in ("a", "b") for version in (None, 1, "2")}
    assert len(keys) == 6
    assert call_key("app.tasks:f", plain, (1,), {}).startswith("app.tasks:f:")


def test_an_object_may_say_what_its_key_is():
    class Client:
        def __cache_key__(self):
            return ["client", 7]

    assert key(Client()) == key(["client", 7])


@pytest.mark.parametrize("value", [object(), [object()], {"a": object()}, {object(): 1}, lambda: 1, iter(())])
def test_an_argument_without_a_value_is_refused_by_name(value):
    with pytest.raises(SerializationError, match="argument 'y'"):
        key(1, value)


def test_a_cyclic_argument_is_refused_by_name():
    loop: list = []
    loop.append(loop)
    tagged = {"amount": Decimal(1)}
    tagged["self"] = tagged  # type: ignore[assignment]
    for value in (loop, tagged):
        with pytest.raises(SerializationError, match="argument 'x' contains itself"):
            key(value)


def test_arguments_that_do_not_fit_are_a_type_error_as_in_python():
    for args, kwargs in [((), {}), ((1, 2, 3), {}), ((1,), {"x": 2}), ((1,), {"unknown": 1})]:
        with pytest.raises(TypeError):
            call_key("f", plain, args, kwargs)


def test_a_signature_serves_as_well_as_a_function():
    signature = inspect.signature(plain)
    assert key(1) == call_key("f", signature, (1,), {}) == call_key("f", CallSignature(plain), (1,), {})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(json_values, json_values)
def test_keys_are_equal_exactly_where_the_json_is(left, right):
    same = json.dumps(left, sort_keys=True) == json.dumps(right, sort_keys=True)
    assert (key(left) == key(right)) == same


class User(BaseModel):
    id: int


def test_a_template_is_filled_from_bound_arguments():
    template = KeyTemplate("api:{tenant_id}:{kind}")

    def call(tenant_id, kind="all"): ...

    template.validate(call)
    assert template.for_call(call, (7,), {}) == template.fill({"tenant_id": 7, "kind": "all"}) == "api:7:all"


def test_a_template_is_filled_with_text_that_has_no_bytes():
    """JSON may bring half a surrogate, from whoever writes it."""
    template = KeyTemplate("crm:{name}:x")
    keys = [template.fill({"name": name}) for name in ("\ud800", "\ud801", "a\ud800", "\u00e9", "\\ud800")]
    assert keys[3:] == ["crm:\u00e9:x", "crm:\\ud800:x"]
    assert len(set(keys)) == 5
    assert all(key.encode() and template.fits(key) for key in keys)


NESTED: list[object] = []
for _ in range(100_000):
    NESTED = [NESTED]


class Textless:
    def __str__(self) -> str:
        raise LookupError


@pytest.mark.parametrize("value", [pytest.param(NESTED, id="nested"), Textless()])
def test_an_argument_without_a_text_is_refused_by_name(value):
    with pytest.raises(
        InvalidOptionError, match=r"pool='crm:\{name\}' .* \{name\} has no text, (Recursion|Lookup)Error"
    ):
        KeyTemplate("crm:{name}", option="pool").fill({"name": value})


def test_a_template_looks_into_objects_and_mappings_alike():
    template = KeyTemplate("u:{user.id}:{rows[0][name]}")
    assert template.fill({"user": User(id=3), "rows": [{"name": "n"}]}) == "u:3:n"
    assert template.fill({"user": {"id": 3}, "rows": [{"name": "n"}]}) == "u:3:n"


def test_a_template_without_fields_is_the_key_and_binds_nothing():
    template = KeyTemplate("settings:{{all}}")
    assert template.constant
    assert template.for_call(plain, (1, 2, 3, 4, 5), {}) == "settings:{all}"


@pytest.mark.parametrize(
    "template",
    [
        "",
        "{",
        "}",
        "{}",
        "{0}",
        "{x!r}",
        "{x:>10}",
        "{x.__class__}",
        "{x._secret}",
        "{x[__class__]}",
        "{x[a}",
        "{x[a]b}",
        "{x.}",
        "{x y}",
        None,
        3,
    ],
)
def test_a_template_that_cannot_be_read_safely_is_refused(template):
    with pytest.raises(InvalidOptionError, match="cache_key"):
        KeyTemplate(template, option="cache_key")


def test_a_field_that_names_no_parameter_is_refused_at_registration():
    with pytest.raises(InvalidOptionError, match=r"parameters of the call \(x, y\), unlike \{tenant\}"):
        KeyTemplate("api:{tenant}").validate(plain)
    KeyTemplate("api:{tenant}").validate(f)  # **more takes any name
    assert KeyTemplate("api:{tenant}").for_call(f, (1,), {"tenant": 5}) == "api:5"


def test_a_missing_attribute_is_named():
    with pytest.raises(InvalidOptionError, match=r"\{user.name\} is not there"):
        KeyTemplate("u:{user.name}").fill({"user": User(id=1)})
