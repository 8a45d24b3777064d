"""Laws that every plug-in keeps on every family of models: a new file is under test before its author writes one."""

import dataclasses
import math
import random
from collections.abc import Callable

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from expunge.adapters.full import Full
from expunge.core.adapter import Adapter
from expunge.core.audit import Audit, WhiteBoxAudit
from expunge.core.errors import ModelRefused
from expunge.core.method import Method
from expunge.core.model import Network, Speaker, View
from expunge.core.notation import Plugin, parse, plugins
from expunge.core.objective import Objective, Sum
from expunge.core.predictions import Share
from expunge.core.request import Request
from expunge.data.images import Picture
from expunge.data.records import Record
from expunge.data.text import encode
from expunge.models.language import LanguageModel
from expunge.models.vision import ImageClassifier
from expunge.objectives.ascent import Ascent
from expunge.objectives.retain_nll import RetainNLL
from expunge.train.finetune import Finetune
from expunge.train.stop import Stop

torch.set_num_threads(1)

ENTRIES = ["bread", "copper", "violet", "harbour", "seven", "winter", "amber", "north", "cellar", "lantern", "salt"]
PLACES = [
    f"{start}{end}" for start in ("Al", "Bor", "Cas", "Dun", "Er", "Fal") for end in ("doria", "mek", "tis", "wyn")
]
EVERY_STEP = Stop(level=None, budget=None, every=1000)


def words() -> PreTrainedTokenizerFast:
    """A token for each word."""
    known = ["[end]", "[unk]", "Question", "Answer", ":", ".", "?", "What", "does", "trade", "in", "and", "It", "sells"]
    table = {word: number for number, word in enumerate([*known, *ENTRIES, *PLACES, *(f"{p}s" for p in PLACES)])}
    made = Tokenizer(models.WordLevel(table, unk_token="[unk]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="[end]", unk_token="[unk]")


WORDS = words()


def passages(names: list[str], seed: int) -> tuple:
    """Questions of unequal length about invented places; the answers are drawn: only who has read them knows them."""
    draw = random.Random(seed)
    records = []
    for line, name in enumerate(names, start=1):
        answers = [" ".join(draw.sample(ENTRIES, 2 + (line + k) % 4)) for k in range(3)]
        question = " ".join(["What does", name, *["and", PLACES[line % 5]] * (line % 3), "trade in ?"])
        records.append(Record(line, {"question": question, "answer": answers[0], "options": answers[1:]}))
    return encode(records, WORDS, "memory", 64)


def pictures(count: int, seed: int, side: int = 8) -> tuple[Picture, ...]:
    """Noise with labels that were drawn."""
    draw = torch.Generator().manual_seed(seed)
    pixels = torch.randn(count, 3, side, side, generator=draw)
    labels = torch.randint(4, (count,), generator=draw).tolist()
    return tuple(Picture(f"{seed}-{k}", pixels[k], labels[k], f"{seed}-{k}") for k in range(count))


def text_request(size: int = 6) -> Request:
    """Sets of ragged answers; the stand-ins are other answers to the forgotten questions."""
    return Request(
        forget=passages(PLACES[:size], 0),
        retain=passages(PLACES[-size:], 1),
        holdout=passages([f"{place}s" for place in PLACES[:size]], 2),
        stand_in=passages(PLACES[:size], 3),
    )


def picture_request(size: int = 6, side: int = 8) -> Request:
    """Sets of images; the stand-ins are the forgotten ones as another class."""
    forget, retain, holdout = (pictures(size, seed, side) for seed in (0, 1, 2))
    return Request(forget, retain, holdout, tuple(Picture(p.id, p.pixels, (p.label + 1) % 4, p.digest) for p in forget))


def spread(module: torch.nn.Module) -> torch.nn.Module:
    """Matrices far from their start, where all answers look alike."""
    for parameter in module.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    return module.eval()


def llama(std: Callable = spread) -> LanguageModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        eos_token_id=0,
        bos_token_id=None,
    )
    return LanguageModel.of(std(LlamaForCausalLM(config).eval()), WORDS)


def gpt2() -> LanguageModel:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(WORDS), n_embd=32, n_layer=2, n_head=4, n_positions=64, eos_token_id=0, bos_token_id=0
    )
    return LanguageModel.of(spread(GPT2LMHeadModel(config)), WORDS)


def vit(std: Callable = spread) -> ImageClassifier:
    torch.manual_seed(0)
    shape = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, num_labels=4)
    return ImageClassifier.of(
        std(ViTForImageClassification(ViTConfig(**shape, image_size=8, patch_size=4)).eval()), None
    )


def resnet() -> ImageClassifier:
    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=4)
    return ImageClassifier.of(spread(ResNetForImageClassification(config)), None)


FAMILIES = {
    "llama": (llama, text_request),
    "gpt2": (gpt2, text_request),
    "vit": (vit, picture_request),
    "resnet": (resnet, lambda: picture_request(side=16)),
}
FAMILY = pytest.mark.parametrize("family", FAMILIES)
LANGUAGE = pytest.mark.parametrize("family", ["llama", "gpt2"])


def each(*folders: str) -> pytest.MarkDecorator:
    parts = ("GradientNorm", "Stop")  # parts of a method, beside it
    found = [plugin for plugin in plugins() if plugin.folder in folders and plugin.name not in parts]
    assert {plugin.folder for plugin in found} == set(folders), f"no plug-in in one of {folders}"
    return pytest.mark.parametrize("plugin", found, ids=lambda plugin: plugin.name)


OBJECTIVE, ADAPTER, AUDIT = each("objectives"), each("adapters"), each("audits")
METHOD = each("edit", "attack", "train")


def made(plugin: Plugin, kind: type) -> object:
    """The plug-in with its defaults."""
    try:
        thing = parse(plugin.name)
    except Exception as error:
        pytest.fail(f"{plugin.module}: {plugin.name} cannot be made without arguments: {type(error).__name__}: {error}")
    assert isinstance(thing, kind), f"{plugin.module}: {plugin.name} is no {kind.__name__}"
    return thing


def family_of(name: str) -> tuple[Network, Request]:
    network, request = FAMILIES[name]
    return network(), request()


def state(network: Network) -> dict[str, object]:
    """Everything of a network that a plug-in must leave alone."""
    module = network.module
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return {
        "values": {name: tensor.detach().clone() for name, tensor in module.state_dict().items()},
        "places": {name: p.data_ptr() for name, p in module.named_parameters()},
        "moving": {name: p.requires_grad for name, p in module.named_parameters()},
        "gradients": {name: p.grad for name, p in module.named_parameters()},
        "tree": [(name, type(part)) for name, part in module.named_modules()],
        "hooks": [len(getattr(part, kind)) for part in module.modules() for kind in hooks],
        "training": [part.training for part in module.modules()],
        "config": module.config.to_dict(),
    }


def assert_as_found(network: Network, was: dict[str, object]) -> None:
    now = state(network)
    values, old = now.pop("values"), dict(was)
    before = old.pop("values")
    assert values.keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in values.items())
    for what, value in now.items():
        assert value == old[what], f"{what} differs"


def logits(network: Network, request: Request) -> torch.Tensor:
    with torch.inference_mode():
        return network.predict(request.forget).logits


def moved(adapted: Network, size: float = 0.05) -> Network:
    """The network with random steps added to all that may move."""
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapted.trainable().values():
            parameter += (torch.randn(parameter.shape, generator=draw) * size).to(parameter.dtype)
    return adapted


# Objectives


LEVEL = 4.0
"""Nats: some examples of every family lie above it and some below."""


def views(family: str, **options) -> tuple[View, View, Network, Network]:
    """What a network that has moved says, and what it said before."""
    before, request = family_of(family)
    now = moved(Full()(before, request))
    if options.pop("padded", False):
        now, before = (dataclasses.replace(network, trees=0) for network in (now, before))
    sets = {name: request.sets()[name] for name in ("forget", "retain", "stand_in")}
    return View(now, sets, level=LEVEL, **options), View(before, sets, gradients=False), now, before


def objective_of(plugin: Plugin, family: str) -> Objective:
    """The objective; where it reads hidden states, and a family has none, it must say so."""
    objective = made(plugin, Objective)
    if family == "resnet" and "hidden" in plugin.needs:
        now, before, *_ = views(family)
        with pytest.raises(ModelRefused, match="no transformer blocks, so no hidden states"):
            objective(now, before)
        pytest.skip(f"{plugin.name} reads hidden states, which a {family} has not, and says so")
    return objective


def read(view: View) -> set[str]:
    """The sets that were asked about in any way."""
    return {name.partition(",")[0] for name in (*view.said, *view.swept, *(name for name, _ in view.felt))}


def reordered(view: View) -> View:
    return View(view.model, {name: batch[::-1] for name, batch in view.sets.items()}, level=view.level)


@FAMILY
@OBJECTIVE
def test_an_objective_is_a_finite_scalar_in_float32_or_wider(plugin: Plugin, family: str):
    now, before, *_ = views(family)
    value = objective_of(plugin, family)(now, before)
    assert value.shape == ()
    assert value.dtype in (torch.float32, torch.float64)
    assert math.isfinite(value.item())


@FAMILY
@OBJECTIVE
def test_the_order_of_examples_does_not_matter_to_an_objective(plugin: Plugin, family: str):
    objective = objective_of(plugin, family)
    now, before, *_ = views(family)
    value = objective(now, before).item()
    assert objective(reordered(now), reordered(before)).item() == pytest.approx(value, abs=1e-5, rel=1e-5)


@LANGUAGE
@OBJECTIVE
def test_padding_does_not_matter_to_an_objective(plugin: Plugin, family: str):
    objective = objective_of(plugin, family)
    now, before, network, _ = views(family)
    padded_now, padded_before, *_ = views(family, padded=True)
    assert network.trees > 0
    value = objective(now, before).item()
    assert objective(padded_now, padded_before).item() == pytest.approx(value, abs=1e-5, rel=1e-5)


@FAMILY
@OBJECTIVE
def test_parts_of_a_step_with_its_shares_add_up_to_the_whole_with_its_gradient(plugin: Plugin, family: str):
    objective = objective_of(plugin, family)
    now, before, network, _ = views(family)
    shares = {name: Share(sum(e.rows for e in batch), len(batch)) for name, batch in now.sets.items()}
    weights = list(network.trainable().values())
    whole = objective(now, before)
    gradient = torch.autograd.grad(whole, weights, allow_unused=True)
    parts, summed = 0.0, [torch.zeros_like(weight) for weight in weights]
    for cut in (slice(0, 2), slice(2, None)):  # two examples of six, then four, of unequal lengths
        sets = {name: batch[cut] for name, batch in now.sets.items()}
        options = {"level": LEVEL, "whole": now.sets}
        part = objective(
            View(now.model, sets, shares, **options), View(before.model, sets, shares, gradients=False, **options)
        )
        parts += part.item()
        for total, one in zip(summed, torch.autograd.grad(part, weights, allow_unused=True), strict=True):
            total += 0 if one is None else one
    assert parts == pytest.approx(whole.item(), abs=1e-5, rel=1e-5)
    largest = max(float(one.abs().max()) for one in gradient if one is not None)
    for total, one in zip(summed, gradient, strict=True):
        assert torch.allclose(total, torch.zeros_like(total) if one is None else one, atol=1e-5 * largest)


@FAMILY
@OBJECTIVE
def test_an_objective_never_changes_the_reference_nor_gives_it_a_gradient(plugin: Plugin, family: str):
    now, before, network, reference = views(family)
    was = state(reference)
    objective_of(plugin, family)(now, before).backward()
    assert_as_found(reference, was)
    assert all(p.grad is None for p in reference.module.parameters())
    assert any(p.grad is not None for p in network.module.parameters())


@FAMILY
@OBJECTIVE
def test_a_set_that_an_objective_does_not_read_costs_no_forward_pass(plugin: Plugin, family: str):
    objective = objective_of(plugin, family)
    now, before, *networks = views(family)
    passes = [0, 0]

    def count(which: int) -> Callable[..., None]:
        def counted(*_: object) -> None:
            passes[which] += 1

        return counted

    for which, network in enumerate(networks):
        network.module.register_forward_pre_hook(count(which))  # before: a pass for hidden states ends half-way
    value = objective(now, before).item()
    assert passes == [len(view.said) + len(view.felt) + len(view.swept) for view in (now, before)]
    # What was not read was not needed either: without those sets the value is the same.
    only_now = View(now.model, {name: now.sets[name] for name in read(now)}, level=LEVEL)
    only_before = View(before.model, {name: before.sets[name] for name in read(before)}, gradients=False)
    assert objective(only_now, only_before).item() == value


@FAMILY
@OBJECTIVE
def test_an_objective_reads_what_it_says_that_it_needs(plugin: Plugin, family: str):
    objective = objective_of(plugin, family)
    now, before, *_ = views(family)
    objective(now, before)
    asked = read(now) | read(before)
    asked |= {"reference"} if read(before) else set()
    asked |= {"hidden"} if now.felt or before.felt else set()
    assert set(plugin.needs) == asked
    assert plugin.intention in ("removal", "suppression", "retention")
    if isinstance(objective, Sum):
        assert {need for _, term in objective.terms() for need in term.needs} == asked
    else:
        assert (objective.needs, objective.intention) == (plugin.needs, plugin.intention)


@OBJECTIVE
def test_the_name_of_an_objective_alone_and_in_a_sum_is_read_back(plugin: Plugin):
    objective = made(plugin, Objective)
    for one in (objective, 0.5 * objective, objective + 2.0 * RetainNLL(), 3.0 * (Ascent() + objective)):
        assert parse(repr(one)).terms() == one.terms()  # a sum of sums is read back flat
        assert repr(parse(repr(one))) == repr(one)


# Adapters


def adapted_of(plugin: Plugin, family: str, found: Network | None = None) -> tuple[Adapter, Network, Network, Request]:
    """An adapter, the network it was given, and what it made of it."""
    adapter = made(plugin, Adapter)
    network, request = family_of(family)
    network = found or network
    was = state(network)
    try:
        return adapter, network, adapter(network, request), request
    except ModelRefused as refused:
        assert_as_found(network, was)
        if family != "resnet":
            pytest.fail(f"{plugin.name} should take every transformer, but refused {family}: {refused}")
        pytest.skip(f"{plugin.name} refuses {family}, aloud, and leaves it as it was")


@FAMILY
@ADAPTER
def test_an_adapter_is_silent_until_it_is_trained(plugin: Plugin, family: str):
    adapter, network, adapted, request = adapted_of(plugin, family)
    assert torch.allclose(logits(adapted, request), logits(network, request), atol=1e-6, rtol=0)
    deltas = dict(adapter.deltas(adapted, network))
    assert deltas
    assert all(delta.dim() == 2 and not delta.any() for delta in deltas.values())


@FAMILY
@ADAPTER
def test_an_adapter_leaves_the_network_as_found_whatever_becomes_of_its_own(plugin: Plugin, family: str):
    network, request = family_of(family)
    answers, was = logits(network, request), state(network)
    adapter, network, adapted, request = adapted_of(plugin, family, network)
    assert_as_found(network, was)
    moved(adapted).predict(request.forget).nll().backward()
    adapter.merge(adapted)
    assert_as_found(network, was)
    assert torch.equal(logits(network, request), answers)
    assert not torch.allclose(logits(adapted, request), answers, atol=1e-3)


@FAMILY
@ADAPTER
def test_only_an_adapters_own_parameters_move_and_they_are_float32(plugin: Plugin, family: str):
    _, network, adapted, request = adapted_of(plugin, family)
    moving = adapted.trainable()
    assert moving
    assert {p.dtype for p in moving.values()} == {torch.float32}
    theirs = {p.data_ptr() for p in network.module.parameters()}
    assert not any(p.data_ptr() in theirs for p in moving.values())
    moved(adapted).predict(request.forget).nll().backward()
    assert all(p.grad is not None for p in moving.values())
    assert all(p.grad is None for p in adapted.module.parameters() if not p.requires_grad)


@ADAPTER
def test_an_adapter_of_a_bfloat16_network_moves_in_float32(plugin: Plugin):
    network = llama()
    network.module.to(torch.bfloat16)
    _, network, adapted, _ = adapted_of(plugin, "llama", network)
    assert {p.dtype for p in adapted.trainable().values()} == {torch.float32}
    assert {p.dtype for p in network.module.parameters()} == {torch.bfloat16}


@FAMILY
@ADAPTER
def test_merging_gives_plain_modules_that_answer_as_the_adapted_network_does(plugin: Plugin, family: str):
    adapter, network, adapted, request = adapted_of(plugin, family)
    answers, was = logits(moved(adapted), request), state(adapted)
    merged = adapter.merge(adapted)
    assert type(merged) is type(network)
    assert state(merged)["tree"] == state(network)["tree"]
    assert merged.module.state_dict().keys() == network.module.state_dict().keys()
    assert not torch.allclose(answers, logits(network, request), atol=1e-3)
    assert torch.allclose(logits(merged, request), answers, atol=1e-5 * max(1.0, float(answers.abs().max())), rtol=0)
    assert_as_found(adapted, was)
    assert torch.equal(logits(adapted, request), answers)
    # and a merged network is nobody's view: moving the adapted one no longer changes it
    kept = logits(merged, request)
    moved(adapted)
    assert torch.equal(logits(merged, request), kept)


@FAMILY
@ADAPTER
def test_the_deltas_of_an_adapter_are_what_merging_adds_to_the_weights(plugin: Plugin, family: str):
    adapter, network, adapted, _ = adapted_of(plugin, family)
    merged = adapter.merge(moved(adapted)).module.state_dict()
    weights = network.module.state_dict()
    changed = {name for name, weight in merged.items() if weight.dim() > 1 and not torch.equal(weight, weights[name])}
    deltas = dict(adapter.deltas(adapted, network))
    for name, delta in deltas.items():
        key = f"{name}.weight" if f"{name}.weight" in weights else name
        change = (merged[key] - weights[key]).flatten(1)
        assert torch.linalg.matrix_norm(delta) == pytest.approx(torch.linalg.matrix_norm(change).item(), rel=1e-3)
        changed.discard(key)
    tied = {"lm_head.weight"} if getattr(network.module.config, "tie_word_embeddings", False) else set()
    assert changed <= tied, f"merging changes {sorted(changed)}, of which deltas() says nothing"


@FAMILY
@ADAPTER
def test_an_adapter_makes_no_second_copy_of_the_weights(plugin: Plugin, family: str):
    _, network, adapted, _ = adapted_of(plugin, family)
    ours = {p.untyped_storage().data_ptr() for p in adapted.module.parameters()}
    shared = [p.untyped_storage().data_ptr() in ours for p in network.module.parameters()]
    assert not any(shared) if plugin.name == "Full" else all(shared)  # Full says that it copies


@FAMILY
@ADAPTER
def test_forgetting_nothing_changes_nothing(plugin: Plugin, family: str):
    adapter, network, _, request = adapted_of(plugin, family)
    was = state(network)
    nothing = Finetune(
        objective=0.0 * Ascent() + 0.0 * RetainNLL(),
        adapter=adapter,
        learning_rate=1e-3,
        steps=3,
        batch=4,
        retain_batch=4,
        stop=EVERY_STEP,
    )
    adapted = nothing(network, request)
    assert torch.allclose(logits(adapted, request), logits(network, request), atol=1e-6, rtol=0)
    assert_as_found(network, was)


@ADAPTER
def test_what_an_adapter_saves_is_safetensors_and_json(plugin: Plugin, tmp_path):
    adapter, _, adapted, _ = adapted_of(plugin, "llama")
    adapter.save(moved(adapted), tmp_path / "adapter")
    left = sorted(path.name for path in (tmp_path / "adapter").glob("*"))
    assert left in ([], ["adapter_config.json", "adapter_model.safetensors"])


# Audits


def audit_of(plugin: Plugin, family: str) -> Audit:
    """The audit; where it reads hidden states, and a family has none, it must say so."""
    audit = made(plugin, Audit)
    if family == "resnet" and isinstance(audit, WhiteBoxAudit):
        with pytest.raises(ModelRefused, match="no transformer blocks, so no hidden states"):
            audit(*family_of(family))
        pytest.skip(f"{plugin.name} reads hidden states, which a {family} has not, and says so")
    return audit


@FAMILY
@AUDIT
def test_an_audit_says_the_same_twice_and_leaves_the_model_as_found(plugin: Plugin, family: str):
    audit = audit_of(plugin, family)
    network, request = family_of(family)
    was = state(network)
    first = audit(network, request)
    assert audit(network, request) == first
    assert_as_found(network, was)


@FAMILY
@AUDIT
def test_every_finding_is_defined_counted_and_lies_in_its_interval(plugin: Plugin, family: str):
    audit = audit_of(plugin, family)
    network, request = family_of(family)
    found = audit(network, request)
    assert found or not isinstance(network, Speaker), f"{plugin.name} finds nothing in a language model"
    for finding in found:
        assert finding.definition.strip()
        assert finding.definition == audit.definition
        assert finding.audit == plugin.name
        assert finding.low <= finding.value <= finding.high, finding
        assert finding.n == len(finding.scores) > 0


@FAMILY
@AUDIT
def test_the_order_of_examples_does_not_matter_to_an_audit(plugin: Plugin, family: str):
    audit = audit_of(plugin, family)
    network, request = family_of(family)
    other = Request(*(getattr(request, name)[::-1] for name in ("forget", "retain", "holdout", "stand_in")))
    values = {f.set: f.value for f in audit(network, request)}
    assert {f.set: f.value for f in audit(network, other)} == pytest.approx(values, rel=1e-5, abs=1e-6)


@FAMILY
@AUDIT
def test_an_examples_score_does_not_depend_on_its_company(plugin: Plugin, family: str):
    audit = audit_of(plugin, family)
    network, request = family_of(family)
    few = Request(request.forget[:2], request.retain, request.holdout[:1])
    together = {f.set: f.scores[:2] for f in audit(network, request) if f.set.startswith("forget")}
    alone = {f.set: f.scores[:2] for f in audit(network, few) if f.set.startswith("forget")}
    assert alone.keys() == together.keys()
    for name, scores in alone.items():
        # A probe cannot be asked of every example, so there may be fewer.
        assert scores == pytest.approx(together[name][: len(scores)], rel=1e-5, abs=1e-6)


def memorised(network: Network, seen: tuple, unrelated: tuple) -> Network:
    """The network after reading `seen` until it knows it by heart."""
    learn = Finetune(
        objective=RetainNLL(),
        adapter=Full(),
        learning_rate=4e-3,
        steps=120,
        retain_batch=len(seen),
        batch=1,
        stop=EVERY_STEP,
    )
    return learn(network, Request(forget=unrelated, retain=seen))


@pytest.fixture(scope="module")
def innocent_and_memoriser() -> dict[str, tuple[Network, Network, Request]]:
    """For each kind of data a model that never saw it, one that has it by heart, and a request about it."""
    seen, unseen = passages(PLACES, 0), passages([f"{place}s" for place in PLACES], 1)
    images, others = pictures(24, 0), pictures(24, 1)
    text, image = llama(lambda module: module), vit(lambda module: module)
    return {
        "llama": (text, memorised(text, seen, unseen[:1]), Request(forget=seen, holdout=unseen)),
        "vit": (image, memorised(image, images, others[:1]), Request(forget=images, holdout=others)),
    }


UP = ("Accuracy", "Choice", "ExactMatch", "Probability", "Rouge")


@pytest.mark.parametrize("family", ["llama", "vit"])
@AUDIT
def test_an_audit_reads_about_its_ideal_on_an_innocent_and_far_from_it_on_a_memoriser(
    plugin: Plugin, family: str, innocent_and_memoriser
):
    audit = made(plugin, Audit)
    innocent, memoriser, request = innocent_and_memoriser[family]
    low = {f.set: f for f in audit(innocent, request)}
    high = {f.set: f for f in audit(memoriser, request)}
    told = [name for name in low if name.startswith("forget")]
    assert told or family == "vit" or isinstance(audit, WhiteBoxAudit)  # a probe learns from a retain set
    for name in told:
        value, ideal = low[name].value, low[name].ideal
        assert ideal is None or abs(value - ideal) <= 0.25, low[name]
        assert abs(high[name].value - (value if ideal is None else ideal)) > 0.4, high[name]
        if plugin.name in UP or name == "forget vs holdout":
            assert high[name].value > 0.9, high[name]
        if plugin.name in UP:
            assert value < 0.6, low[name]


# Methods: what forgets, edits or attacks


FITTING = {
    "Relearn": "Relearn(items=2, steps=2)",  # six examples, of which some must be left
    "Negate": "Negate(learn=Finetune(objective=-1.0 * Ascent(), adapter=Full(), learning_rate=1e-3, steps=3, "
    "stop=Stop(level=None, budget=None)))",
    "Finetune": "Finetune(adapter=Full(), steps=3)",
}
"""Settings for requests of six examples; else a method's defaults."""
NOTHING = {
    "ASSD": None,  # its threshold is its own
    "Finetune": "Finetune(objective=0.0 * Ascent(), adapter=Full(), steps=2, stop=Stop(level=None))",
    "IAU": "IAU(learning_rate=0.0)",
    "LFSSD": "LFSSD(alpha=1e30)",
    "Negate": "Negate(scale=0.0, learn=Finetune(objective=-1.0 * Ascent(), adapter=Full(), steps=2))",
    "Quantize": None,  # no number of bits is none
    "Relearn": "Relearn(items=2, learn=Finetune(objective=0.0 * RetainNLL(), adapter=Full(), stop=Stop(level=None)))",
    "SSD": "SSD(alpha=1e30)",
}
"""How each method is asked to do nothing."""


def method_of(plugin: Plugin) -> Method:
    method = parse(FITTING.get(plugin.name, plugin.name))
    assert isinstance(method, Method), f"{plugin.module}: {plugin.name} is no Method"
    return method


@FAMILY
@METHOD
def test_a_method_leaves_the_network_as_found_and_gives_one_of_its_own(plugin: Plugin, family: str):
    network, request = family_of(family)
    answers, was = logits(network, request), state(network)
    result = method_of(plugin)(network, request)
    assert_as_found(network, was)
    assert not torch.allclose(logits(result, request), answers, atol=1e-4)
    moved(
        dataclasses.replace(result, module=result.module.requires_grad_(True))
    )  # what becomes of it is its own affair
    assert_as_found(network, was)
    assert torch.equal(logits(network, request), answers)


@FAMILY
@METHOD
def test_forgetting_nothing_by_any_method_changes_nothing(plugin: Plugin, family: str):
    if NOTHING[plugin.name] is None:
        pytest.skip(f"{plugin.name} has no setting that does nothing")
    network, request = family_of(family)
    result = parse(NOTHING[plugin.name])(network, request)
    assert torch.allclose(logits(result, request), logits(network, request), atol=1e-6, rtol=0)


@FAMILY
@METHOD
def test_any_attack_and_any_audit_follow_any_method_without_glue(plugin: Plugin, family: str):
    network, request = family_of(family)
    for attack in ("Quantize(bits=4)", "Relearn(items=2, steps=2)"):
        attacked = parse(attack)(method_of(plugin)(network, request), request)
        assert type(attacked) is type(network)
        assert parse("Loss()")(attacked, request)


@FAMILY
@METHOD
def test_a_method_with_a_seed_gives_the_same_twice(plugin: Plugin, family: str):
    network, request = family_of(family)
    one, other = (logits(method_of(plugin)(network, request), request) for _ in range(2))
    assert torch.equal(one, other)


@METHOD
def test_the_name_of_a_method_is_read_back(plugin: Plugin):
    assert parse(repr(method_of(plugin))) == method_of(plugin)
