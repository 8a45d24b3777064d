"""From files or lists of records to a request: checked before a model is loaded, made into examples after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from expunge.core.model import Model, Network
from expunge.core.objective import Objective
from expunge.core.request import Example, Request
from expunge.data import images, near, text
from expunge.data.records import Record, columns
from expunge.errors import DataRefused, UsageRefused
from expunge.primitives.repeat import Repeat
from expunge.report.record import networks
from expunge.run.families import family_called, reader_of

Source = Path | str | Sequence[Mapping[str, Any]]
"""A file, or records as a list of dictionaries with a file's columns."""
RESERVED = ("forget", "retain", "holdout", "stand_in")
APART = (("forget", "retain"), ("forget", "holdout"), ("retain", "holdout"))
"""Sets that should have no record in common, nor nearly so."""


@dataclass(frozen=True)
class Inputs:
    """Where each set of a request comes from."""

    forget: Path
    retain: Path | None = None
    holdout: Path | None = None
    stand_in: Path | None = None
    probes: dict[str, Path] = field(default_factory=dict)
    only_class: str | None = None
    """Images: forget this class of the forget file; the rest of it is retained, where no retain file is given."""
    only_ids: Path | None = None
    """Images: forget the ids listed in this file, one a line; the rest is retained."""

    def __post_init__(self) -> None:
        chosen = self.only_class is not None or self.only_ids is not None
        if chosen and self.retain is not None:
            raise UsageRefused("With --forget-class or --forget-ids the rest is retained: leave out --retain.")
        if self.only_class is not None and self.only_ids is not None:
            raise UsageRefused("Give --forget-class or --forget-ids, not both.")
        for name in self.probes:
            if name in RESERVED or not name.isidentifier():
                raise UsageRefused(f"--probe {name}: name it by letters, digits and _, and not {', '.join(RESERVED)}.")

    @property
    def paths(self) -> dict[str, Path]:
        """Every file by the set that it holds."""
        own = {"forget": self.forget, "retain": self.retain, "holdout": self.holdout, "stand_in": self.stand_in}
        return {name: path for name, path in {**own, **self.probes}.items() if path is not None}

    @property
    def pictures(self) -> bool:
        """Whether the forget set is of images: a folder, one chosen by class or id, or a table with an image column."""
        if self.only_class is not None or self.only_ids is not None or self.forget.is_dir():
            return True
        return self.forget.suffix.lower() == ".parquet" and bool(columns(self.forget) & set(images.IMAGE_COLUMNS))

    def supply(self, objective: Objective) -> None:
        """Refuse an objective that reads a set which no file gives, before a model is loaded for it."""
        given = {*self.paths, *(("retain",) if self.only_class is not None or self.only_ids is not None else ())}
        for name in ("retain", "stand_in"):
            readers = [type(term).__name__ for _, term in objective.terms() if name in term.needs]
            if readers and name not in given:
                of, kind = ", ".join(dict.fromkeys(readers)), name.replace("_", "-")
                raise DataRefused(
                    f"The objective reads the {kind} set (for {of}), and none was given. Give --{kind} FILE; "
                    f"`expunge list objectives` shows what each one needs."
                )

    def read(self) -> Records:
        """The records of every file. Raises `DataRefused` for the first file that cannot be used."""
        if not self.pictures:
            return Records({name: text.load(path) for name, path in self.paths.items()}, self.paths)
        read = {name: images.load(path) for name, path in self.paths.items()}
        if self.only_class is not None or self.only_ids is not None:
            ids = _ids(self.only_ids) if self.only_ids else None
            read["forget"], rest = images.choose(read["forget"], class_name=self.only_class, ids=ids)
            read = {"forget": read["forget"], "retain": rest, **read} if "retain" not in read and rest else read
        return Records(read, {name: self.paths.get(name, self.forget) for name in read}, kind="images")


@dataclass(frozen=True)
class Records:
    """What the files hold, not yet encoded for a model."""

    sets: Mapping[str, list[Any]]
    places: Mapping[str, Path]
    """What a refusal calls each set: its file."""
    kind: str = "text"
    """Name of the file in `data/` that reads them."""

    def request(self, model: Model) -> Request:
        """The request as `model` reads it."""
        network = next(networks(model))
        made = {name: self._encode(network, name, records) for name, records in self.sets.items()}
        own = {name: made.pop(name) for name in RESERVED if name in made}
        return Request(**own, probes=made, repeats=self.repeats())

    def _encode(self, network: Network, name: str, records: list[Any]) -> tuple[Example, ...]:
        path, family = self.places[name], family_called(network.family)
        if family.records != self.kind:
            wanted = reader_of(family.records).WANTED
            raise DataRefused(f"{path}: a {type(network).__name__} forgets {wanted}, not this kind of file.")
        made: tuple[Example, ...] = reader_of(self.kind).encode_for(records, network, path)
        return made

    def repeats(self) -> tuple[Repeat, ...]:
        """Where records of one set nearly repeat another's; of texts only."""
        found: list[Repeat] = []
        for one, other in APART if self.kind == "text" else ():
            if one in self.sets and other in self.sets:
                like = near.likes(self.sets[one], self.sets[other])
                equal = sum(each.equal for each in like)
                if like:
                    lines = tuple((each.line, each.other) for each in like)
                    found.append(Repeat(one, other, equal, len(like) - equal, lines))
        return tuple(found)


def read_request(
    model: Model,
    *,
    forget: Source,
    retain: Source | None = None,
    holdout: Source | None = None,
    stand_in: Source | None = None,
    **probes: Source,
) -> Request:
    """The request as `model` reads it, each set from a file or from a list of records.

    A record is a dictionary with the columns of a file: `question` and `answer`, or `text`; optionally `id`, `options`
    and `lead`. Files may be of images too. Other names than these four are probes, which only audits read.
    Raises `DataRefused` with the place of each record that cannot be used.
    """
    named = {"forget": forget, "retain": retain, "holdout": holdout, "stand_in": stand_in, **probes}
    given = {name: source for name, source in named.items() if source is not None}
    files = {name: Path(source) for name, source in given.items() if isinstance(source, str | Path)}
    lists = {name: source for name, source in given.items() if not isinstance(source, str | Path)}
    read = _read(files)
    if read.kind != "text" and lists:
        raise DataRefused(f"The {next(iter(lists))} records are a list, and images are read from files. Give a folder.")
    places = {name: Path(f"{name} records") for name in lists}
    listed = {name: _check_list(source, places[name]) for name, source in lists.items()}
    sets = {name: listed[name] if name in listed else read.sets[name] for name in given}
    return Records(sets, {**read.places, **places}, read.kind).request(model)


def _read(files: Mapping[str, Path]) -> Records:
    if not files:
        return Records({}, {})
    own: dict[str, Any] = {name: path for name, path in files.items() if name in RESERVED}
    probes = {name: path for name, path in files.items() if name not in RESERVED}
    return Inputs(**{"forget": next(iter(files.values())), **own}, probes=probes).read()


def _check_list(source: Sequence[Mapping[str, Any]], place: Path) -> list[Record]:
    if not source:
        raise DataRefused(f"{place}: there are none, so there is nothing to read. Give at least one.")
    return text.check([Record(line, dict(columns)) for line, columns in enumerate(source, start=1)], place)


def _ids(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataRefused(f"{path}: could not be read as a list of ids, one a line.") from error
