"""The bounded adapter as a peft method of its own: `peft_type` BOUNDED."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, cast

from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import register_peft_method
from peft.utils.integrations import init_empty_weights
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from expunge.adapters._adapter_files import check_base, check_loaded, describe_adapter
from expunge.adapters._bare_models import strip, withdraw
from expunge.adapters._bounded_config import NAME, BoundedConfig
from expunge.adapters._bounded_experts import BoundedExperts, matrices_of
from expunge.adapters._bounded_linear import BASE, BoundedLinear
from expunge.adapters._layers import DTYPES, choose_layers, is_fused, never_adapted
from expunge.errors import ModelRefused, Refusal, UsageRefused


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
        check_base(model, cast(BoundedConfig, self.peft_config[adapter_name]))
        try:
            super().inject_adapter(model, adapter_name, autocast_adapter_dtype, low_cpu_mem_usage, state_dict)
        except BaseException:
            withdraw(model, adapter_name)
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
                config.target_modules = choose_layers(strip(self.model), "mlp", only)
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
        bare = strip(model)
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
        if isinstance(target, BoundedLinear | BoundedExperts):
            target.update_layer(adapter_name, config)
            return
        if current_key in self._past:
            raise ModelRefused(
                f"{current_key}: the model reads this layer's weight without calling the layer, so an adapter in it "
                f"would do nothing. Leave it out of target_modules."
            )
        new: BoundedLinear | BoundedExperts
        if isinstance(target, (nn.Linear, Conv1D)):
            _check_type(current_key, target.weight)
            new = BoundedLinear(target, adapter_name, config)
        elif is_fused(target):
            new = BoundedExperts(target, adapter_name, config)
        else:
            raise TypeError(f"{current_key} is a {type(target).__name__}; bounded adapters take linear layers.")
        self._put(parent, target_name, new, adapter_name)

    def _put(self, parent: nn.Module, name: str, new: nn.Module, adapter_name: str) -> None:
        if adapter_name not in self.active_adapters:
            new.requires_grad_(False)
        setattr(parent, name, new)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        if isinstance(child, BoundedExperts):  # experts have no `weight`, which peft would copy
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
        elif is_fused(base) and which in matrices_of(base):
            if isinstance(target, BoundedExperts):
                target.update_layer(adapter_name, config, (which,))
            else:
                self._put(parent, name, BoundedExperts(target, adapter_name, config, (which,)), adapter_name)
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
            if isinstance(part, BoundedLinear | AuxiliaryTrainingWrapper)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _check_mixed(self, names: Sequence[str]) -> None:
        if self.training:
            raise UsageRefused("adapter_names: mixed batches are for inference. Call `model.eval()` first.")
        if any(isinstance(part, BoundedExperts) for part in self.modules()):
            raise UsageRefused("adapter_names: fused experts do not know whose tokens they read. Use `set_adapter`.")
        strange = sorted(set(names) - {BASE, *self.peft_config})
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
        describe_adapter(model, cast(BoundedConfig, config), adapter_name, named)
        return own

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: PeftConfig, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        mapped: dict[str, Tensor] = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)
        try:
            check_loaded(model, cast(BoundedConfig, config), adapter_name, state_dict, mapped)
        except Refusal:
            withdraw(model, adapter_name)
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
