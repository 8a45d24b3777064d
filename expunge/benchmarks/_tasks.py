"""Tasks that lm-eval asks, for benchmarks that measure general abilities by them."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, cast

from expunge.benchmarks._reading import Item
from expunge.benchmarks._values import RIGHT, Column, Values
from expunge.core.model import Model, network_of
from expunge.data.text import Passage
from expunge.errors import EnvironmentRefused
from expunge.models.language import LanguageModel

TASK = "accuracy"
"""The measure of a task."""


def pose_tasks(names: Sequence[str]) -> list[Item]:
    """An item for each task of lm-eval, which knows its texts. Raises `EnvironmentRefused` where that is missing."""
    if find_spec("lm_eval") is None:
        raise EnvironmentRefused(
            f"The tasks ({', '.join(names)}) are asked by lm-eval, which is not installed. "
            f"Run pip install 'expunge[tasks]', or leave --tasks out."
        )
    return [Item(name, 0, Passage(name, (), 1, "", ""), RIGHT, (TASK,)) for name in names]


def task_accuracies(model: Model, items: Sequence[Item]) -> Values:
    """Whether each question of each task is answered right, as lm-eval has it without examples."""
    import lm_eval  # an extra, which takes seconds to import
    from lm_eval.models.huggingface import HFLM

    network = cast(LanguageModel, network_of(model, TASK))
    asked: Any = HFLM(network.module, tokenizer=network.tokenizer, device=str(network.device), batch_size=8)
    made: Any = lm_eval.simple_evaluate(asked, tasks=[item.set for item in items], bootstrap_iters=0)
    return Values.collect(
        (Column(name, TASK), record, each["acc"])
        for name, samples in made["samples"].items()
        for record, each in enumerate(samples)
    )
