"""What a method without steps tells of itself: how much it changed, and where."""

import math

import torch
from torch import nn

from expunge.events import Change, Edited
from expunge.internals.changes import block_of, count_changed, describe_change


class Held:
    """A network, as far as its weights go."""

    def __init__(self, *weights: list[float]) -> None:
        layers = [nn.Linear(len(row), 1, bias=False) for row in weights[1:]]
        self.module = nn.ModuleDict(
            {"head": nn.Linear(len(weights[0]), 1, bias=False), "layers": nn.ModuleList(layers)}
        )
        with torch.no_grad():
            for parameter, row in zip(self.module.parameters(), weights, strict=True):
                parameter.copy_(torch.tensor([row]))


def test_an_edit_tells_its_changes_block_by_block_and_they_add_up():
    was, now = Held([1.0, 2.0], [3.0, 4.0, 5.0], [6.0]), Held([1.0, 2.0], [0.0, 8.0, 5.0], [5.0])
    told = describe_change(was, now)
    assert told == Edited(
        changed=3,
        parameters=6,
        distance=math.sqrt(9 + 16 + 1),
        blocks={"head": Change(0, 2, 0.0), "layers.0": Change(2, 3, 5.0), "layers.1": Change(1, 1, 1.0)},
    )


def test_a_block_ends_at_the_first_number_of_a_name():
    names = {
        "model.layers.3.mlp.up_proj.weight": "model.layers.3",
        "resnet.encoder.stages.0.layers.1.layer.0.convolution.weight": "resnet.encoder.stages.0",
        "lm_head.weight": "lm_head",
        "vit.embeddings.cls_token": "vit.embeddings",
        "scale": "scale",
    }
    assert {name: block_of(name) for name in names} == names


def test_an_output_matrix_that_was_tied_and_is_no_longer_counts_by_itself():
    was, now = Held([1.0, 2.0], [3.0, 4.0]), Held([1.0, 2.0], [3.0, 5.0])
    assert count_changed(was, now) == 1
    was.module["layers"][0] = was.module["head"]  # one matrix by two names
    assert count_changed(was, now) == 2
    assert describe_change(was, now).changed == 2
    assert count_changed(was, was) == 0
    more = Held([1.0, 2.0], [3.0, 4.0], [1.0])
    assert count_changed(now, more) is count_changed(more, now) is None
