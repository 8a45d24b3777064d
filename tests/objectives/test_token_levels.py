"""Token levels: the estimate by worked numbers and laws, the loss by hand, and a run that is resumed."""

import math
import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from expunge.adapters.full import Full
from expunge.core.question import LogProbabilities, RowStatistics
from expunge.core.view import Run, View
from expunge.errors import UsageRefused
from expunge.internals.corrupted import SHORT, answer_tokens, corrupt, corrupt_answers
from expunge.notation.parse import parse
from expunge.objectives.settle import Settle
from expunge.objectives.token_levels import TokenLevels
from expunge.primitives.log_odds import away
from expunge.primitives.unseen_losses import BACKED, Counts, Estimate, Text, describe, evenly, spread
from tests.families import family_of, moved, picture_request

KEPT = [Text((1, 2, 3, 2, 3), 0)]


def test_a_surprise_is_the_share_after_the_last_tokens_backed_by_the_shorter_ending():
    """Five tokens 1 2 3 2 3 of four words (0 to 3): 3 has 2 of 5; after 2 it has 2 of 2; after 1 2 one of one."""
    one = (2 + BACKED / 4) / (5 + BACKED)
    two = (2 + BACKED * one) / (2 + BACKED)
    three = (1 + BACKED * two) / (1 + BACKED)
    found = Counts(KEPT).surprise((1, 2), 3)
    assert found == pytest.approx([-np.log(p) for p in (one, two, three, three)])


def test_a_line_says_what_followed_the_same_ending_earlier_in_the_text():
    line = describe([Text((5, 6, 7, 5, 6, 7), 5)], Counts(KEPT))[0]
    assert line[4:].tolist() == [1, 1, 0, 0, 0, 1, 1]  # endings of 1 and 2, none of 3 and 5; place 0, said before, last
    other = describe([Text((5, 6, 7, 5, 6, 8), 5)], Counts(KEPT))[0]
    assert other[4:].tolist() == [-1, -1, 0, 0, 0, 0, 1]


def texts(count: int, seed: int, low: int = 1) -> list[Text]:
    draw = np.random.default_rng(seed)
    return [Text(tuple(draw.integers(low, 60, 30).tolist()), 10) for _ in range(count)]


def test_levels_follow_what_can_be_foretold_and_are_spread_as_the_losses_are():
    """Where a loss is the token's rarity plus noise, the level of a token is its own rarity plus such noise."""
    kept = [Text(tuple(np.random.default_rng(9).zipf(1.5, 4000).clip(max=59).tolist()), 0)]
    unseen, seen = texts(60, 1), texts(40, 2)
    made = Estimate.of(seen, unseen, kept)
    noise = np.random.default_rng(3).normal(0, 1, len(made.unseen))
    losses = made.unseen[:, 0] + noise
    levels = losses[made.alike(losses)]
    assert made.r_squared(losses) > 0.5
    left = levels - made.seen[:, 0]
    assert abs(left.mean()) < 0.15
    assert left.std() == pytest.approx(1, abs=0.15)
    hard = made.seen[:, 0] > np.median(made.seen[:, 0])
    assert levels[hard].mean() - levels[~hard].mean() == pytest.approx(
        made.seen[hard, 0].mean() - made.seen[~hard, 0].mean(), abs=0.3
    )


def test_where_nothing_can_be_foretold_levels_are_the_losses_themselves():
    known = np.random.default_rng(0).random(200)
    made = Estimate.by_rank([f"{k}" for k in range(200)], known, 50)
    losses = np.arange(50.0)
    found = losses[made.alike(losses)]
    assert np.array_equal(found[known.argsort()], np.repeat(losses, 4))  # 200 draws, spread evenly, of 50 losses


@pytest.mark.parametrize("count", [1, 2, 4, 5])
def test_a_few_unseen_texts_are_enough_to_draw_from(count):
    made = Estimate.of(texts(3, 1), texts(count, 2), KEPT)
    losses = np.random.default_rng(0).random(20 * count)
    assert set(losses[made.alike(losses)]) <= set(losses)


def test_the_order_of_texts_changes_no_level():
    unseen, seen = texts(12, 1), texts(6, 2)
    losses = np.random.default_rng(0).random((12, 20))
    plain = losses.ravel()[Estimate.of(seen, unseen, KEPT).alike(losses.ravel())].reshape(6, 20)
    turned = losses.ravel()[Estimate.of(seen[::-1], unseen, KEPT).alike(losses.ravel())].reshape(6, 20)
    assert np.array_equal(plain[::-1], turned)


def test_draws_are_spread_evenly_and_do_not_depend_on_the_order():
    names = [f"{k}" for k in range(100)]
    draws = spread(names, np.zeros(100))
    assert np.abs(np.sort(draws) - (np.arange(100) + 0.5) / 100).max() < 0.02
    assert np.array_equal(spread(names[::-1], np.zeros(100)), draws[::-1])
    middles = (np.arange(100) + 0.5) / 100
    assert np.array_equal(evenly(names, np.arange(100.0)), middles)
    assert np.array_equal(np.sort(evenly(names, np.zeros(100))), middles)
    assert np.array_equal(evenly(names[::-1], np.zeros(100)), evenly(names, np.zeros(100))[::-1])


def views(kind: str, step: int = 1) -> tuple[View, View]:
    before, request = family_of(kind)
    now = moved(Full().insert(before, request))
    run = Run(level=4.0, step=step, whole=request.sets())
    sets = {"forget": request.forget}
    return View(now, sets, run=run), View(before, sets, gradients=False, run=run)


def test_easier_texts_get_lower_levels_as_far_as_what_is_foretold_has_held():
    """Forty texts of one word that is followed by a likely or an unlikely one; all that is forgotten is likely."""
    kept = [Text((1, 2), 0)] * 50 + [Text((1, 3), 0)]
    likely, rare = Text((1, 2), 1), Text((1, 3), 1)
    unseen = [likely, rare] * 20
    small = np.linspace(0, 0.1, 40)
    easier = Estimate.of([likely] * 20, unseen, kept)
    held = np.array([0.5, 6.0] * 20) + small
    assert held[easier.alike(held)].mean() == pytest.approx(0.55, abs=0.1)
    same = Estimate.of([likely, rare] * 10, unseen, kept)
    assert held[same.alike(held)].mean() == pytest.approx(held.mean(), abs=0.1)
    no_matter = np.tile([0.5, 6.0, 6.0, 0.5], 10) + small  # as often high after the likely word as after the other
    assert no_matter[easier.alike(no_matter)].mean() == pytest.approx(no_matter.mean(), abs=0.3)


def test_what_is_foretold_counts_by_the_slope_of_what_was_real():
    """Worked: texts foretold at 1, 2, 3 that cost 4, 4.5, 5 (half a nat for each) and 1, 2, 3 that cost 9, 5, 1."""
    made = Estimate.of([Text((1, 2), 1)], [Text((1, 2, 2), 1)] * 3, KEPT)
    there = np.repeat([1.0, 2.0, 3.0], 2)
    assert made._slope_of_texts(there, np.repeat([4.0, 4.5, 5.0], 2)) == pytest.approx(0.5)
    assert made._slope_of_texts(there, np.repeat([9.0, 5.0, 1.0], 2)) == 0
    assert made._slope_of_texts(there, 3 * there) == 1
    assert made._slope_of_texts(np.full(6, 2.0), there) == 0


@pytest.mark.parametrize("kind", ["llama", "resnet"])
def test_the_loss_is_the_mean_distance_from_levels_that_are_losses_of_the_holdout(kind):
    now, before = views(kind)
    value = TokenLevels(entropy=0.0)(now, before)
    unseen = -now.model.ask(LogProbabilities(), now.run.whole["holdout"]).log_probs
    kept = now.run.memory[repr(TokenLevels(entropy=0.0))]
    levels = torch.tensor([kept[str(row)] for row in range(len(kept) - 1)])
    assert all(torch.isclose(unseen, level, atol=1e-5).any() for level in levels)
    now_p, then_p = (-losses(now, "forget")).exp(), (-levels).exp()
    far = [(one / (1 - one)).log() for one in (now_p, then_p)]
    each = [abs(a - b) if b < 1 else max(1 - a, 0) for a, b in zip(*(one.tolist() for one in far), strict=True)]
    assert value.item() == pytest.approx(np.mean(each), abs=1e-4)


def test_entropies_are_held_at_those_of_the_very_tokens_whose_losses_are_the_levels():
    now, before = views("llama")
    plain, both = (TokenLevels(entropy=weight)(now, before).item() for weight in (0.0, 0.25))
    name = repr(TokenLevels(entropy=0.25))
    levels, entropies = now.run.memory[name], now.run.memory[f"{name}, entropies"]
    unseen, ours = (now.model.ask(RowStatistics(), now.run.whole[each]) for each in ("holdout", "forget"))
    pairs = torch.stack([-unseen.log_probs, unseen.entropy], -1)
    wanted = torch.tensor([(levels[str(row)], entropies[str(row)]) for row in range(len(entropies))])
    assert len(wanted) == len(ours.entropy)
    assert all(torch.isclose(pairs, pair, atol=1e-5).all(-1).any() for pair in wanted)
    far = (ours.entropy - wanted[:, 1]).abs().mean().item()
    assert far > 1e-3
    assert both == pytest.approx(plain + 0.25 * far, abs=1e-5)


def test_of_pictures_no_entropy_is_asked():
    now, before = views("resnet")
    assert TokenLevels(entropy=5.0)(now, before).item() == TokenLevels(entropy=0.0)(now, before).item()


def losses(view: View, name: str) -> torch.Tensor:
    return -view.model.ask(LogProbabilities(), view.run.whole[name]).log_probs


def test_a_distance_is_one_of_log_odds_and_beyond_sure_nothing_is_asked():
    """Probabilities of 1/2, 1/5, 4/5 and 9/10 have log-odds of 0, -ln 4, ln 4 and ln 9."""
    half, fifth, most, nearly = (math.log(p) for p in (0.5, 0.2, 0.8, 0.9))
    said, wanted = torch.tensor([half, half, half, most, fifth]), torch.tensor([fifth, half, nearly, nearly, most])
    found = away(said, wanted, sure=1.0).tolist()
    assert found == pytest.approx([math.log(4), 0, 1, 0, 1 + math.log(4)], abs=1e-6)


def test_a_token_known_by_heart_has_a_slope():
    """At p = 1 - 1e-4 the loss has a slope of 1e-4 along the token's score, and the log-odds have one of 1."""
    score = torch.tensor([math.log(9999.0), 0.0], requires_grad=True)
    distance = away(score.log_softmax(0)[:1], torch.tensor([-3.0]), sure=1.0).sum()
    assert torch.autograd.grad(distance, score)[0].tolist() == pytest.approx([1, -1], abs=2e-3)
    sure = torch.zeros(1, requires_grad=True)  # p = 1 to the last digit: no slope, and no NaN either
    assert torch.autograd.grad(away(sure, torch.tensor([-3.0]), 1.0).sum(), sure)[0].isfinite().all()


def test_levels_stay_until_they_are_due_and_are_then_those_of_the_model_of_now():
    now, before = views("llama")
    objective = TokenLevels(every=10)
    first = objective(now, before).item()
    kept = dict(now.run.memory[repr(objective)])
    with torch.no_grad():
        now.model.module.get_output_embeddings().weight *= 1.5
    again = View(now.model, now.sets, run=now.run)
    again.run.step = 10
    objective(again, before)
    assert now.run.memory[repr(objective)] == kept
    again.run.step = 11
    assert objective(View(now.model, now.sets, run=now.run), before).item() != pytest.approx(first)
    assert now.run.memory[repr(objective)] != kept
    assert now.run.memory[repr(objective)]["step"] == 11


def test_every_second_step_reads_the_texts_with_words_of_others_and_counts_the_rest(monkeypatch):
    monkeypatch.setattr("expunge.internals.corrupted.SHORT", 2)
    now, before = views("llama", step=2)
    objective = TokenLevels(corrupted=0.5, entropy=2.0)
    value = objective(now, before).item()
    forget, drawn = now.sets["forget"], now.run.memory[repr(objective)]
    levels = torch.tensor([drawn[str(row)] for row in range(len(drawn) - 1)])
    read, own = corrupt_answers(forget, answer_tokens(now.run.whole), 0.5, "2")
    said = now.model.ask(RowStatistics(), read)
    entropies = now.run.memory[f"{objective!r}, entropies"]
    flatter = (said.entropy - torch.tensor([entropies[str(row)] for row in range(len(levels))])).abs()
    whole = (away(said.log_probs, -levels, objective.sure) + 2.0 * flatter)[torch.tensor(own)].sum()
    assert own.count(False) > 0.2 * len(own)
    for example, other in zip(forget, read, strict=True):
        assert (other.first, other.tokens[: other.first]) == (example.first, example.tokens[: example.first])
    assert value == pytest.approx(float(whole) / len(own), rel=1e-4)
    assert {name for name, _ in now.replies} == {"forget, instead"}
    plain = View(now.model, now.sets, run=replace(now.run, step=0, memory={}))
    assert TokenLevels(corrupted=0.0, entropy=2.0)(plain, before).item() != pytest.approx(value)
    odd = View(now.model, now.sets, run=replace(now.run, step=3, memory={}))
    whole_texts = TokenLevels(corrupted=0.0, entropy=2.0)(plain, before).item()
    assert objective(odd, before).item() == pytest.approx(whole_texts)


def test_short_answers_stay_whole():
    request = family_of("llama")[1]
    short = request.forget[0]
    long = replace(short, tokens=(*short.tokens[: short.first], *range(5, 25)))
    made, own = corrupt_answers([short, long], [1], 0.9, "2")
    assert short.rows < SHORT <= long.rows
    assert made[0] == short
    assert made[1].tokens != long.tokens
    assert own[: short.rows] == [True] * short.rows


def test_about_the_share_of_an_answer_is_replaced_and_never_its_end_or_the_prompt():
    draw = random.Random(0)
    tokens, first = tuple(range(100, 160)), 10
    replaced = []
    for _ in range(200):
        made, own = corrupt(tokens, first, [7, 8], 0.3, draw)
        assert (made[:first], made[-1], own[-1]) == (tokens[:first], tokens[-1], True)
        assert [a == b for a, b in zip(made[first:], tokens[first:], strict=True)] == own
        replaced.append(own.count(False) / (len(own) - 1))
    assert np.mean(replaced) == pytest.approx(0.3, abs=0.02)
    assert corrupt(tokens, first, [7], 0.0, draw)[0] == tokens


def test_without_a_holdout_it_holds_the_mean_of_each_example_at_the_runs_level():
    now, before = views("llama")
    now.run.whole = {name: batch for name, batch in now.run.whole.items() if name != "holdout"}
    assert TokenLevels()(now, before).item() == Settle()(now, before).item()


def test_images_get_the_losses_of_unseen_images_the_hardest_the_largest():
    before, _ = family_of("resnet")
    request = picture_request(12)
    view = View(before, {"forget": request.forget}, run=Run(step=1, whole=request.sets()))
    TokenLevels()(view, view)
    kept = view.run.memory[repr(TokenLevels())]
    levels = torch.tensor([kept[str(row)] for row in range(12)])
    known, unseen = (-before.ask(LogProbabilities(), each).log_probs for each in (request.forget, request.holdout))
    assert levels[known.argsort()].tolist() == pytest.approx(unseen.sort().values.tolist(), abs=1e-6)


def test_a_run_moves_each_token_to_its_level():
    before, request = family_of("llama")
    stop = "stop=Stop(level=None, max_retain_increase=None, max_growth=None, every=1000)"
    method = parse(f"Finetune(objective=TokenLevels(), adapter=Full(), learning_rate=0.01, steps=60, batch=6, {stop})")
    after = method(before, request).plain()
    run = Run(step=1, whole=request.sets())

    def distance(model) -> float:
        view = View(model, {"forget": request.forget}, run=replace(run, memory={}))
        return TokenLevels()(view, view).item()

    assert distance(after) < 0.3 * distance(before)


def test_a_setting_that_cannot_be_is_refused():
    with pytest.raises(UsageRefused, match="every"):
        TokenLevels(every=0)
    with pytest.raises(UsageRefused, match="sure"):
        TokenLevels(sure=math.nan)
    for weight in (-0.1, math.nan, math.inf):
        with pytest.raises(UsageRefused, match="entropy"):
            TokenLevels(entropy=weight)
    for share in (-0.1, 1.0, math.nan):
        with pytest.raises(UsageRefused, match="corrupted"):
            TokenLevels(corrupted=share)
