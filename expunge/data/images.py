"""Images with their classes, from an image folder or a Parquet file to the pixels that a model reads.

The rules: the file type is detected from its content, not from its name; EXIF rotation is applied; of an
animation the first frame is read; 16 bits are scaled to 8; transparency is dropped; grey, CMYK and palette images
become RGB, and grey again where the model reads one channel (grey to RGB and back changes no value).
"""

from __future__ import annotations

import hashlib
import io
import json
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from expunge.data.class_names import explain_unknown, find_conflicts, list_few, number_of, shorten, spell_out
from expunge.data.kinds import IMAGE_COLUMNS, SUFFIXES
from expunge.data.records import SHOWN
from expunge.data.tables import is_dataset, open_table
from expunge.errors import DataRefused, EnvironmentRefused, ModelRefused, UsageRefused

if TYPE_CHECKING:
    from jaxtyping import Float
    from PIL.Image import Image
    from torch import Tensor

LARGEST = 50_000_000
"""Most pixels of an image: a file of a few kilobytes can decompress to gigabytes."""

AT_ONCE = 64
"""Images in one call of the processor."""

FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
LABEL_COLUMNS = ("label", "labels", "fine_label")
MODES = {1: "L", 3: "RGB"}


@dataclass(frozen=True)
class ImageRecord:
    """One image as its file has it, in RGB."""

    id: str
    """'class/filename' in a folder; in Parquet the `id` column, else 'row-17'."""
    line: int
    """Row in the Parquet file, from 1; place in reading order in a folder."""
    image: Image = field(repr=False)
    label: int | str
    name: str = ""
    """Name of a numbered class in the file; empty where it has none."""


@dataclass(frozen=True)
class Picture:
    """A preprocessed image with its class: one row."""

    id: str
    pixels: Float[Tensor, "channels height width"] = field(repr=False, compare=False)
    label: int
    digest: str = field(repr=False)
    """SHA-256 of the decoded RGB pixels, before the processor."""

    weight: float = 1.0
    """How often it counts."""

    @property
    def rows(self) -> int:
        """One: the image's class."""
        return 1

    @property
    def size(self) -> int:
        """One image."""
        return 1

    @property
    def alternatives(self) -> tuple[Picture, ...]:
        """Always empty: the other classes are the alternatives."""
        return ()

    def input_digest(self) -> bytes:
        """SHA-256 of the pixels after the processor, their type and shape, and the class."""
        header = f"{self.label}:{self.pixels.dtype}:{tuple(self.pixels.shape)}:".encode()
        return hashlib.sha256(header + self.pixels.contiguous().numpy().tobytes()).digest()

    def record_digest(self) -> str:
        """SHA-256 of the RGB pixels and the class; the file format does not matter."""
        return hashlib.sha256(f"{self.digest}:{self.label}".encode()).hexdigest()

    def fact_digest(self) -> str:
        """The same: a picture has nothing beside what it shows and what that is."""
        return self.record_digest()


class _UnreadableError(Exception):
    """Why one image cannot be used."""


def load(path: Path) -> list[ImageRecord]:
    """The images of a folder or a table, all decoded, so that a bad one is refused before a model loads.

    A folder holds one subfolder for each class; hidden files, and files beside the subfolders that are not images, are
    not read. A table (Parquet, or a datasets folder) holds an image column (`image`, `img`, `webp`, `png`, `jpeg`:
    bytes, or a struct with `bytes`), a label column (`label`, `labels`, `fine_label`: whole numbers or text) and
    optionally `id`; the names of numbered classes are taken from its metadata where it has them.
    """
    if path.is_dir():
        rows = _parquet(path) if is_dataset(path, SUFFIXES) else _folder(path)
    elif path.is_file() and path.suffix.lower() in (".parquet", ".arrow"):
        rows = _parquet(path)
    else:
        what = f"'{path.suffix}' files are not read" if path.is_file() else "no such folder or file"
        raise DataRefused(f"{path}: {what}. Give a folder with one subfolder for each class, or a .parquet file.")
    records: list[ImageRecord] = []
    faults: list[str] = []
    for row in rows:
        (records if isinstance(row, ImageRecord) else faults).append(row)  # type: ignore[arg-type]
    _refuse(path, faults)
    if not records:
        raise DataRefused(f"{path}: holds no images, so there is nothing to read. Give at least one.")
    return records


def choose(
    records: list[ImageRecord], class_name: int | str | None = None, ids: Iterable[str] | None = None
) -> tuple[list[ImageRecord], list[ImageRecord]]:
    """The records of one class (its name or number), or those with the `ids`; and all others."""
    if (class_name is None) == (ids is None):
        raise UsageRefused("Choose the images by a class or by ids: give one of the two.")
    wanted = _of_class(records, class_name) if class_name is not None else _of_ids(records, set(ids or ()))
    chosen = [record for record in records if record.id in wanted]
    rest = [record for record in records if record.id not in wanted]
    if not rest:
        raise DataRefused(f"All {len(chosen)} images are chosen, so none is left to retain. Choose fewer.")
    return chosen, rest


WANTED = "images (a folder, .parquet)"


def encode_for(records: list[ImageRecord], network: Any, path: Path) -> tuple[Picture, ...]:
    """Pictures as an image classifier reads them."""
    return encode(records, network.processor, network.classes, path, network.channels)


def encode(
    records: list[ImageRecord], processor: Any, label2id: Mapping[str, int], path: Path, channels: int = 3
) -> tuple[Picture, ...]:
    """Images through the model's own processor; labels by the model's class names, else by number."""
    if channels not in MODES:
        raise ModelRefused(f"The model reads {channels} channels; images are made with 1 or 3. Use another model.")
    labels = [number_of(record.label, record.name, label2id) for record in records]
    unknown = [
        f"{_place(path, record)}: '{shorten(record.label)}' is not one of the model's classes"
        for record, label in zip(records, labels, strict=True)
        if label is None
    ]
    _refuse(path, unknown, explain_unknown([record.label for record in records], label2id))
    conflicts = find_conflicts([(record.label, record.name) for record in records], label2id)
    apart = [f"{_place(path, records[k])}: {what}" for k, what in conflicts]
    _refuse(path, apart, "Give both the same names, or the file none; nothing was written.")
    pictures: list[Picture] = []
    for start in range(0, len(records), AT_ONCE):
        group = records[start : start + AT_ONCE]
        pixels = _process([record.image.convert(MODES[channels]) for record in group], processor, channels)
        pictures += [
            # A copy: a slice would keep the whole group in memory.
            Picture(record.id, one.clone(), int(label), _digest(record.image))  # type: ignore[arg-type]
            for record, one, label in zip(group, pixels, labels[start : start + AT_ONCE], strict=True)
        ]
    odd = next((p for p in pictures if p.pixels.shape != pictures[0].pixels.shape), None)
    if odd:
        raise ModelRefused(f"{path}: {odd.id}: the processor gives images of several sizes. Let it resize them.")
    return tuple(pictures)


def _refuse(path: Path, faults: list[str], hint: str = "Fix them; nothing was written.") -> None:
    """Raise for the faults of a file or folder, if there are any, the first ones named with their places."""
    if faults:
        more = f"; and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        raise DataRefused(f"{path}: {'; '.join(faults[:SHOWN])}{more}. {hint}")


def _place(path: Path, record: ImageRecord) -> str:
    return record.id if path.is_dir() else f"row {record.line}"


def _folder(path: Path) -> Iterator[ImageRecord | str]:
    classes = sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not classes:
        raise DataRefused(f"{path}: has no subfolders. Put the images of each class into a subfolder of its name.")
    line = 0
    yield from (
        f"{shorten(p.name)}: an image outside the class folders (move it into one)"
        for p in sorted(path.iterdir())
        if p.suffix.lower() in SUFFIXES and not p.is_dir() and not p.name.startswith(".")
    )
    for folder in classes:
        files = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
        if not files:
            yield f"{shorten(folder.name)}: holds no images (fill or remove the folder)"
        for file in files:
            line += 1
            yield _file(file, line)


def _file(file: Path, line: int) -> ImageRecord | str:
    place = f"{file.parent.name}/{file.name}"
    if spell_out(place) != place:
        return f"{spell_out(place)}: its name is not UTF-8 (rename it)"
    if file.is_dir():
        return f"{place}: a folder within a class folder (give the folder just above the classes)"
    if file.suffix.lower() not in SUFFIXES:
        return f"{place}: not one of {', '.join(SUFFIXES)} (move it out)"
    if not file.is_file():
        return f"{place}: not a file, or a link to nothing"
    try:
        return ImageRecord(place, line, _decode(file), file.parent.name)
    except _UnreadableError as error:
        return f"{place}: {error}"


def _parquet(path: Path) -> Iterator[ImageRecord | str]:
    table = open_table(path)
    image_column = _column(path, table, IMAGE_COLUMNS, "image")
    label_column = _column(path, table, LABEL_COLUMNS, "label")
    names = _class_names(table, label_column)
    given = table.column("id").to_pylist() if "id" in table.column_names else [None] * table.num_rows
    ids = [f"row-{row}" if name is None else str(name) for row, name in enumerate(given, start=1)]
    seen: set[str] = set()
    labels = table.column(label_column).to_pylist()
    for row, (name, cell, label) in enumerate(zip(ids, table.column(image_column), labels, strict=True), start=1):
        wrong = _wrong(label, label_column) or ("its id occurs twice" if name in seen else "")
        seen.add(name)
        if wrong:
            yield f"row {row}: {wrong}"
            continue
        try:
            image = _decode(_bytes(cell.as_py(), image_column))
        except _UnreadableError as error:
            yield f"row {row}: {error}"
        else:
            called = names[label] if isinstance(label, int) and 0 <= label < len(names) else ""
            yield ImageRecord(name, row, image, label, called)


def _column(path: Path, table: Any, allowed: tuple[str, ...], what: str) -> str:
    several = [name for name in allowed if name in table.column_names]
    found = several[0] if several else None
    if len(several) > 1:
        raise DataRefused(
            f"{path}: has {len(several)} {what} columns: {', '.join(several)}. Keep the one that is meant."
        )
    if found is None:
        has = list_few(table.column_names) or "none"
        raise DataRefused(
            f"{path}: has no {what} column. Allowed: {', '.join(allowed)}. Its columns: {has}. Rename it."
        )
    return found


def _class_names(table: Any, column: str) -> list[str]:
    """Names of numbered classes: as the datasets library writes them, or a comma-separated `classes` entry."""
    metadata = table.schema.metadata or {}
    try:
        feature = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"][column]
        return [str(name) for name in feature["names"]]
    except (ValueError, KeyError, TypeError):
        names = metadata.get(b"classes", b"").decode("utf-8", "replace")
        return names.split(",") if names else []


def _wrong(label: object, column: str) -> str:
    """What is wrong with a label, in words without its text; empty where nothing is."""
    if label is None:
        return f"'{column}' is null (give each image a class)"
    if isinstance(label, bool) or not isinstance(label, int | str):
        return f"'{column}' is {type(label).__name__}, but must be a whole number or text"
    return "" if str(label).strip() else f"'{column}' is empty"


def _bytes(cell: object, column: str) -> io.BytesIO:
    if isinstance(cell, dict):
        if cell.get("bytes") is None and cell.get("path"):
            raise _UnreadableError(f"'{column}' names a file instead of holding its bytes (embed the images)")
        cell = cell.get("bytes")
    if cell is None:
        raise _UnreadableError(f"'{column}' is null")
    if not isinstance(cell, bytes):
        raise _UnreadableError(f"'{column}' is {type(cell).__name__}, but must be the bytes of an image file")
    return io.BytesIO(cell)


def _decode(file: Path | io.BytesIO) -> Image:
    """The image in RGB, decoded to its end."""
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError  # an extra: only images need it
    except ImportError as error:
        raise EnvironmentRefused("Images need Pillow: pip install 'expunge[vision]'.") from error
    large = f"more than {LARGEST // 1_000_000} million pixels (make it smaller)"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # such as broken EXIF tags, which change no pixel
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(file, formats=FORMATS) as image:
                if image.width * image.height > LARGEST:
                    raise _UnreadableError(large)
                return _rgb(ImageOps.exif_transpose(image))
        except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            raise _UnreadableError(large) from error
        except UnidentifiedImageError as error:
            raise _UnreadableError("not a PNG, JPEG, WebP or BMP image, or cut off at its beginning") from error
        except (_UnreadableError, MemoryError):
            raise
        except Exception as error:  # each decoder fails in its own way on a damaged file
            raise _UnreadableError(f"truncated or damaged ({type(error).__name__}; fetch it again)") from error


def _rgb(image: Image) -> Image:
    if image.mode.startswith("I"):
        import numpy as np
        from PIL import Image as Images

        # Pillow's own conversion clips 16 bits at 255, which turns such an image white.
        return Images.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8)).convert("RGB")
    return image.convert("RGB")


def _digest(image: Image) -> str:
    return hashlib.sha256(f"{image.width}x{image.height}:".encode() + image.tobytes()).hexdigest()


def _of_class(records: list[ImageRecord], wanted: int | str) -> set[str]:
    """Ids of a class; a name goes before a number, so that a class called '3' is not mistaken for number 3."""
    by_name = {r.id for r in records if wanted != "" and wanted in (r.label, r.name)}
    found = by_name or {r.id for r in records if str(r.label) == str(wanted)}
    if not found:
        known = {f"{r.label} ({r.name})" if r.name else str(r.label): r.label for r in records}
        names = sorted(known, key=lambda name: (isinstance(known[name], str), known[name]))
        raise DataRefused(f"No image is of class '{shorten(wanted)}'. Classes: {list_few(names)}. Choose one of them.")
    return found


def _of_ids(records: list[ImageRecord], wanted: set[str]) -> set[str]:
    if not wanted:
        raise DataRefused("The list of ids is empty, so no image is chosen. Give at least one.")
    missing = sorted(wanted - {record.id for record in records})
    if missing:
        counts = f"{len(missing)} of {len(wanted)} ids"
        classes = list_few(sorted({str(record.name or record.label) for record in records}))
        raise DataRefused(
            f"{counts} are not there: {list_few(missing)}. "
            f"Ids look like '{records[0].id}'; classes: {classes}. Fix the ids."
        )
    return wanted


def _process(images: list[Image], processor: Any, channels: int) -> Float[Tensor, "images channels height width"]:
    try:
        pixels: Tensor = processor(images, return_tensors="pt")["pixel_values"]
    except Exception as error:  # processors are of many makes and each fails in its own way
        raise ModelRefused(f"The image processor failed ({type(error).__name__}). Use the model's own.") from error
    if pixels.ndim != 4 or pixels.shape[1] != channels:
        raise ModelRefused(
            f"The image processor makes {list(pixels.shape[1:])} of an image, but the model reads {channels} channels. "
            f"Use the model's own processor."
        )
    if not torch.isfinite(pixels).all():
        raise ModelRefused("The image processor makes NaN or Inf. Fix image_std in preprocessor_config.json.")
    return pixels.float()
