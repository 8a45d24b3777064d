"""A bounded adapter is for peft's users what LoRA is: every habit works, or is refused with the reason."""

import json
import warnings

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn

import expunge
from expunge.adapters import _base_sketch
from expunge.adapters._bounded_config import BoundedConfig
from expunge.adapters._bounded_linear import BoundedLinear
from expunge.errors import ModelRefused, Refusal, UsageRefused
from tests.peft_habits.files import exchanging_while_it_runs
from tests.peft_habits.kinds import BOUNDED, LORA, TOKENS, answer, expect, folder, llama, mixtral, put, shake
from tests.peft_habits.misfits import change_settings, change_tensors
from tests.peft_habits.table import HABITS, MARKS, PAGE, attempt
from tests.peft_habits.use import becoming_a_lora, merging_a_broken_adapter, scaling, two_kinds_in_one_model

PEFTS_OWN_LIMITS = {scaling, two_kinds_in_one_model, becoming_a_lora}
PEFTS_OWN_LIMITS |= {exchanging_while_it_runs, merging_a_broken_adapter}
"""What peft itself refuses of every method but LoRA; and NaN, which is a `ValueError` in peft's interface."""
EVERY = [pytest.param(text, habit, id=text) for group in HABITS.values() for text, habit in group]


@pytest.mark.parametrize(("text", "habit"), EVERY)
def test_a_habit_of_pefts_users_works_or_is_refused_as_the_page_says(text, habit):
    ours, theirs = attempt(habit, BOUNDED), attempt(habit, LORA)
    assert ours.startswith("works") or ours in ("refused, with the reason", "warned") or habit in PEFTS_OWN_LIMITS
    assert f"| {text} | {ours} | {theirs} |\n" in PAGE.read_text(encoding="utf-8")


def test_the_page_has_at_least_28_habits_and_no_row_without_one():
    rows = PAGE.read_text(encoding="utf-8").partition(MARKS[0])[2].partition(MARKS[1])[0].splitlines()
    assert len(EVERY) >= 28
    assert len(rows) == 2 + len(HABITS) + len(EVERY)


def test_what_a_law_of_the_table_would_not_accept_is_told_as_wrong():
    assert expect(False) == "wrong"
    assert attempt(lambda kind: str(1 / 0), BOUNDED) == "ZeroDivisionError"


# Refusals, by their words


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"rank_pattern": {"up_proj": 0}}, "rank_pattern.*rank must be"),
        ({"alpha_pattern": {"up_proj": -1.0}}, "alpha_pattern.*alpha must be positive"),
        ({"rank_pattern": ["up_proj"]}, "rank_pattern must name layers"),
        ({"init_weights": "pissa"}, "init_weights must be True, False or 'gaussian'"),
        ({"init_weights": 1}, "init_weights must be"),
        ({"layers_to_transform": "1"}, "layers_to_transform must be numbers"),
        ({"layers_to_transform": 1, "target_modules": "up_proj"}, "needs a list of endings"),
        ({"layers_pattern": "layers"}, "layers_pattern needs layers_to_transform"),
        ({"target_modules": [1]}, "target_modules must be a name"),
        ({"target_parameters": "mlp.experts"}, "target_parameters must be a list"),
        ({"target_modules": "("}, "no regular expression"),
        ({"rank_pattern": {"[": 2}}, "rank_pattern holds '\\['"),
        ({"start": "yes"}, "start must be"),
        ({"base": {"shapes": ""}}, "base must be what saving wrote"),
        ({"digest": 3}, "digest must be what saving wrote"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_by_name(settings, words):
    with pytest.raises(UsageRefused, match=words):
        BoundedConfig(**settings)


def test_blocks_of_a_list_need_targets():
    with pytest.raises(UsageRefused, match="layers_pattern needs target_modules"):
        get_peft_model(llama(), BoundedConfig(layers_to_transform=[0], layers_pattern="layers"))


def test_a_weighted_sum_is_refused_with_the_mathematical_reason():
    with pytest.raises(UsageRefused, match=r"is not map\(B A\).*set_adapter\(\['default'\]\)"):
        put(BOUNDED).add_weighted_adapter(["default"], [1.0], "sum")


def test_a_model_without_blocks_needs_named_targets():
    with pytest.raises(ModelRefused, match=r"No default targets.*target_modules=\[\.\.\.\]"):
        get_peft_model(nn.Sequential(nn.Linear(2, 2)), BoundedConfig())
    assert isinstance(get_peft_model(nn.Sequential(nn.Linear(2, 2)), BoundedConfig(target_modules=["0"])), PeftModel)


def test_a_layer_whose_weight_is_read_without_a_call_and_quantized_weights_are_refused_and_nothing_is_left_behind():
    from transformers import AutoModelForCausalLM, MambaConfig

    mamba = AutoModelForCausalLM.from_config(MambaConfig(vocab_size=40, hidden_size=16, num_hidden_layers=1))
    quantized = llama()
    last = quantized.model.layers[1].mlp.up_proj
    last.weight = nn.Parameter(last.weight.to(torch.float8_e4m3fn), requires_grad=False)
    for model, names, words in (
        (mamba, ["in_proj", "out_proj"], "would do nothing"),
        (quantized, ["gate_proj", "up_proj"], "float8_e4m3fn"),
    ):
        with pytest.raises(ModelRefused, match=words):
            get_peft_model(model, BoundedConfig(target_modules=names))
        assert not any(isinstance(part, BoundedLinear) for part in model.modules())


def test_a_mixed_batch_is_refused_in_training_where_merged_and_where_names_and_rows_differ():
    model = shake(put(BOUNDED))
    names = ["default", "__base__"]
    with pytest.raises(UsageRefused, match=r"1 names, and a layer got 2"):
        model(input_ids=TOKENS, adapter_names=names[:1])
    with pytest.raises(UsageRefused, match="for inference"):
        model.train()(input_ids=TOKENS, adapter_names=names)
    model.eval().merge_adapter()
    with pytest.raises(UsageRefused, match="unmerge_adapter"):
        model(input_ids=TOKENS, adapter_names=names)
    model.unmerge_adapter()
    with pytest.raises(UsageRefused, match="alora_offsets"):
        model(input_ids=TOKENS, alora_offsets=[1, 1])
    assert not any(part._forward_pre_hooks for part in model.modules())  # also after an error in the middle


# What loading compares


def refused(base: nn.Module, path: object) -> str:
    """Why an adapter is refused, by peft's own way of loading and by ours; the base answers as before."""
    before = answer(base)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(Refusal) as by_peft:
            PeftModel.from_pretrained(base, str(path))
        with pytest.raises(ModelRefused) as by_us:
            expunge.load_adapter(base, path)
    assert torch.equal(answer(base), before)
    assert not any(isinstance(part, BoundedLinear) for part in base.modules())
    assert str(by_us.value) == f"{path}: {by_peft.value}"
    assert "\n" not in str(by_us.value)
    return str(by_peft.value)


def test_each_difference_is_told_apart():
    model = shake(put(BOUNDED))
    with folder(model) as path:
        assert "other names, numbers or sizes" in refused(llama(layers=3), path)
        assert "other names, numbers or sizes" in refused(llama(layers=1), path)
        assert "its weights are others" in refused(llama(seed=7), path)
        one = llama()
        other = llama(seed=7).model.layers[0].self_attn.q_proj.weight
        one.model.layers[0].self_attn.q_proj.weight.data = other.data
        assert "its weights are others" in refused(one, path)
        change_tensors(lambda tensors: tensors.pop(next(iter(tensors))))(path)
        assert "SHA-256 differs" in refused(llama(), path)
        change_settings(digest=None)(path)
        assert "no weights for 1 tensors" in refused(llama(), path)
        change_tensors(lambda tensors: tensors.update({"base_model.model.x\n.bounded_A": torch.ones(2)}))(path)
        assert "1 tensors that no layer of LlamaForCausalLM takes (first: x?.bounded_A)" in refused(llama(), path)
        change_settings(base=None, later=2)(path)
        assert "the setting 'later', unknown" in refused(llama(), path)


def test_an_adapter_that_was_merged_or_trained_further_is_compared_by_what_it_is_saved_with():
    model = shake(put(BOUNDED, modules_to_save=["lm_head"]))
    model.merge_adapter()
    with folder(model) as path:
        again = PeftModel.from_pretrained(llama(), path, is_trainable=True).eval()
        model.unmerge_adapter()
        assert torch.equal(answer(again), answer(model))
    shake(again, 9)
    with folder(again) as path:
        assert torch.equal(answer(expunge.load_adapter(llama(), path)), answer(again))


def test_a_second_adapter_that_does_not_fit_leaves_the_first_as_it_is():
    model, other = shake(put(BOUNDED)), shake(put(BOUNDED, llama(seed=7)))
    before = answer(model)
    with folder(other) as path, pytest.raises(ModelRefused, match="its weights are others"):
        model.load_adapter(str(path), "second")
    assert set(model.peft_config) == {"default"}
    assert torch.equal(answer(model), before)
    with folder(shake(put(BOUNDED, r=2))) as path:
        expunge.load_adapter(model, path, "second")
    assert set(model.peft_config) == {"default", "second"}


def test_a_base_that_is_not_in_memory_is_not_compared_and_that_is_said():
    with folder(shake(put(BOUNDED))) as path, warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        get_peft_model(llama(seed=7).to("meta"), BoundedConfig.from_pretrained(str(path)))
    assert any("was not compared" in str(each.message) for each in said)


def test_one_configuration_serves_several_models():
    """What saving writes down is of the file, and not of the configuration that a sweep goes on using."""
    config = BOUNDED()
    with folder(shake(get_peft_model(llama(), config))):
        assert get_peft_model(llama(seed=7), config)
    assert config.base is None


def test_the_sketch_of_a_base_does_not_see_adapters_or_precision_but_every_layer():
    was = _base_sketch.sketch(llama())
    adapted = shake(put(BOUNDED, modules_to_save=["lm_head"]))
    assert _base_sketch.sketch(adapted) == was
    adapted.merge_adapter()
    assert _base_sketch.sketch(adapted) == was
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        assert _base_sketch.differ(was, _base_sketch.sketch(llama().to(dtype))) is None
    for name, _ in llama().named_parameters():
        if name.endswith("norm.weight"):  # all ones in either
            continue
        changed = llama()
        changed.get_parameter(name).data = llama(seed=7).get_parameter(name).data
        assert _base_sketch.differ(was, _base_sketch.sketch(changed)) == "its weights are others", name
        assert _base_sketch.differ(was, _base_sketch.sketch(changed.bfloat16())) == "its weights are others", name


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "is not there"),
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "peft_type. must be BOUNDED. Got 'None'"),
        ('{"peft_type": "LORA"}', "Got 'LORA'"),
        ('{"peft_type": "BOUNDED", "r": "8"}', "rank must be a whole number"),
        ('{"peft_type": "BOUNDED", "task_type": "DREAMING"}', "cannot be loaded"),
    ],
)
def test_settings_that_cannot_be_read_are_refused_in_one_line(text, words, tmp_path):
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    if text is not None:
        (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(ModelRefused, match=words):
        expunge.load_adapter(llama(), tmp_path)


def test_weights_that_cannot_be_read_are_refused_in_one_line():
    with folder(shake(put(BOUNDED))) as path:
        file = path / "adapter_model.safetensors"
        file.write_bytes(file.read_bytes()[:100])
        assert "is damaged" in refused(llama(), path)
        file.unlink()
        with pytest.raises(ModelRefused, match="is not there"):
            expunge.load_adapter(llama(), path)


def test_a_second_adapter_of_fused_experts_is_set_and_gets_default_targets():
    model = get_peft_model(mixtral(), BoundedConfig(omega=10.0)).eval()
    model.add_adapter("second", BoundedConfig(omega=10.0))
    assert model.peft_config["second"].target_modules == model.peft_config["default"].target_modules
    shake(model)
    first = answer(model)
    model.set_adapter("second")
    assert not torch.allclose(answer(model), first, atol=1e-4)


@pytest.mark.filterwarnings("ignore:The following rank_pattern keys")  # peft looks for them among layers only
def test_ranks_of_single_tensors_of_experts():
    names = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    config = BoundedConfig(target_parameters=names, r=4, rank_pattern={"down_proj": 2})
    model = get_peft_model(mixtral(), config)
    shapes = {name: p.shape[1] for name, p in model.named_parameters() if "bounded_A" in name}
    assert {rank for name, rank in shapes.items() if "gate_up" in name} == {4}
    assert {rank for name, rank in shapes.items() if "down" in name} == {2}


def test_the_adapter_config_holds_what_a_reader_compares():
    with folder(shake(put(BOUNDED))) as path:
        written = json.loads((path / "adapter_config.json").read_text())
    assert len(written["digest"]) == 64
    assert written["base"]["precision"] == "float32"
    assert len(written["base"]["projections"]) == _base_sketch.PROJECTIONS
