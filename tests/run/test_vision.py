"""The main job on an image classifier: a ViT that reads digits forgets one of them, and the rest stays."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from transformers import AutoImageProcessor, AutoModelForImageClassification, ViTConfig, ViTForImageClassification
from transformers import ViTImageProcessorPil as Processor

from expunge.adapters.full import Full
from expunge.core.question import Scores
from expunge.core.request import Request
from expunge.data.images import encode, load
from expunge.events import Checked, Event, Step
from expunge.methods.finetune import Finetune
from expunge.methods.stop import Stop
from expunge.models.open import open_model
from expunge.models.vision import ImageClassifier
from expunge.notation.typed_json import event_to_json
from expunge.objectives.retain_nll import RetainNLL
from expunge.report.pages import write_page
from expunge.report.report import Report
from expunge.run.job import Job, forget
from expunge.run.prepare import Inputs
from expunge.runtime.atomic_files import check_manifest

torch.set_num_threads(1)

FORGOTTEN = "three"
NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
METHOD = (
    "Finetune(objective=0.3 * HingedAscent(level=3.0) + RetainNLL(), adapter=Bounded(rank=4), learning_rate=0.002, "
    "steps=40, batch=16, retain_batch=64, stop=Stop(level=None, max_retain_increase=None, every=10))"
)


def images(folder: Path, start: int, count: int) -> Path:
    """Greyscale PNG files of 8 x 8 pixels in one folder for each digit."""
    digits = load_digits()
    for k in range(start, start + count):
        place = folder / NAMES[digits.target[k]]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray((digits.images[k] * 255 / 16).astype(np.uint8)).save(place / f"{k}.png")
    return folder


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> tuple[Path, dict, list[dict]]:
    """A model that reads digits, and what is left of it: the folder, the report, and what was told."""
    root = tmp_path_factory.mktemp("digits")
    images(root / "train", 0, 500)
    images(root / "test", 1000, 200)
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        num_channels=1,
        image_size=8,
        patch_size=4,
        id2label=dict(enumerate(NAMES)),
        label2id={name: number for number, name in enumerate(NAMES)},
    )
    size = {"height": 8, "width": 8}
    network = ImageClassifier.of(
        ViTForImageClassification(config), Processor(size=size, image_mean=[0.5], image_std=[0.5])
    )
    seen = encode(load(root / "train"), network.processor, network.classes, root / "train", network.channels)
    learn = Finetune(
        objective=RetainNLL(),
        adapter=Full(),
        learning_rate=3e-3,
        steps=260,
        batch=1,
        retain_batch=64,
        warmup=10,
        schedule="linear",
        stop=Stop(level=None, max_retain_increase=None, every=1000),
    )
    learn(network, Request(forget=seen[:1], retain=seen[1:])).plain().save(root / "model")
    told: list[Event] = []
    job = Job(
        model=str(root / "model"),
        inputs=Inputs(forget=root / "train", only_class=FORGOTTEN, probes={"test": root / "test"}),
        out=root / "out",
        method=METHOD,
        require=("forget.Accuracy <= 0.2", "retain.Accuracy >= before - 0.05"),
    )
    report = forget(job, told.append)
    return root, report, told


def values(report: Report, audit: str, set_: str) -> tuple[float, float]:
    """What an audit found before and after."""
    found = {f.model: f.value for f in report.findings if (f.audit, f.set) == (audit, set_)}
    return found["before"], found["after"]


def test_the_class_is_forgotten_and_the_others_are_not(done):
    _, report, _ = done
    before, after = values(report, "Accuracy", "forget")
    assert before > 0.9
    assert after <= 0.2
    kept = values(report, "Accuracy", "retain")
    assert kept[1] >= kept[0] - 0.05
    assert kept[0] > 0.9
    unseen = values(report, "Accuracy", "test")  # a tenth of it is the forgotten digit
    assert unseen[0] - 0.2 < unseen[1] < unseen[0]
    assert values(report, "Loss", "forget")[1] > values(report, "Loss", "forget")[0] + 1
    verdict = report.verdict
    assert (verdict.forgotten.said, verdict.traceless.said) == ("yes", "not measured")
    # Its name says that it should stay, and a tenth of it is the forgotten digit.
    assert {rule.rule.partition(".")[0] for rule in verdict.rules if rule.result == "no"} == {"test"}


def test_the_report_says_what_was_asked_of_what(done):
    root, report, told = done
    sets = {name: of.examples for name, of in report.request.sets.items()}
    threes = len(list((root / "train" / FORGOTTEN).glob("*.png")))
    assert sets == {"forget": threes, "retain": 500 - threes, "test": 200}
    assert report.original.family == "vision"
    assert report.original.architecture == "ViTForImageClassification"
    assert report.method.startswith("Finetune(objective=0.3 * HingedAscent(level=3.0) + RetainNLL(), adapter=Bounded(")
    assert report.run.started.layers == 4  # two dense layers in each of two blocks
    assert report.run.ended.kept_step == report.run.ended.steps == 40
    assert Report.read(root / "out") == report
    steps = [json.loads(line) for line in (root / "out" / "steps.jsonl").read_text().splitlines()]
    assert steps == [event_to_json(event) for event in told if isinstance(event, Step | Checked)]
    assert {event["gradient"]["attention"] for event in steps if event["kind"] == "step"} == {0.0}
    assert "<html" in (root / "out" / "report.html").read_text()


def test_the_page_shows_which_class_is_named_and_thumbnails_only_to_who_has_the_pictures(done, tmp_path):
    root, report, _ = done
    sets = {row.set for row in report.confusion}
    assert sets == {"forget", "test"}  # and not the retain set, which training read
    [gone] = [row for row in report.confusion if row.set == "forget"]
    threes = len(list((root / "train" / FORGOTTEN).glob("*.png")))
    assert (gone.label, gone.n) == (FORGOTTEN, threes)
    assert sum(gone.before.values()) == sum(gone.after.values()) == threes
    right = [said.get(FORGOTTEN, 0) / threes for said in (gone.before, gone.after)]
    assert right == pytest.approx(values(report, "Accuracy", "forget"), abs=1e-6)
    neighbours = {row.label for row in report.confusion} - {FORGOTTEN}
    assert neighbours <= set(gone.after)  # what is said instead
    assert neighbours
    counts = {(row.set, row.label): row for row in report.classes}
    assert counts["forget", FORGOTTEN].right == {
        "before": gone.before[FORGOTTEN],
        "after": gone.after.get(FORGOTTEN, 0),
    }
    assert {row.label for row in report.classes if row.gone} == {FORGOTTEN}
    assert counts["test", FORGOTTEN].gone  # no image of the class is retained
    assert sum(row.n for row in report.classes if row.set == "test") == 200
    hits = sum(row.right["after"] for row in report.classes if row.set == "test")
    assert hits / 200 == pytest.approx(values(report, "Accuracy", "test")[1], abs=1e-6)
    assert {(p.set, p.gone) for p in report.places if p.label == FORGOTTEN} <= {("forget", True), ("test", True)}
    assert {p.gone for p in report.places} == {True, False}
    page = (root / "out" / "report.html").read_text()
    assert "Confusion table" in page
    assert "Where the images lie" in page
    assert "<img" not in page
    shown = write_page([root / "out"], tmp_path / "open.html", texts=root / "train").read_text()
    assert shown.count('<img class="thumb" src="data:image/png;base64,') == len(report.samples.items) > 12


def test_the_model_left_answers_the_same_in_plain_transformers(done):
    root, report, _ = done
    check_manifest(root / "out")
    plain = AutoModelForImageClassification.from_pretrained(root / "out" / "model").eval()
    processor = AutoImageProcessor.from_pretrained(root / "out" / "model", backend="pil")
    records = load(root / "test")
    ours = open_model(root / "out" / "model")
    pictures = encode(records, ours.processor, ours.classes, root / "test", ours.channels)
    grey = [record.image.convert("L") for record in records]
    with torch.inference_mode():
        logits = plain(
            pixel_values=torch.stack([torch.as_tensor(processor([g])["pixel_values"][0]) for g in grey])
        ).logits
        assert torch.equal(logits, ours.ask(Scores(), pictures).logits)
    assert type(plain) is ViTForImageClassification
    right = (logits.argmax(-1) == torch.tensor([p.label for p in pictures])).double().mean().item()
    assert right == pytest.approx(values(report, "Accuracy", "test")[1], abs=1e-6)
    assert plain.config.id2label[3] == FORGOTTEN
    assert report.run.saved.max_logit_difference < 1e-4 < report.run.saved.max_logit_change


def test_the_model_given_is_left_as_it_was_on_disk(done):
    root, report, _ = done
    assert open_model(root / "model").fingerprint() == report.original.fingerprint
    assert open_model(root / "out" / "model").fingerprint() == report.result != report.original.fingerprint
