"""The iterations of ITERATIONS: what they do to singular values, and where Polar Express's numbers come from."""

import numpy as np
import pytest
import torch

from isoflop.optim.orthogonal import ITERATIONS, POLAR_EXPRESS, QUINTIC, orthogonalize


def best_quintic(low, high):
    """a, b, c of the odd quintic nearest to 1 on [low, high] in the maximum norm: its error takes its largest value at
    four points with alternating signs, the ends and the extrema between them (the exchange algorithm of Remez)."""
    points = np.array([low, (3 * low + high) / 4, (low + 3 * high) / 4, high])
    for _ in range(100):
        signs = np.array([1.0, -1.0, 1.0, -1.0])
        a, b, c, _ = np.linalg.solve(np.stack([points, points**3, points**5, signs], axis=1), np.ones(4))
        extrema = np.sqrt(np.sort(np.roots([5 * c, 3 * b, a]).real))  # roots of the derivative, in x^2
        if np.allclose(extrema, points[1:3], rtol=1e-14, atol=0):
            break
        points[1:3] = extrema
    return np.array([a, b, c])


def powers(x):
    return np.array([x, x**3, x**5])


def test_polar_express_is_a_chain_of_best_approximations():
    """Section 4 of the paper, with the cushion of its appendix: the interval is not taken longer than a factor of 41.5,
    and the quintic is scaled to be as far below 1 at one end as above it at the other."""
    low, high = 1e-3, 1.0
    for expected in POLAR_EXPRESS.quintics[:6]:
        found = best_quintic(max(low, 0.02407327424182761 * high), high)
        found *= 2 / (found @ powers(low) + found @ powers(high))
        np.testing.assert_allclose(expected, found, rtol=1e-7)
        low = found @ powers(low)
        high = 2 - low
    for late in POLAR_EXPRESS.quintics[6:]:  # the interval is a point: value 1, slope and curvature 0
        np.testing.assert_allclose(late, [15 / 8, -5 / 4, 3 / 8], rtol=1e-5)


def applied(x, rounds):
    """What Polar Express does to singular values."""
    for number in range(rounds):
        x = np.array(POLAR_EXPRESS.round(number)) @ powers(x)
    return x


def test_polar_express_comes_nearer_to_one_with_every_round():
    far = [np.abs(applied(np.geomspace(1e-3, 1, 1000) / 1.01, rounds) - 1).max() for rounds in range(1, 10)]
    assert all(later < before for later, before in zip(far[1:], far, strict=False))
    assert far[4] < 0.4 and far[8] < 1e-3


@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 1e-4), (torch.bfloat16, 0.05)])
@pytest.mark.parametrize("rounds", [1, 5, 9])
@pytest.mark.parametrize("shape", [(32, 48), (48, 32)])
def test_orthogonalize_maps_singular_values_and_keeps_the_directions(shape, rounds, dtype, near):
    u, _ = torch.linalg.qr(torch.randn(shape[0], 32, generator=torch.Generator().manual_seed(0)))
    v, _ = torch.linalg.qr(torch.randn(shape[1], 32, generator=torch.Generator().manual_seed(1)))
    values = torch.linspace(0.02, 1, 32)
    found = orthogonalize(7.0 * (u * values) @ v.mT, dtype, POLAR_EXPRESS, rounds).float()
    expected = applied((values / values.norm() / 1.01).numpy(), rounds)
    torch.testing.assert_close(u.mT @ found @ v, torch.diag(torch.from_numpy(expected)).float(), atol=near, rtol=0)


def test_a_matrix_of_rank_one_stays_bounded():
    """Its singular value is its Frobenius norm, which rounding to bfloat16 may put above 1."""
    for seed in range(20):
        u, v = torch.randn(2, 96, generator=torch.Generator().manual_seed(seed))
        for iteration in ITERATIONS.values():
            assert torch.linalg.svdvals(orthogonalize(torch.outer(u, v), torch.bfloat16, iteration).float())[0] < 1.3


def test_rounds_are_counted_and_the_last_quintic_is_repeated():
    x = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    one, two = (orthogonalize(x, torch.float64, QUINTIC, rounds) for rounds in (1, 2))
    assert not torch.equal(one, two)
    assert QUINTIC.round(0) == QUINTIC.round(7) == (3.4445, -4.7750, 2.0315)
    assert POLAR_EXPRESS.round(7) == POLAR_EXPRESS.round(99) == (1.875, -1.25, 0.375)
    assert POLAR_EXPRESS.round(0)[0] == pytest.approx(8.28721201814563 / 1.01)
