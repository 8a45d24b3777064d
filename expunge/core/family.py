"""Families of models: how a model is opened, what it is asked with, and how it is audited by default."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from expunge.core.model import Network


class Family(ABC):
    """A kind of models. One instance, `FAMILY`, stands in each file of `models/` that has one.

    Its records are read and encoded by a file of `data/` (`load(path)`, `encode(records, network, path)`), which this
    class names: the two folders do not import each other.
    """

    name: ClassVar[str]
    """What reports and plug-ins call it."""
    records: ClassVar[str]
    """Name of the file in `data/` that reads its records."""
    audits: ClassVar[str]
    """The audits that are run where none are named, in the notation."""
    method: ClassVar[str] = "Finetune()"
    """The method that is used where none is named, in the notation."""
    kind: ClassVar[str]
    """What its models are, in words for a refusal."""
    endings: ClassVar[tuple[str, ...]]
    """How the names of its architectures end."""

    @abstractmethod
    def has(self, config: Any) -> bool:
        """Whether a transformers configuration describes a model of this family."""

    @abstractmethod
    def open(self, source: Any, device: str, lies: str | None) -> Network:
        """Load a model for `device`; its weights lie there, or where `lies` says."""
