"""Several processes compute the same as one.

How near: a gradient is a sum over the tokens of a step. Each process sums its own rows in float32, and the parts are
added up in another order than one process adds them. A sum of n terms rounded to 24 bits differs by order of
sqrt(n) 2^-24 of its terms' size: at these few hundred terms a relative 1e-6, against which single elements, in which
large terms cancel, are held by an absolute 1e-6 of the largest gradient. Training carries the difference on and makes
it grow a little each step: over 50 steps 1e-5 of the loss is allowed (3e-7 is what is seen).
"""

import numpy as np
import pytest
import torch

from isoflop.parallel.mesh import Group
from isoflop.trainer.processes import seed_step
from members import CASES

EXACT = [case for case in CASES if not case.startswith("experts") and case != "bfloat16"]


def assert_equal(one: dict, many: dict) -> None:
    losses, norms = np.array(one["lines"]).T
    other_losses, other_norms = np.array(many["lines"]).T
    np.testing.assert_allclose(other_losses, losses, rtol=1e-5)
    np.testing.assert_allclose(other_norms, norms, rtol=1e-4)
    assert many["gradients"].keys() == one["gradients"].keys()
    largest = max(np.abs(g).max() for g in one["gradients"].values())
    for name, gradient in one["gradients"].items():
        np.testing.assert_allclose(many["gradients"][name], gradient, rtol=1e-5, atol=1e-6 * largest, err_msg=name)
    for name, weight in one["weights"].items():
        np.testing.assert_allclose(many["weights"][name], weight, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
@pytest.mark.parametrize("case", EXACT)
def test_two_processes_equal_one(one, two, case, mode):
    assert_equal(one[f"{case} none"], two[f"{case} {mode}"])


def test_weights_gathered_in_bfloat16_give_the_same_products(one, two):
    """Autocast rounds a weight before a product as gathering does; gains and biases are rounded by gathering alone, and
    gradients are added up in another order. bfloat16 has 8 bits."""
    losses, norms = np.array(one["bfloat16 none"]["lines"]).T
    other_losses, other_norms = np.array(two["bfloat16 fsdp"]["lines"]).T
    np.testing.assert_allclose(other_losses, losses, rtol=2e-3)
    np.testing.assert_allclose(other_norms, norms, rtol=2e-2)


@pytest.mark.parametrize("mode", ["ddp", "fsdp", "hsdp"])
def test_four_processes_equal_one(one, four, mode):
    assert_equal(one["muon none"], four[f"muon {mode}"])
    assert four[f"muon {mode}"]["heldout"] == pytest.approx(one["muon none"]["heldout"], rel=1e-5)


def test_decisions_of_rank_0_hold_in_all_processes(two, four):
    """A norm of whole gradients: processors that differ round it differently, and all decide by it."""
    assert two["muon ddp"]["alike"] == [0.0] * 2
    assert four["muon ddp"]["alike"] == four["muon hsdp"]["alike"] == [0.0] * 4


def test_experts_are_balanced_within_a_pass_of_a_process(one, two):
    """A pass's balance loss is a product of two means over it and no mean itself: two processes with four sequences
    each have that of one process with two passes of four."""
    for mode in ("ddp", "fsdp"):
        assert_equal(one["experts_in_passes none"], two[f"experts {mode}"])
        assert_equal(one["experts_in_passes none"], two[f"experts_in_passes {mode}"])


@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_heldout_loss_does_not_depend_on_the_number_of_processes(one, two, mode):
    for case in ("muon", "adamw"):  # the weights differ in their last bits
        assert two[f"{case} {mode}"]["heldout"] == pytest.approx(one[f"{case} none"]["heldout"], rel=1e-5)


def test_dropout_differs_between_processes_and_is_the_same_after_a_resume():
    def drawn(rank, step, size=2):
        torch.manual_seed(7)
        seed_step(Group(rank, size), 0, step)
        return torch.rand(4).tolist()

    assert len({tuple(drawn(rank, step)) for rank in range(2) for step in range(3)}) == 6
    assert drawn(1, 2) == drawn(1, 2)
    assert drawn(0, 0, size=1) == drawn(0, 5, size=1)  # alone the run's own generator goes on
