"""Folders of dataclasses whose fields are parts and plain settings, such as a guarded network or an ensemble of models.

    model.json                         {"kind": "package.module:Class", "settings": {...}}
    FIELD/, FIELD-0/, FIELD-1/ ...     a folder for each part that a field holds

Only a class that is already imported, or one of expunge, is ever built from such a file: a file cannot name a module to
import.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from expunge.errors import ModelRefused, UsageRefused

FILE = "model.json"
Part = TypeVar("Part")


def kind_name(kind: type) -> str:
    """`package.module:Class`"""
    return f"{kind.__module__}:{kind.__qualname__}"


def parts_of(thing: Any, part: type[Part]) -> list[tuple[str, Part]]:
    """The parts that the fields of a dataclass hold, each with the name of its folder."""
    parts: list[tuple[str, Part]] = []
    for name, value in _fields(thing):
        if isinstance(value, part):
            parts.append((name, value))
        elif _are_parts(value, part):
            parts += [(f"{name}-{k}", each) for k, each in enumerate(value)]
    return parts


def settings_of(thing: Any, part: type[Part]) -> dict[str, Any]:
    """The other fields of a dataclass. Raises `UsageRefused` where one is nothing that JSON can hold."""
    settings = {name: v for name, v in _fields(thing) if not (isinstance(v, part) or _are_parts(v, part))}
    try:
        json.dumps(settings)
    except (TypeError, ValueError) as error:
        raise UsageRefused(
            f"{type(thing).__name__} has a setting that JSON cannot hold. Define its `save` and a static `load`."
        ) from error
    return settings


def _fields(thing: Any) -> list[tuple[str, Any]]:
    return [(field.name, vars(thing)[field.name]) for field in fields(thing) if field.init]


def _are_parts(value: Any, part: type[Part]) -> bool:
    return isinstance(value, tuple) and bool(value) and all(isinstance(each, part) for each in value)


def describe(thing: Any, part: type[Part]) -> str:
    """The class and the settings of a dataclass, in one line."""
    return f"{kind_name(type(thing))} {json.dumps(settings_of(thing, part), sort_keys=True)}"


def save_parts(thing: Any, part: type[Part], folder: Path, save: Callable[[Part, Path], None]) -> None:
    """Write a dataclass made of parts and of settings."""
    settings = settings_of(thing, part)
    folder.mkdir(parents=True, exist_ok=True)
    for name, each in parts_of(thing, part):
        save(each, folder / name)
    (folder / FILE).write_text(json.dumps({"kind": kind_name(type(thing)), "settings": settings}, indent=1))


def open_parts(folder: Path, part: type[Part], open_part: Callable[[Path], Part]) -> Part:
    """Read what `save_parts` wrote, or call the class's own static `load(folder, open_part)`."""
    try:
        document = json.loads((folder / FILE).read_text(encoding="utf-8"))
        name, settings = str(document["kind"]), dict(document.get("settings", {}))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ModelRefused(f"{folder / FILE} does not describe a model. Save the model again.") from error
    kind = _class_called(name, part, folder)
    if "load" in vars(kind):
        loaded: Part = vars(kind)["load"].__func__(folder, open_part)
        return loaded
    arguments = {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
    for field in fields(kind):  # type: ignore[arg-type]
        numbered = sorted(folder.glob(f"{field.name}-*"), key=lambda path: int(path.name.rpartition("-")[2]))
        if (folder / field.name).is_dir():
            arguments[field.name] = open_part(folder / field.name)
        elif numbered:
            arguments[field.name] = tuple(map(open_part, numbered))
    try:
        return kind(**arguments)
    except TypeError as error:
        raise ModelRefused(f"{folder}: {name} cannot be built from the files in it. Save the model again.") from error


def _class_called(name: str, base: type[Part], folder: Path) -> type[Part]:
    module = name.partition(":")[0]
    if module.startswith("expunge."):
        with suppress(ImportError):
            importlib.import_module(module)
    waiting = [base]
    while waiting:
        kind = waiting.pop()
        if kind_name(kind) == name:
            return kind
        waiting += kind.__subclasses__()
    raise ModelRefused(f"{folder}: holds a model of the class {name[:200]!r}, which is not imported. Import it first.")
