import pytest
import torch
from torch import nn

from isoflop.optim.muon import Muon
from isoflop.optim.orthogonal import orthogonalize

SHAPES = [(16, 16), (16, 16), (32, 16), (16, 48), (32, 16)]


def parameters(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def give_gradients(params, seed):
    generator = torch.Generator().manual_seed(seed)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator)


def test_the_update_is_torchs():
    ours, theirs = parameters(), parameters()
    start = [p.detach().clone() for p in ours]
    a = Muon(ours, lr=0.02, momentum=0.9, weight_decay=0.1)
    b = torch.optim.Muon(theirs, lr=0.02, momentum=0.9, weight_decay=0.1, adjust_lr_fn="original")
    for step in range(5):
        give_gradients(ours, step)
        give_gradients(theirs, step)
        a.step()
        b.step()
    for p, q, s in zip(ours, theirs, start, strict=True):
        moved = (q - s).norm()
        # bfloat16 products may round differently in a batch: a hundredth of the way is its resolution
        assert (p - q).norm() < 0.01 * moved
        torch.testing.assert_close(a.state[p]["momentum_buffer"], b.state[q]["momentum_buffer"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(24, 24), (48, 24), (24, 48), (3, 24, 48)])
def test_the_step_has_singular_values_near_one_and_the_right_directions(shape, dtype):
    g = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    o = orthogonalize(g, dtype).float()
    assert o.shape == g.shape
    values = torch.linalg.svdvals(o)
    # the quintic's promise is for singular values that are not tiny; a Gaussian matrix has a few small ones
    assert values.max() < 1.3 and values.median() > 0.6
    assert ((o * g).sum() / torch.linalg.svdvals(g).sum()) > 0.6  # <UV^T, G> is the nuclear norm


def test_scale_of_the_gradient_does_not_matter_and_zero_stays_zero():
    g = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        orthogonalize(g, torch.float32), orthogonalize(g * 1e-4, torch.float32), rtol=1e-3, atol=1e-3
    )
    assert torch.equal(orthogonalize(torch.zeros(2, 4, 8)), torch.zeros(2, 4, 8, dtype=torch.bfloat16))


def test_a_stack_of_matrices_gives_the_same_as_each_matrix_alone():
    stack = nn.Parameter(torch.zeros(3, 8, 16))
    stack.grad = torch.randn(3, 8, 16, generator=torch.Generator().manual_seed(0))
    single = nn.Parameter(torch.zeros(8, 16))
    single.grad = stack.grad[1].clone()
    Muon([stack, single], dtype=torch.float32).step()
    torch.testing.assert_close(stack[1], single)


def test_a_parameter_without_gradient_does_not_change():
    p, q = (nn.Parameter(torch.ones(4, 4)) for _ in range(2))
    p.grad = torch.eye(4)
    optimizer = Muon([p, q], weight_decay=0.1)
    optimizer.step()
    assert torch.equal(q, torch.ones(4, 4)) and q not in optimizer.state
    assert not torch.equal(p, torch.ones(4, 4))


def test_vectors_are_refused():
    with pytest.raises(ValueError, match="matrices"):
        Muon([nn.Parameter(torch.ones(4))])


def muon(params, **options):
    return Muon(params, lr=0.02, momentum=0.9, weight_decay=0.1, dtype=torch.float64, **options)


def doubles(*shapes):
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64)) for shape in shapes]


@pytest.mark.parametrize("neurons", ["rows", "longer"])
@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (2, 4, 6)])
def test_the_second_moment_evens_out_the_lines_of_a_step(neurons, shape):
    """NorMuon's algorithm 1, except that the orthogonal step's Frobenius norm is kept, in place of 0.2 sqrt(R C)."""
    (p,), (plain,) = doubles(shape), doubles(shape)
    with_moment, without = muon([p], neurons=neurons, neuron_beta=0.8), muon([plain])
    axis = -2 if neurons == "longer" and shape[-1] > shape[-2] else -1
    v = 0.0
    for seed in range(3):
        plain.data.copy_(p.data)
        for one in (p, plain):
            one.grad = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        start = p.detach().clone()
        with_moment.step()
        without.step()
        step = start * (1 - 0.002) - plain
        v = 0.8 * v + 0.2 * (step**2).mean(axis, keepdim=True)
        expected = step / v.sqrt()
        expected *= (step.square().sum((-2, -1), keepdim=True) / expected.square().sum((-2, -1), keepdim=True)).sqrt()
        torch.testing.assert_close(start * (1 - 0.002) - p, expected)
        if seed == 0:  # all lines have one mean square at first
            torch.testing.assert_close(
                expected.square().mean(axis), expected.square().mean(axis)[..., :1].expand_as(v.squeeze(axis))
            )
    with_moment_state = with_moment.state[p]["second_moment"]
    assert with_moment_state.numel() == p.numel() // shape[axis]


def test_a_zero_gradient_gives_a_zero_step_with_a_second_moment():
    (p,) = doubles((4, 3))
    before = p.detach().clone()
    p.grad = torch.zeros_like(p)
    Muon([p], neurons="rows").step()
    assert torch.equal(p, before)


def test_cautious_decay_is_where_the_step_goes_towards_zero():
    (p,), (plain,) = doubles((5, 7)), doubles((5, 7))
    p.data[0] = plain.data[0] = 0.0
    start = p.detach().clone()
    for one in (p, plain):
        one.grad = torch.randn(5, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    muon([p], cautious=True).step()
    Muon([plain], lr=0.02, momentum=0.9, dtype=torch.float64).step()
    towards = (start - plain) * start >= 0
    assert 5 < towards.sum() < 30
    torch.testing.assert_close(p, plain - torch.where(towards, 0.002 * start, 0.0))


@pytest.mark.parametrize("options", [{}, {"neurons": "rows"}, {"neurons": "longer", "cautious": True}])
def test_a_discarded_step_changes_nothing_and_one_that_is_taken_is_the_same(options):
    params, others = doubles(*SHAPES[:4]), doubles(*SHAPES[:4])
    a, b = muon(params, **options), muon(others, **options)
    for step in range(3):
        for p in params:
            p.grad = torch.full_like(p, torch.nan)
        before = [t.clone() for p in params for t in (p, *a.state.get(p, {}).values())]
        a.found_inf = torch.ones(())
        a.step()
        if step:
            after = [t for p in params for t in (p, *a.state[p].values())]
            assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))
        for i, (p, q) in enumerate(zip(params, others, strict=True)):
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(9 * step + i), dtype=torch.float64)
            q.grad = p.grad.clone()
        a.found_inf = torch.zeros(())
        a.step()
        b.step()
        assert all(torch.allclose(p, q, rtol=1e-6) for p, q in zip(params, others, strict=True))
