"""A network of the same shape that has learnt nothing."""

from __future__ import annotations

import copy

import torch
from torch import nn

from expunge.core.model import Network


def draw_weights(network: Network, seed: int, device: torch.device) -> Network:
    """The network with the weights that its layers begin with, on `device`; `network` is left as it is.

    Layers start as torch starts them. A parameter of no such layer, such as a table of positions, a class token or the
    stacked matrices of experts, gets its own entries in another order: as large as before, and without knowledge.
    """
    module = copy.deepcopy(network.module).cpu()  # drawn here, so that every device gets the same
    with torch.random.fork_rng(devices=()), torch.no_grad():
        torch.manual_seed(seed)
        for layer in module.modules():
            start = getattr(layer, "reset_parameters", None)
            if callable(start):
                start()
            else:
                for parameter in layer.parameters(recurse=False):
                    _shuffle(parameter)
    return network.fork(module.to(device).requires_grad_(False).eval())


def _shuffle(parameter: nn.Parameter) -> None:
    order = torch.randperm(parameter.numel())
    parameter.copy_(parameter.flatten()[order].view(parameter.shape))
