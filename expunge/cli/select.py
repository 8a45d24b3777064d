"""`expunge select`: where to get a retain set."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from typer import Option, echo

from expunge.cli.ending import check_room_for_torch
from expunge.cli.options import Adapter, Device, Model, Output, Texts, check_device, present, spread_options
from expunge.errors import UsageRefused

EXAMPLES = (
    "Example:\n\nexpunge select ./my-model --forget forget.jsonl --from corpus.jsonl --method 'Nearest(count=200)' "
    "--out retain.jsonl\n\n`expunge list select` shows what --method can name; docs/selecting.md says what is best."
)


@dataclass(frozen=True)
class Files:
    """What is chosen from, and for what."""

    pool: Annotated[Path, Option("--from", metavar="POOL", help="Records to choose from.")]
    forget: Annotated[
        Path | None, Option("--forget", help="What is to be forgotten: .jsonl, .json, .csv or .parquet.")
    ] = None
    without: Annotated[
        list[Path] | None,
        Option("--without", metavar="FILE", help="Records that must not be chosen either, such as a probe's."),
    ] = None
    method: Annotated[str, Option("--method", help="Which records, such as 'AutoCoreset(size=100)'.")] = (
        "Nearest(count=200)"
    )
    out: Annotated[Path, Option("--out", help="New .jsonl file for the chosen records.")] = Path("retain.jsonl")

    def check(self) -> None:
        """Refuse what cannot be meant, before torch is loaded."""
        from expunge.notation.settings import check_selector

        check_selector(self.method)
        present("--from", self.pool)
        present("--forget", self.forget)
        for path in self.without or ():
            present("--without", path)
        if self.out.suffix != ".jsonl":
            raise UsageRefused(f"--out {self.out}: records are written as JSON lines. Give a name that ends in .jsonl.")
        if self.out.exists():
            raise UsageRefused(f"--out {self.out} is there, and nothing is ever written over. Give a new name.")


@spread_options
def select(
    model: Model, files: Files, texts: Texts, output: Output, adapter: Adapter = None, device: Device = "cpu"
) -> None:
    """Choose records of a pool for a forget set, such as a retain set, and write them as they stand there."""
    from expunge.run.checks import check_model, check_out, check_texts

    check_device(device)
    files.check()
    present("--adapter", adapter)
    check_out(files.out, model, adapter)
    from expunge.data.text import Reading

    reading = Reading(texts.system, texts.template(), texts.block_size, texts.read_columns())
    texts_read = [path for path in (files.pool, files.forget, *(files.without or ())) if path is not None]
    check_texts(texts_read, reading)
    check_model(model)
    check_room_for_torch()
    from expunge.models.open import open_model
    from expunge.primitives.out_of_memory import report_smaller_batches
    from expunge.run.select import refuse_others, select_records

    for path in texts_read:
        refuse_others(path)
    with report_smaller_batches(lambda said: echo(said, err=True)):
        chosen = select_records(
            open_model(model, device, adapter=adapter),
            forget=files.forget,
            pool=files.pool,
            method=files.method,
            without=files.without or (),
            reading=reading,
        )
    chosen.write(files.out)
    if output.json:
        echo(json.dumps({"out": str(files.out), **chosen.facts()}))
    elif not output.quiet:
        echo("\n".join([*chosen.lines(), f"Wrote {files.out}"]))
