"""Frozen dataclasses <-> JSON: written, read back and checked, and described as JSON Schema, by their annotations.

Known are bool, int, float, str, None, Literal, X | Y, tuple[X, ...], tuple[X, Y], dict[str, X], and dataclasses of
these. All fields are written but those whose metadata says `{"json": False}`; a field with a default may be missing
when it is read, and an unknown field is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from expunge.events import EVENTS, Event

T = TypeVar("T")

PLAIN: dict[Any, tuple[str, str]] = {
    bool: ("boolean", "true or false"),
    int: ("integer", "a whole number"),
    float: ("number", "a number"),
    str: ("string", "a text"),
    NoneType: ("null", "null"),
}
"""Plain types: their names in JSON Schema, and in an error."""


class MisfitError(ValueError):
    """A value does not fit its type; the text says where and what is wanted, and never the value."""


def to_json(value: Any) -> Any:
    """A dataclass, or what it holds, as JSON's own types."""
    if is_dataclass(value):
        known = _json_fields(type(value))  # type: ignore[arg-type]  # mypy takes the __hash__ of instances for the class's
        return {each.name: to_json(getattr(value, each.name)) for each in known}
    if isinstance(value, Mapping):
        return {key: to_json(inner) for key, inner in value.items()}
    return [to_json(inner) for inner in value] if isinstance(value, list | tuple) else value


def from_json(kind: type[T], value: object, at: str = "") -> T:
    """`value` as a `kind`, checked. Raises `MisfitError` with the path of the first part that does not fit."""
    return cast(T, _read(kind, value, at))


def event_to_json(event: Event) -> dict[str, Any]:
    """A line of `steps.jsonl`: the event's kind and its fields."""
    return {"kind": event.kind, **to_json(event)}


def event_from_json(line: object, at: str = "") -> Event:
    """The event that a line of `steps.jsonl` holds. Raises `MisfitError`."""
    known = {kind.kind: kind for kind in EVENTS}
    kind = known.get(line["kind"]) if isinstance(line, dict) and isinstance(line.get("kind"), str) else None
    if kind is None or not isinstance(line, dict):
        raise MisfitError(f"{_under(at, 'kind')} must be one of {', '.join(known)}")
    return from_json(kind, {key: inner for key, inner in line.items() if key != "kind"}, at)


def schema(kind: type) -> dict[str, Any]:
    """JSON Schema (2020-12) of a dataclass, with those that it holds under `$defs`."""
    known: dict[str, Any] = {}
    top = _describe(kind, known)["$ref"].rpartition("/")[2]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **known.pop(top), "$defs": known}


# Reading


def _read(kind: Any, value: object, at: str) -> object:
    if kind in PLAIN:
        return _plain(kind, value, at)
    if is_dataclass(kind):
        return _dataclass(cast(type, kind), value, at)
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        if value in inner and isinstance(value, str):
            return value
        raise MisfitError(f"{at} must be one of {', '.join(map(str, inner))}")
    if origin in (Union, UnionType):
        return _either(inner, value, at)
    if origin is tuple:
        return _tuple(inner, value, at)
    if origin is dict:
        _must_be(isinstance(value, dict), at, "an object")
        return {key: _read(inner[1], each, _under(at, key)) for key, each in cast(dict[str, Any], value).items()}
    raise TypeError(f"{kind!r} has no form in JSON")


def _plain(kind: Any, value: object, at: str) -> object:
    fits = isinstance(value, int | float) if kind is float else isinstance(value, kind)
    _must_be(fits and isinstance(value, bool) == (kind is bool), at, PLAIN[kind][1])
    if kind is not float:
        return value
    try:
        return float(cast(float, value))
    except OverflowError:  # a whole number beyond what a float holds
        raise MisfitError(f"{at or 'it'} must be {PLAIN[kind][1]}") from None


def _either(kinds: tuple[Any, ...], value: object, at: str) -> object:
    if value is None and NoneType in kinds:
        return None
    wanted = [kind for kind in kinds if kind is not NoneType]
    for kind in wanted[:-1]:
        try:
            return _read(kind, value, at)
        except MisfitError:
            continue
    try:
        return _read(wanted[-1], value, at)
    except MisfitError as error:
        if str(error).startswith(f"{at} must be ") and NoneType in kinds:
            raise MisfitError(f"{error} or null") from None
        raise


def _tuple(kinds: tuple[Any, ...], value: object, at: str) -> object:
    _must_be(isinstance(value, list), at, "a list")
    many = cast(list[Any], value)
    of = [kinds[0]] * len(many) if kinds[1:] == (...,) else list(kinds)
    _must_be(len(of) == len(many), at, f"a list of {len(of)}")
    return tuple(_read(kind, each, f"{at}[{place}]") for place, (kind, each) in enumerate(zip(of, many, strict=True)))


def _dataclass(kind: type, value: object, at: str) -> object:
    _must_be(isinstance(value, dict), at, "an object")
    given, known = cast(dict[str, Any], value), {each.name: each for each in _json_fields(kind)}
    for name in given:
        if name not in known:
            raise MisfitError(f"{_under(at, name[:40])} is not known")
    for name, each in known.items():
        if name not in given and not _has_default(each):
            raise MisfitError(f"{_under(at, name)} is missing")
    hints = _hints(kind)
    return kind(**{name: _read(hints[name], inner, _under(at, name)) for name, inner in given.items()})


def _must_be(fits: bool, at: str, what: str) -> None:
    if not fits:
        raise MisfitError(f"{at or 'it'} must be {what}")


def _under(at: str, name: str) -> str:
    return f"{at}.{name}" if at else name


@cache
def _json_fields(kind: type) -> tuple[Field[Any], ...]:
    return tuple(each for each in fields(kind) if each.metadata.get("json", True))


def _has_default(each: Field[Any]) -> bool:
    return each.default is not MISSING or each.default_factory is not MISSING


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


# The schema


def _describe(kind: Any, known: dict[str, Any]) -> dict[str, Any]:
    if kind in PLAIN:
        return {"type": PLAIN[kind][0]}
    if is_dataclass(kind):
        name = cast(type, kind).__name__
        if name not in known:
            known[name] = {}  # a type may contain itself
            known[name] |= _object(cast(type, kind), known)
        return {"$ref": f"#/$defs/{name}"}
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return {"enum": list(inner)}
    if origin in (Union, UnionType):
        return {"anyOf": [_describe(each, known) for each in inner]}
    if origin is tuple and inner[1:] == (...,):
        return {"type": "array", "items": _describe(inner[0], known)}
    if origin is tuple:
        return {"type": "array", "prefixItems": [_describe(each, known) for each in inner], "items": False}
    if origin is dict:
        return {"type": "object", "additionalProperties": _describe(inner[1], known)}
    raise TypeError(f"{kind!r} has no form in JSON")


def _object(kind: type, known: dict[str, Any]) -> dict[str, Any]:
    hints = _hints(kind)
    return {
        "type": "object",
        "description": (kind.__doc__ or "").split("\n\n")[0].replace("\n", " "),
        "properties": {each.name: _describe(hints[each.name], known) for each in _json_fields(kind)},
        "required": [each.name for each in _json_fields(kind) if not _has_default(each)],
        "additionalProperties": False,
    }
