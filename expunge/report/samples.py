"""Samples as a page shows them: what the models wrote for some prompts, with texts only where they were asked for."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from expunge.report.answers import in_order
from expunge.report.run import Fact

if TYPE_CHECKING:
    from expunge.report.report import Report, Sample


@dataclass(frozen=True)
class Shown:
    """One example, with its texts only if somebody asked for them."""

    id: str
    texts: list[Fact]
    picture: str = ""
    """A thumbnail as a data: address; empty where there is none, or it was not asked for."""


THUMBNAIL = re.compile(r"data:image/png;base64,[0-9A-Za-z+/]+=*")
"""What a page takes for a picture: a report may have been written by hand."""


def _picture(item: Sample) -> str:
    return item.picture if item.picture and THUMBNAIL.fullmatch(item.picture) else ""


def samples_of(report: Report) -> dict[str, list[Shown]]:
    """By set. Texts are passed on only where the report says that they are shown: no template can show them then."""
    made: dict[str, list[Shown]] = {where: [] for where in in_order(item.set for item in report.samples.items)}
    for item in report.samples.items:
        made[item.set].append(_open(item) if report.samples.shown else Shown(item.id, []))
    return made


def _open(item: Sample) -> Shown:
    texts = {**_about(item), "Before": item.before, "After": item.after, "Reference": item.reference}
    return Shown(item.id, [(label, text) for label, text in texts.items() if text is not None], _picture(item))


def _about(item: Sample) -> dict[str, str | None]:
    """What does not depend on the model."""
    return {"Asked": item.prompt, "Class" if item.picture else "Right answer": item.answer}


def side_by_side(runs: dict[str, Report]) -> dict[str, list[Shown]]:
    """By set, what the model after each run wrote, or said of a picture, beside the others; runs go by their letters.

    Only runs whose texts are shown take part. Of equal texts of the model before one is shown.
    """
    parts: dict[tuple[str, str], dict[str, Sample]] = {}
    for letter, report in runs.items():
        for item in report.samples.items if report.samples.shown else ():
            parts.setdefault((item.set, item.id), {})[letter] = item
    made: dict[str, list[Shown]] = {where: [] for where in in_order(where for where, _ in parts)}
    for (where, name), by in parts.items():
        first = next(iter(by.values()))
        texts = [(label, text) for label, text in _about(first).items() if text is not None]
        before = dict.fromkeys(item.before for item in by.values() if item.before is not None)
        texts += [("Before", text) for text in before]
        texts += [(letter, item.after) for letter, item in by.items() if item.after is not None]
        texts += [("Reference", text) for text in dict.fromkeys(i.reference for i in by.values()) if text is not None]
        made[where].append(Shown(name, texts, _picture(first)))
    return made
