"""Architectures that a plan once failed on: each is planned like any other. All are tried by `tests.plan_table`."""

import os

import pytest
import torch
from transformers import CONFIG_MAPPING

from expunge.data.text import Passage
from expunge.models.language import LanguageModel
from expunge.models.sketch import narrow
from expunge.plan.paper import on_paper
from tests.architectures import build, tiny
from tests.plan_table import SAYS_SO, check

KINDS = {"afmoe": "experts that are known by their shape alone"}
if os.environ.get("EXPUNGE_LAWS") == "whole":  # the slowest to build
    KINDS |= {
        "gemma4_text": "a width of its own in each kind of block",
        "rwkv": "no attention",
        "bamba": "blocks of several kinds, whose list has no setter",
        "falcon_h1": "blocks of one kind, whose list has no setter",
    }


@pytest.mark.parametrize("name", KINDS)
def test_what_forget_runs_is_planned(name: str):
    said = check(name)
    assert said.endswith("GFLOP"), said


def test_what_forget_refuses_is_said_to_be_refused():
    assert check("jetmoe").startswith(SAYS_SO)


def test_widths_that_depend_on_one_another_are_divided_by_one_number():
    """Mamba's heads times their width must be its inner width, which no fixed widths fit."""
    small = narrow("bamba", CONFIG_MAPPING["bamba"](num_hidden_layers=2), None).module.config
    assert small.hidden_size == small.mamba_n_heads * small.mamba_d_head / small.mamba_expand == 128
    assert small.vocab_size == 251


def test_texts_beyond_a_selection_are_planned_one_by_one_as_they_are_read():
    paper = on_paper("deepseek_v32", tiny("deepseek_v32"), None, torch.float32, "cpu", None)
    real = LanguageModel.of(build("deepseek_v32"), None)
    assert (paper.network.trees, paper.network.rows) == (real.trees, real.rows)
    longest = max(real.trees, real.rows)
    assert longest < 60
    many = [Passage(f"{k}", tuple(range(2, 2 + size)), 1, "", "") for k, size in enumerate((3, 5, 60, 61))]
    assert list(paper.network.batches(many)) == list(real.batches(many))
    assert [group for group in paper.network.batches(many) if len(group) == 1][-2:] == [[2], [3]]
