"""Bounded low-rank adapters of the MLP layers (Stable Forgetting, Garg et al., 2025, arXiv 2509.24166).

    delta W = (alpha / r) * map(omega * B A) / gain,   A [r, in] Kaiming-uniform, B [out, r] zero

With sine, tanh, sigmoid or hardtanh no entry of the update ever exceeds (alpha / r) / gain, so ascent on a
cross-entropy cannot carry the weights away. Near zero the update is LoRA's, steeper by omega / gain.
Where omega times the learning rate is 0.3 or less it does as that does; beyond, tanh is safer (docs/stability.md).
The paper states neither gain nor alpha: sqrt(in_features) is that of Sine-Low-Rank (Ji et al.,
2403.19243), alpha = 2r that of LoKU (Cha et al., 2025). Each expert of a mixture has an update of its own; routers
and the gates of shared experts are not adapted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from peft import PeftConfig

from expunge.adapters._bounded_config import BoundedConfig
from expunge.adapters._layers import Targets
from expunge.adapters._maps import check
from expunge.adapters._peft_adapter import PeftAdapter
from expunge.notation.recipes import ALL_STEPS, Recipe

if TYPE_CHECKING:
    from expunge.core.model import Network


PUBLISHED = (
    Recipe(
        "GD+Sine",
        "language",
        "Finetune(objective=GradDiff(forget_weight=1.0), adapter=Bounded(map='sine', rank=8, alpha=16.0, "
        "omega=100.0), learning_rate=0.0002, steps=Epochs(count=5.0), batch=32, retain_batch=32, "
        f"warmup=Epochs(count=1.0), schedule='linear', weight_decay=0.01, {ALL_STEPS})",
        "Garg et al., 2025: gradient difference, sine, omega 100, MLP layers, ranks 4 to 32. Rate, "
        "length and alpha were not found: those of LoKU, whose TOFU tables it shares.",
        "Stable Forgetting (Garg et al., 2025, arXiv 2509.24166): gradient difference in a sine-bounded "
        "update of the MLP layers.",
    ),
    Recipe(
        "GD+Sine",
        "vision",
        "Finetune(objective=GradDiff(forget_weight=1.0), adapter=Bounded(map='sine', rank=8, alpha=16.0, "
        "omega=100.0), learning_rate=0.0002, steps=Epochs(count=5.0), batch=32, retain_batch=32, "
        f"warmup=Epochs(count=1.0), schedule='linear', weight_decay=0.01, {ALL_STEPS})",
        "Garg et al., 2025, on vision transformers: nothing but objective and adapter could be found; "
        "rate and length are those of its texts.",
        "Stable Forgetting (Garg et al., 2025, arXiv 2509.24166): gradient difference in a sine-bounded "
        "update of the MLP layers.",
    ),
)


@dataclass(frozen=True)
class Bounded(PeftAdapter):
    """A low-rank update that passes through a bounded map."""

    map: str = "sine"
    """sine, tanh, sigmoid, hardtanh; clip (LoRA's slope, cut); identity (plain LoRA); linear (slope-matched LoRA)."""
    rank: int = 8
    """A higher rank gives the update more directions; the bound depends on alpha / r alone."""
    alpha: float = 16.0
    """Raises step size and bound alike."""
    omega: float = 100.0
    """Raises the step size but not the bound: the map saturates at |B A| = 1 / omega."""
    gain: float | None = None
    """Divides step size and bound; None takes sqrt(in_features) of each layer."""
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
        check(self.map, self.rank, self.alpha, self.omega, self.gain)

    @property
    def where(self) -> tuple[Targets, tuple[int, ...] | None, str | None]:
        return self.targets, self.layers, self.part

    def config(self, names: list[str], experts: list[str]) -> PeftConfig:
        return BoundedConfig(
            target_modules=names, r=self.rank, alpha=self.alpha, map=self.map, omega=self.omega, gain=self.gain
        )

    def portable(self, adapted: Network) -> Network:
        return adapted
