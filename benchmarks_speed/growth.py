"""Work doubles, cost doubles: records from 50 to 3,200, and models from 3 to 135 million parameters.

    python benchmarks_speed/growth.py --write

Records: one unlearning epoch (GradDiff, bounded adapter) of a model of 3 M parameters. Models: steps on 16 records of
llamas with random weights. Cost is the seconds of the steps; the checks of the losses before and after them read 64
examples of either set at most, whatever the records. Slopes are those of straight lines through the logarithms (least
squares). For models the work is the counted matmul FLOPs, since a wide model does more for each parameter.
"""

from __future__ import annotations

import math
import statistics
from pathlib import Path

import numpy as np
import torch
from side_by_side import counting, machine, random_records, settings, show, spread, table
from transformers import LlamaConfig, LlamaForCausalLM

from expunge.adapters.bounded import Bounded
from expunge.core.request import Request
from expunge.events import Step
from expunge.methods.finetune import Finetune
from expunge.methods.stop import Stop
from expunge.models.language import LanguageModel
from expunge.objectives.grad_diff import GradDiff

SHAPES = {  # width, MLP width, layers, heads, vocabulary
    "3 M": (128, 384, 8, 4, 8192),
    "10 M": (256, 768, 8, 4, 8192),
    "30 M": (384, 1152, 12, 6, 16384),
    "60 M": (512, 1408, 14, 8, 24576),
    "135 M": (576, 1536, 30, 9, 49152),
}
RECORDS = [50, 100, 200, 400, 800, 1600, 3200]
PLOT = Path(__file__).parent.parent / "docs" / "speed-growth.svg"


def model(shape: tuple[int, int, int, int, int]) -> LanguageModel:
    width, inner, layers, heads, words = shape
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=words,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        tie_word_embeddings=True,
    )
    return LanguageModel.of(LlamaForCausalLM(config).eval(), None)


def seconds_of(network: LanguageModel, records: int, steps: int) -> float:
    """Seconds of `steps` steps of 8 forget and 8 retain records."""
    words = network.vocabulary
    request = Request(tuple(random_records(records, words, 0)), tuple(random_records(records, words, 1)))
    method = Finetune(
        objective=GradDiff(),
        adapter=Bounded(),
        steps=steps,
        batch=8,
        retain_batch=8,
        stop=Stop(level=None, max_retain_increase=None, every=10**6),
        norms=False,
    )
    took: list[float] = []
    method(network, request, lambda event: took.append(event.seconds) if isinstance(event, Step) else None)
    assert len(took) == steps
    return sum(took)


def flops_of(network: LanguageModel) -> float:
    """Of two steps: those of a run of three, less those of a run of one, which has the same checks."""
    counted = []
    for steps in (1, 3):
        with counting() as counter:
            seconds_of(network, 16, steps)
        counted.append(float(counter.get_total_flops()))
    return counted[1] - counted[0]


def slope(work: list[float], cost: list[float]) -> float:
    """Exponent of the power law that fits best."""
    return float(np.polyfit(np.log(work), np.log(cost), 1)[0])


def plot(panels: list[tuple[str, list[float], list[float], float]]) -> None:
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.6))
    for axis, (label, work, cost, found) in zip(axes, panels, strict=True):
        axis.loglog(work, cost, "o", color="#1b7f5c", label="measured")
        middle = math.exp(statistics.mean(math.log(c / w) for w, c in zip(work, cost, strict=True)))
        axis.loglog(work, [middle * w for w in work], "--", color="#888888", label="linear")
        axis.set_xlabel(label)
        axis.set_ylabel("seconds")
        axis.set_title(f"slope {found:.2f}")
        axis.legend(frameon=False)
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(PLOT, metadata={"Date": None})


def main() -> None:
    asked = settings(__doc__)
    small = model(SHAPES["3 M"])
    seconds_of(small, 16, 2)
    rows, by_records, by_flops, flops = [], [], [], []
    for count in RECORDS:
        repeats = asked.repeats if count <= 800 else 1
        found = [seconds_of(small, count, count // 8) for _ in range(repeats)]
        by_records.append(statistics.median(found))
        rows.append([f"{count:,} records", "3 M", "", spread(found)])
        print(rows[-1], flush=True)
    for name, shape in SHAPES.items():
        network = model(shape)
        flops.append(flops_of(network))
        found = [seconds_of(network, 16, 2) for _ in range(asked.repeats)]
        by_flops.append(statistics.median(found))
        rows.append(["2 steps of 8 + 8", name, f"{flops[-1] / 1e9:,.1f}", spread(found)])
        print(rows[-1], flush=True)
    a, b = slope([float(n) for n in RECORDS], by_records), slope(flops, by_flops)
    told = (
        f"{machine()}\n\n{table(['work', 'model', 'GFLOP', 'seconds'], rows)}\n\n"
        f"Slope of seconds over records {a:.3f}, over FLOPs {b:.3f} (1 is linear)."
    )
    if asked.write:
        plot([("records", [float(n) for n in RECORDS], by_records, a), ("FLOPs of two steps", flops, by_flops, b)])
        told += "\n\n![cost over work](speed-growth.svg)"
    show("growth", told, asked.write)


if __name__ == "__main__":
    main()
