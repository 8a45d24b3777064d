"""Image classifiers: our log-probability is the library's own loss, and what is saved is what was there."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    ConvNextImageProcessorPil,
    DeiTConfig,
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    DeiTImageProcessorPil,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
    ViTModel,
)

from expunge.adapters.last_layer import LastLayer
from expunge.core.question import LogProbabilities, Scores
from expunge.data.images import Picture, encode, load
from expunge.errors import ModelRefused, UsageRefused
from expunge.models.source import Source
from expunge.models.vision import ImageClassifier

torch.set_num_threads(1)

HALF = [0.5, 0.5, 0.5]
TINY = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, num_labels=4)


def vit(**options) -> tuple:
    torch.manual_seed(0)
    config = ViTConfig(**{**TINY, "image_size": 8, "patch_size": 4, **options})
    size = {"height": 8, "width": 8}
    return ViTForImageClassification(config), ViTImageProcessorPil(size=size, image_mean=HALF, image_std=HALF)


def deit(kind=DeiTForImageClassification) -> tuple:
    torch.manual_seed(0)
    size = {"height": 8, "width": 8}
    processor = DeiTImageProcessorPil(size=size, crop_size=size, image_mean=HALF, image_std=HALF)
    return kind(DeiTConfig(**TINY, image_size=8, patch_size=4)), processor


def resnet() -> tuple:
    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=4)
    processor = ConvNextImageProcessorPil(size={"shortest_edge": 32}, crop_pct=1.0, image_mean=HALF, image_std=HALF)
    return ResNetForImageClassification(config), processor


FAMILIES = pytest.mark.parametrize("family", [vit, deit, resnet])


def folder_of(root: Path, images: int = 7, grey: bool = False) -> Path:
    """An image folder with the classes LABEL_0 to LABEL_3."""
    draw = np.random.default_rng(0)
    for k in range(images):
        (root / f"LABEL_{k % 4}").mkdir(parents=True, exist_ok=True)
        values = draw.integers(0, 256, (8, 8) if grey else (12, 10, 3), dtype=np.uint8)
        Image.fromarray(values).save(root / f"LABEL_{k % 4}" / f"{k}.png")
    return root


def pictures_of(root: Path, network: ImageClassifier, **options) -> tuple[Picture, ...]:
    path = folder_of(root / "images", **options)
    return encode(load(path), network.processor, network.classes, path, network.channels)


def saved(folder: Path, module, processor) -> Source:
    module.save_pretrained(folder)
    processor.save_pretrained(folder)
    return Source(str(folder))


def rewrite(path: Path, **values) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@FAMILIES
def test_cross_entropy_is_the_models_own(tmp_path, family):
    network = ImageClassifier.of(*family())
    pictures = pictures_of(tmp_path, network)
    labels = torch.tensor([p.label for p in pictures])
    own = network.module(pixel_values=torch.stack([p.pixels for p in pictures]), labels=labels)
    said = network.ask(Scores(), pictures)
    assert abs(said.nll().item() - own.loss.item()) < 1e-6
    assert torch.equal(said.logits, own.logits)
    assert said.labels.tolist() == labels.tolist() == [0, 0, 1, 1, 2, 2, 3]
    assert said.example.tolist() == list(range(7))
    assert (said.examples, said.share) == (7, None)


@FAMILIES
def test_a_saved_folder_answers_the_same_in_plain_transformers_and_here(tmp_path, family):
    network = ImageClassifier.of(*family())
    pictures = pictures_of(tmp_path, network)
    with pytest.raises(UsageRefused, match="^This network still has its adapter"):
        LastLayer().insert(network, None).save(tmp_path / "model")
    assert not (tmp_path / "model").exists()
    network.save(tmp_path / "model")
    plain = AutoModelForImageClassification.from_pretrained(tmp_path / "model").eval()
    processor = AutoImageProcessor.from_pretrained(tmp_path / "model", backend="pil")
    images = [record.image for record in load(tmp_path / "images")]
    with torch.no_grad():
        logits = plain(**processor(images, return_tensors="pt")).logits
        assert torch.equal(logits, network.ask(Scores(), pictures).logits)
        assert torch.equal(logits, ImageClassifier.load(Source(str(tmp_path / "model"))).ask(Scores(), pictures).logits)
    assert not list((tmp_path / "model").glob("*.bin"))


def test_what_is_saved_may_be_read_by_whom_the_umask_lets(tmp_path):
    was = os.umask(0o027)
    try:
        ImageClassifier.of(*vit()).save(tmp_path / "model")
    finally:
        os.umask(was)
    assert {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "model").iterdir()} == {
        name: 0o640 for name in ("config.json", "model.safetensors", "preprocessor_config.json")
    }


def test_loading_says_nothing_about_torchvision(tmp_path, capfd):
    source = saved(tmp_path, *vit())
    capfd.readouterr()
    network = ImageClassifier.load(source)
    assert capfd.readouterr().err.replace("\r", "\n").count("torchvision") == 0
    assert type(network.processor) is ViTImageProcessorPil


def test_a_model_with_a_teacher_head_loads_as_what_it_is(tmp_path):
    source = saved(tmp_path / "model", *deit(DeiTForImageClassificationWithTeacher))
    network = ImageClassifier.load(source)
    pictures = pictures_of(tmp_path, network)
    own = network.module(pixel_values=torch.stack([p.pixels for p in pictures]))
    assert torch.equal(network.ask(Scores(), pictures).logits, (own.cls_logits + own.distillation_logits) / 2)


@FAMILIES
def test_an_image_is_answered_alike_alone_and_among_others(tmp_path, family):
    network = ImageClassifier.of(*family())
    pictures = pictures_of(tmp_path, network)
    together = network.ask(Scores(), pictures).log_prob()
    alone = torch.cat([network.ask(Scores(), [picture]).log_prob() for picture in pictures])
    assert torch.allclose(together, alone, atol=1e-6)


def test_a_training_step_leaves_the_running_statistics_of_batchnorm_alone(tmp_path):
    network = ImageClassifier.of(resnet()[0].train(), resnet()[1])
    pictures = pictures_of(tmp_path, network)
    before = {name: buffer.clone() for name, buffer in network.module.named_buffers()}
    network.ask(Scores(), pictures).nll().backward()
    assert any("running_mean" in name for name in before)
    assert all(torch.equal(buffer, before[name]) for name, buffer in network.module.named_buffers())
    assert all(p.grad is not None for p in network.trainable().values())


def test_a_fork_shares_weights_but_not_modules():
    network = ImageClassifier.of(*resnet())
    fork = network.fork()
    assert fork.module is not network.module
    assert not fork.module.training
    one, other = (next(n.module.parameters()) for n in (network, fork))
    assert one.data_ptr() == other.data_ptr()


def test_batches_hold_every_example_once_and_at_most_128():
    network = ImageClassifier.of(*vit())
    groups = list(network.batches([None] * 300))
    assert [len(group) for group in groups] == [128, 128, 44]
    assert sum(groups, []) == list(range(300))
    assert list(network.batches([])) == []


def test_answers_come_in_the_order_of_the_examples(tmp_path):
    network = ImageClassifier.of(*vit())
    pictures = pictures_of(tmp_path, network) * 20  # 140 images: two batches
    answers = network.ask(LogProbabilities(), pictures)
    assert answers.labels.tolist() == [0, 0, 1, 1, 2, 2, 3] * 20
    assert torch.allclose(answers.log_probs[:7], answers.log_probs[133:], atol=1e-6)


def test_a_grey_model_of_eight_by_eight_loads_trains_and_saves(tmp_path):
    torch.manual_seed(0)
    module = ViTForImageClassification(ViTConfig(**TINY, num_channels=1, image_size=8, patch_size=2))
    size = {"height": 8, "width": 8}
    processor = ViTImageProcessorPil(size=size, image_mean=[0.5], image_std=[0.5])
    network = ImageClassifier.load(saved(tmp_path / "model", module, processor))
    assert network.channels == 1
    pictures = pictures_of(tmp_path, network, grey=True)
    assert pictures[0].pixels.shape == (1, 8, 8)
    raw = np.asarray(Image.open(tmp_path / "images/LABEL_0/0.png"))
    assert np.allclose(pictures[0].pixels[0].numpy(), raw / 255 * 2 - 1, atol=1e-6)
    network.save(tmp_path / "again")
    again = ImageClassifier.load(Source(str(tmp_path / "again")))
    assert torch.equal(again.ask(Scores(), pictures).logits, network.ask(Scores(), pictures).logits)


def test_classes_are_the_models_names_and_a_name_that_stands_twice_gets_its_number():
    module, processor = vit(id2label={0: "tench", 1: "crane", 2: "maillot", 3: "crane"})
    assert ImageClassifier.of(module, processor).classes == {"tench": 0, "crane (1)": 1, "maillot": 2, "crane (3)": 3}


def refusal(source: Source) -> str:
    with pytest.raises(ModelRefused) as caught:
        ImageClassifier.load(source)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_model_without_a_classifier_is_refused_instead_of_given_a_random_one(tmp_path):
    source = saved(tmp_path, ViTModel(vit()[0].config), vit()[1])
    assert refusal(source) == (
        f"{tmp_path}: is a ViTModel, which has no image classes. Give a ...ForImageClassification."
    )


def test_a_model_of_several_labels_for_each_image_is_refused(tmp_path):
    module, processor = vit(problem_type="multi_label_classification")
    assert "does not give each image one class out of several" in refusal(saved(tmp_path, module, processor))


def test_a_missing_or_torn_processor_is_refused(tmp_path):
    source = saved(tmp_path, *vit())
    (tmp_path / "preprocessor_config.json").write_text("{")
    assert refusal(source).startswith(f"{tmp_path}: its image processor could not be loaded (")
    (tmp_path / "preprocessor_config.json").unlink()
    assert "A preprocessor_config.json must be beside the weights." in refusal(source)


def test_a_processor_of_another_size_or_colour_than_the_models_is_refused(tmp_path):
    module, _ = vit()
    size = {"height": 16, "width": 16}
    source = saved(tmp_path, module, ViTImageProcessorPil(size=size, image_mean=HALF, image_std=HALF))
    assert "its image processor makes [3, 16, 16] of an image, which the model does not read." in refusal(source)
    rewrite(tmp_path / "preprocessor_config.json", image_mean=[0.5], image_std=[0.5])
    assert "its image processor fails on a blank image." in refusal(source)


def test_weights_with_nan_are_refused(tmp_path):
    module, processor = vit()
    with torch.no_grad():
        module.classifier.weight[0, 0] = float("nan")
    assert "hold NaN or Inf" in refusal(saved(tmp_path, module, processor))
