"""FILA (of LoKU, Cha et al., 2025, arXiv 2408.06621): initialise a low-rank update from weights the forget set needs.

    F = F_forget / (1e-5 + F_retain),   F_set = sum over batches of (d CE / d W)^2 * rows / all rows
    d_i = sqrt( sum_j F_ij ),           U S V^T = rank-r SVD of diag(d) W / slope
    A_0 = sqrt(S) V^T,   B_0 = diag(1 / (d + 1e-5)) U sqrt(S),   W' = W + delta(A, B) - delta(A_0, B_0)

The rows of W that matter to the forget set, and not to the retain set, go into the trainable factors. The
slope is that of delta at 0: alpha / r for LoRA, (alpha / r) * omega / gain for a bounded map, whose own update (not
B_0 A_0) is subtracted, so that the network answers as before until it is trained. The paper overwrites W with the
residual W - delta(A_0, B_0); here W is not changed and two frozen factors are kept beside it, so that the original
model needs no second copy. Note: the importances are computed on as many retain as forget examples; weight decay pulls
towards the residual, not towards W; no entry of a bounded update exceeds twice its bound.

With LoRA, the adapter is saved as a plain LoRA of rank 2r, [B, -B_0] and [A; A_0], that peft loads over the original.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor

from expunge.adapters._bounded_experts import BoundedExperts
from expunge.adapters._bounded_linear import BoundedLinear
from expunge.adapters._peft_adapter import quiet
from expunge.adapters._relative_fisher import factors, is_transposed, row_weights
from expunge.adapters.bounded import Bounded
from expunge.adapters.lora import LoRA
from expunge.core.adapter import Adapter
from expunge.errors import ModelRefused, UsageRefused

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from jaxtyping import Float

    from expunge.core.model import Network
    from expunge.core.request import Request

NOW, START = "default", "start"
"""peft's adapter names of the trainable factors and of the frozen ones."""


@dataclass(frozen=True)
class Fila(Adapter):
    """A low-rank adapter whose factors are initialised from what matters to the forget set."""

    adapter: LoRA | Bounded = LoRA()
    """The adapter that is initialised. The paper's is LoRA, of rank 4 to 32, alpha = 2r, targets all."""
    batch: int = 4
    """Examples in the mean of one gradient."""

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise UsageRefused(f"The `batch` of Fila must be at least 1. Got {self.batch!r}.")

    @property
    def rank(self) -> int:
        """Rank of the trainable factors."""
        return self.adapter.rank

    def check(self, network: Network) -> None:
        self.adapter.check(network)

    def insert(self, network: Network, request: Request) -> Network:
        adapted = self.adapter.insert(network, request)
        if any(isinstance(part, BoundedExperts) for part in adapted.module.modules()):
            raise ModelRefused(
                f"Fila: {type(network.module).__name__} has fused experts, which cannot be initialised so. "
                f" Use adapter={self.adapter!r} alone, or targets='attention' in it."
            )
        if network.device.type == "meta":  # a plan needs sizes only, which do not depend on the initial values
            return adapted
        parts = {
            name.removeprefix("base_model.model."): part
            for name, part in adapted.module.named_modules()
            if isinstance(part, BaseTunerLayer)
        }
        weights = row_weights(network, request, list(parts), self.batch)
        module: Any = adapted.module
        if isinstance(self.adapter, Bounded):
            module.peft_config[NOW] = replace(module.peft_config[NOW], start=True)
        else:
            with quiet():
                module.add_adapter(START, replace(module.peft_config[NOW]))
                module.base_model.set_adapter([START, NOW])
        for name, part in parts.items():
            base: Any = part.get_base_layer()
            weight = base.weight.detach().T if is_transposed(base) else base.weight.detach()
            _initialise(part, *factors(weight / _slope(part), weights.pop(name), self.rank))
        return adapted

    def merge(self, adapted: Network) -> Network:
        return self.adapter.merge(adapted)

    def deltas(self, adapted: Network, before: Network) -> Iterator[tuple[str, Float[Tensor, "out in"]]]:
        return self.adapter.deltas(adapted, before)

    def save(self, adapted: Network, folder: Path) -> None:
        self.adapter.save(_join_loras(adapted) if isinstance(self.adapter, LoRA) else adapted, folder)


def _slope(part: Any) -> float:
    """Slope of the update at B A = 0."""
    if isinstance(part, BoundedLinear):
        form = part.bounded_form[NOW]
        return form.scale * form.omega
    return float(part.scaling[NOW])


def _initialise(part: Any, a: Tensor, b: Tensor) -> None:
    """Set the factors; directions beyond the weight's own rank keep the adapter's initial values."""
    few = len(a)
    bounded = isinstance(part, BoundedLinear)
    now_a, now_b = (part.bounded_A[NOW], part.bounded_B[NOW]) if bounded else (_lora(part, NOW))
    with torch.no_grad():
        now_a[:few].copy_(a)
        now_b[:, :few].copy_(b)
    if bounded:
        part.keep_start(NOW)
        return
    start_a, start_b = _lora(part, START)
    with torch.no_grad():
        start_a.copy_(now_a)
        start_b.copy_(-now_b)
    for factor in (start_a, start_b):
        factor.requires_grad_(False)


def _lora(part: Any, which: str) -> tuple[Tensor, Tensor]:
    return part.lora_A[which].weight, part.lora_B[which].weight


def _join_loras(adapted: Network) -> Network:
    """Trainable and frozen LoRA as one of twice the rank, over the same weights."""
    module: Any = adapted.fork().module
    was = module.peft_config[NOW]
    pairs = {
        name: [
            torch.cat([one, other], axis)
            for axis, one, other in zip((0, 1), _lora(part, NOW), _lora(part, START), strict=True)
        ]
        for name, part in adapted.module.named_modules()
        if isinstance(part, BaseTunerLayer)
    }
    config = LoraConfig(
        target_modules=was.target_modules, r=2 * was.r, lora_alpha=2 * was.lora_alpha, lora_dropout=0.0, bias="none"
    )
    with quiet(), torch.no_grad():
        joined = get_peft_model(module.unload(), config)
        for name, values in pairs.items():
            for into, value in zip(_lora(joined.get_submodule(name), NOW), values, strict=True):
                into.copy_(value)
    return adapted.fork(joined)
