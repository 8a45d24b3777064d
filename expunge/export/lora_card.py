"""The card of an exported LoRA: what it is of, how far it is from that, and what nobody measured."""

from __future__ import annotations

from collections.abc import Sequence

from expunge.report.card import facts, front_matter, hub_id, list_limits, mark, request_and_answers
from expunge.report.report import Report

UNPROVED = (
    "The audit above is of the model with the whole update in it, not of this LoRA: what a rank leaves out may be what "
    "made it forget. Audit the LoRA itself: `expunge audit BASE --adapter FOLDER --forget ...`.",
    "The errors were measured in float32 on a CPU, with the LoRA merged into the base. A server that adds it in half "
    "precision, or to a quantised base, rounds otherwise.",
    "Without the LoRA the base knows what was to be forgotten: a server that offers both offers the base too.",
)


def lora_card(report: Report, rank: int, asked: int, errors: Sequence[str], line: str, place: str) -> str:
    """The text of README.md; `errors` are sentences, `place` what the base was opened by."""
    fewer = f" (of {asked} asked for: no layer's update has more directions)" if rank < asked else ""
    base = hub_id(report.original.name)
    lines = [
        *front_matter(report, base, "adapter", "peft"),
        f"# A LoRA that makes {mark(report.original.name)} forget",
        "",
        f"The nearest LoRA of rank {rank}{fewer} to the update of a run of expunge {report.expunge}. It loads in plain "
        f"peft and in servers, without expunge: `PeftModel.from_pretrained(base, FOLDER)`.",
        "",
        *(() if base else (LOCAL,)),
        "## How far it is from the update",
        "",
        *(f"- {each}" for each in errors),
        "",
        "An error in weights is the Frobenius norm of what the LoRA lacks, as a share of the update's. An error in "
        "logits is the difference between the class scores of the model that was audited and those of base and LoRA.",
        "",
        *facts(report, {"rank, alpha": f"{rank}, {rank}", **({"command": mark(line)} if line else {})}),
        *request_and_answers(report),
        *list_limits((*UNPROVED, *report.limits)),
    ]
    return "\n".join(lines) + "\n"


LOCAL = (
    "The base was a folder, which `base_model_name_or_path` in `adapter_config.json` names as it was found. Before "
    "this is given away write the base's id on the hub there, and `base_model: org/name` above.\n"
)
