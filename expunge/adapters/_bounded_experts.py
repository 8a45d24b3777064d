"""Fused experts of a mixture, whose matrices are slices of one tensor, each with a bounded low-rank update of its own.

    delta W_e = (alpha / r) * map(omega * B_e A_e) / gain,   A [experts, r, in] Kaiming-uniform, B [experts, out, r] 0

The update of an expert is added to its weight as in a plain layer (see `_fold`), for the tokens that are routed to it:
an expert without tokens is skipped and has a gradient of 0, and the weights of no two experts exist at once. Gate and
weighted sum are those of transformers' experts interface, in the order of the selected implementation, so that before
the first step the answers are the base model's: to the bit where that goes expert by expert too ("grouped_mm" on a CPU;
"eager" where tensors are [experts, out, in]), up to rounding elsewhere.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.functional import linear

from expunge.adapters._bounded_config import BoundedConfig
from expunge.adapters._fold import bounded_linear, fold
from expunge.adapters._maps import Form, initialise

if TYPE_CHECKING:
    from jaxtyping import Float, Int


class BoundedExperts(nn.Module, BaseTunerLayer):
    """The experts of one block with an update of each; merged, they are the plain experts again.

    An adapter has factors for both matrices, or for the one that peft's `target_parameters` names.
    """

    adapter_layer_names = ("bounded_A", "bounded_B")
    other_param_names = ("bounded_form",)

    def __init__(
        self, base_layer: nn.Module, adapter_name: str, config: BoundedConfig, among: Collection[str] | None = None
    ) -> None:
        super().__init__()
        self.base_layer: Any = base_layer
        self.matrices = matrices_of(base_layer)
        self.bounded_A = nn.ModuleDict()
        self.bounded_B = nn.ModuleDict()
        self.bounded_form: dict[str, dict[str, Form]] = {}
        self.unmerged: dict[str, Tensor] = {}
        """The tensors from before a merge, so that unmerging restores them to the bit."""
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config, among)

    def update_layer(self, adapter_name: str, config: BoundedConfig, among: Collection[str] | None = None) -> None:
        """Add an adapter of the matrices `among` (None: both), in float32 at least; its update starts at 0."""
        if adapter_name not in self.bounded_A:
            self.bounded_A[adapter_name], self.bounded_B[adapter_name] = nn.ParameterDict(), nn.ParameterDict()
        forms = self.bounded_form.setdefault(adapter_name, {})
        into_a, into_b = self._dicts(adapter_name)
        for which in self.matrices if among is None else among:
            weight = self._weight(which)
            (count, out, width), place = weight.shape, weight.device
            wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
            # experts stacked as rows: each is initialised as a layer is
            rows = torch.empty(count * config.r, width, dtype=wide, device=place)
            columns = torch.empty(count * out, config.r, dtype=wide, device=place)
            initialise(rows, columns, config.init_weights)
            into_a[which] = nn.Parameter(rows.view(count, config.r, width))
            into_b[which] = nn.Parameter(columns.view(count, out, config.r))
            forms[which] = Form.of(config.map, config.r, config.alpha, config.omega, config.gain, width)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def adapts(self, name: str, which: str) -> bool:
        """Whether an adapter has factors for one of the matrices."""
        return name in self.bounded_A and which in self._dicts(name)[0]

    def factors(self, name: str, which: str) -> tuple[Float[Tensor, "experts r in"], Float[Tensor, "experts out r"]]:
        """A and B of one of the matrices, of all experts."""
        a, b = self._dicts(name)
        return a[which], b[which]

    def _dicts(self, name: str) -> tuple[Any, Any]:
        return self.bounded_A[name], self.bounded_B[name]

    def changes(self) -> Iterator[tuple[str, Float[Tensor, "out in"]]]:
        """Each expert's matrix, as `name[expert]`, and what the active adapters add to it; one at a time."""
        for which in self.matrices:
            names = [name for name in self.active_adapters if self.adapts(name, which)]
            for expert in range(len(self._weight(which)) if names else 0):
                deltas = [self._delta(name, which, expert) for name in names]
                yield f"{which}[{expert}]", sum(deltas[1:], deltas[0])

    def merge(self, safe_merge: bool = True, adapter_names: list[str] | None = None) -> None:
        """Merge the update into new weight tensors. Raises `ValueError` on NaN or Inf."""
        for name in check_adapters_to_merge(self, adapter_names):
            if name not in self.bounded_A:
                continue
            merged = {which: self._merge_experts(name, which) for which in self.matrices if self.adapts(name, which)}
            for which, new in merged.items():
                parameter = getattr(self.base_layer, which)
                self.unmerged.setdefault(which, parameter.data)
                parameter.data = new
            self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """Restore the weights from before the merge."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        for which, was in self.unmerged.items():
            getattr(self.base_layer, which).data = was
        self.unmerged.clear()
        self.merged_adapters.clear()

    def forward(
        self,
        hidden_states: Float[Tensor, "tokens width"],
        top_k_index: Int[Tensor, "tokens k"],
        top_k_weights: Float[Tensor, "tokens k"],
    ) -> Float[Tensor, "tokens width"]:
        if self.disable_adapters and self.merged:
            self.unmerge()
        active = self._active()
        base = self.base_layer
        if not active or self.disable_adapters or self.merged:
            answer: Tensor = base(hidden_states, top_k_index, top_k_weights)
            return answer
        called, order = top_k_index.flatten().sort(stable=True)
        token = order // top_k_index.shape[-1]
        sizes = self._sizes(called)
        inner = self._through(self.matrices[0], hidden_states[token], sizes, active)
        inner = base._apply_gate(inner) if base.has_gate else base.act_fn(inner)
        made = self._through(self.matrices[1], inner, sizes, active)
        if base.has_post_expert_norm:
            made = base.post_expert_norm(made)
        made = made * top_k_weights.flatten()[order, None]
        if base.config._experts_implementation != "eager":
            return made[order.argsort()].view(*top_k_index.shape, -1).sum(1).to(hidden_states.dtype)
        total = torch.zeros_like(hidden_states)
        for part, where in zip(*(t.split(list(sizes.values())) for t in (made, token)), strict=True):
            total.index_add_(0, where, part.to(total.dtype))
        return total

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        """To the device alone: peft would round the factors to the precision of the base as well."""
        base: Any = self.get_base_layer()
        place = base.down_proj.device if device is None else device
        for part in self._parameters_of(adapter_name):
            part.data = part.data if part.is_meta else part.data.to(place)

    def _parameters_of(self, name: str) -> list[nn.Parameter]:
        return [p for each in self._dicts(name) for p in each.values()] if name in self.bounded_A else []

    def _active(self) -> list[str]:
        return [name for name in self.active_adapters if name in self.bounded_A]

    def originals(self) -> dict[str, Tensor]:
        """The base's tensors that a merge replaced, by name."""
        return self.unmerged

    def _weight(self, which: str) -> Float[Tensor, "experts out in"]:
        weight: Tensor = getattr(self.base_layer, which)
        return weight.transpose(1, 2) if self.base_layer.is_transposed else weight

    def _sizes(self, called: Int[Tensor, " calls"]) -> dict[int, int]:
        """Number of tokens of each expert that has any."""
        count = len(self._weight("down_proj"))
        if called.is_meta or isinstance(called, FakeTensor):  # a plan has shapes but no routing: assume equal shares
            each, rest = divmod(len(called), count)
            sizes = [each + (expert < rest) for expert in range(count)]
        else:
            sizes = torch.bincount(called, minlength=count).tolist()
        return {expert: size for expert, size in enumerate(sizes) if size}

    def _through(self, which: str, rows: Tensor, sizes: dict[int, int], active: list[str]) -> Tensor:
        """The rows, sorted by expert, times the matrix of each expert."""
        weight = self._weight(which)
        bias = getattr(self.base_layer, f"{which}_bias") if self.base_layer.has_bias else None
        known = {
            name: tuple(zip(*(factor.unbind() for factor in self.factors(name, which)), strict=True))
            for name in active
            if self.adapts(name, which)
        }
        made: list[Tensor | None] = []
        for expert, part in zip(sizes, rows.split(list(sizes.values())), strict=True):
            own, shift = weight[expert], None if bias is None else bias[expert]
            if not known:
                made.append(linear(part, own, shift))
                continue
            total: Tensor | None = None
            for name, factors in known.items():
                a, b = factors[expert]
                update = bounded_linear(part, own, shift, a, b, self.bounded_form[name][which])
                total = update if total is None else total + update
                own, shift = torch.zeros_like(own), None  # of further adapters the update alone is added
            made.append(total)
        return torch.cat([part for part in made if part is not None])

    def _delta(self, name: str, which: str, expert: int) -> Float[Tensor, "out in"]:
        a, b = self.factors(name, which)
        return self.bounded_form[name][which].delta(a[expert].detach(), b[expert].detach())

    def _merge_experts(self, name: str, which: str) -> Tensor:
        """The tensor of all experts with their updates in it, laid out as the base's."""
        new = torch.empty_like(getattr(self.base_layer, which).data)
        now = new.transpose(1, 2) if self.base_layer.is_transposed else new
        a, b = (factor.detach() for factor in self.factors(name, which))
        for expert, weight in enumerate(self._weight(which).detach()):
            now[expert] = fold(weight, a[expert], b[expert], self.bounded_form[name][which])
        if not torch.isfinite(new).all():
            raise ValueError(f"The adapter {name} holds NaN or Inf and was not merged.")
        return new


def matrices_of(experts: Any) -> tuple[str, str]:
    """Names of the two tensors of fused experts."""
    return ("gate_up_proj" if experts.has_gate else "up_proj", "down_proj")
