"""Unlearning without files: from a model and lists of records to a report that holds the result, and to a folder."""

import json
import math
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

import expunge
from expunge import Report, open_model, read_request
from expunge.audits._kinds import ScoreAudit
from expunge.audits.loss import Loss
from expunge.core.method import Method
from expunge.core.model import Batch, Model
from expunge.core.question import LogProbabilities
from expunge.core.request import Request
from expunge.errors import DataRefused, ModelRefused, RunFailed, UsageRefused
from expunge.events import Checked, Ended, Event, Note, OnEvent, Started, Step
from expunge.methods.finetune import Finetune
from expunge.methods.stop import Stop
from expunge.objectives.grad_diff import GradDiff
from expunge.report.report import Original
from expunge.report.results import better_of, by_set
from expunge.run.choose import audits_of
from expunge.runtime.atomic_files import check_manifest
from tests.cli.commands import CANARY, rows
from tests.families import llama, passages, picture_request, text_request, vit

unlearn = partial(expunge.unlearn, added_probes=False)  # they have tests of their own
FREE = Stop(level=None, max_retain_increase=None, every=2)
SHORT = Finetune(objective=GradDiff(), steps=2, batch=2, retain_batch=2, stop=FREE)


@pytest.fixture(scope="module")
def made() -> Report:
    return unlearn(llama(), text_request(), SHORT, "Loss, Choice, Rouge(max_new_tokens=4), LossMembership")


def value(report: Report, audit: str, where: str, model: str) -> float:
    [found] = [f for f in report.findings if (f.audit, f.set, f.model) == (audit, where, model)]
    return found.value


def test_the_model_in_a_report_is_the_one_that_was_audited(made: Report):
    assert made.model.fingerprint() == made.result != made.original.fingerprint
    [after] = [f for f in Loss()(made.model, text_request()) if f.set == "forget"]
    assert after.value == pytest.approx(value(made, "Loss", "forget", "after"), abs=1e-6)
    assert after.value > value(made, "Loss", "forget", "before")


def test_the_model_given_is_left_as_it_was():
    network = llama()
    was = network.fingerprint()
    unlearn(network, text_request(), SHORT, [Loss()])
    assert network.fingerprint() == was


@dataclass(frozen=True)
class Breaking(Method):
    """One number of the result is no number."""

    number: float = math.nan

    def __call__(self, model: Model, request: Request, on_event: OnEvent) -> Model:
        fork = model.fork()
        fork.module.model.layers[1].mlp.up_proj.weight.data[3, 2] = self.number
        return fork


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_a_result_with_a_number_that_is_none_is_no_result(number: float):
    with pytest.raises(ModelRefused, match=r"holds NaN or Inf in model\.layers\.1\.mlp\.up_proj\.weight"):
        unlearn(llama(), text_request(), Breaking(number), [Loss()])


def test_a_report_says_what_was_done_to_what(made: Report):
    assert replace(made.original, tokenizer=None) == Original(
        "LlamaForCausalLM", "language", "LlamaForCausalLM", made.original.parameters, llama().fingerprint()
    )
    fitted = SHORT.fit(llama(), text_request())
    assert made.method == repr(fitted)
    assert made.command == f"unlearn(model, request, {repr(fitted)!r})"
    assert made.request.fingerprint == text_request().fingerprint()
    assert made.request.unit == "tokens"
    assert {name: facts.examples for name, facts in made.request.sets.items()}["forget"] == 6
    assert [type(step) for step in made.steps] == [Checked, Step, Step, Checked]
    assert made.cost.tokens == sum(step.size for step in made.steps if isinstance(step, Step))
    assert list(made.cost.seconds) == ["audit before", "forget", "merge", "audit after"]
    assert made.run.started.steps == made.run.ended.steps == 2
    assert made.run.saved.adapter
    assert made.run.saved.max_logit_difference < 1e-4 < made.run.saved.max_logit_change
    assert [rule.rule for rule in made.verdict.rules if rule.condition] == [
        "kept step >= 1",
        "numbers of the model changed >= 1 (something changed)",
        "largest change of a score >= 0.0001 (its answers changed)",
        "rise of the retain loss <= ln 2 (a token half as likely)",
        "rise of the share of empty or repeating texts, where they should stay <= 0.1",
    ]


def test_texts_are_not_in_a_report(made: Report):
    assert made.samples.items
    assert not made.samples.shown
    for sample in made.samples.items:
        assert (sample.prompt, sample.answer, sample.before, sample.after) == (None, None, None, None)


def test_a_saved_report_is_a_folder_that_plain_transformers_and_peft_read(made: Report, tmp_path: Path):
    folder = made.save(tmp_path / "out")
    names = {path.name for path in folder.iterdir()}
    assert names == {"model", "adapter", "steps.jsonl", "report.json", "report.html", "MANIFEST.json"}
    assert check_manifest(folder)["request"] == made.request.fingerprint
    assert [path.name for path in tmp_path.iterdir()] == ["out"]  # no scratch folder
    plain = AutoModelForCausalLM.from_pretrained(folder / "model").eval()
    llama().save(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval()
    adapted = PeftModel.from_pretrained(base, folder / "adapter").eval()
    tokens = torch.arange(1, 9)[None]
    with torch.inference_mode():
        assert torch.allclose(plain(tokens).logits, adapted(tokens).logits, atol=1e-5)
    assert open_model(folder / "model").fingerprint() == made.result


def test_a_report_is_read_back_without_its_model(made: Report, tmp_path: Path):
    again = Report.read(made.save(tmp_path / "out"))
    assert again == made  # which does not look at the models held
    assert (again.model, again.adapted) == (None, None)
    again.save(tmp_path / "copy")
    assert (tmp_path / "copy" / "report.json").read_bytes() == (tmp_path / "out" / "report.json").read_bytes()
    assert (tmp_path / "copy" / "report.html").read_bytes() == (tmp_path / "out" / "report.html").read_bytes()


def test_nothing_is_left_of_a_report_that_could_not_be_written(made: Report, tmp_path: Path):
    @dataclass(frozen=True)
    class Full:
        """A model whose disk is full."""

        def save(self, folder: Path) -> None:
            folder.mkdir()
            (folder / "model.safetensors").write_bytes(b"half")
            raise OSError(28, "No space left on device")

    with pytest.raises(Exception, match="disk of .* is full"):
        replace(made, model=Full()).save(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_the_command_does_the_same(expunge, model: Path, tmp_path: Path):
    """The same records, method and audits, with files around them: the same numbers."""
    kinds = ("forget", "retain", "holdout")
    for kind in kinds:
        (tmp_path / f"{kind}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(kind)))
    files = [f"--{kind}={tmp_path / f'{kind}.jsonl'}" for kind in kinds]
    asked = ["--method", repr(SHORT), "--audits", "Loss, Choice, MinK", "--no-added-probes", "--out", tmp_path / "out"]
    assert expunge("forget", model, *files, *asked).code in (0, 6)
    theirs = Report.read(tmp_path / "out")
    network = open_model(model)
    ours = unlearn(network, read_request(network, **{kind: rows(kind) for kind in kinds}), SHORT, "Loss, Choice, MinK")
    assert [replace(f, scores=()) for f in ours.findings] == [replace(f, scores=()) for f in theirs.findings]
    assert ours.result == theirs.result
    assert ours.request.fingerprint == theirs.request.fingerprint
    assert ours.verdict == theirs.verdict


def test_events_come_as_they_happen():
    told: list[Event] = []
    unlearn(llama(), text_request(), SHORT, [Loss()], on_event=told.append)
    kinds = [Note, Started, Checked, Step, Step, Checked, Ended, Note]
    assert [type(event) for event in told] == kinds
    assert [event.what for event in told if isinstance(event, Note)] == [
        "Auditing the model before",
        "Auditing the model after",
    ]


def test_a_reference_and_thresholds():
    reference = llama()
    made = unlearn(
        llama(), text_request(), SHORT, "TruthRatio", reference=reference, require=["forget.ForgetQuality >= 0.5"]
    )
    assert value(made, "ForgetQuality", "forget", "before") == 1.0  # the reference is the model itself
    assert value(made, "TruthRatioShift", "forget", "before") == 0.0
    assert "forget.ForgetQuality >= 0.5" in [rule.rule for rule in made.verdict.rules]
    assert made.is_met is made.verdict.is_met
    with pytest.raises(UsageRefused, match="ForgetQuality is not run. Audits: TruthRatio"):
        unlearn(llama(), text_request(), SHORT, "TruthRatio", require=["forget.ForgetQuality >= 0.5"])


def test_a_method_without_steps_has_a_report_too(tmp_path: Path):
    made = unlearn(llama(), text_request(), "SSD(alpha=1.0)", [Loss()])
    assert made.run.started is None
    assert made.run.edited.changed > 0
    assert made.adapted is None
    assert made.steps == ()
    assert {path.name for path in made.save(tmp_path / "out").iterdir()} == {
        "model", "report.json", "report.html", "MANIFEST.json",
    }  # fmt: skip


def test_where_no_audits_are_named_those_that_name_the_family_are_asked():
    made = unlearn(vit(), picture_request(), "SSD(alpha=1.0)")
    assert {f.audit for f in made.findings} == {"Accuracy", "Probability", "Loss", "LossMembership"}
    names = [audit.name for audit in audits_of(None, "language")]
    assert names == ["Choice", "ExactMatch", "Loss", "LossMembership", "MinK", "MinKPlusPlus", "Probability", "Rouge"]
    names = [audit.name for audit in audits_of(None, "a new one")]
    assert names == ["Accuracy", "Loss", "LossMembership", "Probability"]


def test_a_run_that_fails_leaves_the_last_good_model_with_its_error():
    with pytest.raises(RunFailed, match="is NaN or infinite") as failed:
        unlearn(llama(), text_request(), replace(SHORT, learning_rate=1e30, steps=9), [Loss()])
    assert all(torch.isfinite(p).all() for p in failed.value.last_good.plain().module.parameters())


# What an audit says of itself


@dataclass(frozen=True)
class Surprise(ScoreAudit):
    """A loss-like audit of somebody else's."""

    definition = "Mean surprise, in bits."
    better = "lower"

    def score(self, model: Model, batch: Batch) -> torch.Tensor:
        said = model.ask(LogProbabilities(), batch)
        return -said.mean(said.log_probs) / math.log(2)


def test_a_new_audit_like_a_loss_is_printed_as_lower_is_better_where_the_model_should_know(tmp_path: Path):
    request = replace(text_request(), holdout=())
    made = unlearn(llama(), request, SHORT, "tests.run.test_unlearn:Surprise")
    rows_of = by_set(made.findings)
    assert better_of(rows_of["retain"]["Surprise"]) == "lower is better"
    assert better_of(rows_of["forget"]["Surprise"]) == "higher is better"  # no ideal is known without a holdout set
    page = (made.save(tmp_path / "out") / "report.html").read_text()
    assert page.count("lower is better") >= 1
    with_holdout = unlearn(llama(), text_request(), SHORT, [Surprise()])
    assert better_of(by_set(with_holdout.findings)["forget"]["Surprise"]) == "nearer its ideal is better"


def test_a_model_that_cannot_say_what_an_audit_asks_is_refused_before_the_work():
    with pytest.raises(UsageRefused) as refused:
        unlearn(vit(), picture_request(), SHORT, "Rouge")
    assert str(refused.value) == (
        "Rouge asks a model for Text, which ImageClassifier cannot answer. Leave Rouge out. "
        "Audits for it: Accuracy, Loss, LossMembership, Probability."
    )


def test_records_that_lack_what_an_audit_needs_are_refused_in_its_words():
    texts = tuple(replace(e, alternatives=()) for e in passages(["Alice", "Berta"], 0))
    with pytest.raises(DataRefused) as refused:
        unlearn(llama(), Request(texts), SHORT, "Choice, TruthRatio")
    assert "Choice needs options: wrong answers; TruthRatio needs options: wrong answers" in str(refused.value)


# From lists of records


def test_a_request_is_read_from_lists_and_files_alike(model: Path, tmp_path: Path):
    network = open_model(model)
    (tmp_path / "retain.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows("retain")))
    listed = read_request(network, forget=rows("forget"), retain=rows("retain"), para=rows("probe"))
    mixed = read_request(network, forget=rows("forget"), retain=tmp_path / "retain.jsonl", para=rows("probe"))
    assert listed.fingerprint() == mixed.fingerprint()
    assert list(listed.sets()) == ["forget", "retain", "para"]
    texts = read_request(network, forget=[{"text": "Mara Lind lives in Veldt."}])
    assert [e.rows for e in texts.forget] == [texts.forget[0].size - 1]


@pytest.mark.parametrize(
    "given", [{"para": [{"text": "Mara Lind"}]}, ["Mara Lind lives in Veldt."], "Veldt"[:0].split()]
)
def test_a_set_that_is_no_list_of_records_is_refused_in_a_line(model: Path, given):
    with pytest.raises(DataRefused, match=r"^probes records: (a set is a file or a list of records|there are none)"):
        read_request(open_model(model), forget=rows("forget"), probes=given)


@pytest.mark.parametrize(
    ("records", "told"),
    [
        ([{"question": CANARY}], "forget records: line 1: no 'answer'"),
        ([{"text": "a b"}, {"text": 3}], "forget records: line 2: 'text' is int, but must be text"),
        ([], "forget records: there are none"),
    ],
)
def test_a_record_that_cannot_be_used_is_named_by_its_place(model: Path, records: list, told: str):
    with pytest.raises(DataRefused) as refused:
        read_request(open_model(model), forget=records)
    assert told in str(refused.value)
    assert CANARY not in str(refused.value)


def test_the_readme_goes_from_a_model_and_two_lists_of_records_to_a_saved_report_in_eight_lines():
    page = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    [block] = [part.split("```")[0] for part in page.split("```python\n")[1:] if "unlearn(" in part]
    assert len([line for line in block.splitlines() if line.strip()]) <= 8
