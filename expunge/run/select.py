"""From a pool of records to those that a selector chooses, such as a retain set, as they stood in the pool."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from expunge.core.model import Model, network_of
from expunge.data import near, text
from expunge.data.kinds import kind_of
from expunge.data.records import WEIGHT, Record, read, weight_of
from expunge.data.text import Reading
from expunge.errors import DataRefused, UsageRefused
from expunge.models.language import LanguageModel
from expunge.notation.parse import parse
from expunge.run.prepare import Source, read_list
from expunge.runtime.atomic_files import write_text
from expunge.select._kinds import Selector, flatten

DEFAULT = "Nearest(count=200)"


@dataclass(frozen=True)
class Apart:
    """Records of a pool that may be chosen, and how many may not."""

    records: list[Record]
    equal: int
    """Those that say word for word what a record of the forget set, or of a set to be left out, says."""
    near: int
    """Those that say nearly that, or ask the same question."""
    twice: int
    """Those that say what an earlier record of the pool says."""

    @staticmethod
    def of(pool: Sequence[Record], gone: Sequence[Record]) -> Apart:
        """The pool without what repeats `gone`, and without what repeats itself."""
        like = {each.line: each.equal for each in near.likes(pool, gone)}
        asked = {question for record in gone if (question := _asks(record))}
        alike = {record.line for record in pool if record.line in like or _asks(record) in asked}
        equal = sum(like.values())
        once: dict[tuple[str, ...], Record] = {}
        for record in (each for each in pool if each.line not in alike):
            once.setdefault(tuple(near.words(record)), record)
        return Apart(list(once.values()), equal, len(alike) - equal, len(pool) - len(alike) - len(once))


def _asks(record: Record) -> tuple[str, ...]:
    """The words of a record's question; none where it is no question."""
    return tuple(near.words(Record(record.line, {"question": record.columns.get("question", "")})))


@dataclass(frozen=True)
class Chosen:
    """The records that were chosen, and what became of the others."""

    records: tuple[dict[str, Any], ...]
    """In the selector's order, each with the columns that it has in the pool; beside them, where the selector weighs,
    `sample_weight`: of a mean of 1, times what the record has of its own."""
    pool: int
    """How many records the pool held."""
    apart: Apart
    order: str
    """In which order they were chosen, in words."""
    note: str = ""
    """What the selector says of its choice."""

    @property
    def has_weights(self) -> bool:
        """Whether they have weights."""
        return WEIGHT in self.records[0]

    def facts(self) -> dict[str, Any]:
        """What was done, in numbers."""
        left = {"equal": self.apart.equal, "near": self.apart.near, "twice": self.apart.twice}
        count = {"chosen": len(self.records), "pool": self.pool}
        said = {"note": self.note} if self.note else {}
        return {**count, "left_out": left, "order": self.order, "weighted": self.has_weights, **said}

    def lines(self) -> list[str]:
        """The same in words without text of a record."""
        left = self.apart
        said = [
            f"{len(self.records)} of {self.pool} records were chosen. Their order: {self.order}",
            f"Left out beforehand: {left.equal} that say word for word what is to be forgotten or left out, "
            f"{left.near} that nearly say it or ask the same, {left.twice} that repeat an earlier record of the pool",
        ]
        if self.has_weights:
            said.append(f"Each has a {WEIGHT}, 1 on average, by which training and audits count it")
        return [*said, self.note] if self.note else said

    def write(self, path: Path) -> None:
        """Write them as JSON lines, atomically. Raises `DataRefused` where a column holds what JSON does not."""
        try:
            lines = [json.dumps(record, ensure_ascii=False, allow_nan=False) for record in self.records]
        except (TypeError, ValueError):
            raise DataRefused("The pool has a column that JSON cannot hold, such as bytes. Leave it out.") from None
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, "".join(f"{line}\n" for line in lines))


def select_records(
    model: Model,
    *,
    pool: Source,
    forget: Source | None = None,
    method: str | Selector = DEFAULT,
    without: Sequence[Source] = (),
    reading: Reading | None = None,
) -> Chosen:
    """The records of a pool of texts that a selector chooses for a forget set, such as a retain set.

    `forget`, `pool` and each of `without` is a file or a list of records, as `read_request` takes them. What repeats a
    record of `forget` or `without`, or nearly, is left out of the pool first. `Hardest` needs no forget set.
    Raises `DataRefused` where too few are left.
    """
    chooser, reading = choose_selector(method), reading or Reading()
    if forget is None and chooser.reads_forget:
        raise UsageRefused(f"{type(chooser).__name__} chooses for a forget set, and there is none. Give --forget.")
    network = network_of(model.plain(), type(chooser).__name__)
    if not isinstance(network, LanguageModel):
        raise UsageRefused(
            f"A {type(network).__name__} has no pool of texts to choose from. Of images all that is not forgotten is "
            f"retained: --forget-class."
        )
    gone = {} if forget is None else _read(forget, "forget", reading)
    records = _read(pool, "pool", reading)
    others = [record for each in without for record in _read(each, "without", reading).values()]
    apart = Apart.of([*records.values()], [*gone.values(), *others])
    if len(apart.records) < chooser.quota:
        raise DataRefused(
            f"{_place(pool, 'pool')}: {chooser.quota} records are to be chosen, and {len(apart.records)} may be, of "
            f"{len(records)}: the others repeat what is to be forgotten or left out, or one another. Give a larger "
            f"pool, or ask for fewer."
        )
    place = _place(pool, "pool")
    by_record = text.encode_each(apart.records, network.tokenizer, place, network.longest)
    text.refuse_unknown_tokens(flatten(by_record), network.vocabulary, place)
    asked = text.encode_for([*gone.values()], network, _place(forget or "forget", "forget")) if gone else ()
    made = chooser(network, asked, by_record)
    stood = {record.line: record.columns for record in _stand(pool, "pool")}
    chosen = [dict(stood[apart.records[k].line]) for k in made.indices]
    for record, weight in zip(chosen, made.weights, strict=False):
        record[WEIGHT] = weight_of(record) * weight * len(chosen) / sum(made.weights)
    return Chosen(tuple(chosen), len(stood), apart, chooser.order, made.note)


def choose_selector(method: str | Selector) -> Selector:
    """The selector that a text describes."""
    made = parse(method) if isinstance(method, str) else method
    if not isinstance(made, Selector):
        raise UsageRefused(f"--method '{method}' chooses no records. `expunge list select` shows what does.")
    return made


def refuse_others(path: Path) -> None:
    """Refuse a file that is not of texts, before a model is loaded."""
    if kind_of(path) != "text":
        raise DataRefused(
            f"{path}: select reads texts. Of images all that is not forgotten is retained: --forget-class."
        )


def _place(source: Source, name: str) -> Path:
    return Path(source) if isinstance(source, str | Path) else Path(f"{name} records")


def _stand(source: Source, name: str) -> list[Record]:
    """The records as their file or list has them."""
    if isinstance(source, str | Path):
        refuse_others(Path(source))
        return read(Path(source))
    return read_list(source, _place(source, name))


def _read(source: Source, name: str, reading: Reading) -> Mapping[int, Record]:
    """The records as they are meant, by line, without empty ones and those of weight 0."""
    made = text.drop_blank(reading.check(_stand(source, name), _place(source, name)))
    return {record.line: record for record in made if weight_of(record.columns)}
