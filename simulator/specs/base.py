"""The schema's ground: strict frozen models, quantities that remember their source, errors with positions."""

from __future__ import annotations

import math
import types
import typing
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError, core_schema

from simulator import units
from simulator.specs.errors import Problem, SpecError, did_you_mean
from simulator.specs.source import Document, KeyPath


class Spec(BaseModel):
    """Base of everything that is read from YAML: frozen, unknown keys refused, no NaN or infinity."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )


class Figure(float):
    """A number that remembers where it comes from; it computes like any float."""

    __slots__ = ("date", "range", "source")
    source: str
    date: str
    range: tuple[float, float] | None

    def __new__(
        cls, value: float, source: str = "", date: str = "", range: tuple[float, float] | None = None
    ) -> Figure:
        """Attach a source, a date and a plausible range to a value [SI]."""
        figure = super().__new__(cls, value)
        figure.source, figure.date, figure.range = source, date, range
        return figure

    def __reduce__(self) -> tuple[Any, ...]:
        return (Figure, (float(self), self.source, self.date, self.range))


class _Quantity:
    """Pydantic hook: reads ``80 GiB`` or ``{value, source, date, range}`` as a :class:`Figure` of a dimension."""

    def __init__(self, dimension: str, *, minimum: float = 0.0, exclusive: bool = True) -> None:
        self.dimension, self.minimum, self.exclusive = dimension, minimum, exclusive

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(
            self.validate, serialization=core_schema.plain_serializer_function_ser_schema(float)
        )

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> dict[str, Any]:
        example = units.DIMENSIONS[self.dimension].example if self.dimension in units.DIMENSIONS else "1.5"
        text = {"type": "string", "examples": [example]}
        return {"anyOf": [text, {"type": "object", "required": ["value"]}], "description": self.dimension}

    def validate(self, value: Any) -> Figure:
        if isinstance(value, Figure):
            return value
        if isinstance(value, dict):
            return self._sourced(value)
        number = self._number(value)
        if not math.isfinite(number):
            raise PydanticCustomError("quantity", f"{value!r} is not finite")
        if number < self.minimum or (self.exclusive and number <= self.minimum):
            bound = "above" if self.exclusive else "at least"
            raise PydanticCustomError("quantity", f"{value!r} must be {bound} {self.minimum:g}")
        return Figure(number)

    def _number(self, value: Any) -> float:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
        if not isinstance(value, str):
            found = "nothing" if value is None else f"a {type(value).__name__}"
            raise PydanticCustomError("quantity", f"found {found}, expected a quantity{self._like()}")
        try:
            if self.dimension == "number":
                return float(value)
            return units.parse(value, self.dimension)
        except ValueError as error:
            message = str(error) if isinstance(error, units.UnitError) else f"{value!r} is not a number"
            raise PydanticCustomError("quantity", "{message}", {"message": message}) from None

    def _like(self) -> str:
        return (
            f" like '{units.DIMENSIONS[self.dimension].example}'"
            if self.dimension in units.DIMENSIONS
            else ""
        )

    def _sourced(self, value: dict[str, Any]) -> Figure:
        for key in value:
            if key not in ("value", "source", "date", "range"):
                hint = did_you_mean(str(key), ("value", "source", "date", "range"))
                raise PydanticCustomError("quantity", "{message}", {"message": f"unknown key {key!r}{hint}"})
        if "value" not in value:
            raise PydanticCustomError("quantity", "a sourced figure needs 'value'")
        number = self.validate(value["value"])
        between = value.get("range")
        if between is not None:
            if not isinstance(between, (list, tuple)) or len(between) != 2:
                raise PydanticCustomError("quantity", "'range' must be two quantities, low and high")
            low, high = (float(self.validate(item)) for item in between)
            if not low <= number <= high:
                raise PydanticCustomError("quantity", "'value' lies outside its 'range'")
            return Figure(number, str(value.get("source", "")), str(value.get("date", "")), (low, high))
        return Figure(number, str(value.get("source", "")), str(value.get("date", "")))


Bytes = Annotated[float, _Quantity("bytes")]
ByteSize = Annotated[float, _Quantity("bytes", exclusive=False)]
"""Bytes of what may be empty."""
ByteRate = Annotated[float, _Quantity("bytes/s")]
Seconds = Annotated[float, _Quantity("seconds", exclusive=False)]
FlopRate = Annotated[float, _Quantity("FLOP/s")]
Hertz = Annotated[float, _Quantity("hertz")]
Watts = Annotated[float, _Quantity("watts")]
Dollars = Annotated[float, _Quantity("dollars", exclusive=False)]
DollarRate = Annotated[float, _Quantity("dollars/s", exclusive=False)]
Rate = Annotated[float, _Quantity("1/s")]
Tokens = Annotated[float, _Quantity("tokens")]
Number = Annotated[float, _Quantity("number")]
Fraction = Annotated[float, Field(gt=0.0, le=1.0)]

Anything = TypeVar("Anything", bound=Spec)


def validate(document: Document, schema: type[Anything]) -> Anything:
    """Check a document against a schema and return the frozen value.

    Raises
    ------
    SpecError
        With every problem of the document at once: place, key path, what was found and what was expected.
    """
    if not isinstance(document.data, dict):
        raise SpecError([document.problem((), f"expected keys and values, found {_kind(document.data)}")])
    try:
        return schema.model_validate(document.data)
    except ValidationError as error:
        raise SpecError(_problems(document, schema, error.errors(include_url=False))) from None


def _problems(document: Document, schema: type[Spec], errors: list[ErrorDetails]) -> list[Problem]:
    # a union reports one error for each member that it tried; the longest path is the member that was meant
    problems: dict[KeyPath, Problem] = {}
    for detail in errors:
        path, owner = _place(document.data, schema, detail["loc"])
        if path not in problems:
            problems[path] = document.problem(path, _message(detail, path, owner))
    return [p for path, p in problems.items() if not _shadowed(path, problems)]


def _shadowed(path: KeyPath, problems: dict[KeyPath, Problem]) -> bool:
    return any(len(other) > len(path) and other[: len(path)] == path for other in problems)


def _message(detail: ErrorDetails, path: KeyPath, owner: type[Spec] | None) -> str:
    kind, context = detail["type"], detail.get("ctx") or {}
    if kind == "extra_forbidden":
        known = list(owner.model_fields) if owner else []
        return f"unknown key{did_you_mean(str(path[-1]), known)}"
    if kind == "missing":
        return "missing; this key is required"
    found = _found(detail["input"])
    if kind in ("literal_error", "enum"):
        options = [option.strip("' ") for option in str(context["expected"]).replace(" or ", ", ").split(",")]
        return f"found {found}, expected one of {', '.join(options)}{_near(detail['input'], options)}"
    if kind == "union_tag_invalid":
        options = [option.strip("' ") for option in str(context["expected_tags"]).split(",")]
        key, tag = str(context["discriminator"]).strip("'"), context["tag"]
        return f"{key}: found {tag!r}, expected one of {', '.join(options)}{_near(tag, options)}"
    if kind.startswith("int_"):
        return f"found {found}, expected a whole number"
    if kind.startswith("bool_"):
        return f"found {found}, expected true or false"
    if kind.startswith("float_"):
        return f"found {found}, expected a number"
    if kind in ("model_type", "dict_type", "model_attributes_type"):
        return f"found {found}, expected keys and values"
    if kind in ("list_type", "tuple_type"):
        return f"found {found}, expected a list"
    if kind == "string_type":
        return f"found {found}, expected a text"
    if kind in ("greater_than", "greater_than_equal", "less_than", "less_than_equal"):
        return f"found {found}, {detail['msg'][0].lower()}{detail['msg'][1:]}"
    message = detail["msg"].removeprefix("Value error, ")
    return message


def _near(value: Any, options: list[str]) -> str:
    hint = did_you_mean(str(value), options)
    return hint if "did you mean" in hint else ""


def _found(value: Any) -> str:
    return _kind(value) if value is None or isinstance(value, (dict, list)) else repr(value)


def _kind(value: Any) -> str:
    return {dict: "keys and values", list: "a list", type(None): "nothing"}.get(type(value), repr(value))


def _place(data: Any, schema: type[Spec], loc: tuple[int | str, ...]) -> tuple[KeyPath, type[Spec] | None]:
    """Drop the union tags of a pydantic location; return the key path and the model that owns its last key."""
    path: list[str | int] = []
    here: Any = data
    owners: list[type[Spec]] = [schema]
    owner: type[Spec] | None = schema
    for position, part in enumerate(loc):
        last = position == len(loc) - 1
        steps = (isinstance(here, dict) and (part in here or _has_field(owners, part))) or (
            isinstance(here, list) and isinstance(part, int) and part < len(here)
        )
        if not steps and not (last and isinstance(here, dict) and not _is_tag(owners, part)):
            owners = [o for o in owners if _named(o, part)] or owners
            continue
        owner = next((o for o in owners if part in o.model_fields), owners[0] if owners else None)
        path.append(part)
        field = owner.model_fields.get(str(part)) if owner else None
        owners = _models(field.annotation) if field else owners
        here = here.get(part) if isinstance(here, dict) else here[typing.cast(int, part)]
    return tuple(path), owner


def _has_field(owners: list[type[Spec]], part: int | str) -> bool:
    return any(part in owner.model_fields for owner in owners)


def _is_tag(owners: list[type[Spec]], part: int | str) -> bool:
    return any(_named(owner, part) for owner in owners)


def _named(owner: type[Spec], part: int | str) -> bool:
    """Whether pydantic means this member of a union: by its class, or by the value of the field that tells members apart."""
    values = (typing.get_args(field.annotation) for field in owner.model_fields.values())
    return owner.__name__ == part or any(
        part in given for given in values if given and isinstance(given[0], str)
    )


def _models(annotation: Any) -> list[type[Spec]]:
    """Return the spec classes inside an annotation such as ``dict[str, A | B] | None``."""
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return [annotation] if issubclass(annotation, Spec) else []
    return [model for argument in typing.get_args(annotation) for model in _models(argument)]
