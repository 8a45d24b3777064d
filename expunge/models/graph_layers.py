"""Layers of graph networks, on lists of edges: GCN, GAT and GIN.

Each computes a node's new state from its own and from those that an edge leads from to it. Edges are directed here; an
undirected edge is two, and no edge is a loop: each layer adds the node itself in its own way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu

if TYPE_CHECKING:
    from jaxtyping import Float, Int


class GCN(nn.Module):
    """Graph convolution (Kipf and Welling, 2017, arXiv 1609.02907).

    H' = D^-1/2 (A + I) D^-1/2 H W + b,   D = degrees of A + I
    """

    def __init__(self, inside: int, out: int) -> None:
        super().__init__()
        self.linear, self.bias = nn.Linear(inside, out, bias=False), nn.Parameter(torch.zeros(out))

    def reset_parameters(self) -> None:
        """As at first."""
        nn.init.zeros_(self.bias)

    def forward(self, states: Float[Tensor, "nodes inside"], edges: Int[Tensor, "2 edges"]) -> Tensor:
        scale = (_count_heard(states, edges) + 1).rsqrt()[:, None]
        sent: Tensor = scale * self.linear(states)
        return scale * (sent + _sum_heard(sent, edges)) + self.bias


class GAT(nn.Module):
    """Graph attention (Velickovic et al., 2018, arXiv 1710.10903), one head.

    h'_v = sum over u in N(v) and v itself of  a_uv W h_u + b,
    a_uv = softmax over u of  LeakyReLU_0.2( s . W h_u + t . W h_v )
    """

    def __init__(self, inside: int, out: int) -> None:
        super().__init__()
        self.linear, self.bias = nn.Linear(inside, out, bias=False), nn.Parameter(torch.zeros(out))
        self.attend = nn.Linear(out, 2, bias=False)  # s and t

    def reset_parameters(self) -> None:
        """As at first."""
        nn.init.zeros_(self.bias)

    def forward(self, states: Float[Tensor, "nodes inside"], edges: Int[Tensor, "2 edges"]) -> Tensor:
        every = torch.cat([edges, torch.arange(len(states), device=edges.device).expand(2, -1)], 1)
        made = self.linear(states)
        spoken, heard = self.attend(made).T
        scores = leaky_relu(spoken[every[0]] + heard[every[1]], 0.2)
        peaks = scores.new_full((len(states),), -torch.inf).scatter_reduce(0, every[1], scores.detach(), "amax")
        shares = (scores - peaks[every[1]]).exp()
        total = shares.new_zeros(len(states)).index_add(0, every[1], shares)
        return _sum_heard(made, every, shares / total[every[1]]) + self.bias


class GIN(nn.Module):
    """Graph isomorphism layer (Xu et al., 2019, arXiv 1810.00826).

    h'_v = B relu( A ( (1 + eps) h_v + sum over u in N(v) of h_u ) + a ) + b,   eps learnt, 0 at first
    """

    def __init__(self, inside: int, out: int) -> None:
        super().__init__()
        self.first, self.linear = nn.Linear(inside, out, bias=False), nn.Linear(out, out)
        self.bias, self.eps = nn.Parameter(torch.zeros(out)), nn.Parameter(torch.zeros(()))

    def reset_parameters(self) -> None:
        """As at first."""
        nn.init.zeros_(self.bias)
        nn.init.zeros_(self.eps)

    def forward(self, states: Float[Tensor, "nodes inside"], edges: Int[Tensor, "2 edges"]) -> Tensor:
        sent = self.first(states)  # before the sum, which is linear, since it is narrower
        mixed = (1 + self.eps) * sent + _sum_heard(sent, edges) + self.bias
        made: Tensor = self.linear(torch.relu(mixed))
        return made


class Operator(nn.Module):
    """The deletion operator of GNNDelete (Cheng et al., 2023): a square matrix on the states of some nodes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(width))

    def reset_parameters(self) -> None:
        """Changes nothing at first."""
        nn.init.eye_(self.weight)

    def forward(self, states: Float[Tensor, "nodes width"], region: Tensor) -> Tensor:
        return torch.where(region[:, None], states @ self.weight, states)


LAYERS: dict[str, type[nn.Module]] = {"gcn": GCN, "gat": GAT, "gin": GIN}


def _sum_heard(states: Tensor, edges: Tensor, shares: Tensor | None = None) -> Tensor:
    """For each node the sum of the states that edges lead from to it, each times its share."""
    sent = states[edges[0]] if shares is None else shares[:, None] * states[edges[0]]
    return torch.zeros_like(states).index_add(0, edges[1], sent)


def _count_heard(states: Tensor, edges: Tensor) -> Tensor:
    ones = states.new_ones(edges.shape[1])
    return states.new_zeros(len(states)).index_add(0, edges[1], ones)
