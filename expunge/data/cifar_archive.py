"""CIFAR-10 and CIFAR-100 as their binary archives have them (Krizhevsky, 2009): bytes of labels and pixels.

    CIFAR-10    label, 3,072 pixels            data_batch_1.bin ... data_batch_5.bin, test_batch.bin, batches.meta.txt
    CIFAR-100   coarse label, fine label, 3,072 pixels         train.bin, test.bin, fine_label_names.txt

Pixels are the red, the green and the blue plane of 32 x 32, row by row. The archives for Python are pickles, which can
run code when they are read; they never are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from expunge.data.images import ImageRecord
from expunge.errors import DataRefused

Part = Literal["train", "test"]
SIDE = 32
PIXELS = 3 * SIDE * SIDE
PICKLED = ("data_batch_1", "test_batch", "batches.meta", "train", "test", "meta")
INSIDE = ("", "cifar-10-batches-bin", "cifar-100-binary")
"""Where the files are below a folder that a user names."""
OF_PYTHON = ("", "cifar-10-batches-py", "cifar-100-python")


@dataclass(frozen=True)
class CifarArchive:
    """The folder of an unpacked binary archive."""

    folder: Path
    parts: dict[Part, tuple[str, ...]]
    """Its files."""
    labels: int
    """Bytes of labels before each picture; the last is the class."""
    names: str
    """The file with a class's name on each line."""

    @staticmethod
    def find(folder: Path) -> CifarArchive | None:
        """The archive in a folder or just below it; None where there is none. Refuses the pickled ones."""
        for place in (folder / name for name in INSIDE):
            if (place / "data_batch_1.bin").is_file():
                batches = tuple(path.name for path in sorted(place.glob("data_batch_*.bin")))
                return CifarArchive(place, {"train": batches, "test": ("test_batch.bin",)}, 1, "batches.meta.txt")
            if (place / "train.bin").is_file():
                return CifarArchive(place, {"train": ("train.bin",), "test": ("test.bin",)}, 2, "fine_label_names.txt")
        for place in (folder / name for name in OF_PYTHON):
            pickled = next((place / name for name in PICKLED if (place / name).is_file()), None)
            if pickled:
                raise DataRefused(
                    f"{pickled}: is a pickle, which can run code when it is read, so it is not. "
                    f"Take the binary version: cifar-10-binary.tar.gz or cifar-100-binary.tar.gz, unpacked."
                )
        return None

    def read(self, part: Part) -> list[ImageRecord]:
        """The pictures of a part, in the order of its files. Raises `DataRefused`."""
        names = self._class_names()
        return [record for name in self.parts[part] for record in self._read(self.folder / name, names)]

    def _class_names(self) -> list[str]:
        path = self.folder / self.names
        try:
            return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, ValueError) as error:
            raise DataRefused(f"{path}: the names of the classes cannot be read. Unpack the archive anew.") from error

    def _read(self, path: Path, names: list[str]) -> Iterator[ImageRecord]:
        import numpy as np  # with Pillow an extra, as in `images`
        from PIL import Image

        size = self.labels + PIXELS
        raw = path.read_bytes() if path.is_file() else b""
        if not raw or len(raw) % size:
            raise DataRefused(
                f"{path}: has {len(raw)} bytes, no whole number of pictures of {size}. Unpack the archive anew."
            )
        rows = np.frombuffer(raw, dtype=np.uint8).reshape(-1, size)
        classes = rows[:, self.labels - 1].tolist()
        if max(classes) >= len(names):
            raise DataRefused(f"{path}: has class {max(classes)}, and {self.names} {len(names)} names. Unpack it anew.")
        for k, (row, label) in enumerate(zip(rows, classes, strict=True), start=1):
            planes = row[self.labels :].reshape(3, SIDE, SIDE).transpose(1, 2, 0)
            yield ImageRecord(f"{path.stem}-{k}", k, Image.fromarray(planes), label, names[label])
