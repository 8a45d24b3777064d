"""Tables of records: Parquet and Arrow files, and the folders that the datasets library saves or the hub keeps.

A folder of `Dataset.save_to_disk` names its files itself; in any other, such as a snapshot of the hub, the shards of
one split (`train-00000-of-00002.parquet`, ...) are read in their order. A folder with several splits is refused by
their names. The datasets library is not needed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from expunge.errors import DataRefused, EnvironmentRefused

UNPACKED = 1_000_000_000
"""Bytes that any Parquet file may unpack to."""
RATIO = 100
"""Bytes that it may unpack to for each that it has, if those are more."""
SUFFIXES = (".parquet", ".arrow", ".jsonl", ".json", ".csv")
"""Endings of files of records."""
DICT, STATE = "dataset_dict.json", "state.json"
"""What `save_to_disk` writes beside several splits, and beside one."""
NO_RECORDS = {DICT, STATE, "dataset_info.json", "dataset_infos.json"}
SHARD = re.compile(r"(.*?)-?(\d{5})-of-(\d{5})")
SHOWN = 20


def is_dataset(folder: Path, others: Sequence[str]) -> bool:
    """Whether a folder holds files of records, and none that ends in one of `others`."""
    if (folder / DICT).is_file() or (folder / STATE).is_file():
        return True
    near = [*islice(folder.glob("*"), 10_000), *islice(folder.glob("*/*"), 10_000)]
    return not any(path.suffix.lower() in others for path in near) and bool(_tables(folder))


def files_of(folder: Path) -> list[Path]:
    """The files of a folder's only split, in their order. Raises `DataRefused` where there are several, or none."""
    if (folder / DICT).is_file():
        splits = _object(folder / DICT).get("splits")
        names = [str(name) for name in splits] if isinstance(splits, list) else []
        if len(names) != 1:
            given = ", ".join(str(folder / name) for name in names[:SHOWN])
            raise DataRefused(f"{folder}: holds the splits {', '.join(names[:SHOWN]) or 'of nothing'}. Give {given}.")
        return files_of(folder / names[0])
    if (folder / STATE).is_file():
        return _files_saved(folder)
    groups: dict[Path, list[Path]] = {}
    for path in _tables(folder):
        shard = SHARD.fullmatch(path.stem)
        groups.setdefault(path.with_name(shard[1] if shard else path.stem), []).append(path)
    if not groups:
        raise DataRefused(f"{folder}: holds no {', '.join(SUFFIXES)} file. Give a file, or a folder of datasets.")
    if len(groups) > 1:
        names = [str(paths[0] if len(paths) == 1 else name) for name, paths in groups.items()]
        raise DataRefused(
            f"{folder}: holds several tables ({', '.join(names[:SHOWN])}). Give one, or a folder of one's shards."
        )
    [shards] = groups.values()
    shard = SHARD.fullmatch(shards[0].stem)
    if shard and len(shards) != int(shard[3]):
        raise DataRefused(f"{folder}: {len(shards)} of {int(shard[3])} shards are there. Fetch the others.")
    return shards


def _tables(folder: Path) -> list[Path]:
    """The files of records in a folder and the two levels below it."""
    found = (path for depth in ("*", "*/*", "*/*/*") for path in folder.glob(depth))
    shown = (p for p in found if not any(part.startswith(".") for part in p.relative_to(folder).parts))
    return sorted(p for p in shown if p.suffix.lower() in SUFFIXES and p.name not in NO_RECORDS and p.is_file())


def _files_saved(folder: Path) -> list[Path]:
    """The files that `save_to_disk` wrote."""
    state = _object(folder / STATE)
    if state.get("_indices_data_files"):
        raise DataRefused(f"{folder}: only chosen rows of its files count. Save dataset.flatten_indices() instead.")
    listed = state.get("_data_files")
    names = [str(each.get("filename")) for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []
    if not names or any(not re.fullmatch(r"[^/\\]+\.arrow", name) for name in names):
        raise DataRefused(f"{folder / STATE}: names no .arrow files in its folder. Save the dataset again.")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise DataRefused(f"{folder}: {len(missing)} of its {len(names)} files are missing. Save the dataset again.")
    return [folder / name for name in names]


def _object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataRefused(f"{path}: not JSON. Save the dataset again.") from error
    return value if isinstance(value, dict) else {}


def open_table(path: Path) -> Any:
    """A Parquet or Arrow file, or the files of a folder, as one pyarrow table."""
    if path.is_dir():
        return _together(path, [_open(each) for each in files_of(path)])
    return _open(path)


def columns(path: Path) -> set[str]:
    """Names of a table's columns; none where its files are of another kind."""
    first = files_of(path)[0] if path.is_dir() else path
    suffix = first.suffix.lower()
    if suffix not in (".parquet", ".arrow"):
        return set()
    return set(_read(first, "read_schema").names if suffix == ".parquet" else _open(first).column_names)


def _together(path: Path, tables: list[Any]) -> Any:
    import pyarrow

    try:
        return pyarrow.concat_tables(tables)
    except pyarrow.ArrowException as error:
        raise DataRefused(f"{path}: its files have different columns. Give one of them.") from error


def _open(path: Path) -> Any:
    return _read(path, "read_table" if path.suffix.lower() != ".arrow" else "")


def _refuse_bomb(path: Path) -> None:
    """Refuse a Parquet file that unpacks to far more than it holds: one long text can stand for millions of rows.

    Texts are read as numbers of a dictionary's entries, so that adding up their lengths unpacks nothing.
    """
    import pyarrow.parquet

    schema = pyarrow.parquet.read_metadata(path).schema
    texts = [schema.column(k).path for k in range(len(schema)) if schema.column(k).physical_type == "BYTE_ARRAY"]
    most, total = max(UNPACKED, RATIO * path.stat().st_size), 0
    with pyarrow.parquet.ParquetFile(path, read_dictionary=texts) as file:
        for batch in file.iter_batches():
            total += sum(_measure(column) for column in batch.columns)
            if total > most:
                raise DataRefused(
                    f"{path}: has {path.stat().st_size / 1e6:.1f} MB and unpacks to more than {most / 1e9:.0f} GB. "
                    f"Write its records as JSON lines (.jsonl), if that is what they are."
                )


def _measure(column: Any) -> int:
    """Bytes of a column without a dictionary."""
    import pyarrow
    from pyarrow import compute

    if pyarrow.types.is_dictionary(column.type):
        if not len(column.dictionary):
            return int(column.nbytes)
        lengths = compute.cast(compute.binary_length(column.dictionary), "int64")
        counted = compute.value_counts(column.indices.drop_null())
        counts, which = counted.field("counts"), counted.field("values")
        return int(compute.sum(compute.multiply(lengths.take(which), counts)).as_py() or 0) + int(column.indices.nbytes)
    if pyarrow.types.is_list(column.type) or pyarrow.types.is_large_list(column.type):
        return int(column.offsets.nbytes) + _measure(column.flatten())
    if pyarrow.types.is_struct(column.type):
        return sum(map(_measure, column.flatten()))
    return int(column.nbytes)


def _read(path: Path, verb: str) -> Any:
    """A Parquet file by pyarrow's function of that name; an Arrow file where there is none."""
    try:
        import pyarrow.parquet  # an extra: only these kinds of files need it
    except ImportError as error:
        raise EnvironmentRefused("Parquet and Arrow files need pyarrow: pip install 'expunge[parquet]'.") from error
    if not path.is_file():
        raise DataRefused(f"{path}: no such file.")
    kind = "Parquet" if verb else "Arrow"
    try:
        if verb == "read_table":
            _refuse_bomb(path)
        if verb:
            return getattr(pyarrow.parquet, verb)(path)
        with pyarrow.memory_map(str(path)) as file:
            return pyarrow.ipc.open_stream(file).read_all()
    except (pyarrow.ArrowException, OSError) as error:
        raise DataRefused(
            f"{path}: not {'an' if not verb else 'a'} {kind} file that can be read. Write it again."
        ) from error
