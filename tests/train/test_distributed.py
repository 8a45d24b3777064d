"""Two processes do what one does: the same steps, answers and files, and they end together.

The file is a program, too: each process of `torchrun test_distributed.py FOLDER` writes what it found into FOLDER.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor
from transformers import LlamaConfig, LlamaForCausalLM

from expunge.core.errors import ModelRefused, RunFailed, UsageRefused
from expunge.core.memory import Remembered
from expunge.core.notation import parse, plugins
from expunge.core.request import Request
from expunge.core.store import PLACE
from expunge.data.text import Passage
from expunge.models.language import LanguageModel
from expunge.train.distributed import count, full, place, processes
from expunge.train.draw import Draw
from expunge.train.finetune import Finetune, _Run
from expunge.train.together import common, spread

torch.set_num_threads(1)

ROOT = Path(__file__).parent.parent.parent
V = 40
STEPS = "steps=4, learning_rate=0.003, stop=Stop(level=None, budget=None, every=2)"
METHODS = {
    "bounded": f"Finetune(batch=4, retain_batch=4, {STEPS})",
    "lora": f"Finetune(adapter=LoRA(rank=3, targets='all'), batch=3, retain_batch=5, clip=0.5, {STEPS})",
    "full": f"Finetune(adapter=Full(), batch=3, retain_batch=5, {STEPS})",
    "uneven": f"Finetune(objective=NPO() + RetainKL(), batch=1, retain_batch=1, {STEPS})",
    "accumulated": f"Finetune(batch=5, retain_batch=7, accumulate=3, activations='recomputed', {STEPS})",
}
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


def numbers(event: dict[str, Any]) -> list[float]:
    """What a step's or a check's line says, in its order, without its seconds."""
    told = [value for key, value in event.items() if key != "seconds"]
    told = [number for value in told for number in (value.values() if isinstance(value, dict) else [value])]
    return [number for number in told if isinstance(number, (int, float))]


def run(method: str, request: Request = REQUEST) -> list[list[float]]:
    events: list[dict[str, Any]] = []
    parse(method)(tiny(), request, events.append)
    return [numbers(event) for event in events if event["kind"] in ("step", "check")]


def every_objective() -> dict[str, Any]:
    """Losses of two steps; some refuse many processes, and say so."""
    made: dict[str, Any] = {}
    for name in OBJECTIVES:
        settings = "steps=2, batch=1, retain_batch=3, norms=False, stop=Stop(level=None, budget=None, every=9)"
        try:
            made[name] = run(f"Finetune(objective={name}() + RetainNLL(), {settings})")
        except (UsageRefused, ModelRefused) as refusal:
            made[name] = str(refusal)
    return made


def first_gradients(method: str) -> dict[str, torch.Tensor]:
    """The first step's gradients, put together; nothing of the network itself may have changed."""
    plan = replace(parse(method), steps=1, clip=None)
    assert isinstance(plan, Finetune)
    network = tiny()
    print_of_it = network.fingerprint()
    torch.manual_seed(0)
    made = _Run(plan, network, plan.adapter(network, REQUEST), REQUEST, lambda event: None, None)
    assert all(isinstance(parameter, DTensor) == (count() > 1) for parameter in made.now.module.parameters())
    for draw in (Draw(REQUEST, plan.batch, plan.retain_batch, 0) for _ in range(1)):
        made.step(1, draw.sets())
    assert network.fingerprint() == print_of_it
    return {name: full(p.grad).clone() for name, p in made.moving.items() if p.grad is not None}


def answers(hold: str = "whole") -> dict[str, Any]:
    """Scores, states and continuations of examples of unequal length, in their order."""
    model: Any = spread(tiny(), hold)
    # First of all in inference mode, as an audit of hidden states reads: what comes after must not mind.
    with torch.inference_mode():
        felt = model.hidden(REQUEST.retain, 0)
    said = model.answers(REQUEST.retain)
    prompts = [replace(example, asked=example.tokens[: 2 + k % 3]) for k, example in enumerate(REQUEST.retain)]
    with torch.inference_mode():
        states = model.predict(REQUEST.retain[:1]).log_prob().tolist()
    return {
        "log_probs": said.log_probs.tolist(),
        "right": said.right.tolist(),
        "labels": said.labels.tolist(),
        "examples": said.example.tolist(),
        "one log_prob": model.answers(REQUEST.retain[:1]).log_probs.tolist(),
        "texts": model.generate(prompts, 5),
        "one text": model.generate(prompts[:1], 12),
        "hidden": felt.states.flatten().tolist(),
        "hidden examples": felt.example.tolist(),
        "states": states,
        "log_probs again": model.answers(REQUEST.holdout).log_probs.tolist(),
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
            model = Remembered(spread(network, hold), common())
            said = model.answers(REQUEST.retain)
            found[name] = {"recalled": model.found, "log_probs": said.log_probs.tolist()}
        return found | {"steps": run(EPOCHS), "steps again": run(EPOCHS)}
    finally:
        os.environ[PLACE] = "off"


def asked_before(method: str) -> list[int]:
    """How many examples the model before was asked about in each step."""
    plan, network = parse(method), tiny()
    made = _Run(plan, network, plan.adapter(network, REQUEST), REQUEST, lambda event: None, None)
    draw, counts = Draw(REQUEST, plan.batch, plan.retain_batch, 0), []
    for step in range(1, 6):
        known = len(made.known.seen)
        made.step(step, draw.sets())
        counts.append(len(made.known.seen) - known)
    return counts


class Said(Protocol):
    """What a process left."""

    code: int
    err: str


def work(folder: Path) -> None:
    """What each process finds."""
    found = {name: run(method) for name, method in METHODS.items()}
    found |= {"objectives": every_objective(), "bfloat16": half()}
    found |= {hold: answers(hold) for hold in HOLDS} | {"asked before": asked_before(EPOCHS)}
    found |= {f"cache, {hold}": recalled(folder / hold, hold) for hold in HOLDS}
    (folder / f"{place()}.json").write_text(json.dumps(found))
    for name in ("bounded", "lora", "full"):
        save_file(first_gradients(METHODS[name]), folder / f"{name}-{place()}.safetensors")


def dies() -> None:
    """Both write; one is killed before its fifth pass."""
    model: Any = spread(tiny(), "cut")
    passes = iter(range(4))
    if place() == 1:
        model.asked.module.register_forward_pre_hook(
            lambda *_: None if next(passes, None) is not None else os.kill(os.getpid(), signal.SIGKILL)
        )
    model.generate([replace(example, asked=example.tokens[:2]) for example in REQUEST.retain], 30)


def half() -> list[str]:
    """The precisions that the parts of a bfloat16 model with an adapter are trained in."""
    plan, network = parse(METHODS["bounded"]), tiny(torch.bfloat16)
    made = _Run(plan, network, plan.adapter(network, REQUEST), REQUEST, lambda event: None, None)
    made.step(1, Draw(REQUEST, 4, 4, 0).sets())
    kinds = {str(p.dtype) for p in made.moving.values()} | {str(p.grad.dtype) for p in made.moving.values()}
    return sorted(kinds | {str(slot["exp_avg"].dtype) for slot in made.optimizer.state.values()})


def torchrun(*command: object) -> list[str]:
    """The command line that starts `command` in two processes, over the loopback alone."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", 2]
    return [*map(str, (*launcher, "--master-addr", "127.0.0.1", "--master-port", port, *command))]


ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": str(ROOT),
    "OMP_NUM_THREADS": "1",
    "GLOO_SOCKET_IFNAME": "lo",
    "HF_HUB_OFFLINE": "1",
    "EXPUNGE_CACHE": "off",
}


@pytest.fixture(scope="module")
def two(start, tmp_path_factory) -> Path:
    """What two processes found."""
    folder = tmp_path_factory.mktemp("ranks")
    said = start(folder, processes=2, program=__file__).end()
    assert [each.code for each in said] == [0, 0], said[0].err + said[1].err
    return folder


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
def one() -> dict[str, Any]:
    return every_objective()


@pytest.mark.parametrize("name", ["bounded", "lora", "full"])
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
        model = Remembered(tiny(), common())
        said = model.answers(REQUEST.retain)
    finally:
        os.environ[PLACE] = "off"
    assert model.found == 9
    assert said.log_probs.tolist() == found(two)["cut"]["log_probs"]


def test_the_adapter_of_a_bfloat16_model_is_trained_in_float32(two: Path):
    assert found(two)["bfloat16"] == ["torch.float32"] == half()


# The command


CLI = "Finetune(adapter=Bounded(rank=2), learning_rate=0.003, steps=4, batch=3, stop=Stop(level=None, every=2))"
ENDLESS = (
    "Finetune(adapter=LoRA(rank=2), learning_rate=1e-9, steps=100000, stop=Stop(level=None, budget=None, every=2))"
)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("data")
    for kind in ("forget", "retain", "holdout"):
        rows = [
            {"id": f"{kind}{k}", "question": f"What is {kind} {k}?", "answer": f"It is {kind} Veldt {'so ' * k}."}
            for k in range(5)
        ]
        (folder / f"{kind}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [f"--{kind}={folder / kind}.jsonl" for kind in ("forget", "retain", "holdout")]


def test_the_command_writes_what_one_process_writes(expunge, model: Path, files: list[str], tmp_path: Path):
    asked = ["forget", model, *files, "--audits", "Loss, Rouge, LossMembership", "--method", CLI]
    alone = expunge(*asked, "--out", tmp_path / "one")
    assert alone.code == 0, alone.err
    command = torchrun("-m", "expunge", *asked, "--out", tmp_path / "two")
    said = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    assert said.returncode == 0, said.stderr
    assert said.stdout.replace("two/", "one/") == alone.out  # once, and the same table
    assert said.stderr.count("Merging and saving") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]  # no lock, no scratch, no checkpoint
    one, two = tmp_path / "one", tmp_path / "two"
    names = [sorted(str(p.relative_to(folder)) for p in folder.rglob("*")) for folder in (one, two)]
    assert names[0] == names[1]
    for name in ("model/model.safetensors", "adapter/adapter_model.safetensors"):
        was, now = load_file(one / name), load_file(two / name)
        assert set(was) == set(now)
        for key, tensor in was.items():
            torch.testing.assert_close(now[key], tensor, rtol=0, atol=1e-5)
    assert scores(one) == pytest.approx(scores(two), abs=1e-5)
    assert len((two / "steps.jsonl").read_text().splitlines()) == 4 + 3


AUDITS = "Loss, ExactMatch, MinK, Rouge(max_new_tokens=12), LinearProbe"


def scores(folder: Path) -> list[float]:
    """The scores of all examples by all audits."""
    report = json.loads((folder / "report.json").read_text())
    return [score for finding in report["findings"] for score in finding["scores"]]


@pytest.mark.parametrize("hold", HOLDS)
def test_an_audit_is_shared_and_its_verdict_is_that_of_all(
    start, model: Path, files: list[str], tmp_path: Path, hold: str
):
    asked = ["audit", model, *files, "--audits", AUDITS, "--require", "forget.Loss >= 99"]
    [alone] = start(*asked, "--out", tmp_path / "one").end()
    said = start(*asked, "--out", tmp_path / "two", "--hold", hold, processes=2).end()
    assert [each.code for each in (alone, *said)] == [6, 6, 6]
    assert "Auditing" in said[0].err
    assert not said[1].out
    assert "Auditing" not in said[1].err
    assert said[0].out.replace("two/", "one/") == alone.out
    assert scores(tmp_path / "one") == pytest.approx(scores(tmp_path / "two"), abs=1e-5)


def test_a_model_that_no_process_holds_whole_forgets_as_one_does(start, model: Path, files: list[str], tmp_path: Path):
    asked = ["forget", model, *files, "--method", CLI, "--audits", "Loss, Rouge", "--reference", model, "--hold", "cut"]
    [alone] = start(*asked, "--out", tmp_path / "one").end()
    said = start(*asked, "--out", tmp_path / "two", processes=2).end()
    assert {each.code for each in (alone, *said)} == {alone.code} <= {0, 6}
    assert scores(tmp_path / "two") == pytest.approx(scores(tmp_path / "one"), abs=1e-5)


def test_a_process_that_dies_while_all_write_ends_the_others(start, tmp_path: Path):
    """Nobody waits at the next token for one that will not come."""
    said = start(tmp_path, "dies", processes=2, program=__file__).end()
    assert [each.code for each in said] == [99, -9]
    assert (tmp_path / "0.txt").read_text().startswith("Process 0 of 2 lost another one")


def refusals(*said: Said) -> list[str]:
    return [line for each in said for line in each.err.splitlines() if line.startswith("expunge: ")]


@pytest.mark.parametrize("dead", [0, 1])
def test_a_dead_process_ends_the_run_with_one_line(start, model: Path, files: list[str], tmp_path: Path, dead: int):
    asked = ["forget", model, *files, "--method", ENDLESS, "--audits", "Loss", "--out", tmp_path / "out"]
    run = start(*asked, "--checkpoint-every", 2, processes=2)  # S08
    run.wait_for("step 4:")
    os.kill(run.children[dead], signal.SIGKILL)
    said = run.end()
    assert [each.code for each in said] == ([-9, 5] if dead == 0 else [5, -9])
    [line] = refusals(*said)
    assert line.startswith(f"expunge: E5-run: Process {1 - dead} of 2 lost another one")
    assert not (tmp_path / "out").exists()
    assert list((tmp_path / "out.checkpoints").glob("step-*"))


def test_ctrl_c_ends_all_and_is_said_once(start, model: Path, files: list[str], tmp_path: Path):  # R12
    asked = ["forget", model, *files, "--method", ENDLESS, "--audits", "Loss", "--out", tmp_path / "out"]
    run = start(*asked, "--checkpoint-every", 0, processes=2)
    run.wait_for("step 4:")
    for child in run.children:
        os.kill(child, signal.SIGINT)
    said = run.end()
    assert [each.code for each in said] == [130, 130]
    assert refusals(*said) == ["expunge: interrupted; no result was written."]
    assert list(tmp_path.iterdir()) == []


def test_a_failure_of_all_is_said_once_and_keeps_the_last_good_adapter(
    start, model: Path, files: list[str], tmp_path: Path
):
    method = "Finetune(objective=GradDiff(), adapter=LoRA(rank=2), learning_rate=1e30, batch=2, stop=Stop(level=None))"
    asked = ["forget", model, *files, "--method", method, "--audits", "Loss", "--out", tmp_path / "out"]
    said = start(*asked, processes=2).end()
    assert [each.code for each in said] == [5, 5]
    [line] = refusals(*said)
    assert line.startswith("expunge: E5-run: step 2: the term Ascent() is NaN or infinite (records forget: forget")
    kept = tmp_path / "out.failed"
    assert [path.name for path in tmp_path.iterdir()] == [kept.name]
    weights = load_file(kept / "adapter" / "adapter_model.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())


def test_a_refusal_of_all_is_said_once(start, model: Path, files: list[str], tmp_path: Path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("")
    said = start("forget", model, *files, "--out", tmp_path / "out", processes=2).end()
    assert [each.code for each in said] == [2, 2]
    assert len(refusals(*said)) == 1


if __name__ == "__main__":
    warnings.simplefilter("error")
    for text in ("torch", "transformers"):  # as pyproject.toml has it
        for category in (DeprecationWarning, FutureWarning):
            warnings.filterwarnings("ignore", category=category, module=f"{text}.*")
    home = Path(sys.argv[1])
    try:
        with processes("cpu"):
            dies() if "dies" in sys.argv else work(home)
    except RunFailed as error:
        (home / f"{os.environ['RANK']}.txt").write_text(str(error))
        raise
