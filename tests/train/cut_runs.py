"""Runs of a tiny model that are cut off after a step."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from expunge.core.model import Model, network_of
from expunge.core.request import Request
from expunge.data.text import Passage
from expunge.events import Checked, Ended, Event, OnEvent, Step
from expunge.models.language import LanguageModel
from expunge.notation.parse import parse
from expunge.notation.typed_json import event_to_json
from expunge.train.checkpoint import Checkpoints, keep_checkpoints

torch.set_num_threads(1)

V = 40
SETTINGS = "steps=12, batch=2, retain_batch=3, learning_rate=0.001, schedule='linear', stop=Stop(level=None, every=3)"


def tiny(seed: int = 0) -> LanguageModel:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=V, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4, eos_token_id=0
    )
    return LanguageModel.of(LlamaForCausalLM(config).eval(), None)


def passages(name: str, count: int, seed: int) -> tuple[Passage, ...]:
    draw = torch.Generator().manual_seed(seed)
    lengths = [4 + (3 * k) % 7 for k in range(count)]
    tokens = [tuple(torch.randint(1, V, (length,), generator=draw).tolist()) for length in lengths]
    return tuple(Passage(f"{name}-{k}", its, 2, "", f"{name}-{k}") for k, its in enumerate(tokens))


REQUEST = Request(forget=passages("f", 5, 1), retain=passages("r", 7, 2), holdout=passages("h", 5, 3))


class CutOffError(Exception):
    """Somebody pulled the plug."""


class Watcher(list):
    """Keeps what it is told, and pulls the plug after the line of step `last`."""

    def __init__(self, last: int = 0) -> None:
        self.last = last

    def __call__(self, event: Event) -> None:
        self.append(event)
        if isinstance(event, Step) and event.step == self.last:
            raise CutOffError

    def lines(self) -> list[dict[str, Any]]:
        told = [event_to_json(event) for event in self if isinstance(event, Step | Checked | Ended)]
        return [{key: value for key, value in event.items() if key != "seconds"} for event in told]


def weights(network: Model) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in network_of(network, "a test").trainable().items()}


def run(method: str, on_event: OnEvent, checkpoints: Checkpoints | None = None) -> Model:
    with keep_checkpoints(checkpoints):
        return parse(method)(tiny(), REQUEST, on_event)


def cut(method: str, folder: Path, last: int = 9, every: int = 2) -> Checkpoints:
    """A run that ended in the middle of step `last`'s report."""
    torch.manual_seed(5)  # what is drawn outside of a run has no say in it
    with pytest.raises(CutOffError):
        run(method, Watcher(last), Checkpoints(folder, every))
    return Checkpoints(folder, every, resume=True)


METHOD = f"Finetune(adapter=Bounded(rank=2), {SETTINGS})"
