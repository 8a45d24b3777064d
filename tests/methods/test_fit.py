"""What a method leaves open is settled for the model and request at hand, and what cannot run is refused at once."""

import math
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import expunge
from expunge.adapters.bounded import Bounded
from expunge.adapters.full import Full
from expunge.audits.loss import Loss
from expunge.core.model import Batch, Model
from expunge.core.question import LogProbabilities
from expunge.core.request import Request
from expunge.errors import DataRefused, ModelRefused, UsageRefused
from expunge.events import Note, Started, Step
from expunge.methods.epochs import Epochs
from expunge.methods.finetune import Finetune
from expunge.methods.memorised import Memorised
from expunge.notation.parse import parse, write
from expunge.objectives.ascent import Ascent
from expunge.report.report import Report
from tests.families import llama, picture_request, resnet, text_request, vit
from tests.methods.runs import FREE, REQUEST, apart, numbers, passages, run, tiny

# Epochs


@pytest.mark.parametrize(("records", "epochs", "steps"), [(40, 5, 6), (200, 5, 31), (400, 5, 62), (40, 10, 12)])
def test_steps_of_the_published_runs_on_tofu(records: int, epochs: int, steps: int):
    """LoKU's logs, in batches of 32: about 6, 31 and 62 steps for 40, 200 and 400 records."""
    assert Epochs(count=epochs).steps(Request(passages("f", records, 0)), 32) == steps


def test_a_set_that_fits_a_batch_is_a_step_an_epoch_and_there_is_always_one():
    request = Request(passages("f", 7, 0), passages("r", 30, 1))
    assert [Epochs(count=n).steps(request, 32) for n in (0.1, 1, 3)] == [1, 1, 3]
    assert Epochs(count=2, of="retain").steps(request, 10) == 6
    with pytest.raises(DataRefused, match="Epochs go through the retain set, and the request has none"):
        Epochs(of="retain").steps(Request(passages("f", 7, 0)), 10)


def test_what_is_memorised_takes_steps_for_each_unit_of_log_odds():
    """A model that is sure of one answer in two knows it with log-odds of 0, and an unseen one with odds of one to
    four has -ln 4: a gap of 1.386."""
    request = Request(passages("f", 3, 0), holdout=passages("h", 3, 1))
    network = Known({0.5: request.forget, 0.2: request.holdout})
    assert Memorised(least=1).gap(network, request) == pytest.approx(math.log(4))
    assert [Memorised(count=n, least=1, epochs=0).steps(network, request, 8) for n in (20, 100)] == [28, 139]
    assert Memorised(count=1, least=1, epochs=5).steps(network, request, 2) == 8  # 7.5, to the nearest even
    assert Memorised(count=1, epochs=1).steps(network, request, 8) == 100
    assert Memorised(least=7, epochs=0).steps(network, Request(request.forget), 8) == 7  # nothing unseen to compare


def test_images_of_a_class_that_is_deleted_take_the_fewest_steps_as_they_go_together():
    own = picture_request(size=4)
    known, length = Known({0.5: own.forget, 0.2: own.holdout}), Memorised(count=0.0, least=2, epochs=10)
    mixed = replace(own, retain=tuple(replace(p, label=own.forget[0].label) for p in own.retain))
    apart_ = replace(own, retain=tuple(replace(p, label=9) for p in own.retain))
    assert [length.steps(known, each, 2) for each in (mixed, apart_)] == [20, 2]


def _note(notes: list[str], event: object) -> None:
    if isinstance(event, Note):
        notes.append(event.what)


class Known:
    """Says each set's answers with a probability of its own."""

    device = torch.device("cpu")

    def __init__(self, sets: dict[float, Batch]) -> None:
        self.sets = sets

    def ask(self, question: LogProbabilities, examples: Batch) -> Any:
        (odds,) = [probability for probability, batch in self.sets.items() if batch is examples]
        return SimpleNamespace(log_probs=torch.full((sum(e.rows for e in examples),), math.log(odds)))


def test_a_default_run_says_how_many_steps_it_takes_and_why():
    method = Finetune(objective=Ascent(), steps=Memorised(count=0.0, least=3, epochs=0.0), batch=4, stop=FREE)
    notes: list[str] = []
    fitted = method.fit(tiny(), REQUEST, partial(_note, notes))
    assert fitted.steps == 3
    assert notes == ["3 steps, by how large the forget set is and how well it is known"]
    assert parse(write(method)) == method


def test_epochs_become_steps_that_are_said_and_reported():
    method = Finetune(objective=Ascent(), steps=Epochs(count=2.0), warmup=Epochs(count=0.5), batch=4, stop=FREE)
    assert len(REQUEST.forget) == 7
    _, events = run(objective=Ascent(), steps=Epochs(count=2.0), warmup=Epochs(count=0.5), batch=4)
    assert len(events.of(Step)) == 4  # 2 * 7 / 4 = 3.5, to the nearest even
    assert events.of(Started)[0].steps == 4
    assert [note.what for note in events.of(Note)] == [
        "2 epochs of the forget set: 4 steps",
        "0.5 epochs of the forget set: 1 steps of warm-up",
    ]
    fitted = method.fit(tiny(), REQUEST)
    assert (fitted.steps, fitted.warmup, fitted.adapter) == (4, 1, Bounded())
    assert fitted.fit(tiny(), REQUEST) == fitted
    assert parse(write(method)) == method


@pytest.mark.parametrize("text", ["Epochs(count=0)", "Epochs(count=-1.0)", "Finetune(steps=Epochs(of='holdout'))"])
def test_epochs_that_make_no_sense_are_refused(text: str):
    with pytest.raises(UsageRefused, match="Epochs must be"):
        parse(text)


def test_epochs_in_a_method_of_a_method_are_counted_too():
    method = parse("Negate(learn=Finetune(objective=-1.0 * Ascent(), steps=Epochs(count=3.0), batch=3))")
    assert method.fit(tiny(), REQUEST).learn.steps == 7
    assert parse("LAF(steps=Epochs(count=2.0), batch=3)").fit(tiny(), REQUEST).steps == 5  # 14 / 3


# The optimizer


def test_sgd_follows_the_size_of_the_gradient_and_adamw_does_not():
    settings = dict(adapter=Full(), learning_rate=1e-5, steps=1, norms=False)
    start = numbers(tiny())
    for optimizer, factor in (("sgd", 2.0), ("adamw", 1.0)):
        one, twice = (
            apart(numbers(run(objective=weight * Ascent(), optimizer=optimizer, **settings)[0]), start)
            for weight in (1.0, 2.0)
        )
        assert twice / one == pytest.approx(factor, rel=0.02), optimizer


def test_sgd_has_a_momentum_of_nine_tenths():
    # Under a constant gradient three steps go 1 + (1 + 0.9) + (1 + 0.9 + 0.81) times as far as one.
    settings = dict(objective=Ascent(), adapter=Full(), optimizer="sgd", learning_rate=1e-6, batch=9, norms=False)
    start = numbers(tiny())
    one, three = (apart(numbers(run(steps=steps, **settings)[0]), start) for steps in (1, 3))
    assert three / one == pytest.approx(1 + 1.9 + 2.71, rel=0.02)


# The adapter


def test_a_network_without_transformer_blocks_is_trained_whole_and_this_is_said():
    told: list = []
    request = picture_request(side=16)
    report = expunge.unlearn(resnet(), request, "Finetune(steps=2)", "Loss", on_event=told.append)
    notes = [event.what for event in told if isinstance(event, Note)]
    assert (
        "ResNetForImageClassification has no transformer blocks: all weights are trained (adapter=Full()), "
        "without bound" in notes
    )
    assert "adapter=Full()" in report.method
    assert report.run.edited is None
    assert report.run.started.trainable == report.run.started.parameters
    assert parse(report.method) == parse(report.method).fit(resnet(), request)


def test_all_weights_are_trained_at_a_rate_of_their_own_where_nobody_chose_an_adapter():
    notes: list[str] = []
    request = picture_request(side=16)
    method = Finetune(learning_rate=0.002, full_scale=0.05)
    tell = partial(_note, notes)
    for fitted in (method.fit(resnet(), request, tell), method.fit(resnet(), request).fit(resnet(), request)):
        assert (fitted.adapter, fitted.learning_rate) == (Full(), pytest.approx(1e-4))
    assert notes[0].endswith("all weights are trained (adapter=Full()), without bound, at a rate of 0.0001")
    assert replace(method, adapter=Full()).fit(resnet(), request).learning_rate == 0.002
    assert method.fit(vit(), picture_request()).learning_rate == 0.002


@pytest.mark.parametrize(("network", "request_"), [(llama, text_request), (vit, picture_request)])
def test_a_transformer_gets_the_bounded_adapter(network, request_):
    told: list = []
    assert Finetune().fit(network(), request_(), told.append).adapter == Bounded()
    assert told == []


ASKED: list[str] = []


@dataclass(frozen=True)
class Watched(Loss):
    """Notes that it was asked."""

    def score(self, model: Model, batch: Batch) -> torch.Tensor:
        ASKED.append(self.name)
        return super().score(model, batch)


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("Finetune(adapter=Bounded())", "has no transformer blocks"),
        ("Finetune(adapter=GroupSparse())", "has no transformer blocks"),
        ("Finetune(adapter=Fila())", "has no transformer blocks"),
        ("Finetune(adapter=SEUF())", "has no experts"),
        ("Finetune(objective=RMU(), adapter=Full())", "no transformer blocks, so no hidden states"),
        ("Poison(learn=Finetune(objective=IdkNLL(), adapter=LoRA()))", "has no transformer blocks"),
        ("GSLoRA", "has no transformer blocks"),
    ],
)
def test_what_the_model_cannot_take_is_refused_before_any_audit(method: str, said: str):
    ASKED.clear()
    with pytest.raises(ModelRefused, match=said):
        expunge.unlearn(resnet(), picture_request(side=16), method, [Watched()])
    assert ASKED == []


def test_an_audit_would_have_been_seen():
    ASKED.clear()
    expunge.unlearn(resnet(), picture_request(side=16), "SSD(alpha=1.0)", [Watched()])
    assert ASKED


# The report


def test_a_report_has_the_recipe_and_all_that_was_run(tmp_path):
    report = expunge.unlearn(vit(), picture_request(), "GA", "Loss", added_probes=False)
    assert report.recipe.name == "GA"
    assert "SalUn's code" in report.recipe.source
    method = parse(report.method)
    assert (method.steps, method.adapter, method.optimizer) == (5, Full(), "sgd")
    replace(report, model=None).save(tmp_path / "out")
    assert Report.read(tmp_path / "out").recipe == report.recipe
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "SalUn&#39;s code" in page
    other = expunge.unlearn(vit(), picture_request(), report.method, "Loss", added_probes=False)
    assert other.recipe is None
    assert other.result == report.result


def test_a_recipe_with_another_setting_is_reported_so():
    report = expunge.unlearn(vit(), picture_request(), "GA(learning_rate=0.002)", "Loss", added_probes=False)
    assert report.recipe.name == "GA(learning_rate=0.002)"
    assert "learning_rate=0.002" in report.method
