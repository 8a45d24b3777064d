"""Which family a model is of, and what a report says of all models of a family."""

from __future__ import annotations

import importlib
from types import ModuleType

from expunge.core.model import Model
from expunge.errors import ModelRefused
from expunge.models._family import Family
from expunge.models.open import families
from expunge.primitives.composed_files import parts_of


def family_name(model: Model) -> str:
    """The model's own; of what is made of other models, that of the first."""
    if model.family:
        return model.family
    inside = (family_name(part) for _, part in parts_of(model, Model))
    return next(filter(None, inside), "other")


def unit_of(family: str) -> str:
    """What a row of its models is."""
    return next((known.unit for known in families() if known.name == family), Family.unit)


def limits_of(family: str) -> tuple[str, ...]:
    """What no audit of its models shows."""
    return next((known.limits for known in families() if known.name == family), Family.limits)


def family_reading(records: str) -> Family:
    """The family whose records are of that kind."""
    return next(known for known in families() if known.records == records)


def family_called(name: str) -> Family:
    """The family of that name. Raises `ModelRefused` where the model is of none whose records can be read."""
    for known in families():
        if known.name == name:
            return known
    raise ModelRefused("The model is of no family whose records can be read. Make the Request of your own examples.")


def reader_of(records: str) -> ModuleType:
    """The file of `data/` that reads a kind of records: its `load(path)`, `encode_for(records, network, path)`, and
    `WANTED`, the files that it reads in words."""
    return importlib.import_module(f"expunge.data.{records}")
