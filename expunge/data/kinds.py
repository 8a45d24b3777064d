"""Which kind of records a file holds, images, texts or a graph's: told without reading them."""

from __future__ import annotations

from pathlib import Path

from expunge.data.tables import columns, is_dataset

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
"""Endings of image files."""
IMAGE_COLUMNS = ("image", "img", "webp", "png", "jpeg")
"""Names of columns that hold images."""


def holds_pictures(path: Path) -> bool:
    """Whether a file is of images: a folder that is no dataset of texts, or a table with an image column."""
    if path.is_dir():
        return not is_dataset(path, SUFFIXES) or bool(columns(path) & set(IMAGE_COLUMNS))
    return path.suffix.lower() == ".parquet" and bool(columns(path) & set(IMAGE_COLUMNS))


LISTS = (".nodes", ".edges")
"""Endings of lists of a graph's nodes and edges."""


def kind_of(path: Path) -> str:
    """Name of the file of this folder that reads a file."""
    if path.suffix.lower() in LISTS:
        return "graphs"
    return "images" if holds_pictures(path) else "text"
