"""What a result does not show, said in the report that gives it."""

from __future__ import annotations

from collections.abc import Sequence

from expunge.core.audit import BOTH, Audit
from expunge.core.question import HiddenStates
from expunge.core.request import Request
from expunge.primitives.meanings import meaning_of
from expunge.report.run import Saved

SMALL = 30
BLURRED = {
    ("forget", "retain"): "What they say is asked to be forgotten and to be kept: neither can be judged by them.",
    ("forget", "holdout"): "The model has seen those holdout records in all but name, so the level and membership "
    "inference are off by them.",
    ("retain", "holdout"): "The model has seen those holdout records in all but name, and goes on learning them.",
}
"""Why records of two sets should not say the same."""


def say_unasked(request: Request, audits: Sequence[Audit], added: Sequence[str] = ()) -> list[str]:
    """Which sets an audit was not asked of, and what it would have needed; nothing of sets of our own (`added`)."""
    given = [name for name in request.sets() if name not in (*added, "stand_in")]
    said = []
    for audit in audits:
        sets = [name for name in given if audit.needs and audit.lacks(name, request)]
        if sets:
            *most, last = sets
            names = f"{', '.join(most)} and {last} have" if most else f"{last} has"
            thing, them = audit.needs.partition(":")[0].removeprefix("a "), "them" if most else "it"
            said.append(f"{audit.name}: {names} no {thing}, so it was not asked of {them}")
    comparing = [each for each in audits if each.lacks("forget", request) and not each.needs]
    if comparing and not request.holdout:
        names = " and ".join(each.name for each in comparing)
        return [*said, f"{names}: there is no holdout set, so nothing was compared"]
    return [*said, *filter(None, (each.lacks(BOTH, request) for each in comparing))]


def say_undeclared(request: Request) -> list[str]:
    """One line on the probes of which neither their declaration nor their name says what they hold."""
    names = [name for name in request.probes if meaning_of(name) is None]
    if not names:
        return []
    what = f"What the probe {names[0]} holds" if len(names) == 1 else f"What the probes {', '.join(names)} hold"
    return [f"{what} was not said, so it is taken for what should stay: --probe {names[0]}=FILE:gone, :kept or :never"]


def limits(
    request: Request,
    of_family: Sequence[str],
    audits: Sequence[Audit],
    referenced: bool,
    saved: Saved | None,
    added: Sequence[str] = (),
) -> tuple[str, ...]:
    """Sentences, the gravest first; `of_family` are those of its family, `added` are sets of our own."""
    inside = "" if any(HiddenStates in audit.reads for audit in audits) else ", probes of hidden states"
    said = [
        "Answers were tested, not weights. What no longer shows in answers may still be stored: relearning, "
        f"quantisation{inside} and jailbreak prompts were not tried.",
    ]
    if not referenced:
        said.append(
            "No retrained model was given, so nothing here compares with a model that never saw the forget set. "
            "The ideal values come from the holdout set, or are not known."
        )
    if not request.holdout:
        said.append(
            "No holdout set was given: membership inference was not tried, and unless a level was given nothing "
            "says how far the forgetting had to go."
        )
    for repeat in request.repeats:
        said.append(f"{repeat}. {BLURRED[repeat.one, repeat.other]}")
    for name, intake in request.intakes.items():
        said += [f"{line}." for line in intake.lines(name)]
    unasked = say_unasked(request, [each for each in audits if each.needs], added)
    said += [f"{line}." for line in (*unasked, *say_undeclared(request))]
    if not request.retain:
        said.append("No retain set was given: nothing held the rest of the model in place.")
    if "retain" in added:
        said.append(
            "No retain set was given: the model's own answers to plain questions stood for it. What lies near the "
            "forget set was not held in place; a retain set of such records does that."
        )
    if probes := [name for name in added if name != "retain"]:
        said.append(
            f"No probe said what should stay. expunge added {' and '.join(probes)}, which hold no neighbours of the "
            f"forget set, where harm shows first: give those with --probe."
        )
    if not set(request.probes) - set(added):
        said.append(
            "Only the records themselves were asked. Paraphrases of the forget set and unrelated questions were not: "
            "give them with --probe."
        )
    said += of_family
    small = [f"{name} ({len(e)})" for name, e in request.sets().items() if len(e) < SMALL]
    if small:
        said.append(f"Few examples, so wide intervals: {', '.join(small)}.")
    if (
        len(request.forget) > 0.3 * (len(request.forget) + len(request.retain))
        and request.retain
        and "retain" not in added
    ):
        said.append("The forget set is more than 30 % of the data given: retraining may be the better answer.")
    if saved and saved.max_logit_rounding:
        said.append(
            f"Weights were merged in float32 and rounded to the format written, which changed class scores by up to "
            f"{saved.max_logit_rounding:.2g}; the run changed them by up to {saved.max_logit_change or 0:.2g}."
        )
    if saved and saved.format:
        said.append(
            f"The folder audited is {saved.format}, read back from disk. A copy in another format (GGUF, 4 bits) "
            f"is another model: audit it anew. The original model still holds what was forgotten."
        )
    said.append("Whether the records were ever in the model's training data was not established.")
    return tuple(said)
