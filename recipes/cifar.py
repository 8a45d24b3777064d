"""CIFAR-10 and its ResNets: He et al.'s small ones, with weights of Yerlan Idelbayev (BSD-2-Clause), and some pictures.

The pictures are rows of `train.parquet` and `test.parquet`: an encoded image (`webp`) and its class (`label`).
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as parquet
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import pad, relu
from transformers import PretrainedConfig

from expunge.data.images import Picture
from expunge.models.vision import ImageClassifier

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Block(nn.Module):
    """Two convolutions beside a shortcut without weights (He et al., 2016, option A)."""

    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inner, outer, 3, outer // inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outer)
        self.conv2 = nn.Conv2d(outer, outer, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outer)
        self.more = outer - inner

    def forward(self, x: Tensor) -> Tensor:
        made = self.bn2(self.conv2(relu(self.bn1(self.conv1(x)))))
        same = pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.more // 2, self.more // 2)) if self.more else x
        return relu(made + same)


class ResNet(nn.Module):
    """A residual network of 6 n + 2 layers."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.config = PretrainedConfig(id2label=dict(enumerate(CLASSES)), image_size=32, num_channels=3)
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        for at, (inner, outer) in enumerate(((16, 16), (16, 32), (32, 64)), start=1):
            blocks = [Block(inner if k == 0 else outer, outer) for k in range(n)]
            setattr(self, f"layer{at}", nn.Sequential(*blocks))
        self.linear = nn.Linear(64, len(CLASSES))

    def forward(self, pixel_values: Tensor) -> SimpleNamespace:
        x = relu(self.bn1(self.conv1(pixel_values)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return SimpleNamespace(logits=self.linear(x.mean((2, 3))))


def resnet20(folder: Path) -> ImageClassifier:
    """The trained network of 20 layers, about 92 % right on the test part."""
    made = ResNet(3)
    made.load_state_dict(load_file(folder / "resnet20.safetensors"), strict=False)
    return ImageClassifier.of(made.requires_grad_(False), None)


@dataclass(frozen=True)
class Cifar:
    """The first pictures of each class, as the ResNets read them."""

    train: tuple[Picture, ...]
    test: tuple[Picture, ...]

    @staticmethod
    def load(folder: Path, train: int = 200, test: int = 100) -> Cifar:
        """So many of each class, of either part."""
        return Cifar(_first(folder / "train.parquet", train), _first(folder / "test.parquet", test))


def _first(path: Path, each: int) -> tuple[Picture, ...]:
    table = parquet.read_table(path, columns=["webp", "label"])
    left, made = [each] * len(CLASSES), []
    for row, (data, label) in enumerate(zip(table["webp"].to_pylist(), table["label"].to_pylist(), strict=True)):
        if left[label]:
            left[label] -= 1
            raw = Image.open(io.BytesIO(data)).convert("RGB").tobytes()
            pixels = torch.frombuffer(bytearray(raw), dtype=torch.uint8).view(32, 32, 3).permute(2, 0, 1) / 255
            scaled = (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(DEVIATION)[:, None, None]
            made.append(Picture(f"{path.stem}-{row}", scaled, label, hashlib.sha256(raw).hexdigest()))
    return tuple(made)
