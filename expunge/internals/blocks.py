"""The repeated blocks of a network, found by structure and not by names.

A block is a child of the outermost `ModuleList` that the hidden state passes through, if it has submodules with a
linear
layer (or fused experts) among them. A model of several towers, such as an encoder and a decoder, has a list of blocks
for each: `part` selects one by the name of a module that contains it, and without it the tower that the class scores
depend on is taken.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers.pytorch_utils import Conv1D

from expunge.errors import ModelRefused, UsageRefused

Blocks = dict[str, nn.Module]
MEMORY = {"attention_mask", "cache", "cache_params", "layer_past", "past_key_value", "past_key_values", "state"}
"""Arguments that only a token-mixing module takes: a mask, a cache or a state."""

_scored: WeakKeyDictionary[nn.Module, tuple[str, ...]] = WeakKeyDictionary()


def blocks(module: nn.Module, part: str | None = None) -> Blocks:
    """The blocks by name, in order; empty where no module list has any. Refuses to guess between several towers."""
    found = towers(module)
    if part is not None:
        return found[_find_tower(module, part, found)]
    if len(found) > 1 and module not in _scored:
        _scored[module] = _behind_scores(module, found)
    chosen = _scored[module] if len(found) > 1 else tuple(found)
    if len(chosen) > 1:
        raise ModelRefused(
            f"{type(module).__name__} has {len(found)} towers of blocks, and its class scores depend on "
            f"{len(chosen)} of them. Choose one: part={' or '.join(map(repr, _choices(found)))}."
        )
    return found[chosen[0]] if chosen else {}


def every_block(module: nn.Module) -> Blocks:
    """The blocks of all towers."""
    return {name: block for tower in towers(module).values() for name, block in tower.items()}


def towers(module: nn.Module) -> dict[str, Blocks]:
    """The blocks of each tower, by the name of its module list."""
    lists: dict[str, Blocks] = {}
    for name, part in module.named_modules():
        if isinstance(part, nn.ModuleList) and not within(name, lists):
            found = dict(_blocks_in(name, part))
            lists |= {name: found} if found else {}
    # A module may have a second list whose items only mix tokens; its blocks are then the items of the other list.
    owner = {name: name.rpartition(".")[0] for name in lists}
    several = [name for name in lists if list(owner.values()).count(owner[name]) > 1]
    full = {owner[name] for name in several if not _mixers_only(lists[name])}
    aside = [name for name in several if owner[name] in full and _mixers_only(lists[name])]
    return {name: found for name, found in lists.items() if name not in aside}


def is_mixer(part: nn.Module) -> bool:
    """Whether a module mixes tokens: attention, a state-space, linear-attention or short convolution layer, or the
    output projection of one."""
    nested = type(part).__name__.endswith(("Layer", "Block")) and any(
        _mixes(inner) for inner in part.modules() if inner is not part
    )
    return _mixes(part) and not nested


def mixers(block: nn.Module) -> list[str]:
    """Names of the token-mixing modules of a block; those inside another one are left out."""
    found: list[str] = []
    for name, part in block.named_modules():
        if name and not within(name, found) and is_mixer(part):
            found.append(name)
    return found


def within(name: str, parts: Iterable[str]) -> bool:
    """Whether a module is one of the named ones or inside one."""
    return any(name == part or name.startswith(f"{part}.") for part in parts)


def is_linear(part: nn.Module) -> bool:
    """Whether a module is a linear layer, GPT-2's kind too."""
    return isinstance(part, (nn.Linear, Conv1D))


def _mixes(part: nn.Module) -> bool:
    name = type(part).__name__
    # transformers names its classes ...Attention; the output projection of BERT-like ones is ...SelfOutput
    if "Attention" in name or "SelfOutput" in name:
        return True
    if any(feed_forward in name for feed_forward in ("FeedForward", "MLP")):  # RWKV's has a state
        return False
    remembers = _remembers(type(part))  # type: ignore[arg-type]  # mypy takes the __hash__ of instances for the class's
    return remembers or any(isinstance(child, nn.Conv1d) for child in part.children())


@cache
def _remembers(kind: type[nn.Module]) -> bool:
    return not MEMORY.isdisjoint(inspect.signature(kind.forward).parameters)


def _blocks_in(name: str, parts: nn.ModuleList) -> Iterator[tuple[str, nn.Module]]:
    for key, child in parts.named_children():
        if isinstance(child, nn.ModuleList):  # a list for each stage
            yield from _blocks_in(f"{name}.{key}", child)
        elif any(True for _ in child.children()) and any(map(_multiplies, child.modules())):
            yield f"{name}.{key}", child


def _multiplies(part: nn.Module) -> bool:
    """Whether a module itself has a weight matrix that multiplies a token's state, or a stack of them."""
    convolution = isinstance(part, nn.modules.conv._ConvNd)
    return is_linear(part) or (not convolution and bool(stacks_of(part)))


def stacks_of(part: nn.Module) -> list[nn.Parameter]:
    """The stacks of matrices [experts, ...] that are a module's own parameters; a class token [1, 1, width] is none."""
    return [parameter for parameter in part.parameters(recurse=False) if parameter.dim() == 3 and len(parameter) > 1]


def _mixers_only(found: Blocks) -> bool:
    """Whether all of the blocks' matrices are in mixers."""
    return all(is_mixer(block) or not any(map(_multiplies, _others(block))) for block in found.values())


def _others(block: nn.Module) -> Iterator[nn.Module]:
    """The submodules of a block that are in none of its mixers."""
    apart = mixers(block)
    yield from (part for name, part in block.named_modules() if not within(name, apart))


def _choices(found: dict[str, Blocks]) -> dict[str, str]:
    """The module list of each tower, by the first component of its name that no other has, or by the whole name."""
    words = {name: name.split(".") for name in found}
    own = {n: [w for w in words[n] if not any(w in words[o] for o in found if o != n)] for n in found}
    return {(own[name] or [name])[0]: name for name in found}


def _find_tower(module: nn.Module, part: str, found: dict[str, Blocks]) -> str:
    choices = _choices(found)
    fit = [choices[part]] if part in choices else [name for name in found if f".{part}." in f".{name}."]
    if len(fit) != 1:
        raise UsageRefused(
            f"The `part` of {type(module).__name__} must be one of its towers of blocks: "
            f"{', '.join(map(repr, choices)) or 'it has none'}. Got {part!r}."
        )
    return fit[0]


def _behind_scores(module: nn.Module, found: dict[str, Blocks]) -> tuple[str, ...]:
    """The towers that the class scores of one small input depend on; all of them where none can be asked."""
    seen: dict[str, Tensor] = {}

    def listen(name: str) -> Any:
        def hook(_block: nn.Module, _inputs: Any, made: Any) -> Any:
            states = made if isinstance(made, Tensor) else made[0]
            seen[name] = states if states.requires_grad else states.requires_grad_()
            after = seen[name].clone()  # what comes next may write into it
            return after if isinstance(made, Tensor) else (after, *made[1:])

        return hook

    hooks = [list(tower.values())[-1].register_forward_hook(listen(name)) for name, tower in found.items()]
    nowhere = any(weight.is_meta for weight in module.parameters())
    # On the meta device transformers must not read a mask's values, which fake tensors tell it.
    fake = FakeTensorMode(allow_non_fake_inputs=True) if nowhere else nullcontext()
    try:
        with torch.inference_mode(False), torch.enable_grad(), fake:
            scores = module(**_small_input(module)).logits
            slopes = torch.autograd.grad(scores.sum(), list(seen.values()), allow_unused=True)
        reached = tuple(name for name, slope in zip(seen, slopes, strict=True) if slope is not None)
    except Exception:  # each class fails in its own way where it needs more than one input
        return tuple(found)
    finally:
        for hook in hooks:
            hook.remove()
    return reached or tuple(found)


def _small_input(module: Any) -> dict[str, Any]:
    """Two tokens or one blank image: what the class scores are made of."""
    weight = next(module.parameters())
    if module.main_input_name == "pixel_values":
        config = getattr(module.config, "vision_config", module.config)
        size = config.image_size if isinstance(config.image_size, (tuple, list)) else (config.image_size,) * 2
        return {"pixel_values": torch.zeros(1, config.num_channels, *size, device=weight.device, dtype=weight.dtype)}
    two = torch.zeros(1, 2, dtype=torch.long, device=weight.device)
    return {module.main_input_name: two, "attention_mask": torch.ones_like(two), "use_cache": False}
