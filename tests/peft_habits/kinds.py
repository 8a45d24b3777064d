"""The two adapters that are compared, the tiny models that they are put into, and what a habit looks at."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, MixtralConfig

from expunge.adapters._bounded_config import BoundedConfig

SIZES = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 4}
TOKENS = torch.tensor([[3, 1, 4, 1, 5, 9], [2, 7, 1, 8, 2, 8]])
MLP = ["gate_proj", "up_proj", "down_proj"]
WORKS = "works"


@dataclass(frozen=True)
class Kind:
    """One of the two adapters that are compared."""

    name: str
    config: type[PeftConfig]
    alpha: str
    init: str
    extra: tuple[tuple[str, Any], ...] = ()

    def __call__(self, **settings: Any) -> PeftConfig:
        """Its configuration, by LoRA's names of the settings that both have."""
        named = {"alpha": self.alpha, "init": self.init}
        chosen = {"target_modules": MLP, "r": 4, "alpha": 8.0} | settings
        return self.config(**{named.get(key, key): value for key, value in chosen.items()}, **dict(self.extra))


BOUNDED = Kind("Bounded", BoundedConfig, "alpha", "init_weights", (("omega", 10.0),))
LORA = Kind("LoRA", LoraConfig, "lora_alpha", "init_lora_weights")
Habit = Callable[[Kind], str]


@cache
def _built(config: type, seed: int, settings: tuple[tuple[str, Any], ...]) -> nn.Module:
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config(**dict(settings))).eval()


def llama(layers: int = 2, seed: int = 0) -> Any:
    return copy.deepcopy(_built(LlamaConfig, seed, tuple({**SIZES, "num_hidden_layers": layers}.items())))


def mixtral() -> Any:
    sizes = {**SIZES, "num_hidden_layers": 2, "num_key_value_heads": 4, "num_local_experts": 3}
    return copy.deepcopy(_built(MixtralConfig, 0, tuple(sizes.items())))


def put(kind: Kind, model: Any = None, **settings: Any) -> Any:
    """A model with a new adapter in it."""
    return get_peft_model(llama() if model is None else model, kind(**settings)).eval()


def shake(model: nn.Module, seed: int = 1) -> Any:
    """Move the adapter far from its start."""
    draw = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if any(word in name for word in ("lora_A", "lora_B", "bounded_A", "bounded_B")):
            parameter.data = torch.randn(parameter.shape, generator=draw).to(parameter) * 0.1
    return model


def answer(model: Any, **settings: Any) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = model(input_ids=TOKENS, **settings).logits
    return logits


def near(one: Tensor, other: Tensor, within: float = 1e-5) -> bool:
    return bool((one - other).abs().max() <= within)


def targets(model: nn.Module) -> set[str]:
    """The adapted layers, by their names in the model."""
    found = {name for name, part in model.named_modules() if isinstance(part, BaseTunerLayer)}
    return {name.removeprefix("base_model.model.") for name in found if not name.endswith("base_layer")}


def named(layers: tuple[int, ...] = (0, 1), endings: tuple[str, ...] = tuple(MLP)) -> set[str]:
    return {f"model.layers.{layer}.mlp.{ending}" for layer in layers for ending in endings}


def expect(right: bool, otherwise: str = "wrong") -> str:
    return WORKS if right else otherwise


@contextmanager
def folder(model: Any) -> Iterator[Path]:
    """Where the adapter is saved."""
    with tempfile.TemporaryDirectory() as path:
        model.save_pretrained(path)
        yield Path(path)
