"""Pydantic's complaints about a payload, in words that say what to send."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from worker.base.errors import Problem
from worker.request.payload import Limits, LoraInput, SegmentInput, shown
from worker.request.problems import Problems, join

ModelT = TypeVar("ModelT", bound=BaseModel)


# The lists of objects that a payload has, at any depth.
_INSIDE: Mapping[object, type[BaseModel]] = {"loras": LoraInput, "segments": SegmentInput}


def read(
    model: type[ModelT], data: Mapping[str, Any], limits: Limits, problems: Problems, **stand_ins: object
) -> ModelT:
    """The model of `data`, and a line in `problems` for each field that is wrong, at whatever depth.

    A field that is wrong is read as if it were not given, so that what the others say can be judged too; `stand_ins`
    are values for fields that are required.
    """
    while True:  # pydantic counts the items of a list only once each of them is right
        try:
            return model.model_validate(data, context=limits)
        except ValidationError as failure:
            before = data
            for entry in failure.errors(include_url=False, include_context=True):
                problems.found.add(Problem(_dotted(problems.path, entry["loc"]), _explain(entry, model)))
                data = _without(entry["loc"], data, model, stand_ins)
            if data == before:  # a required field without a stand-in
                raise


def _without(
    place: Sequence[int | str], data: Mapping[str, Any], model: type[BaseModel], stand_ins: Mapping[str, object]
) -> dict[str, Any]:
    """The known fields of `data`, of which the one at `place` has its stand-in, or null."""
    known = {name: data.get(name) for name in model.model_fields}
    name, *deeper = place
    known[str(name)] = stand_ins.get(str(name))
    if deeper and name in _INSIDE:
        index, *rest = deeper
        each = list(data[str(name)])
        each[int(index)] = _without(rest, each[int(index)], _INSIDE[name], {}) if rest else {}
        known[str(name)] = each
    return known


def _dotted(path: str, location: Sequence[int | str]) -> str:
    for part in location:
        path = f"{path}[{part}]" if isinstance(part, int) else join(path, part)
    return path


_TYPE_NAMES = {
    "int_type": "an integer",
    "float_type": "a number",
    "string_type": "a string",
    "bool_type": "true or false",
    "list_type": "a list",
    "model_type": "an object",
    "int_from_float": "an integer",
}
_JSON_NAMES = {
    str: "a string",
    bool: "a boolean",
    int: "an integer",
    float: "a number",
    list: "a list",
    dict: "an object",
}


def _explain(entry: Mapping[str, Any], model: type[BaseModel]) -> str:
    """One of pydantic's errors in words that say what to send."""
    kind, context = entry["type"], entry.get("ctx", {})
    if kind == "missing":
        return "is missing"
    # Pydantic reports an integer beyond the range of a float as a wrong type.
    if kind == "finite_number" or (kind == "float_type" and type(entry["input"]) is int):
        return "must be a finite number"
    if kind == "string_unicode":
        return "must be a string of valid Unicode"
    if kind == "too_short":
        least = context["min_length"]
        return f"must have at least {least} items, not {context['actual_length']}" if least > 1 else "must not be empty"
    if kind in ("too_long", "string_too_long"):
        return f"must have at most {context['max_length']} {'characters' if type(entry['input']) is str else 'items'}"
    if kind in _TYPE_NAMES:
        value = entry["input"]
        got = "null" if value is None else _JSON_NAMES.get(type(value), "something else")
        return f"must be {_TYPE_NAMES[kind]}, got {got}"
    if kind == "literal_error":
        return f"must be one of {context['expected']}"
    if kind in ("greater_than_equal", "less_than_equal", "greater_than", "less_than"):
        owner = next((_INSIDE[part] for part in entry["loc"][-2::-1] if part in _INSIDE), model)
        return f"must be {_bounds(owner, str(entry['loc'][-1]))}, not {shown(entry['input'])}"
    message = str(entry["msg"]).removeprefix("Value error, ")
    return message[:1].lower() + message[1:]


def _bounds(model: type[BaseModel], field: str) -> str:
    """The range that `field` may have, such as `256 to 1920`."""
    found = {name: getattr(bound, name) for bound in model.model_fields[field].metadata for name in bound.__slots__}
    if "le" not in found:
        return f"more than {found['gt']:g}"
    low = f"more than {found['gt']:g} and at most " if "gt" in found else f"{found['ge']} to "
    return f"{low}{found['le']}"
