"""The bounded adapter as a peft method of its own: `peft_type` BOUNDED.

peft's `PeftType` is a closed enumeration, so a member is added to it first. A peft without expunge then raises an
error; a LoRA configuration with extra keys would have loaded as plain LoRA, silently.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from peft import PeftConfig, PeftType
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import register_peft_method
from peft.utils.integrations import init_empty_weights
from peft.utils.other import AuxiliaryTrainingWrapper, get_pattern_key
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

# Half loaded where one of them is what imports peft first, so their names are looked up when they are used.
from expunge.adapters import _adapter_files as files
from expunge.adapters import _bare_models as bare_models
from expunge.adapters import _bounded_experts as experts
from expunge.adapters import _bounded_linear as linears
from expunge.adapters._bounded_settings import find_faults
from expunge.adapters._layers import DTYPES, choose_layers, is_fused, never_adapted
from expunge.adapters._maps import check
from expunge.errors import ModelRefused, Refusal, UsageRefused

NAME = "BOUNDED"


def _add_member(name: str) -> None:
    """Add a member to `PeftType`."""
    if name in PeftType.__members__:
        return
    member = str.__new__(PeftType, name)
    member._name_, member._value_ = name, name
    PeftType._member_map_[name] = member
    PeftType._value2member_map_[name] = member
    PeftType._member_names_.append(name)
    type.__setattr__(PeftType, name, member)


_add_member(NAME)


@dataclass
class BoundedConfig(PeftConfig):
    """What `adapter_config.json` holds: `delta W = (alpha / r) * map(omega * B A) / gain`, less its start.

    Fields that peft's LoRA has too mean the same here. Raises `UsageRefused` for invalid settings.
    """

    target_modules: list[str] | str | None = field(
        default=None,
        metadata={"help": "Names or endings of layers, a regular expression, or 'all-linear'; None: every MLP layer."},
    )
    exclude_modules: list[str] | str | None = field(default=None, metadata={"help": "Of these, layers to leave out."})
    r: int = field(default=8, metadata={"help": "Rank of B A."})
    alpha: float = field(default=16.0, metadata={"help": "The update's scale is alpha / r."})
    map: str = field(default="sine", metadata={"help": "sine, tanh, sigmoid, hardtanh, clip, identity or linear."})
    omega: float = field(default=100.0, metadata={"help": "Frequency (slope at 0) of the map."})
    gain: float | None = field(default=None, metadata={"help": "Divisor of the map; None: sqrt(in_features)."})
    start: bool = field(default=False, metadata={"help": "Whether the update of frozen factors is taken off."})
    init_weights: bool | str = field(
        default=True, metadata={"help": "True or 'gaussian': the update starts at 0; False: at random, for tests."}
    )
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "Modules that are trained whole and saved with the adapter."}
    )
    layers_to_transform: list[int] | int | None = field(
        default=None, metadata={"help": "Numbers of the blocks to adapt, where `target_modules` are endings or None."}
    )
    layers_pattern: list[str] | str | None = field(
        default=None, metadata={"help": "Name of the list of those blocks, such as 'layers' or 'h'."}
    )
    rank_pattern: dict[str, int] = field(
        default_factory=dict, metadata={"help": "Ranks of single layers, by ending or regular expression."}
    )
    alpha_pattern: dict[str, float] = field(
        default_factory=dict, metadata={"help": "Values of alpha of single layers, likewise."}
    )
    target_parameters: list[str] | None = field(
        default=None, metadata={"help": "Endings of names of tensors of fused experts, such as 'experts.down_proj'."}
    )
    base: dict[str, Any] | None = field(
        default=None,
        metadata={
            "help": "Written on saving: numbers that tell the base; only into it can the adapter be put. None: any."
        },
    )
    digest: str | None = field(
        default=None, metadata={"help": "Written on saving: SHA-256 over weights and formula; None: not compared."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]
        self.peft_type = PeftType(NAME)
        self.written: dict[str, Any] = {}  # what saving puts into the file beside these settings
        check(self.map, self.r, self.alpha, self.omega, self.gain)
        if found := list(find_faults(self)):
            raise UsageRefused(f"Bounded: {'; '.join(found)}.")
        for rank in self.rank_pattern.values():
            check(self.map, rank, self.alpha, self.omega, self.gain, "Bounded: rank_pattern")
        for alpha in self.alpha_pattern.values():
            check(self.map, self.r, alpha, self.omega, self.gain, "Bounded: alpha_pattern")
        if isinstance(self.target_modules, list):
            self.target_modules = sorted(self.target_modules)

    @classmethod
    def check_kwargs(cls, **kwargs: Any) -> dict[str, Any]:
        """peft would drop settings that it does not know, and with them a part of the update."""
        strange = sorted(kwargs.keys() - {each.name for each in fields(cls)})
        if strange:
            raise ModelRefused(
                f"adapter_config.json has the setting {strange[0][:40]!r}, unknown to this version of expunge. "
                f"Load the adapter with the version that wrote it."
            )
        return kwargs

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str, subfolder: str | None = None, **kwargs: Any
    ) -> BoundedConfig:
        """Read `adapter_config.json`, and refuse weights beside it that are not those that it was written with."""
        config = super().from_pretrained(pretrained_model_name_or_path, subfolder, **kwargs)
        assert isinstance(config, BoundedConfig)
        files.check_file(Path(pretrained_model_name_or_path) / (subfolder or ""), config)
        return config

    def to_dict(self) -> dict[str, Any]:
        """The settings; what has no order is sorted, so that equal configurations are equal files."""
        settings = asdict(self) | self.written
        return {key: sorted(value) if isinstance(value, set) else value for key, value in settings.items()}

    def formula(self) -> dict[str, Any]:
        """The settings that the update depends on, beside its factors."""
        names = ("r", "alpha", "map", "omega", "gain", "start", "rank_pattern", "alpha_pattern")
        numbers = {name: getattr(self, name) for name in names}
        return {key: float(value) if type(value) is int else value for key, value in numbers.items()}

    def at(self, layer: str) -> BoundedConfig:
        """The same with the rank and alpha of one layer, by its whole name."""
        r = self.rank_pattern.get(get_pattern_key(list(self.rank_pattern), layer), self.r)
        alpha = self.alpha_pattern.get(get_pattern_key(list(self.alpha_pattern), layer), self.alpha)
        return self if (r, alpha) == (self.r, self.alpha) else replace(self, r=r, alpha=alpha)


class BoundedModel(BaseTuner):
    """Inserts bounded layers into a model."""

    prefix = "bounded_"
    tuner_layer_cls = BaseTunerLayer  # all that is inserted here: linear layers and fused experts
    target_module_mapping: dict[str, list[str]] = {}

    def inject_adapter(
        self,
        model: nn.Module,
        adapter_name: str,
        autocast_adapter_dtype: bool = True,
        low_cpu_mem_usage: bool = False,
        state_dict: dict[str, Tensor] | None = None,
    ) -> None:
        """As peft does it, after comparing the base; a model that cannot take the adapter is left as it was."""
        files.check_base(model, cast(BoundedConfig, self.peft_config[adapter_name]))
        try:
            super().inject_adapter(model, adapter_name, autocast_adapter_dtype, low_cpu_mem_usage, state_dict)
        except BaseException:
            bare_models.withdraw(model, adapter_name)
            raise

    def add_weighted_adapter(self, adapters: Sequence[str], *_: Any, **__: Any) -> None:
        """Always refused: a sum of bounded updates is not the update of any factors."""
        raise UsageRefused(
            "add_weighted_adapter: bounded updates cannot be combined into one adapter, since "
            "map(B1 A1) + map(B2 A2) is not map(B A) of any A and B. Activate them together, by "
            f"`model.base_model.set_adapter({list(adapters)!r})`, or merge one after the other."
        )

    def _prepare_adapter_config(self, peft_config: PeftConfig, model_config: dict[str, Any]) -> PeftConfig:
        config = cast(BoundedConfig, peft_config)
        if config.target_modules is None and not config.target_parameters:
            if config.layers_pattern:
                raise UsageRefused(
                    "layers_pattern needs target_modules; without them the blocks are found by structure."
                )
            one = config.layers_to_transform
            only = [one] if isinstance(one, int) else one
            try:
                config.target_modules = choose_layers(bare_models.strip(self.model), "mlp", only)
            except Refusal as refusal:
                raise ModelRefused(
                    f"No default targets: {refusal} Or name layers by target_modules=[...]."
                ) from refusal
            config.layers_to_transform = None  # the names are of these blocks alone
        elif isinstance(config.target_modules, (list, set)):
            self._check_names(config)
        return config

    def _check_names(self, config: BoundedConfig) -> None:
        """Warn of targets that are not there; refuse numbers of blocks that would not be read."""
        names = [name.replace(".base_layer", "") for name, _ in self.model.named_modules()]
        targets = sorted(config.target_modules or ())
        whole = [target for target in targets if target in names]
        if whole and config.layers_to_transform is not None:
            raise UsageRefused(
                f"layers_to_transform is not read where target_modules name whole layers, such as {whole[0]!r}. "
                f"Give endings, such as {whole[0].rpartition('.')[2]!r}."
            )
        absent = [t for t in targets if t not in whole and not any(name.endswith(f".{t}") for name in names)]
        if absent:
            warnings.warn(f"target_modules: no layer is called {', '.join(absent)}.", RuntimeWarning, stacklevel=2)

    def _prepare_model(self, peft_config: PeftConfig, model: nn.Module) -> None:
        bare = bare_models.strip(model)
        try:
            self._past = {name for name, why in never_adapted(bare).items() if why == "read past"}
        except ModelRefused:  # several towers
            self._past = set()

    def _create_and_replace(
        self,
        peft_config: PeftConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        config = cast(BoundedConfig, peft_config).at(current_key)
        if isinstance(target, linears.BoundedLinear | experts.BoundedExperts):
            target.update_layer(adapter_name, config)
            return
        if current_key in self._past:
            raise ModelRefused(
                f"{current_key}: the model reads this layer's weight without calling the layer, so an adapter in it "
                f"would do nothing. Leave it out of target_modules."
            )
        new: linears.BoundedLinear | experts.BoundedExperts
        if isinstance(target, (nn.Linear, Conv1D)):
            _check_type(current_key, target.weight)
            new = linears.BoundedLinear(target, adapter_name, config)
        elif is_fused(target):
            new = experts.BoundedExperts(target, adapter_name, config)
        else:
            raise TypeError(f"{current_key} is a {type(target).__name__}; bounded adapters take linear layers.")
        self._put(parent, target_name, new, adapter_name)

    def _put(self, parent: nn.Module, name: str, new: nn.Module, adapter_name: str) -> None:
        if adapter_name not in self.active_adapters:
            new.requires_grad_(False)
        setattr(parent, name, new)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        if isinstance(child, experts.BoundedExperts):  # experts have no `weight`, which peft would copy
            setattr(parent, child_name, new_module)
        else:
            super()._replace_module(parent, child_name, new_module, child)

    def _inject_parameters(
        self, peft_config: PeftConfig, model: nn.Module, adapter_name: str, low_cpu_mem_usage: bool
    ) -> list[str]:
        """Adapt single tensors: of fused experts, or the weight of a linear layer."""
        config = cast(BoundedConfig, peft_config)
        found = []
        for key, part in list(model.named_modules()):
            inner: Any = part.get_base_layer() if isinstance(part, BaseTunerLayer) else part
            for which, _ in inner.named_parameters(recurse=False):
                full = f"{key}.{which}"
                if ".base_layer" in full or not any(
                    f".{full}".endswith(f".{t}") for t in config.target_parameters or ()
                ):
                    continue
                parent, _, name = key.rpartition(".")
                with init_empty_weights() if low_cpu_mem_usage else nullcontext():
                    self._adapt_tensor(config.at(full), adapter_name, model.get_submodule(parent), name, full)
                found.append(full)
        return found

    def _adapt_tensor(self, config: BoundedConfig, adapter_name: str, parent: nn.Module, name: str, full: str) -> None:
        target, which = getattr(parent, name), full.rpartition(".")[2]
        base = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
        if which == "weight" and isinstance(base, (nn.Linear, Conv1D)):
            key = full.rpartition(".")[0]
            self._create_and_replace(config, adapter_name, target, name, parent, key)
        elif is_fused(base) and which in experts.matrices_of(base):
            if isinstance(target, experts.BoundedExperts):
                target.update_layer(adapter_name, config, (which,))
            else:
                self._put(parent, name, experts.BoundedExperts(target, adapter_name, config, (which,)), adapter_name)
        else:
            raise TypeError(f"{full}: bounded adapters take matrices of fused experts and of linear layers.")

    @contextmanager
    def _enable_peft_forward_hooks(self, *_: Any, **kwargs: Any) -> Iterator[None]:
        """Mixed batches: each example by the adapter that `adapter_names` names for it, or by the base alone."""
        if kwargs.get("alora_offsets") is not None:
            raise UsageRefused("alora_offsets: a bounded adapter cannot begin in the middle of a text.")
        names = kwargs.get("adapter_names")
        if names is None:
            yield
            return
        self._check_mixed(names)
        beams = kwargs.get("num_beams")
        if isinstance(beams, int) and beams > 1:  # every input is repeated
            names = [name for name in names for _ in range(beams)]
        handles = [
            part.register_forward_pre_hook(partial(_add_names, names=names), with_kwargs=True)
            for part in self.modules()
            if isinstance(part, linears.BoundedLinear | AuxiliaryTrainingWrapper)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _check_mixed(self, names: Sequence[str]) -> None:
        if self.training:
            raise UsageRefused("adapter_names: mixed batches are for inference. Call `model.eval()` first.")
        if any(isinstance(part, experts.BoundedExperts) for part in self.modules()):
            raise UsageRefused("adapter_names: fused experts do not know whose tokens they read. Use `set_adapter`.")
        strange = sorted(set(names) - {linears.BASE, *self.peft_config})
        if strange:
            raise UsageRefused(
                f"adapter_names: no adapter is called {', '.join(strange)}. There are: {', '.join(self.peft_config)}."
            )

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: nn.Module,
        config: PeftConfig,
        adapter_name: str,
        state_dict: dict[str, Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, Tensor]:
        own: dict[str, Tensor] = super()._get_adapter_state_dict(
            model, config, adapter_name, state_dict, unwanted_adapter_names
        )
        named = {cls._remove_adapter_name_from_key(key, adapter_name): tensor for key, tensor in own.items()}
        files.describe_adapter(model, cast(BoundedConfig, config), adapter_name, named)
        return own

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: PeftConfig, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        mapped: dict[str, Tensor] = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)
        try:
            files.check_loaded(model, cast(BoundedConfig, config), adapter_name, state_dict, mapped)
        except Refusal:
            bare_models.withdraw(model, adapter_name)
            raise
        return mapped


def _check_type(name: str, weight: Tensor) -> None:
    if weight.dtype not in DTYPES:
        raise ModelRefused(
            f"{name} has weights of type {str(weight.dtype).removeprefix('torch.')}, which a bounded update cannot be "
            f"added to. Load the model without quantization."
        )


def _add_names(_: nn.Module, args: Any, kwargs: dict[str, Any], names: list[str]) -> tuple[Any, dict[str, Any]]:
    return args, kwargs | {"adapter_names": names}


register_peft_method(name=NAME.lower(), config_cls=BoundedConfig, model_cls=BoundedModel)
