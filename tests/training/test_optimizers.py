"""Muon against torch's own, and the choice between the optimisers."""

import pytest
import torch
from torch import nn

from emorl.training.optimizers import Muon, make_optimizers, orthogonalised

SHAPES = [(32, 32), (8, 24), (24, 8), (8, 24), (1, 5), (3, 1)]


def parameters(shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def take_steps(optimizer, params, count=3):
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()


def test_orthogonalised_brings_singular_values_near_one():
    generator = torch.Generator().manual_seed(0)
    matrices = torch.randn(5, 12, 40, generator=generator, dtype=torch.float64)
    values = torch.linalg.svdvals(orthogonalised(matrices))
    assert values.min() > 0.6
    assert values.max() < 1.25
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    near = orthogonalised(matrices) - u @ v  # the same directions, other lengths
    assert torch.linalg.matrix_norm(near, 2).max() < 0.4
    assert orthogonalised(torch.zeros(1, 3, 4)).equal(torch.zeros(1, 3, 4))


def test_long_matrices_take_the_same_iterations():
    generator = torch.Generator().manual_seed(0)
    long = torch.randn(2, 4, 400, generator=generator, dtype=torch.float64)
    long[1, :2] *= 1e-3
    square = long @ torch.linalg.qr(long.mT).Q  # the same in other coordinates: not long
    expected = orthogonalised(square) @ torch.linalg.qr(long.mT).Q.mT
    torch.testing.assert_close(orthogonalised(long), expected, atol=1e-12, rtol=0)
    in_float32 = orthogonalised(long.float()).double()
    torch.testing.assert_close(in_float32, expected, atol=1e-5, rtol=0)


def test_muon_takes_the_steps_of_torch():
    ours, theirs = parameters(SHAPES), parameters(SHAPES)
    take_steps(Muon(ours, lr=0.1), ours)
    other = torch.optim.Muon(theirs, lr=0.1, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    take_steps(other, theirs)
    for p, expected, start in zip(ours, theirs, parameters(SHAPES), strict=True):
        step, expected_step = p - start, expected - start
        assert (step - expected_step).norm() < 0.03 * expected_step.norm()  # theirs: bfloat16


def test_a_convolution_is_a_matrix():
    convolution, matrix = parameters([(6, 4, 3, 3)]), parameters([(6, 36)])
    take_steps(Muon(convolution), convolution)
    take_steps(Muon(matrix), matrix)
    torch.testing.assert_close(convolution[0].flatten(1), matrix[0])


def test_matrices_of_one_shape_go_together_as_alone():
    together, alone = parameters(SHAPES), parameters(SHAPES)
    take_steps(Muon(together), together, count=1)
    generator = torch.Generator().manual_seed(1)
    for p, expected in zip(alone, together, strict=True):
        p.grad = torch.randn(p.shape, generator=generator)
        Muon([p]).step()
        torch.testing.assert_close(p, expected)


def test_muon_passes_over_parameters_without_gradient():
    params = parameters([(3, 3), (3, 3)])
    params[0].grad = torch.ones(3, 3)
    before = params[1].detach().clone()
    Muon(params).step()
    assert params[1].equal(before)


def test_muon_says_what_it_cannot_do():
    with pytest.raises(ValueError, match=r"2 or more dimensions, got \[\(4,\)\]"):
        Muon(parameters([(2, 2), (4,)]))
    with pytest.raises(ValueError, match="no closure"):
        Muon(parameters([(2, 2)])).step(lambda: 0.0)


def test_vectors_go_to_adam():
    params = parameters([(3, 4), (4,), (2, 3, 3, 3)])
    adam, muon = make_optimizers(params, "muon", 0.1)
    assert [p.shape for p in adam.param_groups[0]["params"]] == [(4,)]
    assert [p.shape for p in muon.param_groups[0]["params"]] == [(3, 4), (2, 3, 3, 3)]
    (only,) = make_optimizers(params, "adam", 0.1)
    assert len(only.param_groups[0]["params"]) == 3
    assert [type(o) for o in make_optimizers(params[:1], "muon", 0.1)] == [Muon]


def test_rmsprop_takes_all_parameters_and_divides_by_the_running_rms():
    params = parameters([(3, 4), (4,)])
    (optimizer,) = make_optimizers(params, "rmsprop", 0.1)
    before = [p.detach().clone() for p in params]
    for p in params:
        p.grad = torch.full(p.shape, -2.0)
    optimizer.step()
    for p, start in zip(params, before, strict=True):  # the average of squares begins at 0
        torch.testing.assert_close(p - start, torch.full(p.shape, 0.1 * 2 / (0.01 * 4) ** 0.5))
