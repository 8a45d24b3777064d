"""GS-LoRA's adapter: the published groups, and idle blocks that are off for good once a run has ended."""

import math

import pytest
import torch
from transformers import AutoModelForImageClassification, ViTConfig

from expunge.adapters.bounded import Bounded
from expunge.adapters.group_sparse import GroupSparse
from expunge.adapters.lora import LoRA
from expunge.core.model import Network
from expunge.core.question import Scores
from expunge.core.request import Request
from expunge.core.view import View
from expunge.data.images import Picture
from expunge.errors import UsageRefused
from expunge.events import Ended, Event
from expunge.methods.finetune import Finetune
from expunge.methods.stop import Stop
from expunge.models.vision import ImageClassifier
from expunge.objectives.group_penalty import GroupPenalty
from expunge.objectives.gs_lora import GSLoRA

BLOCKS = 4


def vision() -> ImageClassifier:
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=BLOCKS,
        num_attention_heads=4,
        intermediate_size=24,
        num_labels=4,
        image_size=8,
        patch_size=4,
    )
    return ImageClassifier.of(AutoModelForImageClassification.from_config(config).eval(), None)


def pictures(seed: int) -> tuple[Picture, ...]:
    draw = torch.Generator().manual_seed(seed)
    return tuple(Picture(f"{seed}-{k}", torch.randn(3, 8, 8, generator=draw), k % 4, f"{seed}-{k}") for k in range(6))


REQUEST = Request(pictures(0), pictures(1))


def logits(network: Network) -> torch.Tensor:
    with torch.inference_mode():
        return network.ask(Scores(), REQUEST.forget).logits


def shaken(adapter: GroupSparse, sizes: list[float]) -> Network:
    """Every number of a block's factors is that block's size."""
    adapted = adapter.insert(vision(), REQUEST)
    for number, group in adapter.groups(adapted).items():
        for factor in group.values():
            factor.data.fill_(sizes[number])
    return adapted


def test_a_group_is_the_a_and_b_of_both_mlp_layers_of_a_block():
    adapter = GroupSparse(adapter=LoRA(rank=2))
    adapted = shaken(adapter, [1.0, 2.0, 0.0, 0.001])
    groups = adapter.groups(adapted)
    assert [len(group) for group in groups.values()] == [4] * BLOCKS
    # A [2, 16] and B [24, 2] of one layer, A [2, 24] and B [16, 2] of the other: 32 + 48 + 48 + 32 = 160 numbers
    closed = adapter.close(adapted)
    assert closed.norms == pytest.approx((math.sqrt(160), 2 * math.sqrt(160), 0.0, 0.001 * math.sqrt(160)))
    assert closed.left == (0, 1)  # 0.0126 is below 0.05


def test_the_penalty_is_the_sum_of_the_same_groups():
    adapter = GroupSparse(adapter=LoRA(rank=2))
    adapted = shaken(adapter, [1.0, 2.0, 0.0, 0.5])
    view = View(adapted, {"forget": REQUEST.forget})
    # (1 + 2 + 0 + 0.5) sqrt(160)
    assert GroupPenalty()(view, view).item() == pytest.approx(3.5 * math.sqrt(160))
    assert sum(adapter.close(adapted).norms) == pytest.approx(3.5 * math.sqrt(160))


@pytest.mark.parametrize("inner", [LoRA(rank=2), Bounded(rank=2)], ids=["lora", "bounded"])
def test_a_block_that_is_off_adds_nothing_and_the_others_are_left_alone(inner: LoRA | Bounded):
    adapter = GroupSparse(adapter=inner)
    adapted = shaken(adapter, [0.3, 0.001, 0.0, 0.2])
    before = dict(adapter.deltas(adapted, vision()))
    assert adapter.close(adapted).left == (0, 3)
    after = dict(adapter.deltas(adapted, vision()))
    off = [name for name, delta in after.items() if not delta.any()]
    assert [name.partition("layers.")[2].partition(".")[0] for name in off] == ["1", "1", "2", "2"]
    assert all(torch.equal(after[name], before[name]) for name in after if name not in off)
    merged = adapter.merge(adapted)
    assert torch.allclose(logits(merged), logits(adapted), atol=1e-5)
    weights = dict(vision().module.named_parameters())
    assert all(torch.equal(merged.module.get_parameter(f"{name}.weight"), weights[f"{name}.weight"]) for name in off)


def test_with_zero_no_block_is_switched_off():
    adapter = GroupSparse(adapter=LoRA(rank=2), below=0.0)
    adapted = shaken(adapter, [1.0, 0.001, 0.0, 0.001])
    was = logits(adapted)
    assert adapter.close(adapted).left == (0, 1, 2, 3)
    assert torch.equal(logits(adapted), was)


def test_a_run_says_which_blocks_it_left_and_the_penalty_is_what_switches_them_off():
    told = {}
    for alpha in (0.0, 0.3):
        adapter = GroupSparse(adapter=LoRA(rank=2))
        method = Finetune(
            objective=GSLoRA(alpha=alpha),
            adapter=adapter,
            learning_rate=3e-2,
            schedule="cosine",
            steps=80,
            batch=6,
            retain_batch=6,
            stop=Stop(level=None, max_retain_increase=None, every=1000),
        )
        events: list[Event] = []
        adapted = method(vision(), REQUEST, events.append)
        (end,) = [event for event in events if isinstance(event, Ended)]
        told[alpha] = end.groups.left
        changed = {int(name.partition("layers.")[2][0]) for name, d in adapted.changes() if d.any()}
        assert changed == set(end.groups.left)
        assert len(end.groups.norms) == BLOCKS
    assert told[0.0] == (0, 1, 2, 3)
    assert len(told[0.3]) < BLOCKS


def test_a_threshold_below_zero_is_refused():
    with pytest.raises(UsageRefused, match="must be at least 0 and finite"):
        GroupSparse(below=-1.0)
