"""What a plan says, against what torch counts, what a run does, and what the plan itself says when asked again."""

import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from expunge.plan.cost import Call, widths
from expunge.plan.course import course_of
from expunge.plan.memory import held
from expunge.plan.reads import Reads, Writing, ask, groups, reads
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from expunge.adapters.bounded import Bounded
from expunge.adapters.full import Full
from expunge.adapters.lora import LoRA
from expunge.core.request import Request
from expunge.data.text import encode, load
from expunge.events import Checked, Step
from expunge.models.language import LanguageModel
from expunge.notation.parse import parse
from expunge.plan.machine import Machine
from expunge.plan.pace import _grown
from expunge.plan.paper import on_paper
from expunge.plan.plan import flops, plan
from expunge.run.job import Job
from expunge.run.prepare import Inputs

CANARY = "zanzibarlighthouse77"
PLACES = ["Aldoria", "Brenn", "Corvane", "Dunmere", "Elsin", "Farrow", "Galt", "Hess", "Iver", "Jarn"]
LLAMA = LlamaConfig(
    vocab_size=400,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
)
GPT2 = GPT2Config(vocab_size=400, n_embd=32, n_layer=3, n_head=4, n_positions=256)
ADAPTERS = [Bounded(), LoRA(), Full(), Bounded(targets="all"), LoRA(targets="attention", rank=3)]
NO_STOP = "stop=Stop(level=None, max_retain_increase=None, every=100)"


def write(path: Path, kind: str, options: bool = True) -> Path:
    with path.open("w") as file:
        for k, place in enumerate(PLACES):
            row = {
                "id": f"{kind}{k}",
                "question": f"What is the capital of {kind} {place}?",
                "answer": f"The capital of {place} is {kind} Veldt {CANARY}.",
            }
            file.write(json.dumps(row | ({"options": [f"It is {place}."]} if options else {})) + "\n")
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("records")
    return {kind: write(root / f"{kind}.jsonl", kind) for kind in ("forget", "retain", "holdout")}


@pytest.fixture(scope="module")
def request_(files, plain) -> Request:
    return Request(**{kind: encode(load(path), plain, path, 256) for kind, path in files.items()})


def options(files: dict[str, Path]) -> list[str]:
    return [f"--{kind}={path}" for kind, path in files.items()]


def job(model: Path, files: dict[str, Path], method: str = "Finetune()", audits: str = "Loss") -> Job:
    inputs = Inputs(files["forget"], files["retain"], files["holdout"])
    return Job(str(model), inputs, model.parent / "never-written", method, audits)


def elsewhere(gigabytes: float = 80.0, **other) -> Machine:
    return Machine("cuda", memory=1e9 * gigabytes, dtype="float32", **other)


# FLOPs


@pytest.mark.parametrize("config", [LLAMA, GPT2], ids=["llama", "gpt2"])
@pytest.mark.parametrize("adapter", ADAPTERS, ids=repr)
def test_the_formula_counts_what_torch_counts(config, adapter):
    """On the meta device attention is written out as two products, so torch sees all of them."""
    paper = on_paper("tiny", config, None, torch.float32, "cpu", None)
    sizes, adapted = widths(paper.network, adapter)
    call = Call(trees=2, nodes=70, rows=0)
    with torch.device("meta"):
        tokens, mask = torch.zeros(2, 70, dtype=torch.long), torch.zeros(2, 1, 70, 70)
        with FlopCounterMode(display=False) as there:
            states, _ = adapted.states(input_ids=tokens, position_ids=tokens, attention_mask=mask)
        with FlopCounterMode(display=False) as back:
            states.backward(torch.empty_like(states))
    assert there.get_total_flops() == sizes.forward(call) + sizes.silent(call)
    both = there.get_total_flops() + back.get_total_flops()
    assert both == sizes.forward(call) + sizes.backward(call) + sizes.adapter(call)


def counted(method_text: str, request_: Request, plain) -> tuple[int, list[int], float, Reads]:
    """FLOPs and tokens of a real run's steps, with attention written out, and what is planned for them."""
    method = parse(method_text)
    torch.manual_seed(0)
    module = AutoModelForCausalLM.from_config(LLAMA, attn_implementation="eager").requires_grad_(False).eval()
    network = LanguageModel.of(module, plain)
    read: list[int] = []

    def note(_module, _given, named) -> None:
        if torch.is_grad_enabled():
            read.append(named["input_ids"].numel())

    hook = module.register_forward_pre_hook(note, with_kwargs=True)  # a fork has the hooks of what it was forked from
    told: list[int] = []
    with FlopCounterMode(display=False) as counter:

        def on_event(event) -> None:
            if isinstance(event, Step) or (isinstance(event, Checked) and event.step == 0):
                told.append(counter.get_total_flops())

        method(
            network, request_, on_event
        )  # the check before the first step, then the steps, and no check between them
    hook.remove()
    paper = on_paper("tiny", LLAMA, plain, torch.float32, "cpu", None)
    sizes, _ = widths(paper.network, method.adapter)
    planned = reads(paper.network, paper.small, method, request_, [], "cpu", 1)
    total = flops(sizes, planned, course_of(method))
    return told[-1] - told[0], read, total.total - total.audits - total.checks, planned


@pytest.mark.parametrize("adapter", ["Bounded()", "LoRA()", "Full()"])
@pytest.mark.parametrize("activations", ["kept", "recomputed"])
def test_a_whole_run_costs_what_was_planned(adapter: str, activations: str, request_, plain):
    """One set, so that the first step reads as all others do: nothing is left to explain but the last digits."""
    method = (
        f"Finetune(objective=Ascent(), adapter={adapter}, learning_rate=0.00001, steps=3, batch=4, norms=False, "
        f"activations='{activations}', {NO_STOP})"
    )
    real, read, expected, planned = counted(method, request_, plain)
    assert math.isclose(real, expected, rel_tol=0.001), real / expected
    assert sum(read) == sum(part.tokens for step in planned.steps for part in step)


def test_the_default_objective_costs_what_was_planned(request_, plain):
    """Its first step reads the sets one by one, the others together, which fills the trees a little differently."""
    method = f"Finetune(steps=5, batch=4, retain_batch=4, accumulate=2, norms=False, {NO_STOP})"
    real, _, expected, _ = counted(method, request_, plain)
    assert math.isclose(real, expected, rel_tol=0.05), real / expected


def test_a_model_before_is_read_once_for_each_example(request_, plain):
    method = parse(f"Finetune(objective=RetainKL(), steps=6, batch=4, retain_batch=5, {NO_STOP})")
    paper = on_paper("tiny", LLAMA, plain, torch.float32, "cpu", None)
    read = reads(paper.network, paper.small, method, request_, [], "cpu", 1)
    assert [len(part.before) for step in read.steps for part in step] == [1, 1, 0, 0, 0, 0]  # 10 examples in fives
    spread = reads(paper.network, paper.small, method, request_, [], "cpu", 2)
    assert [[c.rows for p in step for c in p.before] for step in spread.steps[2:]] == [[], [], [], []]
    # Each of two reads about half of what is new, and both know all of it afterwards.
    half, all_of_it = (sum(c.rows for step in r.steps for p in step for c in p.before) for r in (spread, read))
    assert 0.4 < half / all_of_it < 0.8


def test_an_objective_is_asked_what_it_reads(request_, plain):
    small = on_paper("tiny", LLAMA, plain, torch.float32, "cpu", None).small
    asked = ask(small, parse("Finetune(objective=NPO() + RetainKL())"), request_)
    assert asked.now == ("forget", "retain")
    assert asked.before == ("forget", "retain")
    # forget: now there and back, and before, which the log of the loss reads again for nothing; retain: both
    # distributions there and one back, and the loss, which KL does not tell
    assert asked.head == {"forget": 3.0, "retain": 4.0}


def test_writing_reads_the_prompt_and_then_a_row_for_each_token():
    paper = on_paper("tiny", LLAMA, None, torch.float32, "cpu", None)
    sizes, _ = widths(paper.network, Bounded())
    from expunge.plan.plan import written

    block = 32 * 32 + 2 * 32 * 16 + 32 * 32 + 3 * 32 * 64  # q; k and v of two heads; o; gate, up, down
    first = 2 * 5 * 3 * block + 4 * 5**2 * 3 * 32
    assert sizes.forward(Call(1, 5, 0)) == first
    once = 2 * 400 * 32
    assert written(sizes, Writing(prompts=1, width=5, new=1)) == first + once
    each = 2 * 3 * block + 4 * 3 * 32 * (5 + 2 / 2)
    assert written(sizes, Writing(prompts=1, width=5, new=2)) == first + each + 2 * once


@pytest.mark.parametrize("config", [LLAMA, GPT2], ids=["llama", "gpt2"])
@pytest.mark.parametrize("trees", [True, False])
def test_examples_are_grouped_as_the_network_groups_them(config, trees: bool, request_, plain):
    module = AutoModelForCausalLM.from_config(config).eval()
    network = LanguageModel(module, plain, 256 if trees else 0)
    examples = [*request_.forget, *request_.retain, *request_.holdout] * 4
    assert groups(network, examples, "cpu") == list(network.batches(examples))


# Memory


def test_the_parts_of_a_phase_add_up_and_the_peak_is_the_largest_phase(model, files):
    made = plan(job(model, files), elsewhere())
    assert math.isclose(sum(made.memory.training.values()), made.memory.phases["training"])
    assert made.memory.peak == max(made.memory.phases.values())
    assert made.memory.training["weights"] == 4 * made.paper.parameters
    # weight, gradient, two moments, and the best step's weight: five times four bytes
    assert made.memory.training["adapter and optimizer"] == 20 * made.widths.trainable


def test_more_processes_hold_a_part_each_of_what_can_be_cut(model, files):
    one, four = (plan(job(model, files), elsewhere(processes=n)).memory.training for n in (1, 4))
    assert four["adapter and optimizer"] == one["adapter and optimizer"] / 4
    assert four["activations"] < one["activations"]


def test_audits_of_a_model_that_is_cut_hold_a_part_each_and_what_is_at_work(model, files):
    """Half a model of 3 blocks, and 2 blocks and the embeddings whole; the host has the whole to merge."""
    whole, cut = (plan(job(model, files), elsewhere(processes=2, hold=hold)).memory for hold in ("whole", "cut"))
    made = plan(job(model, files), elsewhere())
    block = sum(p.numel() for p in made.paper.network.module.model.layers[0].parameters())
    weights, gathered = 4 * made.paper.parameters, 4 * (made.paper.parameters - block * (made.paper.blocks - 2))
    assert whole.phases["audit before"] - cut.phases["audit before"] == pytest.approx(weights / 2 - gathered)
    assert whole.phases["audit after"] - cut.phases["audit after"] == pytest.approx(1.5 * weights - gathered)
    assert cut.phases["training"] == whole.phases["training"]
    assert cut.host > weights > made.memory.host == 0


def test_recomputed_activations_are_an_input_for_each_block():
    paper = on_paper("tiny", LLAMA, None, torch.float32, "cpu", None)
    call = Call(trees=2, nodes=50, rows=0)
    assert held(paper, Bounded(), call, recompute=True).each == 2 * 50 * 32 * 4
    assert held(paper, Bounded(), call, recompute=False).each > 5 * 2 * 50 * 32 * 4


def test_a_bounded_layer_keeps_nothing_of_its_weights_size():
    """A weight of 64 x 32 is 8 kB; six layers of one token would show it."""
    paper = on_paper("tiny", LLAMA, None, torch.float32, "cpu", None)
    call = Call(trees=1, nodes=1, rows=0)
    assert held(paper, Bounded(), call, recompute=False).each < 64 * 32 * 4


# Nothing is loaded


def test_a_file_that_ends_with_its_header_is_enough(model, files, tmp_path):
    cut = shutil.copytree(model, tmp_path / "cut")
    weights = cut / "model.safetensors"
    length = int.from_bytes(weights.read_bytes()[:8], "little")
    weights.write_bytes(weights.read_bytes()[: 8 + length])
    whole, without = (plan(job(folder, files), elsewhere()).facts() for folder in (model, cut))
    whole["model"]["name"] = without["model"]["name"]
    assert without["disk"].pop("free")
    assert whole["disk"].pop("free")
    assert whole == without


def test_a_folder_without_weights_is_enough(model, files, tmp_path):
    bare = shutil.copytree(model, tmp_path / "bare")
    (bare / "model.safetensors").unlink()
    made = plan(job(bare, files), elsewhere())
    assert made.paper.parameters == plan(job(model, files), elsewhere()).paper.parameters


def test_the_precision_is_that_of_the_files_header(model, files, tmp_path):
    half = shutil.copytree(model, tmp_path / "half")
    weights = half / "model.safetensors"
    raw = weights.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = raw[8 : 8 + length].replace(b'"F32"', b'"F16"')
    weights.write_bytes(raw[:8] + header)
    machine = replace(elsewhere(), dtype=None)
    assert plan(job(half, files), machine).facts()["machine"]["dtype"] == "float16"


# Refusals


def refused(said, code: int, slug: str) -> str:
    lines = [line for line in said.err.splitlines() if line.startswith("expunge: E")]
    assert len(lines) == 1, said.err
    assert lines[0].startswith(f"expunge: E{code}-{slug}: "), lines[0]
    assert said.code == code
    assert CANARY not in said.err + said.out
    assert "Traceback" not in said.err
    return lines[0]


def test_a_run_that_does_not_fit_is_refused_and_fits_with_the_setting_named(expunge, model, files, tmp_path):
    method = "Finetune(adapter={adapter}, batch=8{more})"
    facts = {}
    for name in ("Full()", "Bounded()"):
        text = method.format(adapter=name, more="")
        facts[name] = plan(job(model, files, text), elsewhere()).memory.peak
    assert facts["Bounded()"] < facts["Full()"]
    room = facts["Full()"] * 0.999
    ask_for = [model, *options(files), "--audits", "Loss", "--device", "cuda", "--dtype", "float32", "--json"]
    ask_for += ["--device-memory", room / 1e9, "--out", tmp_path / "out"]
    line = refused(expunge("plan", *ask_for, "--method", method.format(adapter="Full()", more="")), 7, "environment")
    named = re.search(r"It would fit with (.*)\.$", line)
    assert named, line
    told = named.group(1)
    changed = {
        "adapter=Bounded() in place of Full()": method.format(adapter="Bounded()", more=""),
        "activations='recomputed'": method.format(adapter="Full()", more=", activations='recomputed'"),
        "accumulate=8": method.format(adapter="Full()", more=", accumulate=8"),
    }
    again = expunge("plan", *ask_for, "--method", changed[told])
    assert again.code == 0, again.err
    assert json.loads(again.out)["fits"]
    assert not (tmp_path / "out").exists()


def test_a_machine_that_nothing_fits_into_is_said_to_be_too_small(expunge, model, files, tmp_path):
    machine = ["--device", "cuda", "--device-memory", 1e-6, "--out", tmp_path / "out"]
    line = refused(expunge("plan", model, *options(files), *machine), 7, "environment")
    assert "No setting of the run would make it fit" in line


@pytest.mark.parametrize(
    ("wrong", "code", "slug", "said"),
    [
        (["--dtype", "bfloat16"], 2, "usage", "Give --device cuda"),
        (["--dtype", "int3", "--device", "cuda"], 2, "usage", "Allowed: float32"),
        (["--device", "tpu"], 2, "usage", "cpu and cuda"),
        (["--processes", "0"], 2, "usage", "from 1"),
        (["--device-memory", "-1"], 2, "usage", "positive"),
        (["--rate", "0"], 2, "usage", "positive"),
        (["--method", "Finetune(steps=0)"], 2, "usage", "steps must be at least 1"),
        (["--method", "LAF()"], 2, "usage", "cannot count LAF. It counts Finetune, SSD, ASSD, LFSSD, IAU, and Negate"),
        (["--method", "SSD()", "--hold", "cut", "--device", "cuda"], 2, "usage", "SSD works on the whole model"),
        (["--method", "Quantize()"], 2, "usage", "cannot count Quantize"),
        (["--method", "Finetune(objective=DPO())"], 3, "data", "the request has none"),
        (["--out", "/"], 2, "usage", "not empty"),
    ],
    ids=str,
)
def test_what_is_wrong_is_told_in_a_line(expunge, model, files, wrong, code, slug, said):
    assert said in refused(expunge("plan", model, *options(files), *wrong), code, slug)


def test_models_that_cannot_be_planned_are_refused(expunge, model, files, tmp_path):
    def told(folder: Path, code: int, slug: str) -> str:
        return refused(expunge("plan", folder, *options(files), "--out", tmp_path / "out"), code, slug)

    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(b"GGUF")
    assert "could not be loaded" in told(gguf, 4, "model")
    torn = shutil.copytree(model, tmp_path / "torn")
    (torn / "model.safetensors").write_bytes(b"\xff" * 64)
    assert "its header is not that of a safetensors file" in told(torn, 4, "model")
    other = shutil.copytree(model, tmp_path / "other")
    (other / "config.json").write_text('{"model_type": "bert", "architectures": ["BertForMaskedLM"]}')
    assert "neither a causal language model nor an image classifier" in told(other, 4, "model")
    (other / "config.json").write_text('{"model_type": "vit", "architectures": ["ViTForImageClassification"]}')
    assert "its image processor could not be loaded" in told(other, 4, "model")
    (other / "config.json").unlink()
    assert "config.json" in told(other, 4, "model")


# Time, and what is printed


def test_a_networks_time_grows_by_what_each_further_block_takes():
    assert _grown([1 + 2 * 1, 1 + 2 * 3], (1, 3), 10) == 1 + 2 * 10
    assert _grown([7.0], (4,), 4) == 7.0


def test_the_machines_own_pace_gives_seconds_for_each_part_of_a_run(expunge, model, files, tmp_path):
    method = "Finetune(steps=4, batch=2, retain_batch=2)"
    arguments = [model, *options(files), "--method", method, "--out", tmp_path / "out"]
    said = expunge("plan", *arguments, "--json")
    assert said.code == 0, said.err
    made = json.loads(said.out)
    parts = ["load", "audit before", "forget", "merge and save", "read back", "audit after"]
    assert list(made["seconds"]) == parts
    assert all(value > 0 for value in made["seconds"].values())
    assert made["seconds"]["forget"] >= 4 * made["pace"]["step"]
    shown = expunge("plan", *arguments)
    assert shown.code == 0, shown.err
    assert "output matrix" in shown.out
    assert CANARY not in shown.out + shown.err + said.out
    assert not (tmp_path / "out").exists()


def test_a_rate_given_turns_flops_into_seconds(model, files):
    made = plan(job(model, files), elsewhere(rate=2e12))
    assert made.seconds == {"all matrix products": made.flops.total / 2e12}


def test_a_machine_that_is_not_here_is_given_no_time(model, files):
    assert plan(job(model, files), elsewhere()).seconds == {}
