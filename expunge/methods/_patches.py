"""Windows of an image: their positions, the one that its class depends on most, and images with a window pasted in."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from expunge.core.model import Network
from expunge.core.question import LogProbabilities

if TYPE_CHECKING:
    from jaxtyping import Float

STRIDE = 16 / 224
"""Stride of windows, in image sides, as published."""


@dataclass(frozen=True)
class Box:
    """A window, in pixels."""

    top: int
    left: int
    height: int
    width: int

    @property
    def inside(self) -> tuple[slice, slice]:
        """The window as an index of the last two dimensions."""
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)

    @staticmethod
    def centre(pixels: Tensor, side: float) -> Box:
        """The central window, `side` times as long as the image."""
        high, wide = pixels.shape[-2:]
        height, width = max(1, round(side * high)), max(1, round(side * wide))
        return Box((high - height) // 2, (wide - width) // 2, height, width)

    @staticmethod
    def random(pixels: Tensor, side: float, lot: int) -> Box:
        """One of all windows, chosen by the number `lot`."""
        middle = Box.centre(pixels, side)
        rows, columns = pixels.shape[-2] - middle.height + 1, pixels.shape[-1] - middle.width + 1
        return replace(middle, top=lot % rows, left=lot // rows % columns)

    @staticmethod
    def grid(pixels: Tensor, side: float) -> list[Box]:
        """Windows on a regular grid, from edge to edge."""
        middle = Box.centre(pixels, side)
        high, wide = pixels.shape[-2:]
        return [
            replace(middle, top=top, left=left)
            for top in _starts(high - middle.height, max(1, round(STRIDE * high)))
            for left in _starts(wide - middle.width, max(1, round(STRIDE * wide)))
        ]


def _starts(last: int, stride: int) -> list[int]:
    return sorted({*range(0, last + 1, stride), last})


def decisive_windows(
    network: Network, pictures: Sequence[Any], side: float, blank: Float[Tensor, "channels height width"]
) -> list[Box]:
    """For each image the window without which its class is least likely; `blank` is shown in its place."""
    boxes = Box.grid(blank, side)
    blanked = ([paste(p, blank, box, "blank") for p in pictures] for box in boxes)
    left = [network.ask(LogProbabilities(), batch).log_probs for batch in blanked]
    return [boxes[k] for k in torch.stack(left).argmin(0).tolist()]


def paste(
    picture: Any, pixels: Float[Tensor, "channels height width"], box: Box, source: str, to: Box | None = None
) -> Any:
    """The image with the window `box` of other `pixels` pasted in at `to` (default: `box`); `source` identifies
    those."""
    to = to or box
    made = picture.pixels.clone()
    made[..., *to.inside] = pixels[..., *box.inside]
    digest = hashlib.sha256(f"{picture.digest}:{source}:{box}:{to}".encode()).hexdigest()
    return replace(picture, pixels=made, digest=digest)
