"""Images and files of them that the tests of images read."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from transformers import ViTImageProcessorPil

from expunge.data.images import load

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def as_bytes(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def noise(seed: int = 0, width: int = 8, height: int = 8) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def folder_of(root: Path, **classes: dict[str, bytes]) -> Path:
    """An image folder: `folder_of(tmp_path, cat={"a.png": ...})`."""
    for name, files in classes.items():
        (root / name).mkdir(parents=True)
        for file, content in files.items():
            (root / name / file).write_bytes(content)
    return root


def parquet_of(path: Path, metadata: dict[str, str] | None = None, **columns) -> Path:
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), path)
    return path


def reads(size: int = 8, channels: int = 3, **options) -> ViTImageProcessorPil:
    half = [0.5] * channels
    return ViTImageProcessorPil(size={"height": size, "width": size}, image_mean=half, image_std=half, **options)


def only(path: Path) -> np.ndarray:
    (record,) = load(path)
    return np.asarray(record.image)


def refusal(kind: type[Exception], call, *given, **options) -> str:
    with pytest.raises(kind) as caught:
        call(*given, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def animals(tmp_path: Path, metadata: dict[str, str] | None = None, labels=(0, 1, 0)):
    cells = [as_bytes(noise(k)) for k in range(len(labels))]
    return load(parquet_of(tmp_path / "a.parquet", metadata, image=cells, label=list(labels)))
