"""Folders of the datasets library and snapshots of the hub: what one split holds, in its order, or a refusal."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from expunge.data import images
from expunge.data.tables import columns, is_dataset
from expunge.data.text import load
from expunge.errors import DataRefused

ROWS = [{"question": f"Q{k}", "answer": f"A{k}"} for k in range(5)]


def arrow(path: Path, rows: list[dict]) -> None:
    table = pa.Table.from_pylist(rows)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)


def saved(folder: Path, *shards: list[dict], **more: object) -> Path:
    """A folder as `Dataset.save_to_disk` of datasets 5 writes it."""
    folder.mkdir(parents=True)
    names = [f"data-{k:05}-of-{len(shards):05}.arrow" for k in range(len(shards))]
    for name, rows in zip(names, shards, strict=True):
        arrow(folder / name, rows)
    state = {"_data_files": [{"filename": name} for name in names], "_fingerprint": "f", "_split": None, **more}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text('{"features": {}}')
    return folder


def refusal(path: Path) -> str:
    with pytest.raises(DataRefused) as refused:
        load(path)
    return str(refused.value)


def test_a_saved_dataset_is_read_in_the_order_of_its_files_and_numbered_through(tmp_path: Path):
    records = load(saved(tmp_path / "set", ROWS[:2], ROWS[2:]))
    assert [(record.line, record.columns) for record in records] == list(enumerate(ROWS, start=1))


def test_a_saved_dataset_of_one_split_is_read_and_several_are_named(tmp_path: Path):
    root = tmp_path / "sets"
    saved(root / "train", ROWS)
    (root / "dataset_dict.json").write_text('{"splits": ["train"]}')
    assert len(load(root)) == 5
    saved(root / "test", ROWS[:1])
    (root / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert refusal(root) == f"{root}: holds the splits train, test. Give {root}/train, {root}/test."
    assert len(load(root / "test")) == 1


def test_a_saved_dataset_that_is_damaged_or_indexed_is_refused(tmp_path: Path):
    gone = saved(tmp_path / "gone", ROWS[:2], ROWS[2:])
    (gone / "data-00001-of-00002.arrow").unlink()
    assert "1 of its 2 files are missing" in refusal(gone)
    torn = saved(tmp_path / "torn", ROWS)
    (torn / "data-00000-of-00001.arrow").write_bytes(b"zanzibar")
    assert "not an Arrow file that can be read" in refusal(torn)
    assert "only chosen rows" in refusal(saved(tmp_path / "index", ROWS, _indices_data_files=[{"filename": "i.arrow"}]))
    outside = saved(tmp_path / "outside", ROWS)
    (outside / "state.json").write_text('{"_data_files": [{"filename": "../gone/data-00000-of-00002.arrow"}]}')
    assert "names no .arrow files in its folder" in refusal(outside)
    (outside / "state.json").write_text("{")
    assert "not JSON" in refusal(outside)


def snapshot(folder: Path, **shards: list[dict]) -> Path:
    (folder / "data").mkdir(parents=True)
    (folder / "README.md").write_text("a card")
    (folder / "dataset_infos.json").write_text("{}")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "old.jsonl").write_text("no record")
    for name, rows in shards.items():
        pq.write_table(pa.Table.from_pylist(rows), folder / "data" / f"{name.replace('_', '-')}.parquet")
    return folder


def test_a_snapshot_of_the_hub_is_read_shard_by_shard(tmp_path: Path):
    folder = snapshot(tmp_path / "hub", train_00001_of_00002=ROWS[2:], train_00000_of_00002=ROWS[:2])
    assert [record.columns for record in load(folder)] == ROWS
    (folder / "data" / "train-00001-of-00002.parquet").unlink()
    assert "1 of 2 shards are there" in refusal(folder)


def test_a_snapshot_with_several_splits_names_them(tmp_path: Path):
    folder = snapshot(tmp_path / "hub", train_00000_of_00001=ROWS[:2], test_00000_of_00001=ROWS[2:])
    said = refusal(folder)
    assert f"holds several tables ({folder}/data/test-00000-of-00001.parquet, " in said
    assert len(load(folder / "data" / "test-00000-of-00001.parquet")) == 3


def test_a_folder_of_json_lines_is_a_dataset_and_one_of_images_is_not(tmp_path: Path):
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "train.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "pictures" / "cat").mkdir(parents=True)
    (tmp_path / "pictures" / "cat" / "a.png").write_bytes(b"")
    (tmp_path / "pictures" / "metadata.jsonl").write_text('{"file_name": "cat/a.png"}\n')
    assert is_dataset(tmp_path / "text", images.SUFFIXES)
    assert columns(tmp_path / "text") == set()
    assert not is_dataset(tmp_path / "pictures", images.SUFFIXES)
    (tmp_path / "empty").mkdir()
    assert not is_dataset(tmp_path / "empty", images.SUFFIXES)


def test_images_of_a_saved_dataset_are_read_as_those_of_a_table(tmp_path: Path):
    import io

    from PIL import Image

    def png(color: str) -> dict:
        stream = io.BytesIO()
        Image.new("RGB", (4, 4), color).save(stream, "PNG")
        return {"bytes": stream.getvalue(), "path": None}

    folder = saved(tmp_path / "set", [{"image": png("red"), "label": 0}], [{"image": png("blue"), "label": 1}])
    assert columns(folder) == {"image", "label"}
    first, second = images.load(folder)
    assert (first.id, first.label, second.id, second.label) == ("row-1", 0, "row-2", 1)
    assert second.image.getpixel((0, 0)) == (0, 0, 255)
