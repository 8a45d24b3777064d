"""Image classifiers are read, trained and written as their own library does it: an architecture for each kind of
trouble.

`python -m tests.architecture_table` asks the same of every image classifier of transformers.
"""

import json

import pytest
import torch

from expunge.core.question import HiddenStates, Scores
from expunge.errors import EnvironmentRefused, ModelRefused
from expunge.models.open import open_network
from expunge.models.picture_probe import refuse_misfit
from expunge.models.source import check_folder
from expunge.models.vision import ImageClassifier
from tests.families import pictures
from tests.image_architectures import CLASSES, processor_of
from tests.image_table import check_image, make_image, write

READ = {
    "vit": "Bounded",
    "deit:WithTeacher": "Bounded",  # two heads
    "beit+biases": "Bounded",  # keeps a table from pass to pass
    "cvt": "Bounded",  # a count of layers for each stage; torch's gradient of a batch norm is wrong of one picture
    "levit": "Bounded",  # keeps its attention biases from pass to pass
    "pp_lcnet": "Full",  # its scores have another name
    "pvt": "Bounded",  # its classes have no names
    "mobilenet_v2+dropout": "Full",
}
REFUSED = {
    "imagegpt": "reads input_ids, not the pixels of a picture alone",
    "siglip2": "reads pixel_attention_mask and spatial_shapes, not the pixels of a picture alone",
    "vit+labels": "does not give each image one class out of several",
    "vit+one": "does not give each image one class out of several",
}


@pytest.mark.parametrize("name", READ)
def test_it_is_read_trained_and_written_as_by_its_own_library(name):
    row = check_image(name)
    assert (row.read, row.written, row.note) == ("together", READ[name], "")


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_score_pictures_alone_is_refused_when_it_is_loaded(name):
    row = check_image(name)
    assert row.note.startswith("refused")
    assert REFUSED[name] in row.note


def misfit(module, name="vit", classes=CLASSES, side=32):
    with pytest.raises(ModelRefused) as caught:
        refuse_misfit("it", module, processor_of(name, side, 3), 3, classes)
    return str(caught.value)


def test_a_classifier_that_draws_its_scores_is_refused():
    module = make_image("vit")
    module.vit.layernorm.register_forward_hook(lambda _part, _given, made: made + torch.randn_like(made))
    assert misfit(module) == "it: draws its scores at random, so that no two are alike. Give one that does not."


def test_a_classifier_that_scores_a_picture_by_those_beside_it_is_refused():
    trains = make_image("resnet").train()  # its batch norms count the batch
    assert misfit(trains, "resnet", side=64) == (
        "it: scores a picture by what is read beside it. Give one that does not."
    )
    module = make_image("vit")
    module.vit.layernorm.register_forward_hook(lambda _part, _given, made: made - made.mean(0))
    assert misfit(module).startswith("it: scores a picture by what is read beside it.")


def test_other_classes_than_are_named_are_refused():
    assert misfit(make_image("vit"), classes=4) == "it: scores 5 classes but names 4. Fix config.json."


def test_a_sound_classifier_is_refused_neither_for_rounding_nor_for_scores_that_are_all_zero():
    module = make_image("vit")
    module.vit.layernorm.register_forward_hook(lambda _part, _given, made: made * (1 + 1e-6 * len(made)))
    refuse_misfit("it", module, processor_of("vit", 32, 3), 3, CLASSES)
    module.classifier.weight.zero_()
    module.classifier.bias.zero_()
    refuse_misfit("it", module, processor_of("vit", 32, 3), 3, CLASSES)


def test_attention_biases_are_those_of_now_and_get_gradients_after_they_were_read_without():
    network = ImageClassifier.of(make_image("levit"), None)
    some = pictures(3, 0, side=64)
    biases = {name: p for name, p in network.module.named_parameters() if name.endswith("attention_biases")}
    with torch.inference_mode():
        before = network.ask(Scores(), some).logits.clone()
    for each in biases.values():
        each.requires_grad_(True)
    network.ask(Scores(), some).nll().backward()
    assert all(each.grad is not None for each in biases.values())
    assert sum(float(each.grad.abs().max()) > 0 for each in biases.values()) == 4  # none where one token is left
    with torch.no_grad():
        for each in biases.values():
            each += torch.randn(each.shape)
        assert float((network.ask(Scores(), some).logits - before).abs().max()) > 0.01


def test_what_a_pass_without_gradients_keeps_is_of_use_in_training():
    network = ImageClassifier.of(make_image("beit+biases"), None)
    with torch.inference_mode():  # BEiT makes its table of relative positions in its first pass
        network.ask(Scores(), pictures(2, 0, side=32))
    network.module.requires_grad_(True)
    network.ask(Scores(), pictures(2, 0, side=32)).nll().backward()
    assert all(p.grad is not None for name, p in network.module.named_parameters() if "relative_position" in name)


@pytest.mark.parametrize("name", ["cvt", "pvt"])
def test_a_class_token_of_one_stage_alone_is_no_hidden_state(name):
    network = ImageClassifier.of(make_image(name), None)
    with pytest.raises(ModelRefused, match="has its class token in one stage only, so an image has no single hidden"):
        network.ask(HiddenStates(0), pictures(2, 0, side=32))
    assert ImageClassifier.of(make_image("vit"), None).ask(HiddenStates(0), pictures(2, 0, side=32)).states.dim() == 2


def test_an_image_processor_of_torchvision_alone_is_named(tmp_path):
    pytest.importorskip("PIL")
    write(make_image("pp_lcnet"), "pp_lcnet", tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": "PPLCNetImageProcessor"}))
    with pytest.raises(EnvironmentRefused, match="its image processor is torchvision's alone: pip install torchvision"):
        open_network(str(tmp_path))


@pytest.mark.parametrize(("depths", "refused"), [([1, 2, 3], False), ([1, 0], True), ([], True), ([1, [10**12]], True)])
def test_a_count_of_layers_for_each_stage_is_held_to_the_same_limits(tmp_path, depths, refused):
    (tmp_path / "config.json").write_text(json.dumps({"depth": depths}))
    (tmp_path / "model.safetensors").write_bytes((0).to_bytes(8, "little"))
    if refused:
        with pytest.raises(ModelRefused, match="allowed: 1 to 10000"):
            check_folder(tmp_path)
    else:
        check_folder(tmp_path)
