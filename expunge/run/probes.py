"""Probes as they are written: NAME=FILE, and after a colon what they hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from expunge.errors import UsageRefused
from expunge.primitives.meanings import MEANINGS, Meaning, SetName, declaration_of

ALLOWED = ", ".join(MEANINGS)


def split_probe(text: str) -> tuple[str, Path]:
    """The name of a probe and its file; the name says what the probe holds, where that is written."""
    name, sign, place = text.partition("=")
    if not sign:
        raise UsageRefused(f"--probe '{text}': write NAME=FILE, such as paraphrase=paraphrase.jsonl.")
    path, _, last = place.rpartition(":")
    for meaning in MEANINGS:
        if path and last == meaning:
            return SetName(name, meaning), Path(path)
    if path and last.isalpha() and not Path(place).exists() and Path(path).exists():
        raise UsageRefused(f"--probe {name}: ':{last}' is no meaning. Allowed: {ALLOWED}.")
    return name, Path(place)


def write_probe(name: str, path: Path) -> str:
    """What `split_probe` reads."""
    meaning = declaration_of(name)
    return f"{name}={path}:{meaning}" if meaning else f"{name}={path}"


def check_meanings(meanings: Mapping[str, Meaning], probes: Iterable[str]) -> Mapping[str, Meaning]:
    """Refuse a meaning that is none, or one of a set that is no probe."""
    known = [*probes]
    for name, meaning in meanings.items():
        if name not in known:
            raise UsageRefused(f"meanings: there is no probe '{name}'. Probes: {', '.join(known) or 'none'}.")
        if meaning not in MEANINGS:
            raise UsageRefused(f"meanings: '{name}' cannot be '{meaning}'. Allowed: {ALLOWED}.")
    return meanings
