"""Plans for what is no fine-tuning of texts in a folder: edits, image classifiers, GGUF files."""

import json
import math
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from expunge.plan.cost import Call, widths
from expunge.plan.course import course_of
from expunge.plan.edits import edit_reads
from expunge.plan.gguf import packed
from expunge.plan.images import pictures
from expunge.plan.memory import held
from expunge.plan.reads import reads
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, AutoModelForImageClassification, LlamaConfig, SwinConfig

from expunge.core.request import Request
from expunge.errors import EnvironmentRefused, ModelRefused, UsageRefused
from expunge.events import Checked, Step
from expunge.models.language import LanguageModel
from expunge.models.vision import ImageClassifier
from expunge.notation.parse import parse
from expunge.plan.machine import Machine
from expunge.plan.paper import Paper, on_paper
from expunge.plan.plan import counted, flops, plan, tokens
from expunge.run.job import Job
from expunge.run.prepare import Inputs
from tests.families import picture_request, resnet, text_request, vit

LLAMA = LlamaConfig(
    vocab_size=400,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
    bos_token_id=None,
    eos_token_id=0,
)
STOP = "stop=Stop(level=None, max_retain_increase=None, every=100)"


# Edits


@pytest.fixture(scope="module")
def paper(plain) -> Paper:
    return on_paper("tiny", LLAMA, plain, torch.float32, "cpu", None)


def edited(method_text: str, request_: Request, plain) -> tuple[int, int]:
    """FLOPs and positions of a real edit's gradients, with attention written out."""
    torch.manual_seed(0)
    module = AutoModelForCausalLM.from_config(LLAMA, attn_implementation="eager").requires_grad_(False).eval()
    network = LanguageModel.of(module, plain)
    read: list[int] = []

    def note(_module, _given, named) -> None:
        if torch.is_grad_enabled():
            read.append(named["input_ids"].numel())

    hook = module.register_forward_pre_hook(note, with_kwargs=True)
    with FlopCounterMode(display=False) as counter:
        parse(method_text)(network, request_)
    hook.remove()
    return counter.get_total_flops(), sum(read)


@pytest.mark.parametrize(
    "method_text",
    ["SSD()", "SSD(batch=2)", "ASSD()", "LFSSD()", "LFSSD(alpha=2.0, batch=3)", "IAU()", "IAU(correction=0.0)"],
)
def test_an_edit_costs_what_was_planned(method_text: str, paper: Paper, plain):
    method, request_ = parse(method_text), text_request()
    real, positions = edited(method_text, request_, plain)
    sizes, _ = widths(paper.network, course_of(method).opened)
    planned = edit_reads(paper.network, paper.small, method, request_, [], "cpu", 1)
    total = flops(sizes, planned, course_of(method))
    assert tokens(planned)["training"] == positions
    assert math.isclose(real, total.total - total.audits, rel_tol=0.001), real / (total.total - total.audits)


def test_a_dampening_edit_reads_the_forget_set_twice_and_everything_else_once(paper: Paper):
    request_ = text_request()
    planned = edit_reads(paper.network, paper.small, parse("SSD(batch=3)"), request_, [], "cpu", 1)
    rows = [sum(example.rows for example in examples) for examples in (request_.forget, request_.retain)]
    assert sum(part.now[0].rows for step in planned.steps for part in step) == 2 * rows[0] + rows[1]
    assert [call.rows for part in planned.steps[0][4:] for call in part.now] != []  # 12 examples in threes, then 6
    assert len(planned.steps[0]) == 4 + 2


def test_what_an_edit_gathers_is_counted_by_its_sets_and_runs():
    request_ = text_request()  # 6 examples each: 12, then 6
    # one run each: a gradient; then importances of all beside the forget set's gradient
    assert course_of(parse("SSD()")).gathered(request_) == (2, 2)
    # several runs: importances of all, those of the forget set so far, and a gradient
    assert course_of(parse("SSD(batch=1)")).gathered(request_) == (3, 2)
    assert course_of(parse("SSD(batch=6)")).gathered(request_) == (2, 2)  # 2 runs: 0 + 1 + 1; 1 run: 1 + 0 + 1
    assert course_of(parse("ASSD()")).gathered(request_) == (2, 3)  # and a quotient of every number
    assert course_of(parse("IAU()")).gathered(request_) == (1, 1)


def test_negating_costs_what_its_learning_costs(paper: Paper):
    method = parse(f"Negate(learn=Finetune(objective=-1.0 * Ascent(), adapter=Full(), steps=3, {STOP}))")
    where = (text_request(), [parse("Loss()")], Machine(memory=1e9), 0.0, Path("nowhere"))
    found, learnt = (counted(paper, m, *where) for m in (method, method.learn))
    assert found.flops == learnt.flops
    half = paper.at(torch.bfloat16)
    found, learnt = (counted(half, m, *where) for m in (method, method.learn))
    # what is trained in float32 is written in the precision of the model
    assert (found.disk["model"], learnt.disk["model"]) == (2 * paper.parameters, 4 * paper.parameters)


def test_the_parts_of_an_edits_memory_add_up(paper: Paper):
    made = counted(paper, parse("ASSD()"), text_request(), [parse("Loss()")], Machine(memory=1e9), 1e6, Path("nowhere"))
    assert math.isclose(sum(made.memory.training.values()), made.memory.phases["training"])
    assert made.memory.training["gradient and importances"] == 2 * 4 * paper.parameters
    assert list(made.memory.phases) == ["audit before", "training", "edit", "merge", "audit after"]
    assert made.disk == {"model": 4 * paper.parameters, "adapter": 0.0}


def test_a_method_that_cannot_be_counted_is_named():
    for text, name in (("LAF()", "LAF"), ("Relearn()", "Relearn"), ("Negate(learn=LAF())", "Negate")):
        try:
            method = parse(text)
        except UsageRefused:  # Negate learns by fine-tuning alone
            continue
        with pytest.raises(UsageRefused, match=f"cannot count {name}. It counts Finetune, SSD"):
            course_of(method)


# Images


def real_images(network: ImageClassifier) -> ImageClassifier:
    """The network with attention written out as products, which is what torch can count."""
    module = AutoModelForImageClassification.from_config(network.module.config, attn_implementation="eager")
    return ImageClassifier.of(module.requires_grad_(False).eval(), None)


def pictured(network: ImageClassifier, request_: Request) -> Paper:
    """The network on paper."""
    made = on_paper("tiny", network.module.config, None, torch.float32, "cpu", None)
    return replace(made, shape=tuple(request_.forget[0].pixels.shape))


VIT = [f"objective=Ascent(), adapter={a}" for a in ("Bounded()", "LoRA()", "Full()", "Bounded(targets='all', rank=3)")]
RUNS = [
    *[("vit", settings) for settings in VIT],
    ("vit", "objective=Ascent(), adapter=Bounded(), activations='recomputed'"),
    ("vit", "objective=RetainNLL() + Ascent(), adapter=LoRA(), accumulate=2"),
    ("resnet", "objective=Ascent(), adapter=Full()"),
    ("resnet", "objective=NPO() + RetainNLL(), adapter=Full()"),
    ("swin", "objective=Ascent(), adapter=Full()"),
    ("swin", "objective=Ascent(), adapter=Full(), activations='recomputed'"),
]


def swin() -> ImageClassifier:
    """Attention within windows, and stages of different widths that follow from one another."""
    config = SwinConfig(image_size=16, patch_size=2, embed_dim=8, depths=[2, 2], num_heads=[2, 4], window_size=4)
    config.id2label = {number: str(number) for number in range(4)}
    return ImageClassifier.of(AutoModelForImageClassification.from_config(config), None)


def asked(family: str) -> tuple[ImageClassifier, Request]:
    """A small network and ten images of each set for it."""
    made = {"vit": vit, "resnet": resnet, "swin": swin}[family]()
    return real_images(made), picture_request(10, side=8 if family == "vit" else 16)


@pytest.mark.parametrize(("family", "settings"), RUNS)
def test_a_run_on_images_costs_what_was_planned(family: str, settings: str):
    network, request_ = asked(family)
    rest = f"learning_rate=0.00001, steps=3, batch=4, retain_batch=4, norms=False, {STOP}"
    method = parse(f"Finetune({settings}, {rest})")
    read: list[int] = []

    def note(_module, _given, named) -> None:
        if torch.is_grad_enabled():
            read.append(len(named["pixel_values"]))

    told: list[int] = []
    hook = network.module.register_forward_pre_hook(note, with_kwargs=True)
    with FlopCounterMode(display=False) as counter:

        def on_event(event) -> None:
            if isinstance(event, Step) or (isinstance(event, Checked) and event.step == 0):
                told.append(counter.get_total_flops())

        method(network, request_, on_event)
    hook.remove()
    paper = pictured(network, request_)
    course = course_of(method)
    sizes, _ = pictures(paper.network, course.opened, paper.shape, course.recomputed)
    planned = reads(paper.network, paper.small, method, request_, [], "cpu", 1)
    total = flops(sizes, planned, course)
    expected = total.total - total.audits - total.checks
    if planned.asked.before:  # its first answer is given twice, to see how much of it there is to remember
        expected += sizes.forward(planned.steps[0][0].before[0])
    assert math.isclose(told[-1] - told[0], expected, rel_tol=0.001), (told[-1] - told[0]) / expected
    assert tokens(planned)["training"] == sum(read)
    assert tokens(planned)["of the examples"] == 3 * (4 + 4 + 4)  # and the stand-ins of the forgotten


def test_an_edit_of_an_image_classifier_costs_what_was_planned():
    network, request_ = asked("resnet")
    method = parse("SSD(batch=4)")
    with FlopCounterMode(display=False) as counter:
        method(network, request_)
    paper = pictured(network, request_)
    sizes, _ = pictures(paper.network, course_of(method).opened, paper.shape, False)
    planned = edit_reads(paper.network, paper.small, method, request_, [], "cpu", 1)
    total = flops(sizes, planned, course_of(method))
    assert tokens(planned)["training"] == 10 + 20
    assert math.isclose(counter.get_total_flops(), total.total - total.audits, rel_tol=0.001)


def test_a_layer_that_reads_pixels_is_counted_by_where_it_looks():
    """One convolution of 3 to 8 channels over 3 x 3 pixels, at 8 x 8 places of an image of 16 x 16, and so on."""
    paper = pictured(resnet(), picture_request(side=16))
    sizes, _ = pictures(paper.network, parse("Full()"), paper.shape, False)
    first = 2 * (3 * 7 * 7) * 8 * 8 * 8  # stride 2; then pooled to 4 x 4
    basic = 2 * 2 * (8 * 3 * 3) * 8 * 4 * 4  # two convolutions, at 4 x 4 places
    wider = 2 * (8 * 3 * 3) * 16 * 2 * 2 + 2 * (16 * 3 * 3) * 16 * 2 * 2 + 2 * 8 * 16 * 2 * 2  # and the shortcut
    last = 2 * 16 * 4
    assert sizes.forward(Call(5, 1, 5)) == 5 * (first + basic + wider + last)


def test_images_keep_activations_for_each_image_and_no_mask():
    request_ = picture_request(side=16)
    paper = pictured(resnet(), request_)
    adapter = parse("Full()")
    two, four = (held(paper, adapter, Call(n, 1, n), recompute=False) for n in (2, 4))
    assert two.of(1) > 0
    assert math.isclose(four.of(1), 2 * two.of(1), rel_tol=0.05)
    method = parse(f"Finetune(objective=RetainNLL(), adapter=Full(), steps=2, {STOP})")
    made = counted(paper, method, request_, [parse("Loss()")], Machine(memory=1e9), 0.0, Path("nowhere"))
    assert made.memory.training["tree mask"] == 0
    assert made.memory.training["weights"] == 2 * 4 * paper.parameters
    assert made.facts()["reads"]["images"]


def test_a_whole_plan_of_a_run_on_images(expunge, tmp_path):
    from PIL import Image
    from sklearn.datasets import load_digits
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

    digits = load_digits()
    for k in range(40):
        place = tmp_path / "digits" / str(digits.target[k])
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray((digits.images[k] * 255 / 16).astype(np.uint8)).save(place / f"{k}.png")
    shape = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, num_labels=10)
    ViTForImageClassification(ViTConfig(**shape, image_size=8, patch_size=4)).save_pretrained(tmp_path / "model")
    ViTImageProcessorPil(size={"height": 8, "width": 8}).save_pretrained(tmp_path / "model")
    asked = [tmp_path / "model", "--forget", tmp_path / "digits", "--forget-class", "3", "--out", tmp_path / "out"]
    for method in ("Finetune(objective=RetainNLL() + Ascent(), steps=4, batch=2, retain_batch=6)", "SSD()"):
        said = expunge("plan", *asked, "--method", method, "--json")
        assert said.code == 0, said.err
        made = json.loads(said.out)
        assert all(value > 0 for value in made["seconds"].values())
        assert made["fits"]
        steps = {"Finetune": 4 * (2 + 6), "SSD()": 0}
        assert made["tokens"]["of the examples"] == next(n for name, n in steps.items() if method.startswith(name))
        assert made["tokens"]["audits"] == 2 * 40
    assert "images" in expunge("plan", *asked, "--method", "SSD()").out


# GGUF


def as_gguf(folder: Path, path: Path, kind: gguf.GGMLQuantizationType) -> Path:
    """The tiny Llama of `folder` in one file, its matrices in blocks of `kind`."""
    module = AutoModelForCausalLM.from_pretrained(folder)
    config = module.config
    backend = json.loads((folder / "tokenizer.json").read_text())["model"]
    out = gguf.GGUFWriter(path, "llama")
    out.add_name("tiny")
    out.add_block_count(config.num_hidden_layers)
    out.add_context_length(config.max_position_embeddings)
    out.add_embedding_length(config.hidden_size)
    out.add_feed_forward_length(config.intermediate_size)
    out.add_head_count(config.num_attention_heads)
    out.add_head_count_kv(config.num_key_value_heads)
    out.add_layer_norm_rms_eps(config.rms_norm_eps)
    out.add_vocab_size(config.vocab_size)
    out.add_tokenizer_model("gpt2")
    out.add_token_list(sorted(backend["vocab"], key=backend["vocab"].get))
    out.add_token_types([1] * len(backend["vocab"]))
    out.add_token_merges([" ".join(pair) for pair in backend["merges"]])
    out.add_eos_token_id(config.eos_token_id)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, value in module.state_dict().items():
        data = value.float().numpy()
        made = gguf.quantize(data, kind) if data.ndim == 2 else data
        out.add_tensor(names.get_name(name, (".weight", ".bias")), made, raw_dtype=kind if data.ndim == 2 else None)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return path


@pytest.fixture(scope="module")
def file(model, tmp_path_factory) -> Path:
    return as_gguf(model, tmp_path_factory.mktemp("gguf") / "tiny.gguf", gguf.GGMLQuantizationType.Q8_0)


@pytest.fixture(scope="module")
def records(tmp_path_factory) -> Inputs:
    root, made = tmp_path_factory.mktemp("records"), {}
    for kind in ("forget", "retain", "holdout"):
        said = [(f"Which {kind} {k}?", f"The {kind} {k * k}.") for k in range(6)]
        rows = [{"id": f"{kind}{k}", "question": q, "answer": a} for k, (q, a) in enumerate(said)]
        made[kind] = root / f"{kind}.jsonl"
        made[kind].write_text("\n".join(map(json.dumps, rows)))
    return Inputs(**made)


def planned(model: Path, records: Inputs, machine: Machine, method: str = "Finetune(steps=3)"):
    return plan(Job(str(model), records, model.parent / "never-written", method, "Loss"), machine)


def test_an_edit_that_does_not_fit_is_told_of_what_an_edit_can_change(model, records):
    machine = Machine("cuda", memory=80e9, dtype="float32")
    peaks = [planned(model, records, replace(machine, dtype=d), "SSD()").memory.peak for d in ("float32", "bfloat16")]
    assert peaks[1] < peaks[0]
    with pytest.raises(EnvironmentRefused, match=r"It would fit with --dtype bfloat16\.$"):
        planned(model, records, replace(machine, memory=sum(peaks) / 2), "SSD()")
    with pytest.raises(EnvironmentRefused, match="No setting of the run would make it fit"):
        planned(model, records, replace(machine, memory=peaks[1] / 2), "SSD()")


def test_a_gguf_file_is_planned_as_the_folder_it_was_made_from(model, file, records):
    machine = Machine("cuda", memory=80e9)
    folder, single = (planned(place, records, machine) for place in (model, file))
    assert single.paper.parameters == folder.paper.parameters
    assert single.flops == folder.flops
    assert tokens(single.read) == tokens(folder.read)
    assert single.paper.dtype == torch.float32  # transformers widens blocks to float32, whatever the device


def test_loading_a_gguf_file_holds_the_file_and_one_tensor_twice(model, file, records):
    header = packed(file)
    table = max(p.numel() for p in AutoModelForCausalLM.from_pretrained(model).parameters())
    assert header.numbers == sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(model).parameters())
    assert header.beside == file.stat().st_size + 2 * 4 * table
    made = planned(file, records, Machine(memory=80e9, rate=1e12))
    libraries = made.memory.training["libraries"]
    assert made.memory.phases["load"] == libraries + 4 * made.paper.parameters + header.beside
    there = planned(file, records, Machine("cuda", memory=80e9))
    assert "load" not in there.memory.phases  # it is widened on the host
    assert there.memory.host == 4 * made.paper.parameters + header.beside


def test_a_file_with_fewer_numbers_than_it_describes_is_refused(model, file):
    header = packed(file)
    header.check("x", header.numbers)
    with pytest.raises(ModelRefused, match="hold .* numbers, and the network that it describes has"):
        header.check("x", header.numbers + 1)


def test_a_torn_gguf_file_is_refused(file, tmp_path):
    torn = tmp_path / "torn.gguf"
    torn.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(ModelRefused, match="its header is not that of a GGUF file"):
        packed(torn)
