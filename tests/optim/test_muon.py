import pytest
import torch
from torch import nn

from isoflop.optim.muon import Muon, orthogonalize

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
