"""A finished run as it lies in a folder: checked against its manifest, with the base that it began from."""

from __future__ import annotations

from pathlib import Path

from expunge.core.model import Network
from expunge.errors import DataRefused, ModelRefused, UsageRefused
from expunge.events import Note, OnEvent
from expunge.models.merging import SETTINGS, fingerprints
from expunge.models.open import open_network
from expunge.models.source import config_of, locate, read_json
from expunge.models.stored import Stored, stored_of
from expunge.report.card import hub_id
from expunge.report.pages import check_folder
from expunge.report.report import Report


def read_run(folder: Path, on_event: OnEvent) -> Report:
    """The report of a run whose files are as they were written.

    Raises `DataRefused` where the folder holds no run, `ModelRefused` where one of its files was changed.
    """
    report = Report.read(folder)
    if report.result is None:
        raise DataRefused(
            f"{folder} holds an audit, which changed no model. Give a folder that `expunge forget` wrote."
        )
    if not (folder / "model").is_dir():
        raise DataRefused(f"{folder}: model/ is not there. Give the whole folder that `expunge forget` wrote.")
    check_folder(folder, lambda said: on_event(Note(said)))
    return report


def find_base(run: Path, report: Report) -> str:
    """What the run's base can be opened by: the place that its adapter names, or its name on the hub."""
    named = read_json(run / "adapter" / SETTINGS) if has_adapter(run, report) else {}
    base = named.get("base_model_name_or_path") or hub_id(report.original.name)
    if base and report.original.name.endswith(".gguf"):  # peft names the folder that the file is in
        base = Path(base) / report.original.name
    if not base or not (Path(base).exists() or hub_id(report.original.name)):  # a folder's name is not looked up there
        raise UsageRefused(
            f"{run}: nothing in it says where its base {ascii(report.original.name)} lies. Give --base MODEL."
        )
    revision = named.get("revision") or report.original.name.partition("@")[2]
    return f"{base}@{revision}" if revision and not Path(base).exists() else str(base)


def has_adapter(run: Path, report: Report) -> bool:
    """Whether a run wrote an adapter. Raises `ModelRefused` where it did and the adapter is gone."""
    saved = report.run.saved if report.run else None
    if not (saved and saved.adapter):
        return False
    if not (run / "adapter" / SETTINGS).is_file():
        raise ModelRefused(f"{run}: adapter/ is not there, which holds the update. Restore the folder.")
    return True


def open_base(base: str, report: Report) -> tuple[Network, Stored]:
    """The base on the CPU, in float32, and how its file holds it. Raises `ModelRefused` where it is another model."""
    try:
        network = open_network(base)
    except UsageRefused as error:
        raise UsageRefused(f"The base of the run: {error} Give --base MODEL.") from error
    stored = stored_of(locate(base), config_of(locate(base)))
    if report.original.fingerprint not in fingerprints(network, stored):
        merged = report.original.adapter
        raise ModelRefused(
            f"{base} is not the model that the run began from: the SHA-256 of its weights is another. Give that model "
            f"with --base{f', with the adapter {ascii(merged.name)} merged into it' if merged else ''}."
        )
    return network, stored
