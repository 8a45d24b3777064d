"""Files and folders that are written atomically, and manifests that show whether they were changed since."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import platform
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

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
    except (OSError, ValueError, TypeError, KeyError, AssertionError, RecursionError, OverflowError) as error:
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
    sweep(path)
    scratch = scratch_name(path)
    try:
        with scratch.open("xb") as file:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
    except BaseException as error:
        with suppress(OSError):
            scratch.unlink(missing_ok=True)
        refuse_full_disk(error, path.parent)
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
    sweep(target)
    scratch = scratch_name(target)
    scratch.mkdir(mode=0o700)
    try:
        yield scratch
        open_to_readers(scratch)
        if target.exists():
            target.rmdir()
        os.replace(scratch, target)
    except Exception as error:
        refuse_full_disk(error, target.parent)
        raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


# Scratch names, disks that are full, and who may read


def scratch_name(target: Path) -> Path:
    """A name beside `target` for what is written before it takes its place; it says which process writes it."""
    return target.with_name(f"{_scratch_prefix(target)}{os.getpid()}-{secrets.token_hex(4)}")


def sweep(target: Path) -> None:
    """Remove what processes of this machine that are gone, killed at work, left beside `target` under scratch names."""
    name = re.compile(rf"{re.escape(_scratch_prefix(target))}(\d+)-[0-9a-f]{{8}}")
    for path in target.parent.iterdir():
        match = name.fullmatch(path.name)
        if match and not _is_alive(int(match[1])):
            remove(path)


def remove(path: Path) -> None:
    """Remove a file or a folder; what cannot be removed stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _scratch_prefix(target: Path) -> str:
    # Other machines may write to the same disk, and their processes have numbers of their own.
    host = hashlib.sha256(platform.node().encode()).hexdigest()[:6]
    return f".{target.name}.tmp-{host}-"


SUFFIXES = len(".checkpoints") + len(".tmp-012345-4194304-01234567")
"""Letters that the names of what lies beside a result have beyond its own."""


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def open_to_readers(path: Path) -> None:
    """Let read what the user's umask lets read: libraries write with a mode of their own."""
    umask = os.umask(0o077)
    os.umask(umask)
    path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)


def refuse_full_disk(error: BaseException, place: Path) -> None:
    """Raise `EnvironmentRefused` where `error`, or what caused it, is a disk without room. Else do nothing."""
    if is_disk_full(error):
        with suppress(OSError):
            place = next(p for p in (place.absolute(), *place.absolute().parents) if p.is_dir())
        free = shutil.disk_usage(place).free
        raise EnvironmentRefused(
            f"The disk of {place} is full ({free / 1e6:.0f} MB free), or a limit on a file's size is reached. "
            f"Make room, or give another --out."
        ) from error


def is_disk_full(error: BaseException) -> bool:
    """Whether an error, or what caused it, is that there is no space left, no quota, or a limit on a file's size.

    safetensors and torch say so in their texts alone.
    """
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in FULL:
            return True
        if re.search(rf"os error ({'|'.join(map(str, FULL))})\b|No space left on device", str(seen)[:2000]):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def lock(out: Path) -> Iterator[None]:
    """Allow one run at a time for each output folder. The system frees the lock of a process that is gone.

    Raises `EnvironmentRefused` that says who holds it.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    path = out.with_name(f".{out.name}.lock")
    file = _acquire(path)
    if file is None:
        raise EnvironmentRefused(
            f"{out}: another run writes to it ({_holder(path)}; lock {path}). Wait for it, or give another --out."
        )
    try:
        since = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        os.write(file, f"process {os.getpid()} on {platform.node()}, since {since}\n".encode())
        yield
    finally:
        with suppress(OSError):
            path.unlink(missing_ok=True)
        os.close(file)


def _acquire(path: Path) -> int | None:
    """The locked file; None where another process has it."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(file), os.stat(path)):
                os.ftruncate(file, 0)
                return file
        except BlockingIOError:
            os.close(file)
            return None
        except FileNotFoundError:  # whoever had it removed it while it was opened here
            pass
        except BaseException:
            os.close(file)
            raise
        os.close(file)


def _holder(path: Path) -> str:
    try:
        said = path.read_text(encoding="utf-8", errors="replace").strip()[:200]
    except OSError:
        said = ""
    return said or "it does not say which"
