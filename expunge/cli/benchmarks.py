"""`--benchmark NAME --split SPLIT` in place of files: a benchmark's own, from a local folder or a pinned commit."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expunge.cli.ending import check_room_for_torch
from expunge.cli.options import Sets
from expunge.errors import DataRefused, UsageRefused
from expunge.notation.parse import find, plugins_of, squash
from expunge.primitives.meanings import SetName
from expunge.run.probes import split_probe, write_probe

if TYPE_CHECKING:
    from expunge.benchmarks._data import Data
    from expunge.benchmarks._kinds import Benchmark

OWN = ("forget", "retain", "holdout")
"""The sets of a split that are no probes."""


@dataclass(frozen=True)
class Named:
    """A split of a benchmark whose files are here."""

    benchmark: type[Benchmark]
    split: str
    data: Data

    @staticmethod
    def read(benchmark: str | None, split: str | None) -> Named:
        """What `--benchmark NAME` or `NAME=PLACE` and `--split` name. Raises a `Refusal`."""
        name, _, place = (benchmark or "").partition("=")
        known = {squash(plugin.name): plugin.name for plugin in plugins_of("benchmarks")}
        if squash(name) not in known:
            raise UsageRefused(f"--benchmark '{name[:100]}' is not known. Allowed: {', '.join(sorted(known))}.")
        if split is None or not re.fullmatch(r"\w[\w-]*(/\w[\w-]*)?", split):
            raise UsageRefused(
                f"--benchmark {name} needs --split, such as {'forget05' if name == 'tofu' else 'forget'}."
            )
        check_room_for_torch()
        from expunge.benchmarks._data import find_data

        made: Any = find(known[squash(name)])
        return Named(made, split, find_data(place or None, made.home, f"--benchmark {name}="))

    def to_learn(self) -> tuple[Path, tuple[Path, ...]]:
        """The file of the split, or that of which it is what another leaves, and that other."""
        there = self.data.find(self.split)
        if there is not None:
            return there, ()
        whole, parts = self.benchmark.remainders.get(self.split, ("", ()))
        first, out = self._first((whole,)), self._first(parts)
        if first is None or out is None:
            raise self._lacks((self.split,))
        return first, (out,)

    def to_forget(self, given: Collection[str]) -> dict[str, Path]:
        """The file of each set of a request to forget the split, where it is here; the forget and the retain set have
        to be, unless they are given."""
        splits: Mapping[str, Mapping[str, tuple[str, ...]]] = self.benchmark.splits
        if self.split not in splits:
            known = f"Allowed: {', '.join(splits)}" if splits else "None is a request to forget; name files instead"
            raise UsageRefused(f"--split '{self.split}' of {self.benchmark.__name__} is not one to forget. {known}.")
        found = {}
        for name, files in splits[self.split].items():
            path = self._first(files)
            if path is None and name in ("forget", "retain") and name not in given:
                raise self._lacks(files)
            if path is not None:
                found[name] = path
        return found

    def _first(self, names: Sequence[str]) -> Path | None:
        return next((path for name in names if name and (path := self.data.find(name))), None)

    def _lacks(self, names: Sequence[str]) -> DataRefused:
        return DataRefused(
            f"{self.data.folder}: holds no {' or '.join(names)}. Copy the files of {self.data.home} there."
        )


def fill(sets: Sets) -> Sets:
    """The sets with the files of the benchmark that they name, but for those that are given. Raises a `Refusal`."""
    if sets.benchmark is None and sets.split is None:
        if sets.forget is None:
            raise UsageRefused("There is nothing to forget. Give --forget FILE, or --benchmark NAME --split SPLIT.")
        return sets
    if sets.forget is not None:
        raise UsageRefused("Give --forget FILE, or --benchmark NAME --split SPLIT, not both.")
    given = [split_probe(text)[0] for text in sets.probe or ()]
    files = Named.read(sets.benchmark, sets.split).to_forget([n for n in OWN if getattr(sets, n)])
    kept = [write_probe(SetName(n, "kept"), path) for n, path in files.items() if n not in (*OWN, *given)]
    return replace(
        sets,
        forget=files["forget"],
        retain=sets.retain or files.get("retain"),
        holdout=sets.holdout or files.get("holdout"),
        probe=[*kept, *(sets.probe or ())],
        benchmark=None,
        split=None,
    )
