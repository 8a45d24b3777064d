"""The weight mask of SalUn: which numbers it chooses, and that no other ever moves, to the bit."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForImageClassification, GPT2Config, LlamaConfig, ViTConfig

from expunge.adapters._layers import kind_of, kinds
from expunge.adapters.full import Full
from expunge.adapters.salient import Salient
from expunge.core.adapter import Adapter
from expunge.core.model import Network
from expunge.core.objective import Objective
from expunge.core.question import Scores
from expunge.core.request import Request
from expunge.data.images import Picture
from expunge.data.text import Passage
from expunge.errors import UsageRefused
from expunge.methods.finetune import Finetune
from expunge.methods.stop import Stop
from expunge.models.language import LanguageModel
from expunge.models.vision import ImageClassifier
from expunge.objectives.ascent import Ascent
from expunge.objectives.random_label import RandomLabel
from expunge.objectives.retain_nll import RetainNLL

GPT2 = GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=4, n_positions=64, eos_token_id=0, bos_token_id=0)
LLAMA = LlamaConfig(vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4)


def language(config: object = LLAMA) -> LanguageModel:
    torch.manual_seed(0)
    return LanguageModel.of(AutoModelForCausalLM.from_config(config).eval().requires_grad_(False), None)


def passage(name: str, seed: int) -> Passage:
    tokens = torch.randint(30, (7,), generator=torch.Generator().manual_seed(seed)).tolist()
    return Passage(name, tuple(tokens), 2, name, name, name, tuple(tokens[:2]))


def picture(name: str, seed: int) -> Picture:
    return Picture(name, torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(seed)), seed % 4, name)


TEXT = Request(tuple(passage(f"f{k}", k) for k in range(3)), tuple(passage(f"r{k}", 9 + k) for k in range(3)))
IMAGES = Request(tuple(picture(f"f{k}", k) for k in range(3)), tuple(picture(f"r{k}", 9 + k) for k in range(3)))


def vision() -> ImageClassifier:
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=24,
        num_labels=4,
        image_size=8,
        patch_size=4,
    )
    return ImageClassifier.of(AutoModelForImageClassification.from_config(config).eval(), None)


CASES = {
    "llama": (language, TEXT),
    "gpt2, tied": (lambda: language(GPT2), TEXT),
    "vit": (vision, IMAGES),
}
CASE = pytest.mark.parametrize("case", CASES)


def trained(network: Network, request: Request, adapter: Adapter, objective: Objective, decay: float) -> Network:
    """Five large steps of AdamW."""
    method = Finetune(
        objective=objective,
        adapter=adapter,
        learning_rate=1e-2,
        steps=5,
        batch=2,
        retain_batch=2,
        weight_decay=decay,
        stop=Stop(level=None, max_retain_increase=None, every=1000),
    )
    return method(network, request).plain()


def weights(network: Network) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in network.module.named_parameters()}


@CASE
def test_the_chosen_are_those_with_the_largest_gradient_of_all_tensors_together(case: str):
    make, request = CASES[case]
    network = make()
    fork = network.fork()
    parameters = {name: p.requires_grad_() for name, p in fork.module.named_parameters()}
    slopes = torch.autograd.grad(fork.ask(Scores(), request.forget).nll(), list(parameters.values()), allow_unused=True)
    sizes = {
        n: torch.zeros_like(p) if s is None else s.abs() for (n, p), s in zip(parameters.items(), slopes, strict=True)
    }
    masks = Salient(quantile=0.7).masks(network, request)
    count = sum(size.numel() for size in sizes.values())
    assert sum(int(mask.sum()) for mask in masks.values()) == count - int(0.7 * count)
    kept = torch.cat([sizes[n][masks[n]] for n in masks])
    still = torch.cat([(sizes[n][~masks[n]] if n in masks else sizes[n].flatten()) for n in sizes])
    assert kept.min() > still.max()


def test_what_has_no_gradient_is_never_chosen():
    # Of 40 tokens the forget set has at most 21: the other rows of the input embedding get no gradient at all.
    masks = Salient(quantile=0.0).masks(language(), TEXT)
    seen = {token for example in TEXT.forget for token in example.tokens[:-1]}
    rows = masks["model.embed_tokens.weight"].any(1)
    assert {int(row) for row in rows.nonzero()} == seen


@CASE
@pytest.mark.parametrize("objective", [Ascent() + RetainNLL(), RandomLabel() + RetainNLL()], ids=["ascent", "salun"])
def test_neither_momentum_nor_decay_moves_a_number_that_is_not_chosen(case: str, objective: Objective):
    make, request = CASES[case]
    network = make()
    was, masks = weights(network), Salient().masks(network, request)
    now = weights(trained(network, request, Salient(), objective, decay=0.5))
    assert now.keys() == was.keys()
    for name, value in now.items():
        mask = masks.get(name, torch.zeros_like(value, dtype=torch.bool))
        assert torch.equal(value[~mask], was[name][~mask])
        moved = value[mask] != was[name][mask]
        assert moved.sum() >= 0.99 * len(moved)  # a number may come back to where it was


def test_with_plain_weights_decay_does_move_them():
    """So the law above is not kept for want of a pull."""
    network = language()
    was, masks = weights(network), Salient().masks(network, TEXT)
    now = weights(trained(network, TEXT, Full(), Ascent() + RetainNLL(), decay=0.5))
    assert any(not torch.equal(now[name][~mask], was[name][~mask]) for name, mask in masks.items())


def test_where_all_may_move_it_is_full_fine_tuning():
    network = language()
    ours, theirs = (
        weights(trained(network, TEXT, adapter, Ascent(), decay=0.0)) for adapter in (Salient(quantile=0.0), Full())
    )
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-6) for name in theirs)


def test_what_may_move_is_counted_as_what_moves():
    network = language()
    adapted = Salient(quantile=0.6).insert(network, TEXT)
    count = sum(p.numel() for p in network.module.parameters())
    assert sum(p.numel() for p in adapted.trainable().values()) == count - int(0.6 * count)
    known = kinds(network.module)
    assert {kind_of(name, known) for name in adapted.trainable()} == {"mlp", "attention", "other"}


def test_tied_weights_move_as_one_and_stay_tied():
    network = language(GPT2)
    adapted = Salient().insert(network, TEXT)
    module = adapted.module
    name = "transformer.wte.parametrizations.weight.0.values"
    with torch.no_grad():
        adapted.trainable()[name].add_(1.0)
    assert torch.equal(module.transformer.wte.weight, module.lm_head.weight)
    merged = Salient().merge(adapted).module
    assert merged.lm_head.weight is merged.transformer.wte.weight
    assert torch.equal(merged.lm_head.weight, module.lm_head.weight)
    assert not torch.equal(merged.lm_head.weight, network.module.lm_head.weight)


def test_a_merged_folder_is_read_back(tmp_path):
    network = language(GPT2)
    merged = trained(network, TEXT, Salient(), Ascent(), decay=0.0)
    merged.module.save_pretrained(tmp_path)
    read = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    tokens = torch.tensor([TEXT.forget[0].tokens])
    with torch.inference_mode():
        assert torch.equal(read(input_ids=tokens).logits, merged.module(input_ids=tokens).logits)


def test_a_share_outside_its_range_and_a_plan_are_refused():
    with pytest.raises(UsageRefused, match=r"must lie in \[0, 1\)"):
        Salient(quantile=1.0)
    with torch.device("meta"):
        module = AutoModelForCausalLM.from_config(LLAMA)
    with pytest.raises(UsageRefused, match="a plan does not have"):
        Salient().insert(LanguageModel(module, None), TEXT)
