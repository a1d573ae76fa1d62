"""A step's gradient is what autograd gives for the mean of its micro-batches."""

import copy

import pytest
import torch

from golf import gradient
from golf.gradient import StepGradient
from golf.model.gpt import GPT
from golf.model.plan import plan_layers
from tests.pico import pico_batch, pico_model, pico_recipe

RECIPE = pico_recipe()
PLAN = plan_layers(RECIPE.model, looping=True)
BATCHES = [pico_batch(2, 16), pico_batch(1, 16)]


def expected_of(model: GPT) -> list[torch.Tensor | None]:
    twin = copy.deepcopy(model)
    for batch in BATCHES:
        (twin(batch, plan=PLAN, auxiliary=True).mean() / len(BATCHES)).backward()
    return [parameter.grad for parameter in twin.parameters()]


@pytest.mark.parametrize("kept", [False, True])
def test_micro_batches_are_added_up_in_fresh_gradients_and_in_buffers_that_stay(kept: bool) -> None:
    model = pico_model(RECIPE)
    expected = expected_of(model)
    step = StepGradient(model, RECIPE)
    if kept:  # as where batches are recorded; what an earlier step left in them is dropped
        step.buffers = [torch.full_like(parameter, 7.0) for parameter in step.parameters]
    step.of(BATCHES, PLAN, late_qat=False)
    for parameter, right, number in zip(model.parameters(), expected, range(len(expected)), strict=True):
        assert parameter.grad is not None
        assert not kept or parameter.grad is step.buffers[number]
        assert torch.equal(parameter.grad, torch.zeros_like(parameter) if right is None else right)


def test_parameters_of_two_dtypes_are_added_to() -> None:
    gradients = []
    for batches in ([BATCHES[0]], [BATCHES[0]] * 2):  # halves of one gradient, added, are that one to the bit
        model = pico_model(RECIPE)
        model.tok_emb.bfloat16()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            StepGradient(model, RECIPE).of(batches, PLAN, late_qat=False)
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert {found.dtype for found in gradients[0] if found is not None} == {torch.bfloat16, torch.float32}
    for one, two in zip(*gradients, strict=True):
        assert (one is None and two is None) or torch.equal(one, two)


def test_one_tensor_may_be_the_gradient_of_two_parameters_and_one_number_that_of_all_elements() -> None:
    one, two = (torch.nn.Parameter(torch.zeros(3)) for _ in range(2))
    for number in (1.0, 2.0):
        shared = torch.tensor(number).expand(3)
        gradient._add_to_grad([one, two], [shared, shared])
    assert one.grad is not None
    one.grad *= 2
    assert one.grad.tolist() == [6.0] * 3
    assert two.grad is not None
    assert two.grad.tolist() == [3.0] * 3


def test_a_frozen_parameter_gets_no_gradient() -> None:
    model = pico_model(RECIPE)
    model.tok_emb.weight.requires_grad_(False)
    StepGradient(model, RECIPE).of(BATCHES, PLAN, late_qat=False)
    assert model.tok_emb.weight.grad is None
    assert model.blocks[0].attn_scale.grad is not None
