"""From files or lists of records to a request: checked before a model is loaded, made into examples after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from expunge.core.model import Model, Network
from expunge.core.objective import Objective
from expunge.core.request import Example, Request
from expunge.data import images, near, text
from expunge.data.kinds import kind_of
from expunge.data.records import WEIGHT, Record
from expunge.data.text import Reading
from expunge.errors import DataRefused, UsageRefused
from expunge.primitives.meanings import Meaning, SetName
from expunge.primitives.repeat import Intake, Repeat
from expunge.report.record import count_repeats, networks
from expunge.run.checks import RESERVED, check_sets
from expunge.run.earlier import probe_of
from expunge.run.families import family_called, reader_of
from expunge.run.probes import check_meanings, write_probe

Source = Path | str | Sequence[Mapping[str, Any]]
"""A file, or records as a list of dictionaries with a file's columns."""
REWORDED = "paraphrase"
"""The probe that is made of a forget file which has its records in other words too."""
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
    reading: Reading = field(default_factory=Reading)
    """Texts: how they are read where their file does not say it."""
    keep_duplicates: bool = False
    """Whether an example that equals an earlier one of its set counts too."""
    earlier: tuple[Path, ...] = ()
    """Folders of earlier runs, of which each one's forget set is a probe."""

    def __post_init__(self) -> None:
        check_sets(self.probes, self.retain, self.only_class, self.only_ids)

    @property
    def paths(self) -> dict[str, Path]:
        """Every file by the set that it holds."""
        own = {"forget": self.forget, "retain": self.retain, "holdout": self.holdout, "stand_in": self.stand_in}
        return {name: path for name, path in {**own, **self.probes}.items() if path is not None}

    @property
    def kind(self) -> str:
        """Name of the file in `data/` that reads the forget set; what is chosen by class or id is of images."""
        return "images" if self.only_class is not None or self.only_ids is not None else kind_of(self.forget)

    def options(self) -> dict[str, Any]:
        """The options of the command that say the same; empty ones mean nothing."""
        sets = {name: path for name, path in self.paths.items() if name not in self.probes}
        again = {probe_of(folder) for folder in self.earlier}
        return {
            **sets,
            "probe": [write_probe(name, path) for name, path in self.probes.items() if name not in again],
            "earlier": [str(folder) for folder in self.earlier],
            "forget_class": self.only_class,
            "forget_ids": self.only_ids,
            **self.reading.options(),
            "keep_duplicates": self.keep_duplicates,
        }

    def supply(self, objective: Objective) -> None:
        """Refuse an objective that reads a set which no file gives, before a model is loaded for it.

        Of texts a retain set can be made; of images, only by choosing a class or ids of a file.
        """
        made = self.kind == "text" or self.only_class is not None or self.only_ids is not None
        given = {*self.paths, *(("retain",) if made else ())}
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
        if self.kind == "text":
            texts = {name: self.reading.load(path) for name, path in self.paths.items()}
            return records_of_texts(texts, self.paths, self.keep_duplicates)
        if self.reading != Reading():
            raise UsageRefused(
                "--system, --chat-template-kwargs, --block-size and --columns are for texts. Leave them out."
            )
        read = {name: reader_of(self.kind).load(path) for name, path in self.paths.items()}
        if self.only_class is not None or self.only_ids is not None:
            ids = _ids(self.only_ids) if self.only_ids else None
            read["forget"], rest = images.choose(read["forget"], class_name=self.only_class, ids=ids)
            read = {"forget": read["forget"], "retain": rest, **read} if "retain" not in read and rest else read
        places = {name: self.paths.get(name, self.forget) for name in read}
        return Records(read, places, self.kind, self.keep_duplicates)


@dataclass(frozen=True)
class Records:
    """What the files hold, not yet encoded for a model."""

    sets: Mapping[str, list[Any]]
    places: Mapping[str, Path]
    """What a refusal calls each set: its file."""
    kind: str = "text"
    """Name of the file in `data/` that reads them."""
    keep_duplicates: bool = False
    """Whether an example that equals an earlier one of its set counts too."""
    blank: Mapping[str, int] = field(default_factory=dict)
    """How many empty texts each set's file held beside these."""
    notes: tuple[str, ...] = ()
    """What was made of the files beyond what was asked for."""

    def request(self, model: Model) -> Request:
        """The request as `model` reads it."""
        network = next(networks(model))
        given = {name: self._encode(network, name, records) for name, records in self.sets.items()}
        made = given if self.keep_duplicates else weigh_once(given)
        self._refuse_idle_probes(made)
        intakes = {name: self._intake(name, given[name], made[name]) for name in given}
        own = {name: made.pop(name) for name in RESERVED if name in made}
        return Request(**own, probes=made, repeats=self.repeats(), intakes=intakes)

    def _encode(self, network: Network, name: str, records: list[Any]) -> tuple[Example, ...]:
        path, family = self.places[name], family_called(network.family)
        if family.records != self.kind:
            wanted = reader_of(family.records).WANTED
            raise DataRefused(f"{path}: a {type(network).__name__} forgets {wanted}, not this kind of file.")
        made: tuple[Example, ...] = reader_of(self.kind).encode_for(records, network, path)
        return made

    def _intake(self, name: str, given: tuple[Example, ...], made: tuple[Example, ...]) -> Intake:
        records = self.sets[name]
        apart = text.count_apart(records, given) if self.kind == "text" else (0, 0)
        blank = self.blank.get(name, 0)
        return Intake(len(records) + blank, count_repeats(given), len(given) - len(made), *apart, blank)

    def _refuse_idle_probes(self, made: Mapping[str, tuple[Example, ...]]) -> None:
        """Refuse a probe that is one of the sets that training reads: it would be audited twice, as if unseen."""
        contents = {name: {example.record_digest() for example in examples} for name, examples in made.items()}
        for probe in contents.keys() - set(RESERVED):
            for name in ("forget", "retain"):
                if contents[probe] == contents.get(name) and self._options(probe) == self._options(name):
                    raise DataRefused(
                        f"{self.places[probe]}: the probe {probe} holds the records of the {name} set, which training "
                        f"and audits read anyway. Leave it out, or give other records."
                    )

    def _options(self, name: str) -> bool:
        """Whether the set's records have wrong answers: a probe may ask the same questions with options."""
        return self.kind == "text" and any(record.columns.get("options") for record in self.sets[name])

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


def records_of_texts(
    sets: Mapping[str, list[Record]], places: Mapping[str, Path], keep_duplicates: bool = False
) -> Records:
    """Records of texts, without empty ones; and the probe `paraphrase` of the forget file, where it has one."""
    full = {name: text.drop_blank(records) for name, records in sets.items()}
    blank = {name: len(sets[name]) - len(records) for name, records in full.items()}
    reworded = text.paraphrases(full["forget"], places["forget"]) if REWORDED not in sets and "forget" in sets else []
    weighted = [name for name, records in full.items() if any(WEIGHT in record.columns for record in records)]
    notes = tuple(f"Records of the {name} set count by their {WEIGHT}, in training and audits" for name in weighted)
    if reworded:
        full[REWORDED] = reworded
        places = {**places, REWORDED: places["forget"]}
        notes += (
            f"The forget file has {len(reworded)} of its records in other words: they are asked as the probe "
            f"{REWORDED}. --probe {REWORDED}=FILE replaces it",
        )
    return Records(full, places, "text", keep_duplicates, blank, notes)


def weigh_once(sets: Mapping[str, tuple[Example, ...]]) -> dict[str, tuple[Example, ...]]:
    """The sets without the examples that equal an earlier one of theirs.

    Stand-ins with the ids of the forget records stay their partners: one goes where its record does, and no other.
    """
    first = {
        name: {example.record_digest(): place for place, example in reversed([*enumerate(examples)])}
        for name, examples in sets.items()
    }
    once = {
        name: tuple(e for place, e in enumerate(examples) if first[name][e.record_digest()] == place)
        for name, examples in sets.items()
    }
    forget, stand_in = sets.get("forget", ()), sets.get("stand_in", ())
    if stand_in and {e.id for e in forget} == {e.id for e in stand_in}:
        left = {e.id for e in once["forget"]}
        once["stand_in"] = tuple(e for e in stand_in if e.id in left)
    return once


def read_request(
    model: Model,
    *,
    forget: Source,
    retain: Source | None = None,
    holdout: Source | None = None,
    stand_in: Source | None = None,
    reading: Reading | None = None,
    keep_duplicates: bool = False,
    meanings: Mapping[str, Meaning] | None = None,
    **probes: Source,
) -> Request:
    """The request as `model` reads it, each set from a file or from a list of records.

    A record is a dictionary with the columns of a file: `question` and `answer`, or `text`; optionally `id`, `options`
    and `lead`; or those of another format that files may have. Files may be of images too. Names other than those of
    the four sets are probes, which only audits read; `meanings`, such as {"twins": "gone"}, says where their names do
    not what they hold: gone, kept, or never (seen by any model). `reading` says how texts are read where they do not
    say it, and of equal examples in a set one counts, unless `keep_duplicates`.
    Raises `DataRefused` with the place of each record that cannot be used.
    """
    meant = check_meanings(meanings or {}, probes)
    asked = {SetName(name, meant[name]) if name in meant else name: source for name, source in probes.items()}
    named = {"forget": forget, "retain": retain, "holdout": holdout, "stand_in": stand_in, **asked}
    given = {name: source for name, source in named.items() if source is not None}
    files = {name: Path(source) for name, source in given.items() if isinstance(source, str | Path)}
    lists = {name: source for name, source in given.items() if not isinstance(source, str | Path)}
    reading, files_of = reading or Reading(), _inputs(files)
    if files_of is not None and files_of.kind != "text":
        if lists:
            first, wanted = next(iter(lists)), reader_of(files_of.kind).WANTED
            raise DataRefused(f"The {first} records are a list, beside files of another kind. Give {wanted}.")
        return replace(files_of, reading=reading, keep_duplicates=keep_duplicates).read().request(model)
    places = {name: Path(f"{name} records") for name in lists}
    sets = {
        name: reading.load(files[name]) if name in files else _check_list(lists[name], places[name], reading)
        for name in given
    }
    return records_of_texts(sets, {**files, **places}, keep_duplicates).request(model)


def _inputs(files: Mapping[str, Path]) -> Inputs | None:
    """The files as a command would be given them, of which the first tells their kind."""
    if not files:
        return None
    own: dict[str, Any] = {name: path for name, path in files.items() if name in RESERVED}
    probes = {name: path for name, path in files.items() if name not in RESERVED}
    return Inputs(**{"forget": next(iter(files.values())), **own}, probes=probes)


def _check_list(source: Sequence[Mapping[str, Any]], place: Path, reading: Reading) -> list[Record]:
    return reading.check(read_list(source, place), place)


def read_list(source: Sequence[Mapping[str, Any]], place: Path) -> list[Record]:
    """Records of a list, as they are; `place` is its name. Raises `DataRefused` where it is no list of records."""
    if isinstance(source, Mapping) or not all(isinstance(record, Mapping) for record in source):
        raise DataRefused(
            f"{place}: a set is a file or a list of records, each a dictionary. Each probe is an argument."
        )
    if not source:
        raise DataRefused(f"{place}: there are none, so there is nothing to read. Give at least one.")
    return [Record(line, dict(columns)) for line, columns in enumerate(source, start=1)]


def _ids(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataRefused(f"{path}: could not be read as a list of ids, one a line.") from error
