"""Low-rank adaptation (Hu et al., 2021, arXiv 2106.09685), as peft has it.

    delta W = (alpha / r) * B A,   A Kaiming-uniform, B zero

The update is unbounded: the baseline that bounded adapters are compared with. Fused experts of a mixture are adapted
one by one in our own layers, since peft's would compute the updates of all experts at every step; they are saved as
peft's LoRA wherever peft has one for that model, and else as `Bounded(map='identity')`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig, PeftConfig, get_peft_model
from peft.tuners.lora.layer import LoraLayer, ParamWrapper
from torch import Tensor, nn

from expunge.adapters._bounded_config import BoundedConfig
from expunge.adapters._bounded_experts import BoundedExperts
from expunge.adapters._bounded_linear import BoundedLinear
from expunge.adapters._layers import Targets
from expunge.adapters._maps import check
from expunge.adapters._peft_adapter import PeftAdapter, quiet

if TYPE_CHECKING:
    from expunge.core.model import Network

NAME = "default"
"""peft's name of the adapter."""


@dataclass(frozen=True)
class LoRA(PeftAdapter):
    """peft's LoRA on the chosen linear layers of each block."""

    rank: int = 8
    """A higher rank gives the update more directions."""
    alpha: float = 16.0
    """Raises the step size: the update is scaled by alpha / r."""
    targets: Targets = "mlp"
    """Which linear layers of each block: mlp (a mixture's experts, too; the mixers where no block has an MLP, as in
    Mamba), attention (all token mixers) or all."""
    layers: tuple[int, ...] | None = None
    """Which blocks, from 0, such as those found by causal tracing; None: all."""
    part: str | None = None
    """Which tower of a model with several, by the name of its module (text_model, vision_model, decoder, ...); None:
    the
    one that the class scores depend on."""

    def __post_init__(self) -> None:
        check("identity", self.rank, self.alpha, 1.0, None, who="LoRA")

    @property
    def where(self) -> tuple[Targets, tuple[int, ...] | None, str | None]:
        return self.targets, self.layers, self.part

    def config(self, names: list[str], experts: list[str]) -> PeftConfig:
        if experts:
            return BoundedConfig(target_modules=names, r=self.rank, alpha=self.alpha, map="identity", omega=1.0)
        return LoraConfig(target_modules=names, **self._peft_settings())

    def _peft_settings(self) -> dict[str, Any]:
        return {"r": self.rank, "lora_alpha": self.alpha, "lora_dropout": 0.0, "bias": "none"}

    def portable(self, adapted: Network) -> Network:
        if not any(isinstance(part, BoundedExperts) for part in adapted.module.modules()):
            return adapted
        factors = dict(_factors(adapted.module))
        stacked = [name for name, (a, _) in factors.items() if a.dim() == 3]
        config = LoraConfig(
            target_modules=[name for name in factors if name not in stacked],
            target_parameters=stacked,
            **self._peft_settings(),
        )
        module: Any = adapted.fork().module
        try:
            # For some models peft confuses linear layers with the experts of older transformers versions; then it
            # warns, fails, or adapts something else.
            with quiet(), warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)
                theirs = get_peft_model(module.unload(), config)
        except ValueError:
            return adapted
        places = dict(_places(theirs))
        if places.keys() != factors.keys():
            return adapted
        with torch.no_grad():
            for name, (a, b) in factors.items():
                into_a, into_b = places[name]
                into_a.copy_(a.flatten(0, -2))
                into_b.copy_(b if b.dim() == 2 else b.permute(1, 2, 0).flatten(1))  # [out, r experts], experts within r
        return adapted.fork(theirs)


def _factors(module: nn.Module) -> Iterator[tuple[str, tuple[Tensor, Tensor]]]:
    """Our A and B of each layer and of each tensor of experts, by its name in the original network."""
    for peft_name, part in module.named_modules():
        name = peft_name.removeprefix("base_model.model.")
        if isinstance(part, BoundedExperts):
            yield from ((f"{name}.{which}", part.factors(NAME, which)) for which in part.matrices)
        elif isinstance(part, BoundedLinear):
            yield name, (part.bounded_A[NAME], part.bounded_B[NAME])


def _places(module: nn.Module) -> Iterator[tuple[str, tuple[Tensor, Tensor]]]:
    """The same of peft's layers."""
    for peft_name, part in module.named_modules():
        if isinstance(part, LoraLayer):
            name = peft_name.removeprefix("base_model.model.")
            if isinstance(part, ParamWrapper):  # nested where there are several tensors
                name = f"{name.replace('.base_layer', '')}.{part.parameter_name}"
            a: Any = part.lora_A[NAME]
            b: Any = part.lora_B[NAME]
            yield name, (a.weight, b.weight)
