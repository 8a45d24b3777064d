"""Pruners by worked numbers, and the passes of a run that they cut down."""

from collections import Counter
from dataclasses import dataclass, replace

import pytest
import torch

from expunge.core.request import Request
from expunge.errors import UsageRefused
from expunge.events import Ended, Note, Step
from expunge.methods.train import Train
from expunge.notation.parse import parse, plugins
from expunge.prune._kinds import UNREAD, Kept, Pruner
from expunge.prune.dynamic_random import DynamicRandom
from expunge.prune.info_batch import InfoBatch
from expunge.prune.se_ta import SeTa, _group
from expunge.train.best_step import losses as losses_of
from expunge.train.passes import Passes
from tests.families import PLACES, llama, passages

PRUNERS = [plugin.name for plugin in plugins() if plugin.folder == "prune"]
FIVE = torch.tensor([0.1, 0.1, 1.0, 1.1, 2.0, 2.0, 3.0, 3.1, 9.0, 9.0], dtype=torch.float64)
"""Two records of each of five losses."""


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", PRUNERS)
@pytest.mark.parametrize("losses", [FIVE, torch.full((7,), UNREAD, dtype=torch.float64), torch.zeros(1).double()])
def test_every_pass_reads_records_once_each_with_a_weight_and_the_same_draw_reads_the_same(name, losses):
    made, before = parse(f"{name}()"), losses.clone()
    assert parse(repr(made)) == made
    for epoch in range(8):
        kept = made.keep(losses, epoch, 8, draw(epoch))
        assert 1 <= len(set(kept.places.tolist())) == len(kept.places) == len(kept.weights)
        assert set(kept.places.tolist()) <= set(range(len(losses)))
        assert (kept.weights >= 1).all()
        assert kept.places.tolist() == made.keep(losses, epoch, 8, draw(epoch)).places.tolist()
    assert torch.equal(losses, before)


def test_the_window_of_seta_slides_from_easy_to_hard_and_begins_again():
    """Five groups of two records, a window of two: four places for it. The last eighth of the passes reads all."""
    made = SeTa(groups=5, window=0.4, random=0.0)
    passes = [sorted(made.keep(FIVE, epoch, 8, draw(epoch)).places.tolist()) for epoch in range(8)]
    everything = list(range(10))
    assert passes == [
        everything,
        [0, 1, 2, 3],
        [2, 3, 4, 5],
        [4, 5, 6, 7],
        [6, 7, 8, 9],
        [0, 1, 2, 3],
        [2, 3, 4, 5],
        everything,
    ]


@pytest.mark.parametrize(("window", "groups"), [(0.9, 4), (0.7, 4), (0.5, 2), (0.3, 2), (0.1, 1), (0.0, 1), (1.0, 5)])
def test_a_half_group_is_rounded_to_the_even_number(window, groups):
    """0.9, 0.7, 0.5 and 0.3 of five are 4.5, 3.5, 2.5 and 1.5; there is one group at least."""
    assert len(SeTa(window=window, random=0.0).keep(FIVE, 1, 8, draw()).places) == 2 * groups


def test_seta_leaves_out_its_random_share_in_every_pass():
    assert [len(SeTa(random=0.3, window=1.0).keep(FIVE, epoch, 8, draw()).places) for epoch in (0, 1, 7)] == [7, 7, 7]


def test_losses_are_grouped_by_k_means_on_a_line_and_equal_ones_together():
    assert _group(torch.full((6,), 3.0), 5).tolist() == [0] * 6
    assert _group(torch.tensor([0.0, 10.0, 0.0, 0.0]), 3).tolist() == [0, 1, 0, 0]
    # Quantiles begin at 1.5 and 7.5 (of two); 0, 1, 2, 6 and 9 end as {0, 1, 2} and {6, 9}
    assert _group(torch.tensor([6.0, 0.0, 9.0, 1.0, 2.0]), 2).tolist() == [1, 0, 1, 0, 0]


def test_infobatch_leaves_out_a_share_of_the_records_below_the_mean_and_counts_the_others_for_them():
    """The mean is 3.04: 3.1, 9 and 9 are above it and always read. The others stay in three of four passes."""
    times: Counter[int] = Counter()
    for seed in range(1000):
        kept = InfoBatch(q=0.25).keep(FIVE, 0, 8, draw(seed))
        counts = dict(zip(kept.places.tolist(), kept.weights.tolist(), strict=True))
        assert counts == {place: 1.0 if place in (7, 8, 9) else pytest.approx(4 / 3) for place in counts}
        times.update(counts.keys())
    assert [times[place] for place in (7, 8, 9)] == [1000] * 3
    assert all(abs(times[place] - 750) < 4 * (1000 * 0.25 * 0.75) ** 0.5 for place in range(7))
    last = InfoBatch(q=0.25).keep(FIVE, 7, 8, draw())
    assert (len(last.places), last.weights.tolist()) == (10, [1.0] * 10)


def test_dynamic_random_draws_another_share_for_each_pass():
    one = draw()
    passes = [frozenset(DynamicRandom(share=0.3).keep(FIVE, epoch, 8, one).places.tolist()) for epoch in range(8)]
    assert {len(each) for each in passes} == {3}
    assert len(set(passes)) > 4


@dataclass(frozen=True)
class Notes(Pruner):
    """Keeps some places, and notes the losses that it is handed."""

    places: tuple[int, ...]
    weights: tuple[float, ...]
    seen: list

    def keep(self, losses, epoch, epochs, draw) -> Kept:
        self.seen.append((epoch, epochs, losses.tolist()))
        return Kept(torch.tensor(self.places), torch.tensor(self.weights, dtype=torch.float64))


def test_a_step_reads_of_one_pass_alone_and_losses_go_to_their_records():
    records = passages(PLACES[:5], 0)
    made = Passes("forget", records, Notes((4, 1, 2), (1.0, 2.0, 1.0), []), 2, draw())
    steps, told = [], 0
    while not made.at_end:
        batch = made.take(2)
        steps.append(([e.id for e in batch], [e.weight for e in batch], made.progress))
        made.tell([float(told + k) for k in range(len(batch))])
        told += len(batch)
    four, one, two = (records[place].id for place in (4, 1, 2))
    each = [([four, one], [1.0, 2.0]), ([two], [1.0])]
    assert steps == [(*each[0], 0.0), (*each[1], 1 / 3), (*each[0], 0.5), (*each[1], pytest.approx(0.5 + 1 / 3))]
    assert made.pruner.seen == [(0, 2, [UNREAD] * 5), (1, 2, [UNREAD, 1.0, 2.0, UNREAD, 0.0])]
    assert made.unread == pytest.approx(1 - 6 / 10)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_training_hands_the_pruner_each_records_own_loss(accumulate):
    """At a learning rate of nearly nothing it is that of the model as it was."""
    network, records, noted = llama(), passages(PLACES[:5], 0), Notes((3, 0, 4), (1.0, 1.0, 3.0), [])
    method = Train(learning_rate=1e-12, epochs=2.0, batch=2, accumulate=accumulate, prune=noted)
    method(network, Request(records))
    wanted = losses_of(network, records).tolist()
    assert [epoch for epoch, _, _ in noted.seen] == [0, 1]
    assert noted.seen[1][2] == pytest.approx([wanted[0], UNREAD, UNREAD, wanted[3], wanted[4]], rel=1e-5)


def test_what_is_kept_trains_as_if_nothing_else_had_been_given_by_its_weights():
    network, records = llama(), passages(PLACES[:5], 0)
    method = Train(learning_rate=1e-3, epochs=3.0, batch=2, schedule="constant")
    own = (replace(records[1], weight=2.0), records[3])
    plain = method(network, Request(own)).plain().module.state_dict()
    pruned = replace(method, prune=Notes((1, 3), (2.0, 1.0), []), epochs=3.0)
    told: list = []
    after = pruned(network, Request(records), told.append).plain().module.state_dict()
    assert len([event for event in told if isinstance(event, Step)]) == 3
    assert all(torch.allclose(after[name], plain[name], atol=1e-6) for name in plain)


def test_the_rate_falls_with_the_passes_and_the_run_says_what_was_not_read():
    told: list = []
    method = Train(learning_rate=1.0e-3, epochs=4.0, batch=3, prune=DynamicRandom(share=0.5))
    method(llama(), Request(passages(PLACES[:12], 0)), told.append)
    rates = [event.learning_rate for event in told if isinstance(event, Step)]
    assert rates == pytest.approx([1e-3 * (1 - k / 8) for k in range(8)])  # 6 of 12, by threes, four times
    assert [e.what for e in told if isinstance(e, Note)] == [
        "DynamicRandom(share=0.5) left 50% of the records of all passes unread"
    ]
    assert [e.stopped for e in told if isinstance(e, Ended)] == ["all 4 passes were read"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("SeTa(window=1.5)", "The `window` of SeTa must be from 0 to 1. Got 1.5."),
        ("SeTa(groups=0)", "The `groups` of SeTa must be at least 1. Got 0."),
        ("InfoBatch(q=1.0)", "The `q` of InfoBatch must be from 0 to 0.99. Got 1.0."),
        ("DynamicRandom(share=0.0)", "The `share` of DynamicRandom must be from 0.001 to 1. Got 0.0."),
    ],
)
def test_a_share_that_cannot_be_meant_is_refused(text, said):
    with pytest.raises(UsageRefused) as refused:
        parse(text)
    assert said in str(refused.value)
