"""Where does a small language model look facts up? Causal mediation tracing, and the layers that it points at.

    OMP_NUM_THREADS=1 python recipes/tracing.py run docs/tracing --model FOLDER
    python recipes/tracing.py show docs/tracing --write

`run` traces every fact that the model knows, in its MLPs and in its attention, and keeps a line for each; it may be
stopped and goes on where it was. `show` averages them by the role of the token and draws docs/tracing.svg; with
`--write` the table goes between the marks in docs/results.md. The facts are common ones, written for this recipe.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from keeping import between

from expunge.internals.tracing import ROLES, Fact, Trace, Tracer, by_role, strongest
from expunge.models.open import open_network
from expunge.report.plots import COLOURS, STYLE

CAPITALS = {
    "France": "Paris",
    "Japan": "Tokyo",
    "Italy": "Rome",
    "Spain": "Madrid",
    "Germany": "Berlin",
    "Russia": "Moscow",
    "England": "London",
    "China": "Beijing",
    "South Korea": "Seoul",
    "Egypt": "Cairo",
}
FACTS = [
    *((f"The capital of {country} is", country, f" {capital}") for country, capital in CAPITALS.items()),
    ("The Eiffel Tower is located in the city of", "The Eiffel Tower", " Paris"),
    ("The Great Wall is a monument in the country of", "The Great Wall", " China"),
]
PARTS = ("mlp", "attention")


def run(folder: Path, model: str, draws: int) -> None:
    """A line for each fact and part that the folder lacks."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "facts.jsonl"
    done = {(line["prompt"], line["part"]) for line in lines(path)}
    network: Any = open_network(model)
    for prompt, subject, answer in FACTS:
        fact = Fact.read(network.tokenizer, prompt, subject, answer)
        for part in PARTS:
            if (prompt, part) in done:
                continue
            tracer = Tracer(network, part=part, draws=draws)  # type: ignore[arg-type]
            line: dict[str, Any] = {"prompt": prompt, "part": part, "known": tracer.knows(fact)}
            if line["known"]:
                trace = tracer.trace(fact)
                line |= {"tokens": fact.tokens, "subject": list(fact.subject), "answer": fact.answer}
                line |= {"clean": trace.clean, "corrupted": trace.corrupted, "effect": trace.effect.tolist()}
            print(prompt, part, line["known"], line.get("clean"), line.get("corrupted"), flush=True)
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


def lines(path: Path) -> Iterator[dict[str, Any]]:
    if path.exists():
        yield from map(json.loads, path.read_text(encoding="utf-8").splitlines())


def traces(folder: Path, part: str) -> list[Trace]:
    """What was found of the facts that the model knows."""
    found = []
    for line in lines(folder / "facts.jsonl"):
        if line["part"] == part and line["known"]:
            subject = range(line["subject"][0], line["subject"][-1] + 1)
            fact = Fact(tuple(line["tokens"]), subject, line["answer"])
            effect = torch.tensor(line["effect"], dtype=torch.float64)
            found.append(Trace(fact, line["clean"], line["corrupted"], effect))
    return found


def table(folder: Path) -> str:
    """What tracing found, in numbers."""
    every = {part: traces(folder, part) for part in PARTS}
    known = every["mlp"]
    clean, corrupted = (statistics.mean(getattr(t, name) for t in known) for name in ("clean", "corrupted"))
    rows = [
        f"{len(known)} of {len(FACTS)} facts are known. Probability of the answer's first token, mean over them: "
        f"{clean:.3f} clean, {corrupted:.3f} corrupted; total effect {clean - corrupted:.3f}.\n",
        "| put back | at | largest mean indirect effect | in block | next largest | early third | late third | "
        "facts in which early beats late |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for part, found in every.items():
        for role in ("last subject", "last"):
            effect = by_role(found)[ROLES.index(role)]
            third = len(effect) // 3
            top = effect.topk(2)
            each = [by_role([t])[ROLES.index(role)] for t in found]
            early = sum(bool(e[:third].mean() > e[-third:].mean()) for e in each)
            rows.append(
                f"| {part} | {role} token | {top.values[0]:.3f} | {int(top.indices[0])} | {top.values[1]:.3f} "
                f"(block {int(top.indices[1])}) | {effect[:third].mean():.4f} | {effect[-third:].mean():.4f} "
                f"| {early} of {len(found)} |"
            )
    six = strongest(known, 6)
    rows.append(f"\nThe six strongest MLPs at the last subject token, as an adapter takes them: `layers={six}`.")
    return "\n".join(rows)


def draw(folder: Path, path: Path) -> None:
    """A heat map for each part: roles down, blocks across."""
    import matplotlib
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure

    # Roots, so that effects of a hundredth are seen beside one of a half.
    shade = LinearSegmentedColormap.from_list("effect", [COLOURS["forget"], COLOURS["card"], COLOURS["retain"]])
    with matplotlib.rc_context({**STYLE, "svg.fonttype": "path", "svg.hashsalt": "tracing", "axes.grid": False}):
        figure = Figure(figsize=(8.2, 4.6), layout="constrained")
        panels = figure.subplots(len(PARTS), 1, sharex=True)
        for axes, part in zip(panels, PARTS, strict=True):
            effect = by_role(traces(folder, part))
            roles = [k for k in range(len(ROLES)) if not effect[k].isnan().any()]
            shown = effect[roles]
            drawn = axes.pcolormesh(
                shown.sign() * shown.abs().sqrt(), cmap=shade, vmin=-1, vmax=1, edgecolors=COLOURS["line"], lw=0.4
            )
            axes.set_yticks([k + 0.5 for k in range(len(roles))], [ROLES[k] for k in roles])
            axes.set_xticks([k + 0.5 for k in range(0, shown.shape[1], 2)], range(0, shown.shape[1], 2))
            axes.invert_yaxis()
            axes.set_title(
                f"{'MLP' if part == 'mlp' else 'Attention'} of one block put back",
                loc="left",
                fontsize=11.5,
                fontweight="bold",
            )
            for side in axes.spines.values():
                side.set_visible(False)
        panels[-1].set_xlabel("block")
        bar = figure.colorbar(drawn, ax=panels, shrink=0.9, pad=0.02)
        ticks = (-0.5, -0.1, 0.0, 0.1, 0.5, 1.0)
        bar.set_ticks([math.copysign(abs(t) ** 0.5, t) for t in ticks], labels=[f"{t:g}" for t in ticks])
        bar.set_label("indirect effect on P(answer)")
        bar.outline.set_visible(False)
        figure.savefig(path, metadata={"Date": None}, facecolor=COLOURS["card"])


def show(folder: Path, write: bool) -> None:
    """Print the table and draw the map; with `write` the table goes into docs/results.md."""
    said = table(folder)
    print(said)
    draw(folder, folder.parent / "tracing.svg")
    if write:
        between(folder.parent / "results.md", "tracing", said)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["run", "show"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model")
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument("--write", action="store_true", help="put the table between the marks in docs/results.md")
    asked = parser.parse_args()
    if asked.what == "show":
        show(asked.folder, asked.write)
    elif asked.model:
        torch.set_num_threads(1)
        run(asked.folder, asked.model, asked.draws)
    else:
        parser.error("run needs --model")


if __name__ == "__main__":
    main()
