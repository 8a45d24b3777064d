"""The tables of `recipes/vision_proofs.py`: every bound with what was found, and means with their ranges."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

START, END = "<!-- vision:start -->\n", "<!-- vision:end -->\n"
Row = dict[str, Any]
Case = dict[str, Row]
"""The rows of one seed (and class), by model."""
SPARED = 1.5
"""Points of validation accuracy that SSD's alpha may cost: half of what the bound allows."""


def write(rows: Path, page: Path) -> None:
    """Put the tables between the page's marks."""
    found = [json.loads(line) for line in rows.read_text(encoding="utf-8").splitlines()]
    text = page.read_text(encoding="utf-8")
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    page.write_text(before + START + "\n".join(tables(found)) + "\n" + END + after, encoding="utf-8")
    evidence_file = rows.with_name("vision_evidence.jsonl")
    evidence_file.write_text("".join(json.dumps(row) + "\n" for row in evidence(found)), encoding="utf-8")
    print(page, evidence_file)


def evidence(rows: list[Row]) -> Iterator[Row]:
    """What each method met of its bounds, case by case, for the table of docs/methods.md (see `tools/docs.py`)."""
    for case in cases(rows, "class"):
        case["SSD, chosen"] = chosen(case)
        for name, method in (("LFSSD", "LFSSD()"), ("SSD, chosen", "SSD()"), ("LAF", "LAF()")):
            row, most = case[name], 10 if name == "LAF" else 5
            drop = case["original"]["retain"] - row["retain"]
            met = {"forget": row["forget"] < most, "retain": drop < (2 if name == "LAF" else 3)}
            if name != "LAF":
                met["attacker"] = row["mia"] <= case["retrained"]["mia"] + 10
            yield _shown(method, "CNN", row["seed"], met)
    for case in cases(rows, "random"):
        loss = {name: row["loss"] for name, row in case.items()}
        apart = {name: abs(case[name]["forget"] - case["retrained"]["forget"]) for name in ("original", "IAU")}
        met = {
            "forget loss": loss["IAU"] >= 3 * loss["random signs"],
            "direction": loss["IAU"] > loss["retain gradient alone"],
            "closer to retrained": apart["IAU"] < apart["original"],
            "test accuracy": abs(case["retrained"]["test"] - case["IAU"]["test"]) <= 2,
        }
        yield _shown("IAU()", "CNN", case["IAU"]["seed"], met)
    for row in rows:
        if row["proof"] == "in turn" and row["model"] in ("GS-LoRA", "GS-LoRA++") and "task" in row:
            drop = row["retain_before"] - row["retain"]
            met = {"forget": row["forget"] <= 5, "earlier": row["earlier"] <= 5, "retain": drop <= 3}
            method = "GSLoRA()" if row["model"] == "GS-LoRA" else "GSLoRAPlus()"
            yield _shown(method, "vision transformer", row["seed"], met)


def _shown(method: str, family: str, seed: int, met: dict[str, bool]) -> Row:
    return {"recipe": "vision_proofs", "method": method, "family": family, "seed": seed, "met": met}


def tables(rows: list[Row]) -> Iterator[str]:
    """Bounds first, then what they were read from."""
    classes, drawn, labels = (cases(rows, proof) for proof in ("class", "random", "labels"))
    turns = [row for row in rows if row["proof"] == "in turn"]
    for case in classes:
        case["SSD, chosen"] = chosen(case)
    yield from table(["method", "bound", "found", ""], bounds(classes, drawn, labels, turns))
    yield f"\nA class forgotten ({len(classes)} cases: {told(classes)}):\n"
    yield from table(
        ["model", "forget, test", "retain, test", "attacker says member", "probe tells the class", "CPU s"],
        summary(classes, ("original", "retrained", "LFSSD", "SSD, chosen", "LAF"), "forget retain mia probe seconds"),
    )
    yield f"\n5 % at random forgotten ({len(drawn)} seeds):\n"
    yield from table(
        ["model", "forget accuracy", "forget loss, nats", "test accuracy", "numbers dampened, %", "CPU s"],
        summary(drawn, list(drawn[0]), "forget loss test selected seconds"),
    )
    yield f"\nA fifth of the labels wrong ({len(labels)} seeds):\n"
    yield from table(
        ["model", "agrees with the wrong labels", "test accuracy", "CPU s"],
        summary(labels, list(labels[0]), "wrong test seconds"),
    )
    yield from _in_turn(turns) if turns else ()


def _in_turn(turns: list[Row]) -> Iterator[str]:
    seeds = sorted({row["seed"] for row in turns})
    yield f"\nSix classes forgotten in three tasks of two (seeds {', '.join(map(str, seeds))}):\n"
    yield from table(
        ["method", "task", "forget before", "after", "retain before", "after", "earlier", "H", "norm of each block"],
        [turn(row) for row in turns if "task" in row],
    )
    ends = [{row["model"].removesuffix(", end"): row for row in turns if row["seed"] == s} for s in seeds]
    ends = [{name: row for name, row in end.items() if "probe" in row} for end in ends]
    yield "\nAfter all three tasks:\n"
    yield from table(
        ["model", "forget, test", "retain, test", "probe tells the class"],
        summary(ends, list(ends[0]), "forget retain probe"),
    )


def cases(rows: list[Row], proof: str) -> list[Case]:
    found: dict[tuple[int, int], Case] = {}
    for row in rows:
        if row["proof"] == proof:
            found.setdefault((row["seed"], row.get("class", -1)), {})[row["model"]] = row
    return [found[key] for key in sorted(found)]


def chosen(case: Case) -> Row:
    """The SSD of the smallest alpha that costs the validation part no more than `SPARED` points; else the largest's."""
    tried = [row for name, row in case.items() if name.startswith("SSD ")]
    spared = [row for row in tried if case["original"]["chosen_by"] - row["chosen_by"] <= SPARED]
    return (spared or tried[-1:])[0]


def meets(case: Case, row: Row) -> bool:
    """What is asked of SSD and LFSSD on a class."""
    close = row["mia"] <= case["retrained"]["mia"] + 10
    return bool(row["forget"] < 5 and case["original"]["kept"] - row["kept"] < 3 and close)


def bounds(classes: list[Case], drawn: list[Case], labels: list[Case], turns: list[Row]) -> Iterator[list[str]]:
    yield from _dampening(classes, drawn)
    yield from _iau(drawn)
    yield from _laf(classes, labels)
    yield from _gs_lora(turns) if turns else ()


def bound(method: str, asked: str, values: Iterable[float], good: Callable[[float], bool], form: str) -> list[str]:
    """A bound on each of several values."""
    known = list(values)
    count = sum(map(good, known))
    verdict = "met" if count == len(known) else f"**not met** ({count} of {len(known)})"
    found = (form.format(value) for value in known)
    return [
        method,
        asked,
        ", ".join("0.0" if text == "-0.0" else text for text in found),
        verdict,
    ]


def _dampening(classes: list[Case], drawn: list[Case]) -> Iterator[list[str]]:
    drops = [case["original"]["retain"] - case["LFSSD"]["retain"] for case in classes]
    yield bound("LFSSD", "forget < 5 %", [c["LFSSD"]["forget"] for c in classes], lambda v: v < 5, "{:.1f}")
    yield bound("LFSSD", "retain falls by < 3 points", drops, lambda v: v < 3, "{:.1f}")
    yield bound("LFSSD", "in the mean by < 1.5", [statistics.mean(drops)], lambda v: v < 1.5, "{:.1f}")
    apart = [case["LFSSD"]["mia"] - case["retrained"]["mia"] for case in classes]
    yield bound("LFSSD", "attacker <= 10 points above the retrained model's", apart, lambda v: v <= 10, "{:+.0f}")
    able = [c for c in classes if any(meets(c, row) for name, row in c.items() if name.startswith("SSD "))]
    picked = [float(c["SSD, chosen"]["model"].split()[1]) for c in able]
    right = [meets(c, c["SSD, chosen"]) for c in able]
    verdict = "met" if all(right) else f"**not met** ({sum(right)} of {len(right)})"
    missing = [c for c in classes if c not in able]
    none = f"; no alpha does on {told(missing)}" if missing else ""
    text = f"alpha {', '.join(f'{alpha:g}' for alpha in picked)} on {told(able)}{none}" if able else f"nowhere{none}"
    yield ["SSD, alpha chosen on validation", "all three bounds wherever some alpha meets them", text, verdict]
    for name in [name for name in drawn[0] if "SSD(" in name]:
        shares = [f"{c[name]['selected']:.1f}" for c in drawn]
        lost = [
            f"{c[name]['forget'] - c['original']['forget']:+.1f} and {c[name]['test'] - c['original']['test']:+.1f}"
            for c in drawn
        ]
        text = f"{', '.join(shares)} % dampened; forget and test move by {'; '.join(lost)} points"
        yield [short(name), "5 % at random: told, no bound", text, ""]


def _iau(drawn: list[Case]) -> Iterator[list[str]]:
    loss = [{name: row["loss"] for name, row in case.items()} for case in drawn]
    times = [v["IAU"] / v["random signs"] for v in loss]
    yield bound("IAU", "(a) forget loss >= 3 times the random signs'", times, lambda v: v >= 3, "{:.1f}")
    times = [v["IAU"] / v["retain gradient alone"] for v in loss]
    yield bound("IAU", "(a) and above the retain gradient's alone", times, lambda v: v > 1, "{:.1f} times")
    apart = statistics.mean(c["retrained"]["test"] - c["IAU"]["test"] for c in drawn)
    yield bound(
        "IAU", "(b) mean test accuracy within 2 points of retrained", [apart], lambda v: abs(v) <= 2, "{:.1f} below"
    )
    nearer = [
        abs(c["original"]["forget"] - c["retrained"]["forget"]) - abs(c["IAU"]["forget"] - c["retrained"]["forget"])
        for c in drawn
    ]
    yield bound("IAU", "(c) forget accuracy closer to retrained than the original's", nearer, lambda v: v > 0, "{:.1f}")
    share = [100 * c["IAU"]["seconds"] / c["retrained"]["seconds"] for c in drawn]
    yield bound("IAU", "(d) time < 5 % of retraining", share, lambda v: v < 5, "{:.1f} %")
    cost = statistics.mean(c["IAU 3e-3"]["test"] - c["IAU 3e-3, no correction"]["test"] for c in drawn)
    yield bound(
        "IAU", "(e) at 3e-3, dropping the correction costs test accuracy", [cost], lambda v: v > 0, "{:.1f} points"
    )
    gains = [(v["restricted, IAU"] / v["original, restricted"]) / (v["IAU"] / v["original"]) for v in loss]
    text = ", ".join(f"{gain:.2f}" for gain in gains)
    yield [
        "IAU",
        "original trained with gradient restriction: told, no bound",
        f"the loss rises {text} times as much",
        "",
    ]


def _laf(classes: list[Case], labels: list[Case]) -> Iterator[list[str]]:
    yield bound("LAF", "forget < 10 %", [c["LAF"]["forget"] for c in classes], lambda v: v < 10, "{:.1f}")
    drops = [case["original"]["retain"] - case["LAF"]["retain"] for case in classes]
    yield bound("LAF", "retain falls by < 2 points", drops, lambda v: v < 2, "{:.1f}")
    rise = [case["LAF"]["test"] - case["original"]["test"] for case in labels]
    yield bound("LAF", "wrong labels forgotten: test accuracy rises", rise, lambda v: v > 0, "{:+.1f}")


def _gs_lora(turns: list[Row]) -> Iterator[list[str]]:
    tasks = [row for row in turns if row["model"] == "GS-LoRA"]
    yield bound("GS-LoRA", "forget <= 5 %", [r["forget"] for r in tasks], lambda v: v <= 5, "{:.1f}")
    yield bound("GS-LoRA", "earlier classes <= 5 %", [r["earlier"] for r in tasks], lambda v: v <= 5, "{:.1f}")
    drops = [r["retain_before"] - r["retain"] for r in tasks]
    yield bound("GS-LoRA", "retain falls by <= 3 points a task", drops, lambda v: v <= 3, "{:+.1f}")
    ends = [min(r["norms"]) for r in tasks if r["task"] == 3]
    dense = [min(r["norms"]) for r in turns if r["model"] == "GS-LoRA, alpha 0" and r["task"] == 3]
    known = bound("GS-LoRA", "a block below 0.05 in the last task", ends, lambda v: v < 0.05, "{:.2f}")
    known[2] += f" (with alpha 0: {', '.join(f'{v:.2f}' for v in dense)})"
    yield known
    yield ["GS-LoRA", "tunable share: told, no bound", f"{tasks[0]['share']:.1f} %", ""]
    for name in ("GS-LoRA, 4 a class", "GS-LoRA++, 4 a class"):
        text = ", ".join(f"{harmonic(row):.1f}" for row in turns if row["model"] == name and "task" in row)
        yield [name, "H: told, no order claimed", text, ""]


def harmonic(row: Row) -> float:
    """H of retain accuracy and of the fall of forget accuracy."""
    drop = row["forget_before"] - row["forget"]
    return 2 * row["retain"] * drop / (row["retain"] + drop) if row["retain"] + drop > 0 else 0.0


def turn(row: Row) -> list[str]:
    numbers = [row[k] for k in ("forget_before", "forget", "retain_before", "retain", "earlier")]
    cells = [f"{value:.1f}" for value in (*numbers, harmonic(row))]
    norms = ", ".join(f"{norm:.2f}" for norm in row["norms"])
    return [f"{row['model']} (seed {row['seed']})", str(row["task"]), *cells, norms]


def told(found: list[Case]) -> str:
    """Class and seed of each case."""
    rows = [next(iter(case.values())) for case in found]
    return ", ".join(f"{row['class']} (seed {row['seed']})" for row in rows)


def short(name: str) -> str:
    return name.replace(", dampening=1.0, batch=64", "").replace("alpha=None", "")


def summary(found: list[Case], models: Iterable[str], columns: str) -> Iterator[list[str]]:
    """Of each model the mean and the range of each column; a dash where it was not measured."""
    for name in models:
        cells = []
        for column in columns.split():
            values = [case[name].get(column) for case in found if name in case]
            known = [value for value in values if value is not None]
            form = "{:.3f}" if column == "loss" else "{:.1f}"
            parts = [form.format(value) for value in (statistics.mean(known), min(known), max(known))] if known else []
            cells.append(f"{parts[0]} ({parts[1]} to {parts[2]})" if parts else "-")
        yield [short(name), *cells]


def table(head: list[str], lines: Iterable[list[str]]) -> Iterator[str]:
    yield "| " + " | ".join(head) + " |"
    yield "|---" * len(head) + "|"
    yield from ("| " + " | ".join(line) + " |" for line in lines)
