"""Families of models: how a model is opened, what it is asked with, and how it is audited by default."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from expunge.core.model import Network


class Family(ABC):
    """A kind of models, such as causal language models. Each file of `models/` that adds one defines `FAMILY`, its
    only instance.

    Its records are read and encoded by a file of `data/` (`load(path)`, `encode_for(records, network, path)`), which
    this class names: the two folders do not import one another.
    """

    name: ClassVar[str]
    """What reports and plug-ins call it."""
    records: ClassVar[str]
    """Name of the file in `data/` that reads its records."""
    unit: ClassVar[str] = "rows"
    """What a row of its models is: tokens, images."""
    limits: ClassVar[tuple[str, ...]] = ()
    """What no audit of its models shows, in sentences for a report."""
    kind: ClassVar[str]
    """What its models are, in words for a refusal."""
    defaults: ClassVar[tuple[str, str]] = ("Settle", "Settle")
    """The recipes where no method is named: with a holdout set, and without one."""
    endings: ClassVar[tuple[str, ...]]
    """Endings of the architecture names in `config.json`, such as ForCausalLM."""

    @abstractmethod
    def has(self, config: Any) -> bool:
        """Whether a transformers configuration describes a model of this family."""

    @abstractmethod
    def open(self, source: Any, device: str, storage_device: str | None) -> Network:
        """Load a model that is computed with on `device`; `storage_device` holds the weights meanwhile, if it is
        another."""
