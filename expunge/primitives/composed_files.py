"""Folders of things that are made of other things and of settings, such as a guarded network or an ensemble.

    model.json                         {"kind": "package.module:Class", "settings": {...}}
    FIELD/, FIELD-0/, FIELD-1/ ...     a folder for each part that a field holds

Only a class that is loaded already, or one of ours, is ever made of such a file: no module of its choice is imported.
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


def take_apart(thing: Any, part: type[Part]) -> tuple[dict[str, Any], list[tuple[str, Part]]]:
    """The settings of a dataclass by name, and its parts by the name of their folder.

    Raises `UsageRefused` where a setting is nothing that JSON can hold.
    """
    settings: dict[str, Any] = {}
    parts: list[tuple[str, Part]] = []
    for field in (field for field in fields(thing) if field.init):
        value = vars(thing)[field.name]
        if isinstance(value, part):
            parts.append((field.name, value))
        elif isinstance(value, tuple) and value and all(isinstance(each, part) for each in value):
            parts += [(f"{field.name}-{k}", each) for k, each in enumerate(value)]
        else:
            settings[field.name] = value
    try:
        json.dumps(settings)
    except (TypeError, ValueError) as error:
        raise UsageRefused(
            f"{type(thing).__name__} holds settings that JSON cannot. Give it a `save` and a static `load` of its own."
        ) from error
    return settings, parts


def describe(thing: Any, part: type[Part]) -> str:
    """The class and the settings of a dataclass, in one line."""
    return f"{kind_name(type(thing))} {json.dumps(take_apart(thing, part)[0], sort_keys=True)}"


def save_parts(thing: Any, part: type[Part], folder: Path, save: Callable[[Part, Path], None]) -> None:
    """Write a dataclass made of parts and of settings."""
    settings, parts = take_apart(thing, part)
    folder.mkdir(parents=True, exist_ok=True)
    for name, each in parts:
        save(each, folder / name)
    (folder / FILE).write_text(json.dumps({"kind": kind_name(type(thing)), "settings": settings}, indent=1))


def open_parts(folder: Path, part: type[Part], open_part: Callable[[Path], Part]) -> Part:
    """What `save_parts` wrote, or what a class of its own reads by a static `load(folder, open_part)`."""
    try:
        said = json.loads((folder / FILE).read_text(encoding="utf-8"))
        name, settings = str(said["kind"]), dict(said.get("settings", {}))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ModelRefused(f"{folder / FILE} does not describe a model. Save the model again.") from error
    kind = _class_called(name, part, folder)
    if "load" in vars(kind):
        made: Part = vars(kind)["load"].__func__(folder, open_part)
        return made
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
    for field in fields(kind):  # type: ignore[arg-type]
        several = sorted(folder.glob(f"{field.name}-*"), key=lambda path: int(path.name.rpartition("-")[2]))
        if (folder / field.name).is_dir():
            given[field.name] = open_part(folder / field.name)
        elif several:
            given[field.name] = tuple(map(open_part, several))
    try:
        return kind(**given)
    except TypeError as error:
        raise ModelRefused(f"{folder}: {name} cannot be made of what lies there. Save the model again.") from error


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
    raise ModelRefused(f"{folder}: holds a model of the class {name[:200]!r}, which is not loaded. Import it first.")
