"""What several models hold of the same examples, in one plane that a page can draw.

The plane is that of the two main axes (PCA) of the model before. A model that was trained by itself has axes of its
own, so its states are first turned, moved and scaled onto those of the model before, as the examples that both should
know tell (Procrustes): what is left of the difference is then not one of axes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Bool, Float


def project(
    states: Mapping[str, Float[Tensor, "examples _"]], kept: Bool[Tensor, " examples"]
) -> dict[str, Float[Tensor, "examples 2"]]:
    """Two coordinates of each example for each model, in standard deviations along the plane's first axis.

    `states` are those of `before`, and of `after` and `reference` where there are such models, whose widths may differ;
    `kept` says by which examples a reference is brought onto the model before.
    """
    first = states["before"].double()
    middle = first.mean(0)
    _, lengths, axes = torch.linalg.svd(first - middle, full_matrices=False)
    plane = axes[:2].T / (lengths[0].clamp(min=1e-12) / len(first) ** 0.5)
    moved = {name: align(s.double(), first, kept) if name == "reference" else s.double() for name, s in states.items()}
    return {name: torch.nn.functional.pad((s - middle) @ plane, (0, 2 - plane.shape[1])) for name, s in moved.items()}


def align(
    other: Float[Tensor, "examples width"], first: Float[Tensor, "examples wide"], kept: Bool[Tensor, " examples"]
) -> Float[Tensor, "examples wide"]:
    """`other` turned, scaled and moved so that its kept examples lie as near to those of `first` as they can."""
    there, here = other[kept].mean(0), first[kept].mean(0)
    one, two = other[kept] - there, first[kept] - here
    u, lengths, v = torch.linalg.svd(one.T @ two, full_matrices=False)
    scale = lengths.sum() / one.square().sum().clamp(min=1e-12)
    turned: Tensor = (other - there) @ (scale * (u @ v)) + here
    return turned
