"""The residual networks for CIFAR (He et al., 2016, CVPR, arXiv 1512.03385): 6 n + 2 layers, plain shortcuts.

transformers has none of this form. A folder with `config.json` (`"model_type": "cifar_resnet"`), `model.safetensors`
and `preprocessor_config.json` opens as any other once `register` was called, which `open_model` does. The tensors have
the names that public checkpoints give them: conv1, bn1, layer1..3.N.{conv1,bn1,conv2,bn2}, linear.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoModelForImageClassification, PretrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import ImageClassifierOutput

WIDTHS = ((16, 16, 1), (16, 32, 2), (32, 64, 2))
"""Channels before and in each of the three stages, and the stride of its first block."""


class CifarResNetConfig(PretrainedConfig):
    """A network by its number of blocks."""

    model_type = "cifar_resnet"

    def __init__(self, depth: int = 3, num_channels: int = 3, **others: Any) -> None:
        """`depth`: blocks of each stage; 3 is ResNet-20, 9 ResNet-56. `others`: as of every transformers model."""
        self.depth, self.num_channels = depth, num_channels
        super().__init__(**others)


class CifarResNetForImageClassification(PreTrainedModel):
    """Three stages of blocks, their mean over the picture, and a linear layer."""

    config_class = CifarResNetConfig
    main_input_name = "pixel_values"
    _keys_to_ignore_on_load_missing = [r"\.num_batches_tracked$"]  # no answer reads it

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.conv1, self.bn1 = _convolution(config.num_channels, 16, 1), nn.BatchNorm2d(16)
        self.layer1, self.layer2, self.layer3 = (
            nn.Sequential(_Block(before, width, stride), *(_Block(width, width, 1) for _ in range(config.depth - 1)))
            for before, width, stride in WIDTHS
        )
        self.linear = nn.Linear(64, config.num_labels)
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> ImageClassifierOutput:
        """Class scores of `pixel_values` [images, channels, height, width]; the cross-entropy too, where labels are
        given."""
        x = torch.relu(self.bn1(self.conv1(pixel_values)))
        logits = self.linear(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))
        return ImageClassifierOutput(None if labels is None else functional.cross_entropy(logits, labels), logits)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """As the paper has it; transformers calls it for modules whose weights no file gave."""
        super()._init_weights(module)  # type: ignore[no-untyped-call]
        if isinstance(module, nn.Conv2d | nn.Linear):
            init.kaiming_normal_(module.weight)


class _Block(nn.Module):
    """Two convolutions beside a shortcut that has no weights (option A): every second pixel, and channels of zeros."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _convolution(before, width, stride), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = _convolution(width, width, 1), nn.BatchNorm2d(width)
        self.stride, self.more = stride, (width - before) // 2

    def forward(self, x: Tensor) -> Tensor:
        through = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        around = x[:, :, :: self.stride, :: self.stride]
        return torch.relu(through + functional.pad(around, (0, 0, 0, 0, self.more, self.more)))


def _convolution(before: int, width: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(before, width, 3, stride, 1, bias=False)


def register() -> None:
    """Make the type known to transformers' `Auto...` classes, so that its folders open."""
    AutoConfig.register(CifarResNetConfig.model_type, CifarResNetConfig, exist_ok=True)
    AutoModelForImageClassification.register(CifarResNetConfig, CifarResNetForImageClassification, exist_ok=True)
