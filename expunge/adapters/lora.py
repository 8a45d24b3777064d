"""Low-rank adaptation (Hu et al., 2021, arXiv 2106.09685), as peft has it.

    delta W = (alpha / r) * B A,   A Kaiming-uniform, B zero

The update is unbounded: the baseline that bounded adapters are compared with.
"""

from dataclasses import dataclass

from peft import LoraConfig, PeftConfig

from expunge.adapters.layers import Targets
from expunge.adapters.maps import check
from expunge.adapters.peft_adapter import PeftAdapter


@dataclass(frozen=True)
class LoRA(PeftAdapter):
    """peft's LoRA on the chosen linear layers of each block."""

    rank: int = 8
    """More rank gives the update more directions."""
    alpha: float = 16.0
    """Raises the step size: the update is scaled by alpha / r."""
    targets: Targets = "mlp"
    """Which linear layers of each block: mlp, attention or all."""
    layers: tuple[int, ...] | None = None
    """Which blocks, from 0, such as those that tracing found; None: all."""

    def __post_init__(self) -> None:
        check("identity", self.rank, self.alpha, 1.0, None, who="LoRA")

    @property
    def where(self) -> tuple[Targets, tuple[int, ...] | None]:
        return self.targets, self.layers

    def config(self, names: list[str]) -> PeftConfig:
        return LoraConfig(target_modules=names, r=self.rank, lora_alpha=self.alpha, lora_dropout=0.0, bias="none")
