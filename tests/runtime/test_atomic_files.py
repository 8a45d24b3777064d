"""Files that appear whole or not at all, and digests that notice one bit."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from expunge.errors import EnvironmentRefused, ModelRefused
from expunge.runtime.atomic_files import (
    MANIFEST,
    check_inside,
    check_manifest,
    check_room,
    folder_digest,
    is_disk_full,
    lock,
    renew_manifest,
    scratch_name,
    sha256,
    sweep,
    whole_folder,
    write_manifest,
    write_text,
)


def below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_folder_appears_when_the_block_ends(tmp_path: Path):
    with whole_folder(tmp_path / "deep" / "out") as scratch:
        (scratch / "a").write_text("1")
        assert not (tmp_path / "deep" / "out").exists()
    assert below(tmp_path) == ["deep", "deep/out", "deep/out/a"]
    assert (tmp_path / "deep" / "out").stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_block_that_fails_leaves_nothing_behind(error: type[BaseException], tmp_path: Path):
    def fail() -> None:
        with whole_folder(tmp_path / "out") as scratch:
            (scratch / "deep").mkdir()
            (scratch / "deep" / "a").write_text("1")
            raise error

    with pytest.raises(error):
        fail()
    assert below(tmp_path) == []


def test_an_empty_folder_is_replaced_and_a_full_one_is_left_alone(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    with whole_folder(tmp_path / "empty") as scratch:
        (scratch / "a").write_text("1")
    assert below(tmp_path / "empty") == ["a"]
    with pytest.raises(OSError, match="not empty"), whole_folder(tmp_path / "empty") as scratch:
        (scratch / "b").write_text("2")
    assert below(tmp_path) == ["empty", "empty/a"]


def test_a_full_disk_is_said_in_one_line(tmp_path: Path):
    with pytest.raises(EnvironmentRefused, match=r"is full \(\d+ MB free\)"), whole_folder(tmp_path / "out"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert below(tmp_path) == []


def test_a_text_is_written_whole_or_the_old_one_stays(tmp_path: Path):
    path = tmp_path / "a.txt"
    write_text(path, "old\r\n")
    assert path.read_bytes() == b"old\r\n"
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "new \ud800")
    assert path.read_bytes() == b"old\r\n"
    assert below(tmp_path) == ["a.txt"]
    write_text(path, "new")
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_reader_keeps_the_old_text_while_the_new_one_takes_its_name(tmp_path: Path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with path.open() as reader:
        write_text(path, "new")
        assert reader.read() == "old"
    assert path.read_text() == "new"


def made(folder: Path) -> Path:
    (folder / "deep").mkdir(parents=True)
    (folder / "a.bin").write_bytes(bytes(range(256)))
    (folder / "deep" / MANIFEST).write_text("{}")
    write_manifest(folder, base="abc")
    return folder


def test_a_manifest_lists_every_file_below_with_size_and_digest(tmp_path: Path):
    manifest = check_manifest(made(tmp_path / "m"))
    assert manifest["base"] == "abc"
    # sha256 of the bytes 0 to 255, and of "{}"
    assert manifest["files"] == {
        "a.bin": {"bytes": 256, "sha256": "40aff2e9d2d8922e47afd4648e6967497158785fbd1da870e7110266bf944880"},
        f"deep/{MANIFEST}": {
            "bytes": 2,
            "sha256": "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
        },
    }


@pytest.mark.parametrize("bit", [0, 77, 2047])
def test_one_flipped_bit_is_noticed(bit: int, tmp_path: Path):
    folder = made(tmp_path / "m")
    content = bytearray((folder / "a.bin").read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    (folder / "a.bin").write_bytes(content)
    with pytest.raises(ModelRefused, match=r"a\.bin is not the file that was written"):
        check_manifest(folder)


def test_a_missing_an_added_and_a_changed_file_are_named(tmp_path: Path):
    folder = made(tmp_path / "m")
    (folder / "new").write_text("x")
    with pytest.raises(ModelRefused, match=r"new is not in MANIFEST\.json"):
        check_manifest(folder)
    (folder / "new").unlink()
    (folder / "deep" / MANIFEST).write_text("[]")
    with pytest.raises(ModelRefused, match=r"deep/MANIFEST\.json is not the file"):
        check_manifest(folder)
    (folder / "deep" / MANIFEST).unlink()
    with pytest.raises(ModelRefused, match=r"names deep/MANIFEST\.json, which is not there"):
        check_manifest(folder)


ENDLESS = '{"files": {"a": {"bytes": Infinity, "sha256": ""}}}'


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", '{"files": []}', '{"files": {"a": 1}}', "[" * 100_000, pytest.param(ENDLESS, id="endless")],
)
def test_a_manifest_that_is_none_is_refused(text: str, tmp_path: Path):
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(ModelRefused, match=r"is not a manifest"):
        check_manifest(tmp_path)
    (tmp_path / MANIFEST).unlink()
    with pytest.raises(ModelRefused, match=r"is missing"):
        check_manifest(tmp_path)


def test_a_name_in_a_manifest_never_leads_out_of_the_folder(tmp_path: Path):
    (tmp_path / "secret").write_text("x")
    folder = tmp_path / "m"
    folder.mkdir()
    files = {"../secret": {"bytes": 1, "sha256": sha256(tmp_path / "secret")}}
    (folder / MANIFEST).write_text(json.dumps({"files": files}))
    with pytest.raises(ModelRefused, match=r"names \.\./secret, which is not there"):
        check_manifest(folder)


def test_a_folder_s_digest_knows_names_and_contents(tmp_path: Path):
    (tmp_path / "a").write_text("1")
    first = folder_digest(tmp_path)
    assert folder_digest(tmp_path) == first
    os.rename(tmp_path / "a", tmp_path / "b")
    assert folder_digest(tmp_path) != first
    os.rename(tmp_path / "b", tmp_path / "a")
    assert folder_digest(tmp_path) == first
    (tmp_path / "a").write_text("2")
    assert folder_digest(tmp_path) != first
    assert folder_digest(tmp_path / "a") == sha256(tmp_path / "a")


def flip(path: Path, bit: int = 9) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def test_a_part_of_a_folder_is_compared_alone(tmp_path: Path):
    folder = made(tmp_path / "m")
    flip(folder / "a.bin")
    check_manifest(folder, lambda name: name.startswith("deep/"))
    with pytest.raises(ModelRefused, match=r"a\.bin is not the file"):
        check_manifest(folder, lambda name: not name.startswith("deep/"))


def test_a_model_is_compared_with_the_manifest_of_the_result_that_it_lies_in(tmp_path: Path):
    folder = tmp_path / "out" / "model"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    check_inside(folder)  # no manifest above
    (tmp_path / "out" / "report.json").write_text("{}")
    write_manifest(tmp_path / "out")
    flip(tmp_path / "out" / "report.json")
    check_inside(folder)  # the report is not what is read
    (tmp_path / "link").symlink_to(folder)
    flip(folder / "config.json")
    for name in (folder, tmp_path / "link"):
        with pytest.raises(ModelRefused, match=r"config\.json is not the file that was written"):
            check_inside(name)
    flip(folder / "config.json")
    (folder / "more.safetensors").write_text("x")
    with pytest.raises(ModelRefused, match=r"model/more\.safetensors is not in MANIFEST"):
        check_inside(folder)


def test_a_manifest_above_that_is_another_program_s_says_nothing_of_a_model(tmp_path: Path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    for text in ('{"name": "x"}', '{"files": {"other/a": 1}}', "not JSON", "[]"):
        (tmp_path / MANIFEST).write_text(text)
        check_inside(tmp_path / "model")
    (tmp_path / "report.json").write_text("{}")
    (tmp_path / MANIFEST).write_text("{")  # ours, and torn
    with pytest.raises(ModelRefused, match=r"is not a manifest"):
        check_inside(tmp_path / "model")


def test_a_file_written_over_is_entered_anew_and_no_other(tmp_path: Path):
    folder = made(tmp_path / "m")
    (folder / "deep" / MANIFEST).write_text("[1]")
    flip(folder / "a.bin")
    renew_manifest(folder, f"deep/{MANIFEST}")
    with pytest.raises(ModelRefused, match=r"a\.bin is not the file"):
        check_manifest(folder)
    flip(folder / "a.bin")
    assert check_manifest(folder)["base"] == "abc"
    renew_manifest(tmp_path, "none")  # no manifest, so nothing to enter
    assert below(tmp_path) == ["m", f"m/{MANIFEST}", "m/a.bin", "m/deep", f"m/deep/{MANIFEST}"]


# Who may read, what is left, and who is at work


@pytest.mark.parametrize(
    ("umask", "folder", "file"), [(0o022, 0o755, 0o644), (0o077, 0o700, 0o600), (0o002, 0o775, 0o664)]
)
def test_who_may_read_is_what_the_user_s_umask_says(umask: int, folder: int, file: int, tmp_path: Path):
    was = os.umask(umask)
    try:
        with whole_folder(tmp_path / "out") as scratch:
            write_text(scratch / "a", "1")
    finally:
        os.umask(was)
    assert (tmp_path / "out").stat().st_mode & 0o777 == folder
    assert (tmp_path / "out" / "a").stat().st_mode & 0o777 == file


def test_what_a_killed_process_left_is_swept_and_nothing_else(tmp_path: Path):
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    mine = scratch_name(tmp_path / "out")
    dead = mine.with_name(mine.name.replace(f"-{os.getpid()}-", f"-{int(gone.stdout)}-"))
    # Another machine's, on a disk that both write to.
    elsewhere = dead.with_name(".out.tmp-000000-" + dead.name.partition("-")[2].partition("-")[2])
    others = (".out.tmp-mine", "out.tmp", f"{dead.name}.bak", dead.name.replace("out", "oat"))
    foreign = [tmp_path / name for name in others]
    for path in (mine, dead, elsewhere, *foreign):
        path.mkdir()
        (path / "a").write_text("1")
    sweep(tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == sorted([mine, elsewhere, *foreign])
    dead.write_text("the same of a file")
    write_text(tmp_path / "out", "new")
    assert not dead.exists()


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), True),
        (OSError(errno.EFBIG, "File too large"), True),
        (RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"), True),
        (RuntimeError("I/O error: File too large (os error 27)"), True),
        (RuntimeError("os error 281"), False),
        (OSError(errno.ENOENT, "No such file or directory"), False),
        (ValueError("28"), False),
    ],
)
def test_a_full_disk_is_known_however_a_library_says_it(error: Exception, full: bool, tmp_path: Path):  # S03
    assert is_disk_full(error) is full
    wrapped = ValueError("wrapped")
    wrapped.__cause__ = error
    assert is_disk_full(wrapped) is full
    with pytest.raises(EnvironmentRefused if full else type(error)), whole_folder(tmp_path / "out"):
        raise error
    assert below(tmp_path) == []


def test_a_lock_says_who_holds_it_and_outlives_nobody(tmp_path: Path):  # C06
    path = tmp_path / ".out.lock"
    path.write_text("left by a process that was killed")  # no lock: the system frees it
    with lock(tmp_path / "out"):
        assert path.read_text().startswith(f"process {os.getpid()} on ")
        said = rf"\(process {os.getpid()} on .+, since 20\d\d-.+ UTC; lock .+\)"
        with pytest.raises(EnvironmentRefused, match=said), lock(tmp_path / "out"):
            raise AssertionError("two runs at a time")
        with lock(tmp_path / "other"):
            pass
    assert below(tmp_path) == []


def test_a_disk_without_room_for_the_result_is_refused_before_anything_is_computed(tmp_path: Path):
    check_room([torch.empty(10)], tmp_path / "out")
    with pytest.raises(EnvironmentRefused, match=r"MB free; the result needs 4400000000 MB"):
        check_room([torch.empty(10**15, device="meta")], tmp_path / "deeper" / "out")
