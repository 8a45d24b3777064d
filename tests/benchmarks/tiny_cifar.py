"""CIFAR made small: pictures of 8 x 8 whose colour is their class, as Parquet, folders or archives, and a network."""

import io
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from transformers import ViTImageProcessorPil

from expunge.models.cifar_resnet import CifarResNetConfig, CifarResNetForImageClassification
from expunge.models.vision import ImageClassifier

NAMES = ("red", "green", "blue", "grey")
COLOURS = ((220, 40, 40), (40, 220, 40), (40, 40, 220), (128, 128, 128))
SIDE = 8


def image(label: int, draw: random.Random, side: int = SIDE) -> Image.Image:
    """The colour of its class, with noise."""
    noise = [tuple(min(255, max(0, c + draw.randint(-30, 30))) for c in COLOURS[label]) for _ in range(side * side)]
    made = Image.new("RGB", (side, side))
    made.putdata(noise)
    return made


def parquet(folder: Path, train: int = 40, test: int = 20) -> Path:
    """`train.parquet` and `test.parquet`, sorted by class."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(0)
    for name, count in (("train", train), ("test", test)):
        labels = [k * len(NAMES) // count for k in range(count)]
        table = pa.table({"img": [_png(image(label, draw)) for label in labels], "label": labels})
        pq.write_table(table.replace_schema_metadata({"classes": ",".join(NAMES)}), folder / f"{name}.parquet")
    return folder


def folders(folder: Path, each: int = 2) -> Path:
    """`train/` and `test/` with a folder for each class."""
    draw = random.Random(0)
    for part in ("train", "test"):
        for label, name in enumerate(NAMES):
            (folder / part / name).mkdir(parents=True)
            for k in range(each):
                image(label, draw).save(folder / part / name / f"{k}.png")
    return folder


def processor() -> ViTImageProcessorPil:
    """Scales to what the tiny network reads."""
    size = {"height": SIDE, "width": SIDE}
    return ViTImageProcessorPil(size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3)


def network(seed: int = 0, names: tuple[str, ...] = NAMES) -> ImageClassifier:
    """A residual network of one block in each stage, with random weights."""
    torch.manual_seed(seed)
    config = CifarResNetConfig(1, id2label=dict(enumerate(names)), label2id={n: k for k, n in enumerate(names)})
    return ImageClassifier.of(CifarResNetForImageClassification(config).requires_grad_(False), processor())


def _png(made: Image.Image) -> bytes:
    file = io.BytesIO()
    made.save(file, "PNG")
    return file.getvalue()
