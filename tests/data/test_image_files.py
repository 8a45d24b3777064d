"""Folders and Parquet files of images: what is read, chosen and refused, each fault with its place."""

import json
import os
import struct
import sys
import zlib

import numpy as np
import pyarrow as pa
import pytest

from expunge.data.images import choose, encode, load
from expunge.errors import DataRefused, UsageRefused
from tests.data.pictures import animals, as_bytes, folder_of, noise, parquet_of, reads, refusal

# Folders ----------------------------------------------------------------------------------------------------------


def test_a_folder_is_read_in_order_with_ids_of_class_and_file(tmp_path):
    files = {"2.PNG": as_bytes(noise(2)), "1.jpeg": as_bytes(noise(1), "JPEG"), ".DS_Store": b"x"}
    folder_of(tmp_path, dog=files, cat={"9.webp": as_bytes(noise(9), "WEBP")})
    (tmp_path / "README.txt").write_text("about")
    records = load(tmp_path)
    assert [(r.id, r.line, r.label) for r in records] == [
        ("cat/9.webp", 1, "cat"),
        ("dog/1.jpeg", 2, "dog"),
        ("dog/2.PNG", 3, "dog"),
    ]


def test_a_missing_path_and_another_kind_of_file_are_refused(tmp_path):
    assert refusal(DataRefused, load, tmp_path / "no") == (
        f"{tmp_path}/no: no such folder or file. Give a folder with one subfolder for each class, or a .parquet file."
    )
    (tmp_path / "a.zip").write_bytes(b"")
    assert "'.zip' files are not read" in refusal(DataRefused, load, tmp_path / "a.zip")


def test_an_empty_folder_and_one_without_class_folders_are_refused(tmp_path):
    message = f"{tmp_path}: has no subfolders. Put the images of each class into a subfolder of its name."
    assert refusal(DataRefused, load, tmp_path) == message
    (tmp_path / "a.png").write_bytes(as_bytes(noise()))
    assert refusal(DataRefused, load, tmp_path) == message


def test_every_fault_of_a_folder_is_named_with_its_file(tmp_path):
    png, jpeg = as_bytes(noise(0, 64, 64)), as_bytes(noise(0, 64, 64), "JPEG")
    folder_of(
        tmp_path,
        cat={"cut.png": png[: len(png) // 2], "cut.jpg": jpeg[: len(jpeg) // 2], "text.png": b"hello", "nil.bmp": b""},
        dog={"notes.txt": b"a"},
        empty={},
    )
    (tmp_path / "dog" / "more").mkdir()
    (tmp_path / "dog" / "gone.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loose.png").write_bytes(png)
    message = refusal(DataRefused, load, tmp_path)
    assert message.startswith(f"{tmp_path}: loose.png: an image outside the class folders (move it into one); ")
    for said in (
        "cat/cut.jpg: truncated or damaged (OSError; fetch it again)",
        "cat/cut.png: truncated or damaged (OSError; fetch it again)",
        "cat/nil.bmp: not a PNG, JPEG, WebP or BMP image, or cut off at its beginning",
        "cat/text.png: not a PNG, JPEG, WebP or BMP image, or cut off at its beginning",
        "dog/gone.png: not a file, or a link to nothing",
        "dog/more: a folder within a class folder (give the folder just above the classes)",
        "dog/notes.txt: not one of .png, .jpg, .jpeg, .webp, .bmp (move it out)",
        "empty: holds no images (fill or remove the folder)",
    ):
        assert said in message
    assert message.endswith("Fix them; nothing was written.")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP"])
def test_an_image_cut_off_anywhere_is_refused(tmp_path, kind):
    whole = as_bytes(noise(0, 32, 32), kind)
    for part in (1, len(whole) // 4, len(whole) // 2, len(whole) * 3 // 4):
        (tmp_path / "cat").mkdir(exist_ok=True)
        (tmp_path / "cat" / "a.png").write_bytes(whole[:part])
        assert "cat/a.png: " in refusal(DataRefused, load, tmp_path)


def test_twenty_faults_are_shown_and_the_rest_counted(tmp_path):
    folder_of(tmp_path, cat={f"{k:02}.png": b"no" for k in range(25)})
    message = refusal(DataRefused, load, tmp_path)
    assert "cat/19.png" in message
    assert "cat/20.png" not in message
    assert "; and 5 more. " in message


def claims(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header claims a size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [7072, 9999, 50_000])  # above our limit, Pillow's warning and Pillow's error
def test_an_image_of_more_than_fifty_million_pixels_is_refused_undecoded(tmp_path, side):
    folder_of(tmp_path, cat={"bomb.png": claims(side, side)})
    said = "cat/bomb.png: more than 50 million pixels (make it smaller)"
    assert said in refusal(DataRefused, load, tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not allow such names")
def test_a_file_name_that_is_not_utf8_is_refused_printably(tmp_path):
    folder = folder_of(tmp_path, cat={})
    with open(os.path.join(os.fsencode(folder), b"cat", b"\xff.png"), "wb") as file:
        file.write(as_bytes(noise()))
    message = refusal(DataRefused, load, folder)
    assert "cat/\\udcff.png: its name is not UTF-8 (rename it)" in message
    message.encode()


# Parquet ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [("image", "label"), ("img", "labels"), ("webp", "fine_label")])
@pytest.mark.parametrize("as_struct", [True, False])
def test_bytes_and_structs_are_read_from_each_allowed_column(tmp_path, columns, as_struct):
    cells = [as_bytes(noise(k)) for k in range(3)]
    column = [{"bytes": cell, "path": f"{k}.png"} for k, cell in enumerate(cells)] if as_struct else cells
    path = parquet_of(tmp_path / "a.parquet", **{columns[0]: column, columns[1]: [4, 5, 6]})
    records = load(path)
    assert [(r.id, r.line, r.label, r.name) for r in records] == [
        ("row-1", 1, 4, ""),
        ("row-2", 2, 5, ""),
        ("row-3", 3, 6, ""),
    ]
    assert all((np.asarray(r.image) == np.asarray(noise(k))).all() for k, r in enumerate(records))


def test_ids_are_taken_from_their_column_and_a_missing_one_is_the_row(tmp_path):
    cells = [as_bytes(noise(k)) for k in range(3)]
    path = parquet_of(tmp_path / "a.parquet", image=cells, label=["x", "y", "x"], id=["p", None, "q"])
    assert [(r.id, r.label) for r in load(path)] == [("p", "x"), ("row-2", "y"), ("q", "x")]


@pytest.mark.parametrize(
    "metadata",
    [
        {"classes": "cat,dog"},
        {"huggingface": json.dumps({"info": {"features": {"label": {"names": ["cat", "dog"]}}}})},
    ],
)
def test_names_of_numbered_classes_come_from_the_metadata_and_go_before_numbers(tmp_path, metadata):
    path = parquet_of(tmp_path / "a.parquet", metadata, image=[as_bytes(noise())] * 2, label=[0, 1])
    records = load(path)
    assert [(r.label, r.name) for r in records] == [(0, "cat"), (1, "dog")]
    turned = encode(records, reads(), {"dog": 0, "cat": 1}, path)
    assert [p.label for p in turned] == [1, 0]  # the model numbers them the other way round
    nameless = encode(records, reads(), {"LABEL_0": 0, "LABEL_1": 1}, path)
    assert [p.label for p in nameless] == [0, 1]


def test_every_fault_of_a_parquet_file_is_named_with_its_row(tmp_path):
    good = {"bytes": as_bytes(noise()), "path": None}
    path = parquet_of(
        tmp_path / "a.parquet",
        image=[good, good, None, {"bytes": None, "path": "/etc/passwd"}, {"bytes": b"secret", "path": None}, good],
        label=["x", None, "x", "x", "x", " "],
        id=["a", "b", "c", "d", "e", "a"],
    )
    message = refusal(DataRefused, load, path)
    for said in (
        "row 2: 'label' is null (give each image a class)",
        "row 3: 'image' is null",
        "row 4: 'image' names a file instead of holding its bytes (embed the images)",
        "row 5: not a PNG, JPEG, WebP or BMP image, or cut off at its beginning",
        "row 6: 'label' is empty",
    ):
        assert said in message
    assert "secret" not in message


def test_an_id_that_stands_twice_is_refused(tmp_path):
    path = parquet_of(tmp_path / "a.parquet", image=[as_bytes(noise())] * 2, label=[0, 1], id=["a", "a"])
    assert refusal(DataRefused, load, path) == f"{path}: row 2: its id occurs twice. Fix them; nothing was written."


@pytest.mark.parametrize(("label", "kind"), [(True, "bool"), (1.0, "float"), ([1], "list")])
def test_a_label_that_is_neither_number_nor_text_is_refused(tmp_path, label, kind):
    path = parquet_of(tmp_path / "a.parquet", image=[as_bytes(noise())], label=[label])
    assert f"row 1: 'label' is {kind}, but must be a whole number or text" in refusal(DataRefused, load, path)


def test_text_in_the_place_of_image_bytes_is_refused(tmp_path):
    path = parquet_of(tmp_path / "a.parquet", image=["cat.png"], label=[1])
    assert "row 1: 'image' is str, but must be the bytes of an image file" in refusal(DataRefused, load, path)


def test_missing_columns_are_refused_and_those_there_are_named(tmp_path):
    path = parquet_of(tmp_path / "a.parquet", photo=[b""], label=[1])
    assert refusal(DataRefused, load, path) == (
        f"{path}: has no image column. Allowed: image, img, webp, png, jpeg. Its columns: photo, label. Rename it."
    )
    path = parquet_of(tmp_path / "b.parquet", image=[b""], kind=[1])
    assert "has no label column. Allowed: label, labels, fine_label." in refusal(DataRefused, load, path)


def test_a_parquet_file_without_rows_and_a_torn_one_are_refused(tmp_path):
    path = parquet_of(tmp_path / "a.parquet", image=pa.array([], pa.binary()), label=pa.array([], pa.int64()))
    assert refusal(DataRefused, load, path).startswith(f"{path}: holds no images")
    path.write_bytes(path.read_bytes()[:-3])
    assert "not a Parquet file that can be read" in refusal(DataRefused, load, path)


# Choosing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", ["cat", 0, "0"])
def test_a_class_is_chosen_by_name_or_number(tmp_path, wanted):
    chosen, rest = choose(animals(tmp_path, {"classes": "cat,dog"}), class_name=wanted)
    assert [r.id for r in chosen] == ["row-1", "row-3"]
    assert [r.id for r in rest] == ["row-2"]


def test_a_class_that_is_called_by_another_ones_number_is_chosen_by_its_name(tmp_path):
    chosen, _ = choose(animals(tmp_path, {"classes": "1,0"}), class_name="1")
    assert [r.label for r in chosen] == [0, 0]


def test_ids_are_chosen_in_the_files_order(tmp_path):
    chosen, rest = choose(animals(tmp_path), ids=["row-3", "row-1"])
    assert [r.id for r in chosen] == ["row-1", "row-3"]
    assert [r.id for r in rest] == ["row-2"]


def test_an_unknown_class_is_refused_and_the_classes_named(tmp_path):
    records = animals(tmp_path, {"classes": "cat,dog"})
    assert refusal(DataRefused, choose, records, class_name="cow") == (
        "No image is of class 'cow'. Classes: 0 (cat), 1 (dog). Choose one of them."
    )
    assert "No image is of class ''" in refusal(DataRefused, choose, animals(tmp_path), class_name="")


def test_at_most_twenty_classes_are_named_in_the_order_of_their_numbers(tmp_path):
    message = refusal(DataRefused, choose, animals(tmp_path, labels=range(30)), class_name=99)
    assert "Classes: " + ", ".join(map(str, range(20))) + ", .... Choose" in message


def test_unknown_ids_are_refused_and_the_classes_named(tmp_path):
    records = animals(tmp_path, labels=("x", "y", "x"))
    assert refusal(DataRefused, choose, records, ids=["row-1", "row-9", "z"]) == (
        "2 of 3 ids are not there: row-9, z. Ids look like 'row-1'; classes: x, y. Fix the ids."
    )
    assert "list of ids is empty" in refusal(DataRefused, choose, records, ids=[])


def test_choosing_everything_is_refused_since_nothing_is_left(tmp_path):
    records = animals(tmp_path, labels=("x", "x"))
    assert refusal(DataRefused, choose, records, class_name="x") == (
        "All 2 images are chosen, so none is left to retain. Choose fewer."
    )


def test_one_of_class_and_ids_must_be_given(tmp_path):
    records = animals(tmp_path)
    assert "give one of the two" in refusal(UsageRefused, choose, records)
    assert "give one of the two" in refusal(UsageRefused, choose, records, class_name="x", ids=["row-1"])
