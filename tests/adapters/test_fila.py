"""FILA: its factors by hand, a start that changes nothing, a reference that stays the original, and what is written."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from expunge.adapters._fold import bounded_linear
from expunge.adapters._maps import Form
from expunge.adapters._relative_fisher import factors
from expunge.adapters.bounded import Bounded
from expunge.adapters.fila import Fila
from expunge.adapters.lora import LoRA
from expunge.core.model import Network
from expunge.core.objective import Objective, Scalar
from expunge.core.question import Scores
from expunge.core.request import Request
from expunge.core.view import View
from expunge.data.text import Passage
from expunge.errors import DataRefused
from expunge.methods.finetune import Finetune
from expunge.methods.stop import Stop
from expunge.models.language import LanguageModel
from expunge.objectives.ascent import Ascent
from expunge.objectives.retain_nll import RetainNLL
from expunge.runtime.sharding import silence_adapter

CONFIGS = {
    "llama": LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4
    ),
    "gpt2": GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=4, n_positions=64),
}
ADAPTERS = {
    "lora": LoRA(rank=4, alpha=8.0),
    "sine": Bounded(rank=4, alpha=8.0),
    "tanh": Bounded(map="tanh", rank=4, alpha=8.0, omega=30.0),
}
EACH = [(family, name) for family in CONFIGS for name in ADAPTERS]


def tiny(family: str = "llama") -> LanguageModel:
    torch.manual_seed(0)
    module = AutoModelForCausalLM.from_config(CONFIGS[family]).eval().requires_grad_(False)
    for parameter in module.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return LanguageModel.of(module, None)


def passage(name: str, length: int, seed: int) -> Passage:
    """Some tokens, of which all but the first two are labelled."""
    tokens = torch.randint(40, (length,), generator=torch.Generator().manual_seed(seed)).tolist()
    return Passage(name, tuple(tokens), 2, name, name, name, tuple(tokens[:2]))


REQUEST = Request(
    forget=tuple(passage(f"f{k}", 6 + k, k) for k in range(3)),
    retain=tuple(passage(f"r{k}", 9 - k, 10 + k) for k in range(7)),
)


def logits(network: Network) -> torch.Tensor:
    with torch.inference_mode():
        return network.ask(Scores(), REQUEST.forget).logits


def apart(one: Network, other: Network) -> float:
    return float((logits(one) - logits(other)).abs().max())


def trained(network: Network, adapter: Fila, steps: int = 4, objective: Objective | None = None) -> Network:
    method = Finetune(
        objective=objective or Ascent() + RetainNLL(),
        adapter=adapter,
        learning_rate=1e-2,
        steps=steps,
        weight_decay=0.1,
        stop=Stop(level=None, max_retain_increase=None, every=1000),
    )
    return method(network, REQUEST).inner


# The factors


def test_the_factors_take_the_row_that_matters_and_not_the_largest():
    # diag(1, 9) W = diag(3, 9): the second direction leads. A = sqrt(9) (0, 1), B = sqrt(9) / 9 in the second row.
    a, b = factors(torch.tensor([[3.0, 0.0], [0.0, 1.0]]), torch.tensor([1.0, 9.0]), rank=1)
    assert torch.allclose(a.abs(), torch.tensor([[0.0, 3.0]]), atol=1e-5)
    assert torch.allclose(b.abs(), torch.tensor([[0.0], [1 / 3]]), atol=1e-5)
    assert torch.allclose(b @ a, torch.tensor([[0.0, 0.0], [0.0, 1.0]]), atol=1e-5)


def test_with_equal_rows_and_full_rank_the_factors_are_the_weight_itself():
    weight = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    a, b = factors(weight, torch.ones(5), rank=3)
    assert (a.shape, b.shape) == ((3, 3), (5, 3))
    assert torch.allclose(b @ a, weight, atol=1e-4)  # 1 / (1 + 1e-5) of it
    assert torch.allclose(a @ a.T, torch.diag(torch.linalg.svdvals(weight)), atol=1e-4)  # each has the root of S


def test_a_weight_with_fewer_directions_than_the_rank_gives_what_it_has():
    a, b = factors(torch.randn(2, 7), torch.ones(2), rank=4)
    assert (a.shape, b.shape) == ((2, 7), (2, 2))


def test_the_start_follows_the_gradients_of_both_sets_weighted_by_their_rows():
    network, name = tiny(), "model.layers.1.mlp.down_proj"
    adapted = Fila(adapter=ADAPTERS["lora"], batch=2).insert(network, REQUEST)
    importance = {}
    # three to forget: batches of 4 + 5 and of 6 rows; of seven to retain every second, at most three: 7 + 5 and 3 rows
    for which, some in (("forget", REQUEST.forget), ("retain", REQUEST.retain[::2][:3])):
        rows = [sum(e.rows for e in batch) for batch in (some[:2], some[2:])]
        slopes = []
        for batch in (some[:2], some[2:]):
            fork = network.fork()
            weight = fork.module.get_submodule(name).weight.requires_grad_()
            slopes.append(torch.autograd.grad(fork.ask(Scores(), batch).nll(), weight)[0])
        importance[which] = sum(n / sum(rows) * slope**2 for n, slope in zip(rows, slopes, strict=True))
        assert rows == {"forget": [9, 6], "retain": [12, 3]}[which]
    d = (importance["forget"] / (1e-5 + importance["retain"])).sum(1).sqrt()
    weight = network.module.get_submodule(name).weight.detach()
    u, s, v = torch.linalg.svd(d[:, None] * weight, full_matrices=False)
    expected = (u[:, :4] * s[:4]) @ v[:4] / (d + 1e-5)[:, None]  # times alpha / r, what the adapter makes of B A
    part = adapted.module.get_submodule(f"base_model.model.{name}")
    assert torch.allclose(part.get_delta_weight("default"), expected, atol=1e-3 * float(expected.abs().max()))


def test_both_factors_have_a_gradient_at_once_where_loras_a_has_none():
    for adapter, silent in ((ADAPTERS["lora"], True), (Fila(adapter=ADAPTERS["lora"]), False)):
        adapted = adapter.insert(tiny(), REQUEST)
        adapted.ask(Scores(), REQUEST.forget).nll().backward()
        of_a = [p.grad for name, p in adapted.trainable().items() if "lora_A" in name]
        assert len(of_a) == 6
        assert all(bool(grad.any()) != silent for grad in of_a)


# A start that changes nothing


@pytest.mark.parametrize(("family", "name"), EACH)
def test_at_the_start_the_network_answers_as_the_original(family: str, name: str):
    network, adapter = tiny(family), Fila(adapter=ADAPTERS[name])
    adapted = adapter.insert(network, REQUEST)
    assert apart(adapted, network) <= (1e-5 if name == "lora" else 0.0)  # W + (delta - delta) is W to the bit
    assert all(not delta.any() for _, delta in adapter.deltas(adapted, network))
    sizes = [part.get_delta_weight("default").abs().max() for part in parts(adapted)] if name == "lora" else [1]
    assert min(sizes) > 1e-3  # and not because there is nothing in the factors


def parts(adapted: Network) -> list[torch.nn.Module]:
    return [part for part in adapted.module.modules() if hasattr(part, "lora_A")]


@pytest.mark.parametrize("name", ADAPTERS)
def test_only_the_adapters_own_factors_move(name: str):
    plain, begun = (adapter.insert(tiny(), REQUEST) for adapter in (ADAPTERS[name], Fila(adapter=ADAPTERS[name])))
    assert {n: p.shape for n, p in plain.trainable().items()} == {n: p.shape for n, p in begun.trainable().items()}


@pytest.mark.parametrize(("family", "name"), EACH)
def test_trained_it_is_what_is_merged(family: str, name: str):
    network, adapter = tiny(family), Fila(adapter=ADAPTERS[name])
    adapted = trained(network, adapter)
    merged = adapter.merge(adapted)
    assert apart(adapted, network) > 0.05
    assert apart(merged, adapted) <= 1e-5 * max(1.0, float(logits(adapted).abs().max()))
    for layer, delta in adapter.deltas(adapted, network):
        was, now = (each.module.get_submodule(layer).weight for each in (network, merged))
        change = now - was if now.shape == delta.shape else (now - was).T  # GPT-2's weights lie [in, out]
        assert torch.allclose(change, delta, atol=1e-6)


# The model before


@dataclass(frozen=True)
class Asks(Objective):
    """Keeps what the model before says, step by step."""

    needs: ClassVar = ("forget", "retain", "reference")
    intention: ClassVar = "retention"
    heard: ClassVar[list[torch.Tensor]] = []

    def __call__(self, now: View, before: View) -> Scalar:
        self.heard.append(before.forget.log_prob())
        return -now.forget.nll() + now.retain.nll()


@pytest.mark.parametrize("name", ADAPTERS)
def test_the_model_before_is_the_original_in_every_step(name: str):
    network = tiny()
    was = {key: value.clone() for key, value in network.module.state_dict().items()}
    Asks.heard.clear()
    trained(network, Fila(adapter=ADAPTERS[name]), steps=3, objective=Asks())
    expected = network.ask(Scores(), REQUEST.forget).log_prob()
    assert len(Asks.heard) == 3
    for heard in Asks.heard:  # in another order each step
        assert torch.allclose(heard.sort().values, expected.sort().values, atol=1e-5)
    assert all(torch.equal(value, was[key]) for key, value in network.module.state_dict().items())


@pytest.mark.parametrize(("family", "name"), EACH)
def test_with_the_adapter_switched_off_it_is_the_original_too(family: str, name: str):
    network = tiny(family)
    adapted = trained(network, Fila(adapter=ADAPTERS[name]))
    with silence_adapter(adapted.module):  # what many processes take for the model before
        assert torch.equal(logits(adapted), logits(network))


# What is written


def test_beside_lora_it_is_written_as_a_plain_lora_of_twice_the_rank(tmp_path, script):
    network, adapter = tiny(), Fila(adapter=ADAPTERS["lora"])
    adapted = trained(network, adapter)
    told = logits(adapted)
    network.module.save_pretrained(tmp_path / "base")
    adapter.save(adapted, tmp_path / "adapter")
    assert torch.equal(logits(adapted), told)
    torch.save(REQUEST.forget[0].tokens, tmp_path / "tokens.pt")
    done = script(
        "import sys, torch; from transformers import AutoModelForCausalLM as M; from peft import PeftModel;"
        f"m = PeftModel.from_pretrained(M.from_pretrained(r'{tmp_path / 'base'}'), r'{tmp_path / 'adapter'}').eval();"
        "assert m.peft_config['default'].r == 8 and not any(n.startswith('expunge') for n in sys.modules);"
        f"tokens = torch.tensor([torch.load(r'{tmp_path / 'tokens.pt'}')]);"
        f"torch.save(m(input_ids=tokens).logits, r'{tmp_path / 'logits.pt'}')"
    )
    assert done.code == 0, done.err
    with torch.inference_mode():
        ours = adapted.module(input_ids=torch.tensor([REQUEST.forget[0].tokens])).logits
    assert torch.allclose(torch.load(tmp_path / "logits.pt"), ours, atol=1e-5)


def test_beside_a_bounded_adapter_it_is_read_back_with_its_start(tmp_path):
    network, adapter = tiny(), Fila(adapter=ADAPTERS["sine"])
    adapted = trained(network, adapter)
    adapter.save(adapted, tmp_path / "adapter")
    assert sorted(path.name for path in (tmp_path / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    read = PeftModel.from_pretrained(tiny().module, tmp_path / "adapter").eval()
    with torch.inference_mode():
        assert torch.equal(adapted.fork(read).ask(Scores(), REQUEST.forget).logits, logits(adapted))


def test_gradients_with_a_start_agree_with_finite_differences():
    draw = torch.Generator().manual_seed(0)
    a, b = (torch.randn(*shape, generator=draw).double() * 0.05 for shape in ((3, 7), (5, 3)))
    start = tuple(factor + 0.1 for factor in (a, b))
    x = torch.randn(4, 7, generator=draw).double().requires_grad_()
    weight, form = torch.randn(5, 7, generator=draw).double(), Form.of("sine", 3, 6.0, 3.0, 4.0, 7)
    expected = x @ (weight + form.delta(a, b) - form.delta(*start)).T
    assert torch.allclose(bounded_linear(x, weight, None, a, b, form, start), expected, atol=1e-12)
    moving = (x, a.requires_grad_(), b.requires_grad_())
    assert torch.autograd.gradcheck(lambda *t: bounded_linear(t[0], weight, None, t[1], t[2], form, start), moving)


def test_without_a_retain_set_there_is_nothing_to_weigh_against():
    with pytest.raises(DataRefused, match="Fila weighs the forget set against the retain set"):
        Fila().insert(tiny(), Request(forget=REQUEST.forget))
