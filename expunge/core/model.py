"""Models: whatever answers a batch with predictions."""

from __future__ import annotations

import copy
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Self

import torch
from torch import nn

from expunge.core.predictions import Hidden, Predictions, RowScores
from expunge.core.request import Example
from expunge.core.rows import Head
from expunge.runtime.out_of_memory import in_fitting_batches

Batch = Sequence[Example]


class Model(ABC):
    """Anything that answers a batch: a network, a guarded network, an ensemble of shards."""

    @abstractmethod
    def predict(self, batch: Batch) -> Predictions:
        """A row for each thing asked, in the order of the batch and, within an example, of its rows."""

    @abstractmethod
    def batches(self, examples: Batch) -> Iterator[list[int]]:
        """Indices of `examples` in groups that fit one call of `predict`."""

    def answers(self, examples: Batch) -> RowScores:
        """What an audit sees of `examples`: read in batches, without gradients, returned in their order."""
        parts: list[RowScores] = []
        order: list[int] = []
        with torch.inference_mode():
            read = in_fitting_batches(self, examples, self.batches(examples), lambda part: self.predict(part).answers())
            for group, said in read:
                parts.append(said)
                order += group
        return RowScores.join(parts, order)


class Speaker(Model):
    """A model that can also write."""

    @abstractmethod
    def generate(self, prompts: Batch, max_new_tokens: int, sure: Sequence[int] = ()) -> list[str]:
        """The greedy continuation of each example's prompt, in their order.

        `sure`: how many of the first rows of each example's own answer the model is known to write anyway.
        """


@dataclass(frozen=True)
class Network(Model):
    """A model whose weights we hold."""

    module: nn.Module

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write a folder that the family's own library loads without expunge."""

    @abstractmethod
    def hidden(self, batch: Batch, layer: int | None = None) -> Hidden:
        """The state after block `layer` (from 0; None: the first quarter's last) of each row; nothing above it runs."""

    def fork(self, module: nn.Module | None = None) -> Self:
        """A second network over the same weights: its modules are new, its storage is shared.

        Adapters may be put into the fork while this network goes on answering as before. Nothing is copied.
        """
        if module is None:
            memo: dict[int, object] = {id(b): b for b in self.module.buffers()}
            memo |= {id(p): nn.Parameter(p.detach(), requires_grad=p.requires_grad) for p in self.module.parameters()}
            module = copy.deepcopy(self.module, memo)
        return replace(self, module=module)

    @abstractmethod
    def head(self) -> Head | None:
        """The output matrix that reads the states of `predict`; None where those are the class scores."""

    @abstractmethod
    def settings(self) -> str:
        """All beside the weights that its answers depend on: configuration, tokenizer, how batches are read."""

    def identity(self) -> bytes:
        """SHA-256 of everything that its answers depend on but the question: weights, settings, device, code."""
        parts = (self.fingerprint(), self.settings(), self.device.type, code())
        return hashlib.sha256("\n".join(parts).encode()).digest()

    def fingerprint(self) -> str:
        """SHA-256 over names, types, shapes and bytes of all weights."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.module.state_dict().items()):
            digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return next(self.module.parameters()).device

    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that may move, by name."""
        return {name: p for name, p in self.module.named_parameters() if p.requires_grad}


@cache
def code() -> str:
    """SHA-256 of the code that turns weights and examples into answers, ours and the libraries' versions."""
    package = Path(__file__).parent.parent
    files = sorted(path for folder in ("core", "models", "adapters") for path in (package / folder).glob("*.py"))
    digest = hashlib.sha256(f"{torch.__version__} {version('transformers')}".encode())
    for path in files:
        digest.update(path.read_bytes())
    return digest.hexdigest()
