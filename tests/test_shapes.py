"""The shapes that annotations promise are held in tests: what does not fit ends the call, by name."""

import importlib
import pkgutil

import pytest
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

import expunge
from expunge.core.predictions import Predictions
from expunge.primitives.class_scores import right_log_prob
from tests import shapes
from tests.shapes import WrongShape, checked

pytestmark = pytest.mark.skipif(not shapes.CHECKED, reason="EXPUNGE_SHAPES=off")


def test_every_annotation_of_a_shape_can_be_read():
    for module in pkgutil.walk_packages(expunge.__path__, "expunge."):
        if module.name not in ("expunge.__main__", "expunge.adapters._kernels"):  # one runs, one needs a GPU's compiler
            importlib.import_module(module.name)
    assert len(shapes.CHECKED) > 90
    for signature in shapes.CHECKED:
        plain = signature.function.__annotations__.get("return") is torch.Tensor  # Scalar, where it is no string
        assert signature.parameters or signature.result or signature.items or plain, signature.function.__qualname__


def test_a_matrix_that_is_transposed_does_not_fit_its_labels():
    labels, logits = torch.tensor([0, 1, 2]), torch.zeros(3, 5)
    right_log_prob(labels, logits)
    with pytest.raises(WrongShape, match=r"right_log_prob: `logits` is float32\[5, 3\].*labels int64\[3\]"):
        right_log_prob(labels, logits.T)


def test_an_instance_whose_fields_disagree_is_not_made():
    labels = torch.tensor([0, 1, 2])
    with pytest.raises(WrongShape, match=r"Predictions: `states` does not fit.*states float32\[2, 5\]"):
        Predictions(labels, torch.zeros_like(labels), 1, None, torch.zeros(2, 5))


def test_a_method_is_held_to_the_sizes_of_its_instance():
    labels = torch.tensor([0, 1, 2])
    said = Predictions(labels, torch.zeros_like(labels), 1, None, torch.zeros(3, 5))
    with pytest.raises(WrongShape, match=r"Rows.over_rows: `values` is float32\[2\]"):
        said.over_rows(torch.zeros(2))  # the mean over two rows of three, and nobody would see it


def test_a_type_of_numbers_is_part_of_a_shape():
    with pytest.raises(WrongShape, match="`labels` is float32"):
        right_log_prob(torch.zeros(3), torch.zeros(3, 5))


def test_a_result_is_held_to_the_sizes_of_the_arguments():
    @checked
    def tails(values: Float[Tensor, "rows width"]) -> Float[Tensor, " rows"]:
        return values[1:, 0]

    with pytest.raises(WrongShape, match=r"the result is float32\[3\].*Given: values float32\[4, 2\]"):
        tails(torch.zeros(4, 2))


def test_a_name_means_one_size_in_one_call_and_another_in_the_next():
    @checked
    def product(a: Float[Tensor, "rows inner"], b: Float[Tensor, "inner columns"]) -> Float[Tensor, "rows columns"]:
        return a @ b

    @checked
    def turned(a: Float[Tensor, "rows inner"], b: Float[Tensor, "inner columns"]) -> Float[Tensor, "columns rows"]:
        return product(b.T, a.T)  # here `rows` are the columns outside

    assert turned(product(torch.zeros(2, 3), torch.zeros(3, 4)), torch.zeros(4, 5)).shape == (5, 2)
    with pytest.raises(WrongShape, match="`b` is"):
        product(torch.zeros(2, 3), b=torch.zeros(4, 3))


def test_what_stands_in_tuples_lists_mappings_and_unions_is_looked_at():
    @checked
    def gather(
        pair: tuple[Float[Tensor, " n"], Int[Tensor, " n"]], bias: Float[Tensor, " n"] | None = None
    ) -> dict[str, list[Bool[Tensor, " n"]]]:
        return {"one": [pair[0] > 0, pair[1][: len(pair[1]) - (bias is None)] > 0]}

    three = (torch.zeros(3), torch.zeros(3, dtype=torch.long))
    gather(three, torch.zeros(3))
    with pytest.raises(WrongShape, match="the result is dict"):
        gather(three)
    with pytest.raises(WrongShape, match="`pair` is tuple of float32.3., int64.2."):
        gather((three[0], three[1][1:]))
    with pytest.raises(WrongShape, match="`bias`"):
        gather(three, torch.zeros(2))


def test_each_item_of_an_iterator_is_looked_at_as_it_comes():
    @checked
    def layers() -> "Iterator[tuple[str, Float[Tensor, 'out in']]]":  # noqa: F821
        yield "matrix", torch.zeros(2, 3)
        yield "another", torch.zeros(4, 4)
        yield "vector", torch.zeros(3)

    found = layers()
    assert [next(found)[0], next(found)[0]] == ["matrix", "another"]
    with pytest.raises(WrongShape, match="an item is tuple of str, float32.3."):
        next(found)


def test_tensors_without_storage_have_shapes_too():
    right_log_prob(torch.zeros(3, dtype=torch.long, device="meta"), torch.zeros(3, 5, device="meta"))
    with pytest.raises(WrongShape):
        right_log_prob(torch.zeros(4, dtype=torch.long, device="meta"), torch.zeros(3, 5, device="meta"))


def test_gradients_flow_through_a_call_that_is_checked():
    logits = torch.zeros(3, 5, requires_grad=True)
    right_log_prob(torch.tensor([0, 1, 2]), logits).sum().backward()
    assert logits.grad is not None
    assert logits.grad.sum().abs() < 1e-6
