"""Language models answer as their own library says they do, read as trees or padded, one by one or in batches."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GPTNeoConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PhiConfig,
    Qwen2Config,
    Qwen3Config,
)

from expunge.adapters.lora import LoRA
from expunge.core.question import LogProbabilities, Scores, Text
from expunge.data.text import Passage
from expunge.errors import UsageRefused
from expunge.models.language import LanguageModel
from expunge.models.prefix_tree import Piece, Tree, pack, pairs, pieces
from expunge.models.tree_attention import MOST

V = 60
SHAPE = {
    "vocab_size": V,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}
CONFIGS = {
    "llama": LlamaConfig(**SHAPE),
    "gpt2": GPT2Config(vocab_size=V, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2),
    "gpt_neo": GPTNeoConfig(
        vocab_size=V,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        attention_types=[[["global", "local"], 1]],
        window_size=4,
        max_position_embeddings=64,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "gpt_neox": GPTNeoXConfig(**SHAPE),
    "phi": PhiConfig(**SHAPE),
    "qwen2": Qwen2Config(**SHAPE),
    "qwen3": Qwen3Config(**SHAPE, head_dim=8),
    "opt": OPTConfig(
        vocab_size=V,
        hidden_size=32,
        ffn_dim=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        word_embed_proj_dim=32,
        max_position_embeddings=64,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "gemma": GemmaConfig(**SHAPE, head_dim=8),
    "gemma2": Gemma2Config(**SHAPE, head_dim=8, sliding_window=4),
    "gemma3": Gemma3TextConfig(**SHAPE, head_dim=8, sliding_window=4),
    "mistral": MistralConfig(**SHAPE),
}
BATCH = [
    Passage("a", (1, 5, 6, 7, 8, 9, 2), 4, "", ""),
    Passage("b", (1, 5, 6, 3, 2), 3, "", ""),
    Passage("c", (1, 5, 6, 3, 20, 21, 22, 23, 24, 2), 4, "", ""),
    Passage("d", (1, 40, 41), 1, "", ""),
]


def model(name: str, attention: str | None = None) -> LanguageModel:
    torch.manual_seed(0)
    module = AutoModelForCausalLM.from_config(CONFIGS[name], attn_implementation=attention).eval()
    for parameter in module.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)  # far from the start, where everything looks alike
    return LanguageModel.of(module, None)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_loss_of_each_example_is_the_librarys_own(name):
    network = model(name)
    said = network.ask(Scores(), BATCH)
    ours = -said.mean(said.log_prob())
    for passage, loss in zip(BATCH, ours, strict=True):
        tokens = torch.tensor([passage.tokens])
        labels = tokens.clone()
        labels[:, : passage.first] = -100
        with torch.inference_mode():
            theirs = network.module(input_ids=tokens, labels=labels).loss
        assert loss.item() == pytest.approx(theirs.item(), abs=2e-6)


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3", "opt", "phi", "gpt_neox", "gemma"])
def test_these_architectures_are_read_as_trees(name):
    assert model(name).trees == 4096


@pytest.mark.parametrize(("name", "largest"), [("gpt_neo", 0), ("gemma2", 0), ("gemma3", 0), ("mistral", 4096)])
def test_a_tree_never_outgrows_a_window_of_local_attention(name, largest):
    # A window of 4 is shorter than the probe, so its tree is read wrongly and trees are ruled out altogether.
    assert model(name).trees == largest


def test_gradients_through_a_tree_are_those_of_the_examples_read_alone():
    network = model("llama")
    network.module.requires_grad_(True)
    weight = network.module.model.layers[0].mlp.up_proj.weight
    together = torch.autograd.grad(network.ask(Scores(), BATCH).log_prob().sum(), weight)[0]
    alone = sum(torch.autograd.grad(network.ask(Scores(), [one]).log_prob().sum(), weight)[0] for one in BATCH)
    assert torch.allclose(together, alone, atol=1e-4 * float(alone.abs().max()))


def test_rows_come_in_the_order_of_the_batch():
    said = model("llama").ask(Scores(), BATCH)
    assert said.labels.tolist() == [8, 9, 2, 3, 2, 20, 21, 22, 23, 24, 2, 40, 41]
    assert said.example.tolist() == [0, 0, 0, 1, 1, 2, 2, 2, 2, 2, 2, 3, 3]


def test_answers_do_not_depend_on_how_examples_are_batched():
    network = model("llama")
    together = network.ask(LogProbabilities(), BATCH)
    alone = torch.cat([network.ask(LogProbabilities(), [one]).log_probs for one in BATCH])
    assert torch.allclose(together.log_probs, alone, atol=1e-5)
    backwards = network.ask(LogProbabilities(), BATCH[::-1])
    assert torch.allclose(torch.cat(backwards.split(backwards.log_probs)[::-1]), alone, atol=1e-5)


def test_only_labelled_rows_meet_the_output_matrix():
    network = model("llama")
    made = []
    network.module.lm_head.register_forward_hook(lambda _, __, out: made.append(out.shape[-1]))
    said = network.ask(Scores(), BATCH)
    assert made == [32]  # the matrix handed its hidden states on and made no scores of 60 classes
    assert said.states.shape == (13, 32)
    assert said.head is not None
    assert said.logits.shape == (13, V)


@pytest.mark.parametrize(("name", "headed"), [("llama", True), ("gpt2", True), ("gemma", True), ("gemma2", False)])
def test_a_cap_after_the_output_matrix_is_noticed(name, headed):
    assert model(name).headed is headed  # Gemma 2 passes its scores through tanh


def test_a_tree_holds_each_beginning_once():
    tree = Tree.of([(1, 2, 3), (1, 2, 4, 5), (1, 2, 3)])
    assert tree.tokens.tolist() == [[1, 2, 3, 4, 5]]
    assert tree.depth.tolist() == [[0, 1, 2, 2, 3]]
    assert tree.paths == ((0, 1, 2), (0, 1, 3, 4), (0, 1, 2))
    assert tree.ends.flatten().tolist() == [5, 5, 3, 5, 5]  # the subtree of node 2 is itself; nodes 3 and 4 are a path


def seen(cut, place):
    """The nodes that a piece looks at, by their place."""
    return [node for k in (*cut[place].above, place) for node in range(cut[k].start, cut[k].stop)]


def test_a_tree_that_is_small_is_one_piece():
    ends = Tree.of([(1, 2, 3), (1, 2, 4, 5)]).ends.flatten().tolist()
    assert pieces(ends, 5) == [Piece(0, 5)]


def test_a_larger_tree_is_cut_below_what_its_sequences_share():
    sequences = [(0, 1, *(100 * k + j for j in range(10))) for k in range(1, 5)]  # 2 tokens shared, 10 of their own
    cut = pieces(Tree.of(sequences).ends.flatten().tolist(), 20)
    # 2 + 4 * 10 = 42 nodes: the 2 that all see, and twice two sequences of 10
    assert cut == [Piece(0, 2, path=True), Piece(2, 22, (0,)), Piece(22, 42, (0,))]
    assert pairs(cut) == 2 * 2 + 2 * 20 * 22  # of 42 * 42 = 1,764


def test_a_path_longer_than_a_piece_stays_whole():
    cut = pieces(Tree.of([tuple(range(50)), (99, 98)]).ends.flatten().tolist(), 10)
    assert cut == [Piece(0, 50, path=True), Piece(50, 52, path=True)]


@settings(max_examples=60, deadline=None)
@given(
    sequences=st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=8).map(tuple), min_size=1, max_size=12),
    most=st.integers(1, 12),
)
def test_every_node_sees_its_ancestors_however_a_tree_is_cut(sequences, most):
    tree = Tree.of(sequences)
    ends = tree.ends.flatten().tolist()
    assert [tuple(tree.tokens[0, list(path)].tolist()) for path in tree.paths] == sequences
    cut = pieces(ends, most)
    assert [node for piece in cut for node in range(piece.start, piece.stop)] == list(range(len(ends)))
    above = {node: path[: place + 1] for path in tree.paths for place, node in enumerate(path)}
    for place, piece in enumerate(cut):
        for node in range(piece.start, piece.stop):
            assert {j for j in seen(cut, place) if j <= node < ends[j]} == set(above[node])
            assert not [j for j in set(range(len(ends))) - set(seen(cut, place)) if j <= node < ends[j]]


@pytest.mark.parametrize("own", ["sdpa", "eager"])
@pytest.mark.parametrize("most", [1, 3, 6])
def test_answers_and_gradients_do_not_depend_on_how_trees_are_cut(monkeypatch, most, own):
    network = model("llama", own)
    assert network.trees
    assert network.module.config._attn_implementation == {"sdpa": "sdpa", "eager": "expunge_eager"}[own]
    weight = network.module.model.layers[0].self_attn.k_proj.weight.requires_grad_(True)
    whole = network.ask(Scores(), BATCH).log_prob()
    slope = torch.autograd.grad(whole.sum(), weight)[0]
    monkeypatch.setitem(MOST, "cpu", most)
    cut = network.ask(Scores(), BATCH).log_prob()
    assert torch.allclose(cut, whole, atol=1e-5)
    assert torch.allclose(torch.autograd.grad(cut.sum(), weight)[0], slope, atol=1e-4 * float(slope.abs().max()))


def test_a_model_that_is_asked_otherwise_answers_as_it_did():
    network = model("llama")
    plain = AutoModelForCausalLM.from_config(CONFIGS["llama"]).eval()
    plain.load_state_dict(network.module.state_dict())
    tokens = torch.tensor([[1, 5, 6, 7], [0, 1, 5, 6]])
    mask = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 1]])
    with torch.inference_mode():
        for given in ({}, {"attention_mask": mask}):
            assert torch.equal(
                network.module(input_ids=tokens, **given).logits, plain(input_ids=tokens, **given).logits
            )


def test_groups_keep_within_their_room_and_lose_nobody():
    sequences = [(1, 2, k, k + 1) for k in range(10, 30)]
    groups = pack(sequences, 10)
    assert sorted(index for group in groups for index in group) == list(range(20))
    assert all(Tree.of([sequences[k] for k in group]).tokens.numel() <= 10 for group in groups)
    assert pack([(1,) * 50], 10) == [[0]]


def test_generation_in_a_batch_is_generation_alone(tiny_tokenizer):
    torch.manual_seed(0)
    config = LlamaConfig(**{**SHAPE, "vocab_size": len(tiny_tokenizer)})
    network = LanguageModel.of(AutoModelForCausalLM.from_config(config).eval(), tiny_tokenizer)
    prompts = [
        Passage(str(k), (1, *range(5, 5 + k), 7), k + 1, "", "", "", (1, *range(5, 5 + k))) for k in (1, 3, 6, 2)
    ]
    together = network.ask(Text(6), prompts)
    assert together == [network.ask(Text(6), [one])[0] for one in prompts]
    assert len(set(together)) > 1


def test_a_saved_network_reads_back_with_equal_answers(tmp_path, tiny_tokenizer):
    torch.manual_seed(0)
    config = LlamaConfig(**{**SHAPE, "vocab_size": len(tiny_tokenizer)}, tie_word_embeddings=True)
    network = LanguageModel.of(AutoModelForCausalLM.from_config(config).eval(), tiny_tokenizer)
    with pytest.raises(UsageRefused, match=r"^This network still has its adapter. Save adapter.merge\(network\)\.$"):
        LoRA().insert(network, None).save(tmp_path)
    assert list(tmp_path.iterdir()) == []
    network.save(tmp_path)
    from expunge.models.open import open_network

    read = open_network(str(tmp_path))
    assert torch.equal(read.ask(Scores(), BATCH).logits, network.ask(Scores(), BATCH).logits)
    assert read.module.lm_head.weight.data_ptr() == read.module.model.embed_tokens.weight.data_ptr()
