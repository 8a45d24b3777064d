"""JRT-RNN as a model among others: asked in any company, trained, adapted, saved, opened, and its loss by hand."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from expunge import Finetune, Request, open_model
from expunge.adapters.bounded import Bounded
from expunge.adapters.full import Full
from expunge.core.question import LogProbabilities, Scores, Text
from expunge.models.jrt import JRT
from expunge.models.prefix_attention import PrefixTransformer, prefix_loss
from expunge.notation.parse import parse
from expunge.objectives.ascent import Ascent
from expunge.objectives.retain_nll import RetainNLL
from tests.families import EVERY_STEP, WORDS, text_request

torch.set_num_threads(1)
REQUEST = text_request()


def jrt(**settings: str) -> JRT:
    torch.manual_seed(0)
    module = PrefixTransformer(len(WORDS), width=16, layers=2, heads=2, features=4).eval().requires_grad_(False)
    for weight in module.parameters():
        weight += 0.2 * torch.randn_like(weight)
    return JRT(module, WORDS, **settings)


def test_answers_depend_neither_on_padding_nor_on_the_order_of_the_batch():
    network, read = jrt(), (*REQUEST.forget, *REQUEST.retain)
    alone = [network.ask(LogProbabilities(), [one]).log_probs for one in read]
    together = network.ask(LogProbabilities(), read)
    assert torch.allclose(together.log_probs, torch.cat(alone), atol=1e-5)
    assert together.labels.tolist() == [token for one in read for token in one.tokens[one.first :]]
    assert torch.allclose(network.ask(LogProbabilities(), read[::-1]).log_probs, torch.cat(alone[::-1]), atol=1e-5)


@pytest.mark.parametrize("prompts", ["prefix", "causal"])
def test_its_text_is_that_of_reading_all_of_it_again_for_each_token(prompts: str):
    network, one = jrt(prompts=prompts), REQUEST.forget[0]
    size = len(one.prompt_tokens)
    tokens = list(one.prompt_tokens)
    with torch.inference_mode():
        for _ in range(5):
            prefix = torch.zeros(1, len(tokens))
            prefix[:, :size] = prompts == "prefix"
            tokens.append(
                int(network.module(torch.tensor([tokens]), torch.ones(1, len(tokens)), prefix)[0, -1].argmax())
            )
    assert WORDS.eos_token_id not in tokens[size:]
    written = network.ask(Text(5), REQUEST.forget)  # beside prompts of other lengths
    assert written[0] == WORDS.decode(tokens[size:])


def test_a_prompt_is_read_knowing_its_end_only_as_a_prefix():
    one = REQUEST.forget[0]
    early = replace(one, first=2)  # the rows of the prompt itself
    late = replace(early, tokens=(*one.tokens[:-1], one.tokens[-2]))
    for prompts in ("causal", "prefix"):
        network = jrt(prompts=prompts)
        was, now = (network.ask(LogProbabilities(), [each]).log_probs for each in (early, late))
        assert torch.equal(was[:-1], now[:-1])  # nothing of the answer is seen ahead
    assert not torch.allclose(*(jrt(prompts=p).ask(LogProbabilities(), [one]).log_probs for p in ("causal", "prefix")))


def test_it_forgets_by_the_default_adapter_is_audited_saved_and_opened(tmp_path: Path):
    network = jrt()
    learn = Finetune(RetainNLL(), Full(), learning_rate=1e-2, steps=40, retain_batch=6, batch=1, stop=EVERY_STEP)
    trained = learn(network, Request(REQUEST.holdout[:1], REQUEST.forget)).plain()
    before = trained.ask(LogProbabilities(), REQUEST.forget).log_probs
    assert before.mean() > network.ask(LogProbabilities(), REQUEST.forget).log_probs.mean() + 1
    forget = Finetune(Ascent(), Bounded(rank=2), learning_rate=1e-2, steps=5, batch=6, stop=EVERY_STEP)
    forgetful = forget(trained, REQUEST).plain()
    assert forgetful.ask(LogProbabilities(), REQUEST.forget).log_probs.mean() < before.mean() - 0.1
    found = {f.set: f for f in parse("ContextOrder(others=2)")(forgetful, REQUEST)}
    assert {"forget", "retain", "holdout"} == found.keys() - {"stand_in"}
    forgetful.save(tmp_path / "model")
    read = open_model(tmp_path / "model")
    assert read.fingerprint() == forgetful.fingerprint()
    assert read.settings() == forgetful.settings()
    with torch.inference_mode():
        ours, theirs = (each.ask(Scores(), REQUEST.forget).logits for each in (read, forgetful))
    assert torch.equal(ours, theirs)


class Favours(torch.nn.Module):
    """Gives the token 1 a probability of 3/4 wherever 1 is read, and of 1/2 elsewhere; two tokens and a blank."""

    def forward(self, tokens: Tensor, mask: Tensor, prefix: Tensor) -> Tensor:
        read = (tokens == 1)[..., None]
        return torch.where(read, torch.tensor([0.25, 0.75, 0.0]), torch.tensor([0.5, 0.5, 0.0])).log()


def test_the_loss_mixes_next_tokens_after_the_prefix_with_blanked_ones_in_it():
    tokens = torch.tensor([[1, 0, 1, 1, 0]])
    mask, prefix = torch.ones(1, 5), torch.tensor([[1.0, 1, 1, 0, 0]])
    none, first = torch.zeros(1, 5).bool(), torch.tensor([[True, False, False, False, False]])
    after = -(math.log(3 / 4) + math.log(1 / 4)) / 2  # 1 after a 1, 0 after a 1; nothing within the prefix
    masked = -math.log(1 / 2)  # the blanked 1, from where a blank stands
    for blanked, weight, expected in (
        (none, 0.25, after),
        (first, 0.0, after),
        (first, 0.25, (after + 0.25 * masked) / 1.25),
    ):
        loss = prefix_loss(Favours(), tokens, mask, prefix, blanked, 2, weight)  # type: ignore[arg-type]
        assert loss.item() == pytest.approx(expected, abs=1e-6)
