"""Files and folders that are written atomically, and manifests that show whether they were changed since."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import filelock

from expunge.errors import EnvironmentRefused, ModelRefused

if TYPE_CHECKING:
    from torch import Tensor

MANIFEST = "MANIFEST.json"


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_digest(folder: Path) -> str:
    """SHA-256 over names and contents of the files directly in `folder`, or of the file itself."""
    if folder.is_file():
        return sha256(folder)
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.iterdir() if p.is_file()):
        digest.update(f"{path.name}:{sha256(path)};".encode())
    return digest.hexdigest()


def write_manifest(folder: Path, **facts: object) -> None:
    """List every file below `folder` with its size and SHA-256, beside `facts`. Write it last."""
    paths = sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / MANIFEST)
    files = {str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in paths}
    write_text(folder / MANIFEST, json.dumps({"schema": 1, **facts, "files": files}, indent=1, sort_keys=True))


def check_manifest(folder: Path, part: Callable[[str], bool] = bool) -> dict[str, object]:
    """The manifest of `folder`, after every file in it whose name `part` accepts was compared.

    Raises `ModelRefused` for the first that differs. Every file is hashed on every call: size and date would be cheaper
    to compare, but whoever changes a file by hand can set both.
    """
    try:
        manifest: dict[str, object] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files = manifest["files"]
        assert isinstance(files, dict)
        listed = {str(name): (int(entry["bytes"]), str(entry["sha256"])) for name, entry in files.items()}
    except (OSError, ValueError, TypeError, KeyError, AssertionError, RecursionError) as error:
        raise ModelRefused(f"{folder / MANIFEST} is missing or is not a manifest. Restore the folder.") from error
    present = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and p != folder / MANIFEST}
    added = sorted(filter(part, present - set(listed)))
    if added:
        raise ModelRefused(f"{folder / added[0]} is not in {MANIFEST}: it was added later. Remove it.")
    for name, (size, digest) in sorted(listed.items()):
        path = folder / name
        if not part(name):
            continue
        if name not in present:  # so a name never points out of the folder
            raise ModelRefused(f"{folder}: the manifest names {name}, which is not there. Restore the folder.")
        if path.stat().st_size != size or sha256(path) != digest:
            raise ModelRefused(f"{path} is not the file that was written: its SHA-256 differs from {MANIFEST}.")
    return manifest


def check_inside(folder: Path) -> None:
    """Check a folder such as `OUT/model` against the manifest of the result that it is in; without one, do nothing."""
    folder = folder.resolve()
    above, inside = folder.parent, f"{folder.name}/"
    if not (above / MANIFEST).is_file():
        return
    try:
        listed = json.loads((above / MANIFEST).read_text(encoding="utf-8"))["files"]
        ours = any(str(name).startswith(inside) for name in listed)
    except (ValueError, TypeError, KeyError, RecursionError):
        # With a report beside it the manifest was ours; otherwise it is another program's file of that name.
        ours = (above / "report.json").is_file()
    if ours:
        check_manifest(above, lambda name: name.startswith(inside))


def renew_manifest(folder: Path, name: str) -> None:
    """Update the manifest of `folder`, if it has one, after the file `name` was overwritten."""
    if not (folder / MANIFEST).is_file():
        return
    manifest = check_manifest(folder, lambda _: False)
    files = manifest["files"]
    assert isinstance(files, dict)
    files[name] = {"bytes": (folder / name).stat().st_size, "sha256": sha256(folder / name)}
    write_text(folder / MANIFEST, json.dumps(manifest, indent=1, sort_keys=True))


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically: a reader sees either the old file or the new one."""
    with tempfile.NamedTemporaryFile("wb", dir=path.parent, delete=False) as file:
        scratch = Path(file.name)
        try:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
            scratch.chmod(0o644)
            os.replace(scratch, path)
        except BaseException:
            scratch.unlink(missing_ok=True)
            raise


def check_room(tensors: Iterable[Tensor], out: Path) -> None:
    """Refuse to start where the disk cannot hold the result: these tensors, and 10 % more."""
    parent = next(p for p in out.absolute().parents if p.exists())
    need = 1.1 * sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    free = shutil.disk_usage(parent).free
    if free < need:
        raise EnvironmentRefused(f"{parent} has {free / 1e6:.0f} MB free; the result needs {need / 1e6:.0f} MB.")


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A temporary folder beside `target`, renamed to `target` when the block succeeds and removed when it fails.

    An empty folder at `target` is replaced; the caller has refused anything else there.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.tmp-", dir=target.parent))
    try:
        yield scratch
        scratch.chmod(0o755)
        if target.exists():
            target.rmdir()
        os.replace(scratch, target)
    except OSError as error:
        if error.errno in (28, 122):  # no space left, quota exceeded
            free = shutil.disk_usage(target.parent).free
            raise EnvironmentRefused(f"The disk of {target.parent} is full ({free / 1e6:.0f} MB free).") from error
        raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def lock(out: Path) -> Iterator[None]:
    """Allow one run at a time for each output folder."""
    out.parent.mkdir(parents=True, exist_ok=True)
    path = out.parent / f".{out.name}.lock"
    file_lock = filelock.FileLock(path, timeout=0)
    try:
        file_lock.acquire()
    except filelock.Timeout as error:
        raise EnvironmentRefused(
            f"{out}: another run writes to it (lock {path}). Wait for it, or give another --out."
        ) from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        file_lock.release()
