"""Models: what they take of plain data, everything that is wrong with it, and plain data again."""

import json
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmemu.model import jsonschema
from vmemu.model.base import Model
from vmemu.model.faults import Fault, Refusal, ValidationError
from vmemu.model.fields import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    PlainSerializer,
    PlainValidator,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)

Count = Annotated[int, Field(ge=0)]


def even(value: int) -> int:
    if value % 2:
        raise Refusal("odd", "is odd", {"nearest": value + 1})
    return value


def path(value: Any) -> Any:
    return Path(value) if isinstance(value, str) else value


def kind(value: Any) -> str | None:
    chosen = value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)
    return chosen if isinstance(chosen, str) else None


class Square(Model):
    kind: Literal["square"] = "square"
    side: Annotated[int, AfterValidator(even)]


class Line(Model):
    kind: Literal["line"]
    length: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0


Shape = Annotated[
    Annotated[Square, Tag("square")] | Annotated[Line, Tag("line")],
    Discriminator(kind),
]


class Drawing(Model):
    """A drawing."""

    kinds: ClassVar[int] = 2

    name: str
    shapes: Annotated[tuple[Shape, ...], Field(min_length=1, max_length=3)]
    counts: dict[str, Count] = Field(default={})
    anything: dict[str, Any] | None = None
    place: Annotated[Path, BeforeValidator(path)] = Path("/tmp")
    visible: bool = True
    schema_: Literal["drawing/1"] = Field(default="drawing/1", alias="schema")


SMALL = {"name": "a", "shapes": [{"side": 2}, {"kind": "line", "length": 3}]}
SMALL["shapes"][0]["kind"] = "square"


def wrong(model: type[Model], data: Any, **context: Any) -> list[tuple[str, str]]:
    """The types of what is wrong, and where."""
    with pytest.raises(ValidationError) as caught:
        model.model_validate(data, context=context or None)
    return [(fault.type, ".".join(map(str, fault.loc))) for fault in caught.value.faults]


def changed(**values: Any) -> dict[str, Any]:
    return SMALL | values


# ---- what is taken ----


def test_plain_data_becomes_a_model_and_plain_data_again() -> None:
    drawing = Drawing.model_validate(changed(counts={"x": 1}, anything={"deep": [1, {"y": None}]}))
    assert drawing.shapes == (Square(side=2), Line(kind="line", length=3.0))
    assert drawing.visible and drawing.place == Path("/tmp") and drawing.counts == {"x": 1}
    plain = json.loads(json.dumps(drawing.model_dump(by_alias=True)))
    assert plain["schema"] == "drawing/1" and plain["place"] == "/tmp"
    assert Drawing.model_validate(plain) == drawing


@given(
    st.lists(st.integers().map(lambda n: {"kind": "square", "side": 2 * n}), min_size=1, max_size=3)
    | st.lists(
        st.floats(1e-9, 1e9).map(lambda n: {"kind": "line", "length": n}), min_size=1, max_size=3
    ),
    st.dictionaries(st.text(), st.integers(min_value=0)),
    st.text(),
)
def test_what_was_read_reads_again(
    shapes: list[dict[str, Any]], counts: dict[str, int], name: str
) -> None:
    drawing = Drawing.model_validate({"name": name, "shapes": shapes, "counts": counts})
    assert Drawing.model_validate(drawing.model_dump(by_alias=True)) == drawing


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(
    st.dictionaries(st.sampled_from([*Drawing.model_fields, "schema", "more"]), _JSON, max_size=4)
)
def test_whatever_is_given_is_read_or_refused(data: dict[str, Any]) -> None:
    faults: tuple[Fault, ...] = ()
    try:
        Drawing.model_validate(SMALL | data)
    except ValidationError as error:
        faults = error.faults
    assert all(fault.loc and fault.message for fault in faults)


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"name": 1}, ("string_type", "name")),
        ({"name": None}, ("string_type", "name")),
        ({"shapes": []}, ("too_short", "shapes")),
        ({"shapes": [{"kind": "line"}] * 4}, ("too_long", "shapes")),
        ({"shapes": {"kind": "line"}}, ("tuple_type", "shapes")),
        ({"shapes": [{"kind": "cube"}]}, ("union_tag_invalid", "shapes.0")),
        ({"shapes": [{}]}, ("union_tag_not_found", "shapes.0")),
        ({"shapes": [{"kind": "square"}]}, ("missing", "shapes.0.square.side")),
        ({"shapes": [{"kind": "square", "side": 3}]}, ("odd", "shapes.0.square.side")),
        ({"shapes": [{"kind": "square", "side": True}]}, ("int_type", "shapes.0.square.side")),
        ({"shapes": [{"kind": "square", "side": 2.0}]}, ("int_type", "shapes.0.square.side")),
        ({"shapes": [{"kind": "line", "length": 0}]}, ("greater_than", "shapes.0.line.length")),
        (
            {"shapes": [{"kind": "line", "length": float("nan")}]},
            ("finite_number", "shapes.0.line.length"),
        ),
        (
            {"shapes": [{"kind": "line", "length": 10**400}]},
            ("finite_number", "shapes.0.line.length"),
        ),
        ({"counts": {"x": -1}}, ("greater_than_equal", "counts.x")),
        ({"counts": {1: 1}}, ("dict_type", "counts")),
        ({"counts": []}, ("dict_type", "counts")),
        ({"anything": 1}, ("dict_type", "anything")),
        ({"visible": 1}, ("bool_type", "visible")),
        ({"schema": "drawing/2"}, ("literal_error", "schema")),
        ({"schema": ["drawing/1"]}, ("literal_error", "schema")),
        ({"schema_": "drawing/1"}, ("extra_forbidden", "schema_")),
        ({"kinds": 3}, ("extra_forbidden", "kinds")),
    ],
)
def test_what_does_not_fit_is_named(values: dict[str, Any], fault: tuple[str, str]) -> None:
    assert wrong(Drawing, changed(**values)) == [fault]


def test_all_that_is_wrong_is_found() -> None:
    data = {"shapes": [{"kind": "line", "length": "x"}, {"kind": "cube"}], "more": 1}
    assert wrong(Drawing, data) == [
        ("missing", "name"),
        ("float_type", "shapes.0.line.length"),
        ("union_tag_invalid", "shapes.1"),
        ("extra_forbidden", "more"),
    ]
    assert wrong(Drawing, [1]) == [("model_type", "")]


def test_keys_that_are_not_known_may_be_passed_over() -> None:
    class Lenient(Square):
        extra = "ignore"

    assert Lenient.model_validate({"side": 2, "more": 1}) == Lenient(side=2)


def test_what_a_validator_says_belongs_to_its_fault() -> None:
    with pytest.raises(ValidationError) as caught:
        Square(side=3)
    (fault,) = caught.value.faults
    assert (fault.message, fault.value, fault.context) == ("is odd", 3, {"nearest": 4})
    assert str(caught.value) == "this is no Square:\nside: is odd"


# ---- validators ----


class Range(Model):
    first: Annotated[int, PlainValidator(int)]
    last: Annotated[int, PlainSerializer(str)] = Field(
        default_factory=lambda before: before["first"] + 1, validate_default=True
    )

    @field_validator("first", mode="before")
    @classmethod
    def _strip(cls, value: Any) -> Any:
        return value.strip("<") if isinstance(value, str) else value

    @field_validator("last")
    @classmethod
    def _below(cls, value: int, info: ValidationInfo) -> int:
        if value > (info.context or {}).get("most", 100):
            raise Refusal("most", "is too much")
        return value

    @model_validator
    def _in_order(self, info: ValidationInfo) -> None:
        if self.last < self.first:
            raise Refusal("order", "ends before it begins")


class Odd(Range):
    @field_validator("first")
    @classmethod
    def _odd(cls, value: int) -> int:
        return value | 1


def test_validators_stand_around_the_type() -> None:
    assert Range.model_validate({"first": "<7"}) == Range(first=7, last=8)
    assert Range(first=7).model_dump() == {"first": 7, "last": "8"}
    assert wrong(Range, {"first": 100}) == [("most", "last")]
    assert wrong(Range, {"first": 1, "last": 5}, most=4) == [("most", "last")]
    assert wrong(Range, {"first": 5, "last": 4}) == [("order", "")]


def test_a_default_made_of_a_wrong_field_is_not_made() -> None:
    class Half(Range):
        first: int

    assert wrong(Half, {"first": "x"}) == [("int_type", "first")]


def test_checks_are_inherited() -> None:
    assert Odd(first="<6", last=9).first == 7
    assert wrong(Odd, {"first": 9, "last": 4}) == [("order", "")]


# ---- the models themselves ----


def test_what_was_read_is_frozen() -> None:
    square = Square(side=2)
    with pytest.raises(AttributeError, match="Square is frozen: side can't be set"):
        square.side = 4  # type: ignore[misc]
    with pytest.raises(AttributeError, match="can't be deleted"):
        del square.side
    assert {square, Square(side=2), square.model_copy(update={"side": 4})} == {
        Square(side=2),
        Square(side=4),
    }
    assert repr(square) == "Square(kind='square', side=2)"


def test_a_class_has_its_defaults_in_its_fields_alone() -> None:
    assert not hasattr(Drawing, "visible")
    assert list(Line.model_fields) == ["kind", "length"]
    assert Line.model_fields["kind"].is_required()
    assert Line.model_fields["length"].default == 1.0


def test_the_json_schema() -> None:
    schema = jsonschema.of(Drawing)
    assert schema["required"] == ["name", "shapes"]
    assert schema["additionalProperties"] is False
    assert schema["description"] == "A drawing."
    shapes = schema["properties"]["shapes"]
    assert (shapes["minItems"], shapes["maxItems"]) == (1, 3)
    assert shapes["items"]["anyOf"] == [{"$ref": "#/$defs/Square"}, {"$ref": "#/$defs/Line"}]
    assert schema["properties"]["counts"] == {
        "type": "object",
        "additionalProperties": {"type": "integer", "minimum": 0},
        "title": "Counts",
        "description": "",
        "default": {},
    }
    assert schema["properties"]["schema"]["const"] == "drawing/1"
