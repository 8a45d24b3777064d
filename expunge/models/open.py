"""Opens a model of whichever family its configuration names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from expunge.core.errors import EnvironmentRefused, ModelRefused, UsageRefused
from expunge.models.language import LanguageModel
from expunge.models.source import config_of, locate
from expunge.models.vision import ImageClassifier
from expunge.runtime.atomic_files import check_inside

if TYPE_CHECKING:
    from expunge.core.model import Network

LANGUAGE, VISION = "language", "vision"


def open_network(text: str, device: str = "cpu", lies: str | None = None) -> Network:
    """The network in a folder, a GGUF file, or at a hub id. Raises `ModelRefused` where it is of no known family,
    or not what its manifest says.

    Read for `device`, it lies there, or where `lies` says: on the host, for processes that will hold a part each.
    """
    import torch

    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise UsageRefused(f"--device '{device}' is not known. Allowed: cpu, cuda, cuda:0, ...")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise EnvironmentRefused("No CUDA device is to be had here. Use --device cpu.")
    source = locate(text)
    if source.local:
        check_inside(Path(source.name))
    config = config_of(source)
    family = family_of(config)
    if family == LANGUAGE:
        return LanguageModel.load(source, device, lies)
    if family == VISION:
        return ImageClassifier.load(source, device, lies)
    kind = ", ".join(config.architectures or [config.model_type])
    raise ModelRefused(
        f"{text}: {kind} is neither a causal language model nor an image classifier, the two kinds that are read. "
        f"Give a model whose architecture ends in ForCausalLM, LMHeadModel or ForImageClassification."
    )


def family_of(config: object) -> str:
    """`language`, `vision` or an empty text, by the architecture that the configuration names."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    )

    named = list(getattr(config, "architectures", None) or [])
    if any("ForImageClassification" in name for name in named):
        return VISION
    if any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in named):
        return LANGUAGE
    kind = getattr(config, "model_type", "")
    if not named and kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return LANGUAGE
    return VISION if not named and kind in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES else ""
