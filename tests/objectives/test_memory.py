"""Objectives that keep something from step to step, or read weights: exact whatever a step is cut into."""

import math
from collections.abc import Callable

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, ViTConfig, ViTForImageClassification

from expunge.adapters.full import Full
from expunge.adapters.lora import LoRA
from expunge.core.model import network_of
from expunge.core.objective import Objective
from expunge.core.predictions import Share
from expunge.core.question import Scores
from expunge.core.request import Request
from expunge.core.view import Run, View
from expunge.data.images import Picture
from expunge.data.text import Passage
from expunge.errors import ModelRefused, UsageRefused
from expunge.events import Event, Step
from expunge.methods.finetune import Finetune
from expunge.methods.stop import Stop
from expunge.models.language import LanguageModel
from expunge.models.vision import ImageClassifier
from expunge.notation.parse import parse
from expunge.objectives._lagged import last_step
from expunge.objectives.adaptive_retain import AdaptiveRetain
from expunge.objectives.dpo import DPO
from expunge.objectives.group_penalty import GroupPenalty
from expunge.objectives.gs_lora import GSLoRA
from expunge.objectives.gs_lora_plus import GSLoRAPlus
from expunge.objectives.pdu import PDU
from expunge.objectives.prototype import Prototype
from expunge.objectives.random_label import RandomLabel
from expunge.objectives.retain_nll import RetainNLL
from expunge.objectives.rmu import RMU
from expunge.objectives.scrub import SCRUB
from expunge.train.batches import Batches

torch.set_num_threads(1)

V = 30
FREE = Stop(level=None, max_retain_increase=None, every=1000)


def language() -> LanguageModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=V, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4, eos_token_id=0
    )
    module = LlamaForCausalLM(config).eval()
    for parameter in module.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return LanguageModel.of(module, None)


def vit() -> ImageClassifier:
    torch.manual_seed(0)
    shape = dict(hidden_size=16, num_hidden_layers=3, num_attention_heads=4, intermediate_size=24, num_labels=4)
    module = ViTForImageClassification(ViTConfig(**shape, image_size=8, patch_size=4)).eval()
    return ImageClassifier.of(module, None)


def passages(name: str, count: int, seed: int) -> tuple[Passage, ...]:
    """Examples of 2 to 8 labelled tokens."""
    draw = torch.Generator().manual_seed(seed)

    def passage(k: int) -> Passage:
        tokens = torch.randint(1, V, (4 + (3 * k) % 7,), generator=draw).tolist()
        return Passage(f"line-{k}", tuple(tokens), 2, "", f"{name}-{k}")

    return tuple(passage(k) for k in range(count))


def pictures(count: int, seed: int) -> tuple[Picture, ...]:
    draw = torch.Generator().manual_seed(seed)
    return tuple(Picture(str(k), torch.randn(3, 8, 8, generator=draw), k % 4, f"{seed}-{k}") for k in range(count))


TEXTS = Request(passages("f", 7, 1), passages("r", 9, 2), (), passages("s", 7, 3))


def trained(objective: Objective, accumulate: int, steps: int = 4) -> tuple[dict[str, torch.Tensor], list[Step]]:
    """What moved, and each step's line."""
    events: list[Event] = []
    plan = Finetune(
        objective=objective,
        adapter=LoRA(rank=2),
        learning_rate=1e-2,
        steps=steps,
        batch=4,
        retain_batch=5,
        accumulate=accumulate,
        stop=FREE,
    )
    network = network_of(plan(language(), TEXTS, events.append), "a test")
    moved = {name: p.detach().clone() for name, p in network.trainable().items()}
    return moved, [event for event in events if isinstance(event, Step)]


@pytest.mark.parametrize(
    "objective",
    [
        PDU(multiplier=2.0, rate=3.0, slack=-0.5, warmup=1),
        AdaptiveRetain(measure=1) + RandomLabel(),
        RMU(layer=0) + RetainNLL(),
        DPO() + 0.1 * GroupPenalty(warmup=2),
        Prototype(bound=3.0),
    ],
    ids=repr,
)
def test_a_step_read_in_parts_is_the_step_read_at_once(objective: Objective):
    whole, lines = trained(objective, 1)
    for accumulate in (2, 4):
        parts, others = trained(objective, accumulate)
        assert [line.loss for line in others] == pytest.approx([line.loss for line in lines], rel=1e-4)
        for name, value in whole.items():
            # A gradient of about 0 turns AdamW's first step either way; the rest agrees to rounding.
            assert torch.allclose(parts[name], value, atol=2e-3, rtol=0), name
    assert len({round(line.loss, 6) for line in lines}) == 4  # it does train


# What a step has lost


def test_a_steps_loss_is_told_once_when_the_next_one_begins():
    kept: dict[str, float] = {}
    assert last_step(kept, 1, 0.25) is None
    assert last_step(kept, 1, 0.5) is None
    assert last_step(kept, 2, 1.0) == 0.75
    assert last_step(kept, 2, 1.0) is None
    assert last_step(kept, 3, 7.0) == 2.0


def test_outside_of_a_run_no_step_is_ever_over():
    kept: dict[str, float] = {}
    assert [last_step(kept, 0, 1.0) for _ in range(3)] == [None] * 3


def steps(given: Callable[..., View], objective: Objective, losses: list[float]) -> list[float]:
    """The value at each step of a run whose retain row has these losses, and whose forget row is flat."""
    memory: dict[str, object] = {}
    values = []
    for step, loss in enumerate(losses, start=1):
        p = math.exp(-loss)
        now = given(forget=[[[0.0, 0.0]]], retain=[[[math.log(p), math.log(1 - p)]]])
        now.run.step, now.run.memory = step, memory
        values.append(objective(now, now).item())
    return values


def test_the_primal_dual_weight_follows_the_constraint(given):
    # limit 1.0 + 0.3; after steps of 1.0, 2.0, 2.0, 0.1 the weight is 5, + 2 (2 - 1.3), + 2 (2 - 1.3), + 2 (0.1 - 1.3)
    losses = [1.0, 2.0, 2.0, 0.1, 1.0]
    values = steps(given, PDU(multiplier=5.0, rate=2.0, slack=0.3, warmup=2), losses)
    weights = [value / loss for value, loss in zip(values, losses, strict=True)]
    assert weights == pytest.approx([5.0, 5.0, 6.4, 7.8, 5.4], abs=1e-9)


def test_the_primal_dual_weight_is_never_negative(given):
    values = steps(given, PDU(multiplier=1.0, rate=10.0, slack=0.0, warmup=1), [2.0, 0.5, 0.5])
    assert values == pytest.approx([2.0, 0.5, 0.0], abs=1e-9)  # 1 + 10 (2 - 2), then 1 + 10 (0.5 - 2) < 0


def test_the_adaptive_weight_is_the_papers_function_of_the_rise():
    retain = AdaptiveRetain()
    # 0.3 * 6^0 + 0.8 = 1.1 is below the least, 0.3 * 6 + 0.8 = 2.6, and from a rise of 1.06 the cap holds
    assert retain.weight(0.0) == 1.2
    assert retain.weight(-3.0) == 1.2
    assert retain.weight(0.5) == pytest.approx(0.3 * math.sqrt(6) + 0.8, abs=1e-12)
    assert retain.weight(1.0) == pytest.approx(2.6, abs=1e-12)
    assert retain.weight(1.06) == pytest.approx(2.8, abs=5e-3)
    assert retain.weight(1.07) == retain.weight(1e9) == 2.8


def test_the_adaptive_weight_measures_first_and_then_follows_the_step_before(given):
    losses = [1.0, 2.0, 1.5, 2.5, 1.0, 1.0]  # mean of the first two: 1.5
    values = steps(given, AdaptiveRetain(measure=2), losses)
    weights = [value / loss for value, loss in zip(values, losses, strict=True)]
    # the third step follows the mean's own end, the fourth a rise of 0, the fifth one of 1, the sixth a fall
    assert weights == pytest.approx([1.2, 1.2, 1.2, 1.2, 2.6, 1.2], abs=1e-9)


# Groups and prototypes


def test_scrub_goes_up_for_a_pass_and_down_for_a_pass_and_at_last_only_down(given):
    # Scores of two classes whose difference is d: with T = 2 a softmax of d / 2.
    def kl(was: float, now: float) -> float:
        p, q = (1 / (1 + math.exp(-d / 2)) for d in (was, now))
        return 4 * (p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q)))

    before = given(forget=[[[1.0, 0.0]]], retain=[[[3.0, 0.0]]])
    now = given(forget=[[[-1.0, 0.0]]], retain=[[[2.0, 0.0]]])
    up, down = -kl(1.0, -1.0), 0.1 * kl(3.0, 2.0) + 0.5 * math.log1p(math.exp(-2.0))
    scrub = SCRUB(temperature=2.0, alpha=0.1, gamma=0.5, passes=2)
    # Two steps read the forget set once, three the retain set.
    now.run.whole = {"forget": now.sets["forget"] * 2, "retain": now.sets["retain"] * 3}
    values = []
    for step in range(1, 14):
        now.run.step = step
        values.append(scrub(now, before).item())
    assert values == pytest.approx([up, up, down, down, down] * 2 + [down] * 3, abs=1e-12)
    now.run.step = 0
    assert scrub(now, before).item() == pytest.approx(up + down, abs=1e-12)


def test_the_penalty_is_the_sum_of_each_blocks_norm():
    network = LoRA(rank=2).insert(vit(), Request(pictures(4, 0)))
    groups: dict[str, float] = {}
    for name, weight in network.trainable().items():
        block = name.split("layers.")[1].split(".")[0]
        groups[block] = groups.get(block, 0.0) + float(weight.detach().square().sum())
    assert set(groups) == {"0", "1", "2"}
    now = View(network, {"forget": pictures(4, 0)})
    assert GroupPenalty()(now, now).item() == pytest.approx(sum(math.sqrt(one) for one in groups.values()), rel=1e-6)


def test_a_matrix_of_zeros_has_a_finite_gradient_and_one_group_shrinks_by_its_own_direction():
    network = LoRA(rank=2).insert(vit(), Request(pictures(4, 0)))  # every B is 0
    GroupPenalty()(View(network, {"forget": pictures(4, 0)}), None).backward()
    first = {name: p for name, p in network.trainable().items() if "layers.0." in name}
    length = math.sqrt(sum(float(p.detach().square().sum()) for p in first.values()))
    for name, weight in first.items():
        assert torch.allclose(weight.grad, weight.detach() / length, atol=1e-6), name


def test_the_penalty_waits_for_its_warmup_and_is_shared_out_among_the_parts_of_a_step():
    network = LoRA(rank=2).insert(vit(), Request(pictures(4, 0)))
    batch = pictures(4, 0)
    full = GroupPenalty()(View(network, {"forget": batch}), None).item()
    part = View(network, {"forget": batch[:1]}, {"forget": Share(rows=4, examples=4)})
    assert GroupPenalty()(part, None).item() == pytest.approx(full / 4, rel=1e-6)
    values = [
        GroupPenalty(warmup=2)(View(network, {"forget": batch}, run=Run(step=step)), None).item() for step in (1, 2, 3)
    ]
    assert values == [0.0, 0.0, pytest.approx(full)]
    # Half of the set in a step: two passes are over after four of them.
    half = {"forget": batch[:2]}
    runs = [Run(step=step, whole={"forget": batch}) for step in range(1, 7)]
    waits = [GroupPenalty(warmup=2)(View(network, half, run=run), None).item() == 0 for run in runs]
    assert waits == [True] * 4 + [False] * 2


def test_the_penalty_refuses_a_model_none_of_whose_blocks_moves():
    network = Full().insert(vit(), Request(pictures(4, 0)))
    for name, parameter in network.module.named_parameters():
        parameter.requires_grad_("classifier" in name)
    with pytest.raises(ModelRefused, match="finds no block with a trainable weight"):
        GroupPenalty()(View(network, {}), None)


def test_gs_lora_is_its_sum_and_reads_back():
    assert repr(GSLoRA()) == "0.15 * HingedAscent(level=10.0) + RetainNLL() + 0.03 * GroupPenalty(warmup=20.0)"
    assert parse(repr(GSLoRA(beta=0.2, alpha=0.01))).terms() == GSLoRA(beta=0.2, alpha=0.01).terms()
    assert repr(GSLoRAPlus()) == f"{GSLoRA()!r} + 0.01 * Prototype(bound=18.0)"


def test_a_prototype_is_the_mean_answer_of_a_class_over_the_whole_forget_set():
    network, whole = vit(), pictures(6, 0)  # classes 0 1 2 3 0 1
    before = View(network, {"forget": whole[:2]}, gradients=False, run=Run(whole={"forget": whole}))
    now = View(network, {"forget": whole[:2]}, run=Run(whole={"forget": whole}))
    with torch.no_grad():
        p = network.ask(Scores(), whole).logits.softmax(-1).double()
    typical = [(p[0] + p[4]) / 2, (p[1] + p[5]) / 2]
    away = [float((t * (t / q).log()).sum()) for t, q in zip(typical, p[:2], strict=True)]
    assert Prototype()(now, before).item() == pytest.approx(sum(18 - one for one in away) / 2, abs=1e-5)
    assert before.passes == [("forget", Scores())]
    again = View(network, {"forget": whole[2:4]}, gradients=False, run=Run(whole={"forget": whole}))
    Prototype()(View(network, {"forget": whole[2:4]}, run=now.run), again)
    assert again.passes == []  # worked out once


def test_beyond_its_bound_an_example_is_left_alone(given):
    # The prototype is the example's own answer before, (1/2, 1/2); now (1/4, 3/4) is log 2 - log(3)/2 + ... away:
    # 1/2 log 2 + 1/2 log(2/3) = 0.1438
    before = given(forget=[[[0.0, 0.0]]])
    away = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    for bound, left in ((1.0, 1.0 - away), (0.1, 0.0)):
        now = given(forget=[[[0.0, math.log(3)]]])
        loss = Prototype(bound=bound)(now, before)
        assert loss.item() == pytest.approx(left, abs=1e-12)
        assert bool(torch.autograd.grad(loss, now.forget.states)[0].any()) == (left > 0)


# Pairs


def test_a_forget_record_and_its_stand_in_are_read_in_the_same_step():
    draw = Batches(TEXTS, 3, 4, 0)
    for _ in range(6):
        sets = draw.sets()
        assert [e.id for e in sets["forget"]] == [e.id for e in sets["stand_in"]]
        assert all(e.answer.startswith("s-") for e in sets["stand_in"])


def test_stand_ins_with_other_ids_are_dealt_out_by_themselves():
    others = tuple(Picture(f"other-{k}", p.pixels, p.label, f"o{k}") for k, p in enumerate(pictures(5, 3)))
    draw = Batches(Request(pictures(4, 0), stand_in=others), 2, 2, 0)
    seen = [e.id for _ in range(5) for e in draw.sets()["stand_in"]]
    assert sorted(seen) == sorted(2 * [e.id for e in others])


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("SimNPO(beta=0.0)", "The `beta` of SimNPO must be positive"),
        ("DPO(beta=-1)", "The `beta` of DPO must be positive"),
        ("WGA(beta=-0.1)", "The `beta` of WGA must be at least 0"),
        ("SatImp(beta2=-1.0)", "The `beta2` of SatImp must be at least 0"),
        ("UNDIAL(strength=-1.0)", "The `strength` of UNDIAL must be at least 0"),
        ("CEU(skip=-1)", "The `skip` of CEU must be at least 0"),
        ("PDU(rate=-1.0)", "The `rate` of PDU must be at least 0"),
        ("AdaptiveRetain(low=3.0)", "AdaptiveRetain needs 0 <= low <= high"),
        ("AdaptiveRetain(measure=0)", "The `measure` of AdaptiveRetain must be at least 1"),
        ("GroupPenalty(warmup=-1)", "The `warmup` of GroupPenalty must be at least 0"),
        ("Prototype(bound=0.0)", "The `bound` of Prototype must be positive"),
        ("RandomLabel(seed=-1)", "The `seed` of RandomLabel must be from 0"),
        ("FLAT(divergence='wasserstein')", "The `divergence` of FLAT must be one of tv, kl"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused(text: str, wrong: str):
    with pytest.raises(UsageRefused) as refused:
        parse(text)
    assert str(refused.value).startswith(wrong)
