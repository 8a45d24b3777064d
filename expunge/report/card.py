"""Model cards: the README.md beside weights, with the hub's front matter. They hold counts and answers, no texts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from expunge.report.words import number, visible
from expunge.runtime.atomic_files import renew_manifest, write_text

if TYPE_CHECKING:
    from expunge.report.report import Report

CARD = "README.md"
TASKS = {"language": "text-generation", "vision": "image-classification"}
"""The hub's names of what models of a family do."""
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
LICENCE = "# license: that of the base model holds for this one; name it here"


def write_cards(report: Report, folder: Path) -> None:
    """Write a card beside each of the model and the adapter that `folder` holds."""
    if (folder / "model").is_dir():
        write_text(folder / "model" / CARD, model_card(report, folder / "model"))
    if (folder / "adapter").is_dir():
        write_text(folder / "adapter" / CARD, adapter_card(report, folder / "adapter"))
        renew_manifest(folder / "adapter", CARD)


def model_card(report: Report, folder: Path) -> str:
    """The card of the model after forgetting, whose weights are in `folder`."""
    common = report.original.family in TASKS and (folder / "config.json").is_file()
    library = "transformers" if common else None
    how = "neither expunge nor peft is needed to load them" if common else "`expunge.open_model` loads them"
    lines = [
        *front_matter(report, hub_id(report.original.name), "finetune", library),
        f"# {mark(report.original.name)} after forgetting",
        "",
        f"Made from {mark(report.original.name)} by expunge {report.expunge}: chosen records were to be forgotten, the "
        f"rest to stay. The update is merged into the weights; {how}.",
        "",
        *facts(report, {"fingerprint of this model (SHA-256)": f"`{report.result}`"}),
        *request_and_answers(report),
        *list_limits(report.limits),
    ]
    return "\n".join(lines) + "\n"


def adapter_card(report: Report, folder: Path) -> str:
    """The card of the update alone, in peft's format, in `folder`."""
    kind = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))["peft_type"]
    lines = [
        *front_matter(report, hub_id(report.original.name), "adapter", "peft"),
        f"# What makes {mark(report.original.name)} forget",
        "",
        f"The update of a run of expunge {report.expunge}, for this base alone. Merged, it is what was audited.",
        "",
        *(BOUNDED if kind == "BOUNDED" else ()),
        *facts(report, {"kind of adapter": f"`{kind}`"}),
        *request_and_answers(report),
        *list_limits(report.limits),
    ]
    return "\n".join(lines) + "\n"


BOUNDED = (
    "## How to load it",
    "",
    "**peft alone does not know this kind of adapter** (`peft_type: BOUNDED`) and stops at it. Do one of these:",
    "",
    "- `pip install expunge`, then",
    "",
    "  ```python",
    "  import expunge  # before the adapter is loaded: it makes the kind known to peft",
    "  from peft import PeftModel",
    "",
    "  adapted = PeftModel.from_pretrained(base, FOLDER)",
    "  ```",
    "- `expunge export RUN --lora 32 --out lora` makes a plain LoRA of it, which peft and servers load without "
    "expunge, and says how far that is from this update. RUN is the folder that `expunge forget` wrote.",
    "- The folder `model/` of the same run has it merged into the base.",
    "",
)


# Parts of a card


def front_matter(report: Report, base: str | None, relation: str, library: str | None) -> list[str]:
    """The hub's metadata; a base that is no id of the hub is left out, as the hub refuses a path."""
    task = TASKS.get(report.original.family)
    return [
        "---",
        *([f"base_model: {base}", f"base_model_relation: {relation}"] if base else []),
        *([f"library_name: {library}"] if library else []),
        *([f"pipeline_tag: {task}"] if task else []),
        "tags:",
        *(f"- {tag}" for tag in ("expunge", "unlearning", *(("lora",) if relation == "adapter" else ()))),
        LICENCE,
        "---",
        "",
    ]


def hub_id(name: str) -> str | None:
    """The id of the hub that a model was named by, without its revision; None where it was a folder or a file."""
    whole = name.partition("@")[0]
    return whole if HUB_ID.fullmatch(whole) else None


def mark(name: object) -> str:
    """A name as code in Markdown, whatever letters it has."""
    return f"`{' '.join(str(visible(str(name))).replace('`', chr(39)).replace('|', '/').split())}`"


def facts(report: Report, own: dict[str, str]) -> list[str]:
    """The base, the method, and facts of the card's `own`, as a table."""
    original = report.original
    adapter = f", with the adapter {mark(original.adapter.name)} merged into it" if original.adapter else ""
    rows = {
        "base model": f"{mark(original.name)}{adapter}",
        "architecture": f"{mark(original.architecture)}, {number(original.parameters)} parameters",
        "fingerprint of the base (SHA-256)": f"`{original.fingerprint}`",
        **own,
        "method": mark(report.method),
        **({"recipe": mark(report.recipe.name)} if report.recipe else {}),
        "made": report.created,
    }
    return ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items()), ""]


def request_and_answers(report: Report) -> list[str]:
    """What was asked, in counts, and what the audit of the merged model said."""
    return ["## What was asked", "", *_sets(report), "", "## What the audit said", "", *_answers(report), ""]


def _sets(report: Report) -> Iterator[str]:
    yield f"| set | examples | {report.request.unit} |"
    yield "|---|---|---|"
    for name, told in report.request.sets.items():
        yield f"| {mark(name)} | {told.examples:,} | {told.rows:,} |"


def _answers(report: Report) -> Iterator[str]:
    for name, answer in report.verdict or ():
        yield f"- **{name}: {answer.said}.** {_plain(answer.reason)}"
        yield from (f"  - not measured: {_plain(each)}" for each in answer.unmeasured if each != answer.reason)
    if report.verdict is None:
        yield "Nothing was judged."


def list_limits(limits: Iterable[str]) -> list[str]:
    """What the result does not show."""
    return ["## What this does not prove", "", *(f"- {_plain(each)}" for each in limits)]


def _plain(text: str) -> str:
    return " ".join(str(visible(text)).replace("<", "&lt;").split())
