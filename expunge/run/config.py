"""The options that repeat a run, as a TOML file: what `--config` reads."""

from __future__ import annotations

import json
from collections.abc import Mapping

CONFIG = "config.toml"
"""The file's name in a run's folder."""


def write_toml(options: Mapping[str, object]) -> str:
    """Options as lines of TOML: texts, numbers, booleans, and lists of texts."""
    return "".join(f"{name} = {_value(value)}\n" for name, value in options.items())


def _value(value: object) -> str:
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    # A JSON string is a basic string of TOML, but for DEL, and for bytes of a path that are not UTF-8.
    text = str(value).encode("utf-8", "replace").decode()
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
