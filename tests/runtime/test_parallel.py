"""Two processes do what one does: the same steps and gradients, and the same answers in the same order.

The file is a program, too: each process of `torchrun test_distributed.py FOLDER` writes what it found into FOLDER.
"""

import json
import os
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from expunge.core.question import HiddenStates, LogProbabilities, Scores, Text
from expunge.core.request import Request
from expunge.data.text import Passage
from expunge.errors import ModelRefused, UsageRefused
from expunge.events import Checked, Event, Step, ignore_event
from expunge.methods._loop import Loop
from expunge.methods.finetune import Finetune
from expunge.models.language import LanguageModel
from expunge.notation.parse import parse, plugins
from expunge.notation.typed_json import event_to_json
from expunge.runtime.answer_store import PLACE
from expunge.runtime.cached_model import CachedModel
from expunge.runtime.parallel_model import ask_together, shared_store
from expunge.runtime.processes import gather_full, processes, rank, world_size
from expunge.train.batches import Batches
from tests.made_once import make_once

torch.set_num_threads(1)

ROOT = Path(__file__).parent.parent.parent
V = 40
STEPS = "steps=4, learning_rate=0.003, stop=Stop(level=None, max_retain_increase=None, every=2)"
METHODS = {
    "bounded": f"Finetune(batch=4, retain_batch=4, {STEPS})",
    "lora": f"Finetune(adapter=LoRA(rank=3, targets='all'), batch=3, retain_batch=5, clip=0.5, {STEPS})",
    "full": f"Finetune(adapter=Full(), batch=3, retain_batch=5, {STEPS})",
    "pruned": f"Finetune(batch=3, retain_batch=3, prune=SeTa(groups=2, window=0.5, random=0.0), {STEPS})",
    "uneven": f"Finetune(objective=NPO() + RetainKL(), batch=1, retain_batch=1, {STEPS})",
    "salient": f"Finetune(adapter=Salient(quantile=0.7), batch=3, retain_batch=5, weight_decay=0.1, {STEPS})",
    "one expert": f"Finetune(objective=GradDiff() + Anchor(), adapter=SEUF(), batch=3, retain_batch=5, {STEPS})",
    "experts": f"Finetune(adapter=Bounded(rank=3), batch=3, retain_batch=5, {STEPS})",
    "lora experts": "Finetune(objective=NPO() + RetainKL(), adapter=LoRA(targets='all'), batch=2, retain_batch=1, "
    f"activations='recomputed', {STEPS})",
    "accumulated": f"Finetune(batch=5, retain_batch=7, accumulate=3, activations='recomputed', {STEPS})",
}
OF_EXPERTS = {METHODS[name] for name in ("one expert", "experts", "lora experts")}
SLOPES = ["bounded", "lora", "full", "salient"]
"""Methods whose first gradients are compared."""
HOLDS = ["whole", "cut"]
EPOCHS = f"Finetune(objective=RetainKL() + NPO(), batch=4, retain_batch=5, {STEPS})"
OBJECTIVES = [plugin.name for plugin in plugins() if plugin.folder == "objectives"]


def tiny(dtype: torch.dtype = torch.float32) -> LanguageModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=V,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        eos_token_id=0,
        tie_word_embeddings=True,
    )
    module = LlamaForCausalLM(config).eval()
    for parameter in module.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return LanguageModel.of(module.to(dtype), Letters())


def mixed() -> LanguageModel:
    """A mixture of four experts a block."""
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
    experts = {"num_key_value_heads": 4, "num_local_experts": 4, "experts_implementation": "eager"}
    module = MixtralForCausalLM(MixtralConfig(vocab_size=V, eos_token_id=0, **shape, **experts)).eval()
    for parameter in module.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return LanguageModel.of(module, Letters())


class Letters:
    """Writes tokens as letters, some of two bytes."""

    pad_token_id = eos_token_id = 0

    def decode(self, row: list[int], skip_special_tokens: bool) -> str:
        return "".join(chr(0xE0 + token) if token % 2 else chr(65 + token) for token in row)

    def get_vocab(self) -> dict[str, int]:
        return {self.decode([token], True): token for token in range(V)}


def passages(name: str, count: int, seed: int) -> tuple[Passage, ...]:
    """Examples of 2 to 8 labelled tokens."""
    draw = torch.Generator().manual_seed(seed)
    lengths = [4 + (3 * k) % 7 for k in range(count)]
    tokens = [tuple(torch.randint(1, V, (length,), generator=draw).tolist()) for length in lengths]
    return tuple(Passage(f"{name}-{k}", its, 2, "", f"{name}-{k}") for k, its in enumerate(tokens))


REQUEST = Request(
    forget=passages("f", 7, 1),
    retain=passages("r", 9, 2),
    holdout=passages("h", 5, 3),
    stand_in=passages("f", 7, 4),  # with the forget set's ids, as an objective of pairs asks
)


def numbers(event: Event) -> list[float]:
    """What a step's or a check's line says, in its order, without its seconds."""
    told = [value for key, value in event_to_json(event).items() if key != "seconds"]
    told = [number for value in told for number in (value.values() if isinstance(value, dict) else [value])]
    return [number for number in told if isinstance(number, (int, float))]


def run(method: str, request: Request = REQUEST) -> list[list[float]]:
    events: list[Event] = []
    parse(method)(mixed() if method in OF_EXPERTS else tiny(), request, events.append)
    return [numbers(event) for event in events if isinstance(event, Step | Checked)]


def every_objective() -> dict[str, Any]:
    """Losses of two steps; some refuse many processes, and say so."""
    made: dict[str, Any] = {}
    for name in OBJECTIVES:
        settings = (
            "steps=2, batch=1, retain_batch=3, norms=False, stop=Stop(level=None, max_retain_increase=None, every=9)"
        )
        try:
            made[name] = run(f"Finetune(objective={name}() + RetainNLL(), {settings})")
        except (UsageRefused, ModelRefused) as refusal:
            made[name] = str(refusal)
    return made


def first_gradients(method: str) -> dict[str, torch.Tensor]:
    """The first step's gradients, put together; nothing of the network itself may have changed."""
    network = tiny()
    plan = replace(parse(method), steps=1, clip=None).fit(network, REQUEST)
    assert isinstance(plan, Finetune)
    print_of_it = network.fingerprint()
    torch.manual_seed(0)
    made = Loop(plan, plan.adapter(network, REQUEST), REQUEST, ignore_event, None)
    assert all(isinstance(parameter, DTensor) == (world_size() > 1) for parameter in made.now.module.parameters())
    for draw in (Batches(REQUEST, plan.batch, plan.retain_batch, 0) for _ in range(1)):
        made.step(1, draw.sets())
    assert network.fingerprint() == print_of_it
    return {name: gather_full(p.grad).clone() for name, p in made.moving.items() if p.grad is not None}


def answers(hold: str = "whole") -> dict[str, Any]:
    """Scores, states and continuations of examples of unequal length, in their order."""
    model: Any = ask_together(tiny(), hold)
    # First of all in inference mode, as an audit of hidden states reads: what comes after must not mind.
    with torch.inference_mode():
        felt = model.ask(HiddenStates(0), REQUEST.retain)
    said = model.ask(LogProbabilities(), REQUEST.retain)
    prompts = [replace(example, prompt_tokens=example.tokens[: 2 + k % 3]) for k, example in enumerate(REQUEST.retain)]
    with torch.inference_mode():
        states = model.ask(Scores(), REQUEST.retain[:1]).log_prob().tolist()
    return {
        "log_probs": said.log_probs.tolist(),
        "right": said.right.tolist(),
        "labels": said.labels.tolist(),
        "examples": said.example.tolist(),
        "one log_prob": model.ask(LogProbabilities(), REQUEST.retain[:1]).log_probs.tolist(),
        "texts": model.ask(Text(5), prompts),
        "one text": model.ask(Text(12), prompts[:1]),
        "hidden": felt.states.flatten().tolist(),
        "hidden examples": felt.example.tolist(),
        "states": states,
        "log_probs again": model.ask(LogProbabilities(), REQUEST.holdout).log_probs.tolist(),
    }


def recalled(cache: Path, hold: str) -> dict[str, Any]:
    """How much of what was asked an earlier asking had left in the cache, and a run's steps from there."""
    os.environ[PLACE] = str(cache)
    try:
        found: dict[str, Any] = {}
        for name in ("first", "again", "changed"):
            network = tiny()
            if name == "changed":
                network.module.get_output_embeddings().weight.data[3, 3] += 0.5
            model = CachedModel(ask_together(network, hold), shared_store())
            said = model.ask(LogProbabilities(), REQUEST.retain)
            found[name] = {"recalled": model.recalled, "log_probs": said.log_probs.tolist()}
        return found | {"steps": run(EPOCHS), "steps again": run(EPOCHS)}
    finally:
        os.environ[PLACE] = "off"


def asked_before(method: str) -> list[int]:
    """How many examples the model before was asked about in each step."""
    network = tiny()
    plan = parse(method).fit(network, REQUEST)
    made = Loop(plan, plan.adapter(network, REQUEST), REQUEST, ignore_event, None)
    draw, counts = Batches(REQUEST, plan.batch, plan.retain_batch, 0), []
    for step in range(1, 6):
        known = len(made.known.replies.get(repr(Scores()), {}))
        made.step(step, draw.sets())
        counts.append(len(made.known.replies.get(repr(Scores()), {})) - known)
    return counts


def work(folder: Path) -> None:
    """What each process finds."""
    found = {name: run(method) for name, method in METHODS.items()}
    found |= {"objectives": every_objective(), "bfloat16": half()}
    found |= {hold: answers(hold) for hold in HOLDS} | {"asked before": asked_before(EPOCHS)}
    found |= {f"cache, {hold}": recalled(folder / hold, hold) for hold in HOLDS}
    (folder / f"{rank()}.json").write_text(json.dumps(found))
    for name in SLOPES:
        save_file(first_gradients(METHODS[name]), folder / f"{name}-{rank()}.safetensors")


def half() -> list[str]:
    """The precisions that the parts of a bfloat16 model with an adapter are trained in."""
    network = tiny(torch.bfloat16)
    plan = parse(METHODS["bounded"]).fit(network, REQUEST)
    made = Loop(plan, plan.adapter(network, REQUEST), REQUEST, ignore_event, None)
    made.step(1, Batches(REQUEST, 4, 4, 0).sets())
    kinds = {str(p.dtype) for p in made.moving.values()} | {str(p.grad.dtype) for p in made.moving.values()}
    return sorted(kinds | {str(slot["exp_avg"].dtype) for slot in made.optimizer.state.values()})


@pytest.fixture(scope="module")
def two(start, tmp_path_factory) -> Path:
    """What two processes found."""

    def make(folder: Path) -> None:
        said = start(folder, processes=2, program=__file__).end()
        if any(
            each.code < 0 for each in said
        ):  # libtorch once died of a bad address on a busy machine, and told nothing
            warnings.warn(f"a process was ended by a signal: {said[0].err}{said[1].err}", stacklevel=2)
            said = start(folder, processes=2, program=__file__).end()
        assert [each.code for each in said] == [0, 0], said[0].err + said[1].err

    return make_once(tmp_path_factory, "ranks", make)


def found(two: Path, process: int = 0) -> dict[str, Any]:
    return json.loads((two / f"{process}.json").read_text())


def same(one: list[list[float]], other: list[list[float]]) -> None:
    assert [len(line) for line in one] == [len(line) for line in other]
    assert [n for line in one for n in line] == pytest.approx([n for line in other for n in line], rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_two_processes_take_the_steps_of_one(two: Path, name: str):
    """Losses, gradient norms, sizes of the update and checks: with fewer examples than processes, too."""
    same(found(two)[name], run(METHODS[name]))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_adds_up_over_processes_or_refuses_them(two: Path, name: str, one: dict[str, Any]):
    told = found(two)["objectives"][name]
    if isinstance(told, str):
        assert "one process" in told or "no experts" in told  # this model has none
    else:
        same(told, one[name])


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> dict[str, Any]:
    """What one process found."""
    folder = make_once(
        tmp_path_factory, "alone", lambda at: (at / "found.json").write_text(json.dumps(every_objective()))
    )
    return json.loads((folder / "found.json").read_text())


@pytest.mark.parametrize("name", SLOPES)
def test_gradients_are_those_of_one_process_and_equal_in_both(two: Path, name: str):
    alone = first_gradients(METHODS[name])
    first, second = (load_file(two / f"{name}-{process}.safetensors") for process in (0, 1))
    assert set(first) == set(alone)
    for key, gradient in alone.items():
        assert torch.equal(first[key], second[key])
        torch.testing.assert_close(first[key], gradient, rtol=1e-5, atol=1e-6)
    moved = [key for key, gradient in first.items() if gradient.abs().max() > 0]
    assert len(moved) >= len(first) / 2  # A of a new adapter has none, as B is 0


def test_both_processes_are_told_the_same_to_the_bit(two: Path):
    assert found(two, 0) == found(two, 1)


@pytest.mark.parametrize("hold", HOLDS)
def test_answers_and_texts_come_in_the_order_of_the_data(two: Path, hold: str):
    """Nine examples, and one, for two processes: who has none left keeps pace with who has."""
    told, alone = found(two)[hold], answers()
    assert set(told) == set(alone)
    for key, values in alone.items():
        assert told[key] == (pytest.approx(values, abs=1e-5) if isinstance(values[0], float) else values)


def test_the_model_before_is_asked_about_each_example_once(two: Path):
    """7 to forget in fours and 9 to retain in fives: 4 + 5, then 3 + 4, then all are known to both processes."""
    assert found(two)["asked before"] == [4 + 5, 3 + 4, 0, 0, 0] == asked_before(EPOCHS)


@pytest.mark.parametrize("hold", HOLDS)
def test_both_find_what_an_earlier_run_left_and_nothing_of_another_model(two: Path, hold: str, tmp_path: Path):
    told, alone = found(two)[f"cache, {hold}"], recalled(tmp_path, hold)
    for name, many in (("first", 0), ("again", 9), ("changed", 0)):
        assert told[name]["recalled"] == alone[name]["recalled"] == many
        assert told[name]["log_probs"] == pytest.approx(alone[name]["log_probs"], abs=1e-5)
    assert told["changed"]["log_probs"] != told["first"]["log_probs"]
    same(told["steps"], run(EPOCHS))
    assert told["steps again"] == told["steps"]


def test_what_one_process_left_is_found_by_two_and_the_other_way_round(two: Path, tmp_path: Path):
    """Entries are found by the whole network's weights, whoever holds them."""
    os.environ[PLACE] = str(two / "cut")
    try:
        model = CachedModel(tiny(), shared_store())
        said = model.ask(LogProbabilities(), REQUEST.retain)
    finally:
        os.environ[PLACE] = "off"
    assert model.recalled == 9
    assert said.log_probs.tolist() == found(two)["cut"]["log_probs"]


def test_the_adapter_of_a_bfloat16_model_is_trained_in_float32(two: Path):
    assert found(two)["bfloat16"] == ["torch.float32"] == half()


if __name__ == "__main__":
    warnings.simplefilter("error")
    for text in ("torch", "transformers"):  # as pyproject.toml has it
        for category in (DeprecationWarning, FutureWarning):
            warnings.filterwarnings("ignore", category=category, module=f"{text}.*")
    with processes("cpu"):
        work(Path(sys.argv[1]))
