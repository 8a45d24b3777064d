"""A few numbers that tell one base model from another, whatever precision either is loaded in.

    P_j = (1 / sqrt n) * sum over tensors of  s_j . v + s_j0 * sqrt(|v|) * log2(rms)

`v` are up to 1,024 evenly spaced entries of a tensor, divided by their root mean square `rms`, and `s_j` signs drawn
from the tensor's name. Of two models that were not made from one another each P differs by about 1; rounding to
bfloat16 moves it by about 0.002. Names and shapes are compared exactly. A change of single entries may go unseen, so
this finds a mistake and no forgery; the manifest beside an adapter has the SHA-256 over all weights.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from expunge.adapters._bounded_experts import BoundedExperts
from expunge.adapters._bounded_linear import BoundedLinear

SAMPLE = 1024
"""Entries that are read of each tensor."""
PROJECTIONS = 16
EXACT = 1e-6
"""How far apart the numbers may be where both models were loaded in one precision."""
ROUNDED = 1.5
"""The same where they were not, in units of the spacing of the coarser one's numbers at 1."""


def sketch(model: nn.Module) -> dict[str, Any] | None:
    """Names, shapes, precision and projections of a model's own weights, without those of adapters in it.

    None where not all weights are at hand: sharded, on the meta device, or traced.
    """
    shapes, total, entries, coarsest = hashlib.sha256(), np.zeros(PROJECTIONS), 0, torch.float64
    for name, tensor in sorted(base_weights(model), key=lambda pair: pair[0]):
        if tensor.is_meta or type(tensor) not in (Tensor, nn.Parameter):
            return None
        shapes.update(f"{name}:{tuple(tensor.shape)};".encode())
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        coarsest = max(coarsest, tensor.dtype, key=lambda dtype: torch.finfo(dtype).eps)
        values = tensor.detach().reshape(-1)[:: -(-tensor.numel() // SAMPLE)].to("cpu", torch.float64).numpy()
        rms = float(np.sqrt(np.mean(values**2))) or 1.0
        bits = hashlib.shake_256(name.encode()).digest(PROJECTIONS * (SAMPLE + 8) // 8)
        signs = np.unpackbits(np.frombuffer(bits, np.uint8)).reshape(PROJECTIONS, -1) * 2.0 - 1
        total += signs[:, : len(values)] @ (values / rms) + signs[:, -1] * np.sqrt(len(values)) * np.log2(rms)
        entries += len(values)
    projections = [round(float(value), 9) for value in total / np.sqrt(max(entries, 1))]
    return {
        "shapes": shapes.hexdigest(),
        "precision": str(coarsest).removeprefix("torch."),
        "projections": projections,
    }


def base_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The parameters of the model itself, by the names that they have without adapters; as they were before a merge."""
    tuners = {name: part for name, part in model.named_modules() if isinstance(part, BaseTunerLayer)}
    wrappers = {name: part for name, part in model.named_modules() if isinstance(part, AuxiliaryTrainingWrapper)}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owner, kept = _owner(name, tuners), "base_layer"
        if owner is None:
            owner, kept = _owner(name, wrappers), "original_module"
        if owner is None:
            yield _plain(name), parameter
            continue
        inside = name.removeprefix(f"{owner}.")
        if not inside.startswith(f"{kept}."):
            continue  # an adapter's own
        inside = inside.removeprefix(f"{kept}.")
        layer = tuners.get(owner)
        was: Tensor = parameter
        if isinstance(layer, BoundedLinear | BoundedExperts):
            was = layer.originals().get(inside, parameter)
        yield _plain(f"{owner}.{inside}"), was


def differ(was: dict[str, Any], now: dict[str, Any]) -> str | None:
    """In what a model differs from the one that was written down; None where it is the same but for rounding."""
    if was["shapes"] != now["shapes"]:
        return "its layers have other names, numbers or sizes"
    precisions = {was["precision"], now["precision"]}
    spacing = max(torch.finfo(getattr(torch, each)).eps for each in precisions)
    most = max(EXACT, ROUNDED * spacing if len(precisions) > 1 else 0.0)
    apart = np.abs(np.array(was["projections"], float) - np.array(now["projections"], float)).max()
    return None if apart <= most else "its weights are others"


def _owner(name: str, among: dict[str, Any]) -> str | None:
    """The module of those named that a parameter lies in."""
    parts = name.split(".")
    return next((owner for end in range(len(parts)) if (owner := ".".join(parts[:end])) in among), None)


def _plain(name: str) -> str:
    return re.sub(r"^(_orig_mod\.|base_model\.model\.)+", "", name)
