"""The maps that a low-rank update may be passed through, with their slopes.

An entry of the update is `scale * value(phase)`, where `phase = omega * (B A)_ij`. For the bounded maps the scale is
`(alpha / r) / gain` and |value| <= 1, so no entry ever exceeds the scale, whatever A and B become.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from expunge.errors import UsageRefused
from expunge.primitives.settings import show


@dataclass(frozen=True)
class Map:
    """A function applied entry by entry. Both callables may overwrite what they are given."""

    value: Callable[[Tensor], Tensor]
    """The map itself."""
    slope: Callable[[Tensor], Tensor]
    """Its derivative at the same phase."""
    sharpened: bool = True
    """Whether its slope at 0 is (alpha / r) * omega / gain; otherwise it is LoRA's, alpha / r."""
    bounded: bool = True
    """Whether |value| <= 1."""


MAPS: dict[str, Map] = {
    "sine": Map(lambda u: u.sin_(), lambda u: u.cos_()),
    "tanh": Map(lambda u: u.tanh_(), lambda u: u.tanh_().square_().neg_().add_(1)),
    # 2 sigmoid(u) - 1, centred so that the update starts at 0; it equals tanh(u / 2)
    "sigmoid": Map(
        lambda u: u.sigmoid_().mul_(2).sub_(1),
        lambda u: (lambda p: p.mul_(1 - p).mul_(2))(u.sigmoid_()),
    ),
    "hardtanh": Map(lambda u: u.clamp_(-1, 1), lambda u: (u.abs() <= 1).to(u.dtype)),
    # LoRA's own slope, cut where the phase reaches 1: |update| <= (alpha / r) / omega
    "clip": Map(lambda u: u.clamp_(-1, 1), lambda u: (u.abs() <= 1).to(u.dtype), sharpened=False),
    "identity": Map(lambda u: u, torch.ones_like, sharpened=False, bounded=False),
    # slope-matched LoRA: unbounded, but as steep at 0 as the sine; tells bounding from a larger step
    "linear": Map(lambda u: u, torch.ones_like, bounded=False),
}


@dataclass(frozen=True)
class Form:
    """A map with its numbers: the update is `scale * map(omega * B A)`."""

    map: str
    omega: float
    scale: float

    @staticmethod
    def of(map: str, rank: int, alpha: float, omega: float, gain: float | None, in_features: int) -> Form:
        """The form of a layer with `in_features` inputs; `gain` None means sqrt(in_features)."""
        scale = alpha / rank
        if not MAPS[map].sharpened:
            return Form(map, omega, scale / omega)
        return Form(map, omega, scale / (math.sqrt(in_features) if gain is None else gain))

    def delta(self, a: Tensor, b: Tensor) -> Tensor:
        """The update as a matrix [out, in]; the phase is taken in float32 at least."""
        return MAPS[self.map].value(self.phase(a, b)).mul_(self.scale)

    def phase(self, a: Tensor, b: Tensor) -> Tensor:
        """`omega * B A` in float32 at least: bfloat16 keeps 8 bits, too few for a sine."""
        return (b.to(width(b)) @ a.to(width(b))).mul_(self.omega)


def width(factor: Tensor) -> torch.dtype:
    """The precision for computing with an adapter's factors: float32, or float64 where they have it."""
    return torch.float64 if factor.dtype == torch.float64 else torch.float32


def initialise(a: Tensor, b: Tensor, how: bool | str) -> None:
    """Fill the factors A [r, in] and B [out, r]: B with 0, so that the update starts at 0, and A at random.

    True: Kaiming-uniform (a = sqrt 5), "gaussian": of variance 1 / r^2, both as peft's LoRA has it; False: B at random
    too, for tests of an adapter that does something.

    They are drawn on the CPU, so that a seed gives the same start on every device.
    """
    drawn = torch.empty(a.shape, dtype=a.dtype)
    if how == "gaussian":
        torch.nn.init.normal_(drawn, std=1 / a.shape[0])
    else:
        torch.nn.init.kaiming_uniform_(drawn, a=5**0.5)
    a.copy_(drawn)
    if how is False:
        b.copy_(torch.nn.init.kaiming_uniform_(torch.empty(b.shape, dtype=b.dtype), a=5**0.5))
    else:
        torch.nn.init.zeros_(b)


def check(map: str, rank: int, alpha: float, omega: float, gain: float | None, who: str = "Bounded") -> None:
    """Refuse invalid settings, all of them in one message."""
    wrong = []
    if not isinstance(map, str) or map not in MAPS:
        wrong.append(f"map must be one of {', '.join(MAPS)} (got {show(map)})")
    if not isinstance(rank, int) or isinstance(rank, bool) or not 1 <= rank <= 65536:
        wrong.append(f"rank must be a whole number from 1 to 65536 (got {show(rank)})")
    if not isinstance(alpha, (int, float)) or not 0 < alpha < math.inf:
        wrong.append(f"alpha must be positive (got {show(alpha)})")
    if not isinstance(omega, (int, float)) or not 0 < omega < math.inf:
        wrong.append(f"omega must be positive and finite (got {show(omega)})")
    if gain is not None and (not isinstance(gain, (int, float)) or not 0 < gain < math.inf):
        wrong.append(f"gain must be positive, or None for sqrt(in_features) (got {show(gain)})")
    if wrong:
        raise UsageRefused(f"{who}: {'; '.join(wrong)}.")
