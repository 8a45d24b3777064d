"""CIFAR's binary archives: what a byte is, and what is refused."""

from pathlib import Path

import pytest

from expunge.data.cifar_archive import PIXELS, CifarArchive
from expunge.errors import DataRefused

RED = bytes([250] * 1024 + [0] * 2048)
CORNER = bytes([1, *[0] * 1023, 2, *[0] * 1023, 3, *[0] * 1023])
"""Its first pixel is (1, 2, 3)."""


def ten(folder: Path, first: bytes = bytes([1]) + RED) -> Path:
    folder.mkdir(parents=True)
    (folder / "batches.meta.txt").write_text("airplane\nautomobile\n\n")
    for k in range(1, 6):
        (folder / f"data_batch_{k}.bin").write_bytes(first if k == 1 else bytes([0]) + CORNER)
    (folder / "test_batch.bin").write_bytes(bytes([0]) + CORNER + bytes([1]) + RED)
    return folder


def test_a_picture_is_its_label_and_three_planes(tmp_path: Path):
    ten(tmp_path / "cifar-10-batches-bin")
    archive = CifarArchive.find(tmp_path)
    assert archive
    train, test = archive.read("train"), archive.read("test")
    assert [record.label for record in train] == [1, 0, 0, 0, 0]
    assert (train[0].name, train[0].image.getpixel((31, 31))) == ("automobile", (250, 0, 0))
    assert (train[1].image.getpixel((0, 0)), train[1].image.getpixel((1, 0))) == ((1, 2, 3), (0, 0, 0))
    assert [record.id for record in test] == ["test_batch-1", "test_batch-2"]


def test_of_a_hundred_classes_the_fine_label_counts(tmp_path: Path):
    (tmp_path / "fine_label_names.txt").write_text("apple\nbee\n")
    (tmp_path / "train.bin").write_bytes(bytes([7, 1]) + RED)
    (tmp_path / "test.bin").write_bytes(bytes([9, 0]) + RED)
    archive = CifarArchive.find(tmp_path)
    assert archive
    assert [(record.label, record.name) for record in archive.read("train")] == [(1, "bee")]


def test_a_folder_without_an_archive_has_none(tmp_path: Path):
    assert CifarArchive.find(tmp_path) is None


@pytest.mark.parametrize("where", ["", "cifar-10-batches-py", "cifar-100-python"])
def test_a_pickled_archive_is_refused_and_not_read(tmp_path: Path, where: str):
    (tmp_path / where).mkdir(exist_ok=True)
    (tmp_path / where / "meta").write_bytes(b"cos\nsystem\n(S'touch ran'\ntR.")
    with pytest.raises(DataRefused, match=r"meta: is a pickle.*Take the binary version"):
        CifarArchive.find(tmp_path)


@pytest.mark.parametrize(
    ("first", "why"),
    [(b"", "has 0 bytes"), (bytes(PIXELS), "3072 bytes, no whole number"), (bytes([2]) + RED, "has class 2")],
)
def test_a_damaged_file_is_named(tmp_path: Path, first: bytes, why: str):
    archive = CifarArchive.find(ten(tmp_path / "a", first))
    assert archive
    with pytest.raises(DataRefused, match=rf"data_batch_1.bin: .*{why}|{why}"):
        archive.read("train")
