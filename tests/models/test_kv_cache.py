"""The cache is handed over by the name that the installed transformers has for it: none warns, and texts are equal."""

import pytest
import torch
from torch import nn
from transformers import LlamaForCausalLM

from expunge.core.question import Text
from expunge.models.kv_cache import cache_argument
from expunge.models.language import LanguageModel
from tests.families import WORDS, llama, text_request


class Older(LlamaForCausalLM):
    """As before transformers 5.24."""

    def forward(self, input_ids=None, attention_mask=None, position_ids=None, past_key_values=None, **more):
        assert "cache" not in more
        return super().forward(input_ids, attention_mask, position_ids, cache=past_key_values, **more)


class Newer(LlamaForCausalLM):
    """As it will be when the older name is gone."""

    def forward(self, input_ids=None, attention_mask=None, position_ids=None, cache=None, **more):
        assert "past_key_values" not in more
        return super().forward(input_ids, attention_mask, position_ids, cache=cache, **more)


class Around(nn.Module):
    """Hands on whatever it is given."""

    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.inside = inside

    def forward(self, **inputs):
        return self.inside(**inputs)


@pytest.mark.parametrize("kind", [Older, Newer, LlamaForCausalLM])
def test_texts_are_equal_by_either_name_and_nothing_warns(kind: type, caplog):
    own = llama()
    made = kind(own.module.config).eval()
    made.load_state_dict(own.module.state_dict())
    network = LanguageModel.of(made, WORDS)
    assert network.trees  # decoded by our own loop, which hands over the cache
    examples = list(text_request().forget)
    assert network.ask(Text(6), examples) == own.ask(Text(6), examples)
    assert "deprecated" not in caplog.text


def test_the_name_is_the_signature_s():
    config = llama().module.config
    assert cache_argument(Older(config)) == cache_argument(Around(Older(config))) == "past_key_values"
    assert cache_argument(Newer(config)) == cache_argument(Around(Newer(config))) == "cache"
    assert cache_argument(torch.nn.Linear(1, 1)) == "past_key_values"
