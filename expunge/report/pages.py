"""Pages made again from the folders of finished runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from expunge.errors import UsageRefused
from expunge.report import compare, html
from expunge.report.report import PAGE, REPORT, Report
from expunge.report.sealed import SEALED, open_texts
from expunge.report.tables import MARKS, render_table
from expunge.runtime.atomic_files import MANIFEST, check_manifest, renew_manifest, write_text

MARK = b'<meta name="generator" content="expunge'
"""What stands near the top of each page that we write."""
ENDINGS = (".html", ".htm", *MARKS)


def write_page(
    folders: list[Path], out: Path | None, tell: Callable[[str], object] = print, texts: Path | None = None
) -> Path:
    """One run's page, or the comparison of several, or their table where `out` ends in .csv, .md or .tex.

    `texts` is the forget file, which opens the texts that the runs keep sealed. Returns where it was written. Refuses a
    folder that was changed.
    """
    for folder in folders:
        check_folder(folder, tell)
    found = [(folder, Report.read(folder)) for folder in folders]
    alone = len(found) == 1
    target = out or (folders[0] / PAGE if alone else Path("comparison.html"))
    if out or not alone:
        check_page(target)
    if texts is not None:
        _keep_apart(folders, target)
        found = open_texts(found, texts, tell)
    runs = [(folder.resolve().name, report) for folder, report in found]
    ending = target.suffix.lower()
    if ending in MARKS:
        write_text(target, render_table(runs, ending))
        return target
    write_text(target, html.render(runs[0][1]) if alone else compare.render(runs))
    for folder in folders:
        if target.resolve() == (folder / PAGE).resolve():
            renew_manifest(folder, PAGE)
    return target


def _keep_apart(folders: list[Path], target: Path) -> None:
    """Refuse to write texts into the page that goes with a run, or a table, which has none."""
    if target.suffix.lower() in MARKS or any(folder.resolve() in target.resolve().parents for folder in folders):
        raise UsageRefused(
            "--texts: give --out PAGE.html outside of the runs' folders, whose own pages stay without texts."
        )


def check_page(target: Path) -> None:
    """Refuse to write over anything but a page or a table of ours, and a name whose ending says nothing."""
    if not str(target).isprintable():
        raise UsageRefused(
            f"--out {ascii(str(target))[:80]}: line breaks and control characters are no part of a name."
        )
    try:
        if target.is_dir() or not target.parent.is_dir():
            raise UsageRefused(f"--out {target}: give the name of a file in a folder that is there.")
        if target.suffix.lower() not in ENDINGS:
            raise UsageRefused(f"--out {target}: the name must end in {', '.join(ENDINGS)}.")
        if target.is_symlink():
            raise UsageRefused(f"--out {target} is a link, which would be replaced. Give another name.")
        if target.exists() and not _is_page(target):
            raise UsageRefused(f"--out {target}: there is a file that expunge did not write. Give another name.")
    except OSError as error:
        raise UsageRefused(
            f"--out {str(target)[:80]}: {error.strerror or 'not a usable path'}. Give another."
        ) from error


def _is_page(path: Path) -> bool:
    if not path.is_file():  # a pipe or a device, which reading could wait for
        return False
    with path.open("rb") as file:
        begun = file.read(4096)
    mark = MARKS.get(path.suffix.lower())
    return MARK in begun if mark is None else begun.startswith(mark)


def check_folder(folder: Path, tell: Callable[[str], object]) -> None:
    """Compare a run's folder with its manifest, weights and all. Raises `ModelRefused` for the first file changed.

    Pages are left out: they are made of what is checked. So are a model and an adapter that were taken
    elsewhere, and sealed texts that somebody deleted.
    """
    if not (folder / REPORT).is_file():
        return  # `Report.read` says so
    if not (folder / MANIFEST).is_file():
        tell(f"{folder}: there is no {MANIFEST}, so nothing says whether it is as it was written.")
        return
    gone = [name for name in ("model", "adapter", SEALED) if not (folder / name).exists()]

    def is_checked(name: str) -> bool:
        top, *below = name.split("/")
        return top not in gone and (bool(below) or not top.endswith(".html"))

    files = check_manifest(folder, is_checked)["files"]
    assert isinstance(files, dict)
    for name in gone:
        if name != SEALED and any(file.startswith(f"{name}/") for file in files):
            tell(f"{folder}: {name}/ is not there any more, so it was not checked.")
