"""Options from a TOML file: the names of the command line without their dashes; what is typed beside it wins."""

from __future__ import annotations

import difflib
import tomllib
from pathlib import Path
from typing import Any

import typer

from expunge.errors import DataRefused, UsageRefused

LEFT_OUT = ("config", "help")
"""Options that mean nothing in a file."""


def read_config(context: typer.Context, path: Path | None) -> Path | None:
    """Make the file's options the command's defaults. Raises a `Refusal` for one that the command does not take."""
    if path is None:
        return None
    known = {_spell(one): one for one in context.command.params if _spell(one) not in LEFT_OUT}
    given: dict[str, Any] = {}
    for name, value in _read(path).items():
        spelled = name.replace("_", "-")
        if spelled not in known:
            near = difflib.get_close_matches(spelled[:100], known, n=1)
            hint = f"Did you mean '{near[0]}'?" if near else f"It may have: {', '.join(sorted(known))}."
            raise UsageRefused(f"--config {path}: {context.info_name} has no option '{name[:100]}'. {hint}")
        one = known[spelled]
        if not _fits(one, value):
            raise UsageRefused(f"--config {path}: '{name}' must be {_kind(one)}.")
        given[str(one.name)] = [str(each) for each in value] if isinstance(value, list) else value
    context.default_map = {**(context.default_map or {}), **given}
    return path


def _spell(parameter: Any) -> str:
    """An option as a file spells it: its longest name, without dashes; an argument's own name."""
    return str(max(parameter.opts, key=len)).lstrip("-").replace("_", "-")


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataRefused(f"--config {path}: {error.strerror or 'could not be read'}. Check the path.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        said = str(error) if isinstance(error, tomllib.TOMLDecodeError) else "not UTF-8"
        raise UsageRefused(
            f"--config {path}: not TOML ({said}). Write lines such as forget = 'forget.jsonl'."
        ) from error


def _fits(parameter: Any, value: object) -> bool:
    if getattr(parameter, "is_flag", False):
        return isinstance(value, bool)
    if getattr(parameter, "multiple", False):
        return isinstance(value, list) and all(isinstance(each, str) for each in value)
    return isinstance(value, str | int | float) and not isinstance(value, bool)


def _kind(parameter: Any) -> str:
    if getattr(parameter, "is_flag", False):
        return "true or false"
    return "a list of texts" if getattr(parameter, "multiple", False) else "a text or a number"
