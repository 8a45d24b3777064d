"""The configuration of the bounded adapter in peft's form: what `adapter_config.json` holds, and what may be in it.

peft's `PeftType` is a closed enumeration, so a member is added to it first. A peft without expunge then raises an
error; a LoRA configuration with extra keys would have loaded as plain LoRA, silently.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftType
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from expunge.adapters._maps import check
from expunge.errors import ModelRefused, UsageRefused
from expunge.primitives.settings import show
from expunge.primitives.tensor_digest import add_tensors

NAME = "BOUNDED"
PRECISIONS = ("float64", "float32", "bfloat16", "float16", "float8_e4m3fn", "float8_e5m2")
ANYWAY = 'To load it all the same, set "{}" to null in adapter_config.json.'


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
        if found := list(_find_faults(self)):
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
        config.check_file(Path(pretrained_model_name_or_path) / (subfolder or ""))
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

    def digest_of(self, tensors: Mapping[str, Tensor]) -> str | None:
        """SHA-256 over an adapter's tensors and the settings of its formula; None for tensors without values."""
        covered = {name: tensor for name, tensor in tensors.items() if self._covers(name)}
        if any(tensor.is_meta or type(tensor) not in (Tensor, nn.Parameter) for tensor in covered.values()):
            return None
        sha = hashlib.sha256(json.dumps(self.formula(), sort_keys=True).encode())
        add_tensors(sha, covered)
        return sha.hexdigest()

    def check_digest(self, tensors: Mapping[str, Tensor]) -> None:
        """Refuse tensors that are not those that were written with these settings."""
        found = self.digest_of(tensors) if self.digest is not None else None
        if found is not None and found != self.digest:
            raise ModelRefused(
                f"The adapter's weights or settings were changed after they were written: their SHA-256 differs from "
                f"adapter_config.json. Restore the folder. {ANYWAY.format('digest')}"
            )

    def check_file(self, folder: Path) -> None:
        """Refuse weights on this disk that are not those that were written with these settings."""
        path = folder / SAFETENSORS_WEIGHTS_NAME
        if not path.is_file():  # on the hub, or in peft's older format: compared when loaded
            return
        try:
            tensors = load_file(path)
        except (SafetensorError, OSError, ValueError, RuntimeError, KeyError) as error:
            raise ModelRefused(f"{path} is damaged: it is no safetensors file. Restore the folder.") from error
        if self.modules_to_save and not any(_lies_in(name, self.modules_to_save) for name in tensors):
            raise ModelRefused(f"{path} has no weights of any of `modules_to_save`. Restore the folder.")
        self.check_digest(tensors)

    def _covers(self, name: str) -> bool:
        """Whether a tensor counts for the digest: the adapter's own, or of `modules_to_save`; no resized embedding."""
        whole = _lies_in(name, self.modules_to_save or ()) and not re.search(
            r"\.(original_module|modules_to_save)\.", name
        )
        return whole or ".bounded_" in name


def _lies_in(name: str, modules: Iterable[str]) -> bool:
    return any(f".{module}." in f".{name}" for module in modules)


def _find_faults(config: BoundedConfig) -> Iterator[str]:
    """What is wrong, one fault after the other."""
    for name in ("target_modules", "exclude_modules", "layers_pattern"):
        value = getattr(config, name)
        if not (value is None or isinstance(value, str) or _is_list(value, str)):
            yield f"{name} must be a name, a list of names, or None (got {show(value)})"
    for name in ("modules_to_save", "target_parameters"):
        value = getattr(config, name)
        if not (value is None or _is_list(value, str)):
            yield f"{name} must be a list of names, or None (got {show(value)})"
    layers = config.layers_to_transform
    if not (layers is None or type(layers) is int or _is_list(layers, int)):
        yield f"layers_to_transform must be numbers of blocks, or None (got {show(layers)})"
    for name in ("rank_pattern", "alpha_pattern"):
        value = getattr(config, name)
        if not isinstance(value, dict) or not _is_list(list(value), str):
            yield f"{name} must name layers and their values (got {show(value)})"
    for name in ("target_modules", "exclude_modules", "rank_pattern", "alpha_pattern"):
        value = getattr(config, name)
        for text in (value,) if isinstance(value, str) else value if isinstance(value, dict) else ():
            if isinstance(text, str) and not _is_expression(text):
                yield f"{name} holds {show(text)}, which is no regular expression"
    if not isinstance(config.init_weights, bool) and config.init_weights != "gaussian":
        yield f"init_weights must be True, False or 'gaussian' (got {show(config.init_weights)})"
    if not isinstance(config.start, bool):
        yield f"start must be True or False (got {show(config.start)})"
    if config.layers_pattern and layers is None:
        yield "layers_pattern needs layers_to_transform"
    if isinstance(config.target_modules, str) and layers is not None:
        yield "layers_to_transform needs a list of endings as target_modules, not a regular expression"
    if config.base is not None and not _is_sketch(config.base):
        yield "base must be what saving wrote, or None"
    if not (config.digest is None or isinstance(config.digest, str)):
        yield "digest must be what saving wrote, or None"


def _is_expression(text: str) -> bool:
    """Whether a text is a regular expression."""
    try:
        re.compile(text)
    except (re.error, RecursionError, OverflowError):
        return False
    return True


def _is_list(value: object, kind: type) -> bool:
    """Whether a value is a list, or a set, of one type."""
    return isinstance(value, (list, set, tuple)) and all(type(each) is kind for each in value)


def _is_sketch(value: object) -> bool:
    """Whether a value read from a file has the form of a sketch."""
    if not isinstance(value, dict) or set(value) != {"shapes", "precision", "projections"}:
        return False
    numbers = value["projections"]
    return (
        isinstance(value["shapes"], str)
        and value["precision"] in PRECISIONS
        and isinstance(numbers, list)
        and all(isinstance(number, float) for number in numbers)
    )
