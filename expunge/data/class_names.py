"""Classes of images by their names, in files and in models: which is meant, and what to do where that is not clear."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

SHOWN = 20
UNNAMED = re.compile(r"LABEL_\d+")
"""What transformers calls classes without names."""

Class = tuple[int | str, str]
"""A label as a file has it, and its name there; empty where it has none."""


def number_of(label: int | str, name: str, label2id: Mapping[str, int]) -> int | None:
    """The model's number for a class; None where the model has no such class."""
    for text in (label, name):
        if isinstance(text, str) and text in label2id:
            return label2id[text]
    return {str(number): number for number in label2id.values()}.get(str(label))


def explain_unknown(labels: Iterable[int | str], label2id: Mapping[str, int]) -> str:
    """What to do about labels of which the model does not know all."""
    if all(UNNAMED.fullmatch(name) for name in label2id):
        return (
            f"The model has no names for its {len(label2id)} classes (LABEL_0, ...): name the folders, or labels, by "
            f"their numbers, or write the names into id2label of its config.json."
        )
    bare = {name: name.rpartition(" (")[0] for name in label2id}
    double = sorted({str(label) for label in labels} & {name for name in bare.values() if name} - set(label2id))
    if double:
        same = [name for name in label2id if bare[name] == double[0]]
        return f"'{shorten(double[0])}' is the name of several classes: say which, {' or '.join(map(shorten, same))}."
    return f"The model's {len(label2id)} classes are: {list_few(label2id)}. Fix the labels."


def find_conflicts(classes: Sequence[Class], label2id: Mapping[str, int]) -> Iterator[tuple[int, str]]:
    """Where a file gives a number another name than the model does, which of the two is meant is not known: the place
    of each among `classes`, and what is wrong."""
    names = {number: name for name, number in label2id.items()}
    for place, (label, name) in enumerate(classes):
        own = names.get(number) if (number := number_of(label, name, label2id)) is not None else None
        known = not name or name in label2id or str(label) in label2id
        if own is not None and not known and not UNNAMED.fullmatch(own):
            yield place, f"class {label} is '{shorten(name)}' in the file and '{shorten(own)}' in the model"


def list_few(names: Iterable[object]) -> str:
    """At most 20 names, in order."""
    known = list(names)
    return ", ".join(shorten(name) for name in known[:SHOWN]) + (", ..." if len(known) > SHOWN else "")


def shorten(name: object) -> str:
    """A name, shortened for printing: it may be a caption instead of a class."""
    text = spell_out(str(name))
    return text if len(text) <= 40 else text[:40] + "..."


def spell_out(text: str) -> str:
    """The text with lone surrogates (bytes of a file name that are not UTF-8) spelled out."""
    return text.encode("utf-8", "backslashreplace").decode()
