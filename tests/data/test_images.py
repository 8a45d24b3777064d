"""Images from files to pixels: what is read as what, and what a model can be given."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViTImageProcessorPil

from expunge.core.request import Request
from expunge.data.images import choose, encode, load
from expunge.errors import DataRefused, ModelRefused
from tests.data.pictures import BLUE, GREEN, RED, animals, as_bytes, folder_of, noise, only, parquet_of, reads, refusal

CIFAR = Path(__file__).parents[3] / "shared/data/cifar10"


# A picture, encoded -----------------------------------------------------------------------------------------------


def test_a_white_image_becomes_ones_and_a_black_one_minus_ones(tmp_path):
    white, black = (as_bytes(Image.new("RGB", (5, 9), c)) for c in ("white", "black"))
    records = load(folder_of(tmp_path, cat={"black.png": black, "white.png": white}))
    dark, light = encode(records, reads(), {"cat": 0, "dog": 1}, tmp_path)
    assert torch.equal(dark.pixels, torch.full((3, 8, 8), -1.0))  # (0 - 0.5) / 0.5
    assert torch.equal(light.pixels, torch.full((3, 8, 8), 1.0))  # (1 - 0.5) / 0.5
    assert (dark.id, dark.label, dark.rows, dark.size, dark.alternatives) == ("cat/black.png", 0, 1, 1, ())
    assert dark.pixels.dtype == torch.float32


def test_pixels_equal_the_processors_own_for_each_image_alone_in_groups_larger_than_one_call(tmp_path):
    files = {f"{k:03}.png": as_bytes(noise(k, 8 + k % 3, 9)) for k in range(130)}
    records = load(folder_of(tmp_path, a=files))
    pictures = encode(records, reads(), {"a": 0}, tmp_path)
    for k in (0, 63, 64, 129):
        alone = reads()(noise(k, 8 + k % 3, 9), return_tensors="pt")["pixel_values"][0]
        assert torch.equal(pictures[k].pixels, alone)
        assert pictures[k].pixels.untyped_storage().nbytes() == 4 * 3 * 8 * 8  # not the whole group's


def test_content_is_the_same_from_a_png_a_bmp_and_a_parquet_row_and_differs_by_pixel_and_class(tmp_path):
    image = noise(1)
    other = image.copy()
    other.putpixel((0, 0), (1, 2, 3))
    files = {"a.png": as_bytes(image), "b.bmp": as_bytes(image, "BMP"), "c.png": as_bytes(other)}
    folder = folder_of(tmp_path / "f", cat=files, dog={"a.png": as_bytes(image)})
    rows = parquet_of(tmp_path / "r.parquet", image=[as_bytes(image)], label=["cat"])
    names = {"cat": 0, "dog": 1}
    png, bmp, changed, dog = (p.record_digest() for p in encode(load(folder), reads(), names, folder))
    (row,) = (p.record_digest() for p in encode(load(rows), reads(), names, rows))
    assert png == bmp == row
    assert len({png, changed, dog}) == 3
    digest = hashlib.sha256(b"8x8:" + image.tobytes()).hexdigest()
    assert png == hashlib.sha256(f"{digest}:0".encode()).hexdigest()


def test_a_request_of_pictures_has_a_fingerprint_and_refuses_an_overlap(tmp_path):
    records = load(folder_of(tmp_path, a={"1.png": as_bytes(noise(1))}, b={"2.png": as_bytes(noise(2))}))
    one, two = encode(records, reads(), {"a": 0, "b": 1}, tmp_path)
    assert Request((one,), (two,)).fingerprint() == Request((one,), (two,)).fingerprint()
    assert "a/1.png = a/1.png" in refusal(DataRefused, Request, (one,), (one, two))


# Kinds of image ---------------------------------------------------------------------------------------------------


def test_exif_rotation_is_applied(tmp_path):
    image = Image.new("RGB", (16, 8), RED)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated by a quarter
    folder_of(tmp_path, cat={"a.jpg": as_bytes(image, "JPEG", exif=exif)})
    assert only(tmp_path).shape == (16, 8, 3)


def test_the_first_frame_of_an_animation_is_read(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN, BLUE)]
    animated = as_bytes(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    folder_of(tmp_path, cat={"a.webp": animated})
    assert (only(tmp_path) == RED).all()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    kind, name = ("JPEG", "a.jpg") if mode == "CMYK" else ("PNG", "a.png")
    folder_of(tmp_path, cat={name: as_bytes(Image.new("RGB", (8, 8), "white").convert(mode), kind)})
    assert (only(tmp_path) == 255).all()
    assert only(tmp_path).shape == (8, 8, 3)


def test_transparency_is_dropped_and_the_colour_under_it_kept(tmp_path):
    folder_of(tmp_path, cat={"a.png": as_bytes(Image.new("RGBA", (8, 8), (*BLUE, 0)))})
    assert (only(tmp_path) == BLUE).all()


def test_a_palette_with_transparent_entries_is_read_without_a_warning(tmp_path):
    image = Image.new("RGB", (8, 8), GREEN).convert("P")
    folder_of(tmp_path, cat={"a.png": as_bytes(image, transparency=bytes(range(256)))})
    assert (only(tmp_path) == GREEN).all()


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    values = np.array([[0, 257, 128 * 257, 65535]], dtype=np.uint16)  # v * 257 in 16 bits is v in 8
    folder_of(tmp_path, cat={"a.png": as_bytes(Image.fromarray(values))})
    assert only(tmp_path)[0, :, 0].tolist() == [0, 1, 128, 255]


def test_grey_values_pass_through_rgb_to_a_grey_model_unchanged(tmp_path):
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    folder_of(tmp_path, digit={"a.png": as_bytes(Image.fromarray(grey))})
    (picture,) = encode(load(tmp_path), reads(16, channels=1), {"digit": 0}, tmp_path, channels=1)
    assert picture.pixels.shape == (1, 16, 16)
    assert torch.allclose(picture.pixels[0], torch.arange(256).reshape(16, 16) / 255 * 2 - 1, atol=1e-6)


def test_a_colour_image_is_read_by_a_grey_model(tmp_path):
    folder_of(tmp_path, cat={"a.png": as_bytes(Image.new("RGB", (8, 8), RED))})
    (picture,) = encode(load(tmp_path), reads(8, channels=1), {"cat": 0}, tmp_path, channels=1)
    assert torch.allclose(picture.pixels, torch.full((1, 8, 8), 76 / 255 * 2 - 1))  # 0.299 * 255 = 76


def test_the_content_tells_the_kind_of_file_not_its_name(tmp_path):
    folder_of(tmp_path, cat={"a.jpg": as_bytes(noise(3), "PNG")})
    assert (only(tmp_path) == np.asarray(noise(3))).all()


# Labels and processors --------------------------------------------------------------------------------------------


def test_folders_that_are_called_by_numbers_are_numbers_where_the_model_has_no_such_names(tmp_path):
    folder_of(tmp_path, **{"1": {"a.png": as_bytes(noise())}})
    (picture,) = encode(load(tmp_path), reads(), {"LABEL_0": 0, "LABEL_1": 1}, tmp_path)
    assert picture.label == 1


def test_an_unknown_name_is_refused_with_its_file_and_the_models_classes(tmp_path):
    folder_of(tmp_path, cat={"a.png": as_bytes(noise())}, cow={"b.png": as_bytes(noise())})
    assert refusal(DataRefused, encode, load(tmp_path), reads(), {"cat": 0, "dog": 1}, tmp_path) == (
        f"{tmp_path}: cow/b.png: 'cow' is not one of the model's classes. "
        f"The model's 2 classes are: cat, dog. Fix the labels."
    )


@pytest.mark.parametrize("label", [2, -1, "01", "x" * 5000])
def test_a_label_outside_the_models_classes_is_refused_with_its_row(tmp_path, label):
    records = animals(tmp_path, labels=(label,))
    message = refusal(DataRefused, encode, records, reads(), {"LABEL_0": 0, "LABEL_1": 1}, tmp_path / "a.parquet")
    assert f"row 1: '{str(label)[:40]}" in message
    assert len(message) < len(str(tmp_path)) + 300


def test_a_processor_for_another_number_of_channels_is_refused(tmp_path):
    records = animals(tmp_path)
    names = {"a": 0, "b": 1}
    colours = reads(do_convert_rgb=True)
    message = refusal(ModelRefused, encode, records, colours, names, tmp_path, channels=1)
    assert "makes [3, 8, 8] of an image, but the model reads 1 channels" in message
    assert "The image processor failed (ValueError)" in refusal(
        ModelRefused, encode, records, reads(), names, tmp_path, channels=1
    )
    assert "reads 5 channels" in refusal(ModelRefused, encode, records, reads(), names, tmp_path, channels=5)


def test_a_processor_that_divides_by_zero_is_refused(tmp_path):
    broken = ViTImageProcessorPil(size={"height": 8, "width": 8}, image_mean=[0.5] * 3, image_std=[0.0] * 3)
    with np.errstate(all="ignore"):
        message = refusal(ModelRefused, encode, animals(tmp_path), broken, {"a": 0, "b": 1}, tmp_path)
    assert "NaN or Inf" in message


def test_a_processor_that_leaves_several_sizes_is_refused(tmp_path):
    files = {f"{k:02}.png": as_bytes(noise(k, 8 if k < 64 else 9)) for k in range(65)}  # the 65th is of another call
    folder_of(tmp_path, a=files)
    message = refusal(ModelRefused, encode, load(tmp_path), reads(do_resize=False), {"a": 0}, tmp_path)
    assert "a/64.png: the processor gives images of several sizes" in message


def test_the_cifar_files_load_as_they_are():
    if not CIFAR.is_dir():
        pytest.skip(f"{CIFAR} is not on this machine")
    records = load(CIFAR / "test.parquet")
    assert len(records) == 10_000
    assert {(r.label, r.name) for r in records} >= {(0, "airplane"), (3, "cat"), (9, "truck")}
    assert all(r.image.size == (32, 32) and r.image.mode == "RGB" for r in records)
    cats, rest = choose(records, class_name="cat")
    assert (len(cats), len(rest)) == (1000, 9000)
    (picture,) = encode(cats[:1], reads(32), {f"LABEL_{k}": k for k in range(10)}, CIFAR)
    assert (picture.pixels.shape, picture.label) == ((3, 32, 32), 3)
