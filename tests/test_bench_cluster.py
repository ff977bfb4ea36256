import statistics
from dataclasses import replace

import pytest

from cluster import FITTED, check, fit, unfitted
from isoflop.errors import UserError
from isoflop.parallel.cost import Parallelism, ProcessMemory, traffic
from isoflop.plan.cluster.layouts import Shape, Way, rows
from isoflop.plan.cluster.machines import CLUSTERS
from isoflop.plan.cluster.timing import PAID, Work, require_fits, step

H100 = CLUSTERS["h100"]
WORK = Work(parameters=8e9, flops=5.8e10, tokens=16384, units=33)


def test_torchtitan_from_8_to_128_gpus():
    """Llama 3.1 8B with FSDP2 on H100, without float8: 5,762 tokens/s a GPU on 8 and 5,605 on 128; compiled 6,667 and
    6,514. The share of the peak is taken from each on 8 GPUs, and nothing from those on 128: predicted 5,677 and 6,551.
    """
    off = {run.source: error for run, error in unfitted() if run.source.startswith("torchtitan")}
    assert len(off) == 2
    assert all(abs(error) < 0.02 for error in off.values()), off


def test_predictions_of_runs_outside_the_fit():
    """27 runs on A100, H100 and H200 of 1 to 128 GPUs. The median is what is claimed. The few far off are named:
    13b on 8 A100 of 40 GB and 70b on 64 gave a low share, and 1b on 32 is slower in the table than on 16 or 64."""
    off = [error for _, error in unfitted()]
    assert len(off) == 27
    assert statistics.median(abs(error) for error in off) < 0.02
    far = {(run.source, run.model) for run, error in unfitted() if abs(error) > 0.05}
    assert far == {
        ("MosaicML A100", "1b"),
        ("MosaicML A100", "13b"),
        ("MosaicML A100", "70b"),
        ("Kempner H200", "7b"),
        ("IBM A100", "7b"),
    }


def test_the_constant_follows_from_its_table():
    paid, error = fit()
    assert paid == pytest.approx(PAID, abs=0.011)
    assert error < 0.015
    assert {run.source for run, _ in unfitted()}.isdisjoint({FITTED})
    assert len([run for run, _, _ in check() if run.source == FITTED]) == 17


def test_one_gpu_has_no_exposed_communication():
    for mode in ("none", "ddp", "fsdp"):
        assert step(WORK, Parallelism(mode, 1), H100, 0.5).exposed == 0


def test_a_step_is_never_faster_than_its_bytes_or_its_flops():
    for gpus in (8, 64, 1024):
        for layout in (
            Parallelism("ddp", gpus),
            Parallelism("fsdp", gpus),
            Parallelism("hsdp", gpus, max(1, gpus // 8)),
        ):
            for network in (1e9, 400e9):
                cluster = replace(H100, network=network)
                taken = step(WORK, layout, cluster, 0.5).seconds
                sent = traffic(layout, WORK.parameters, parameter_bytes=2, reduce_bytes=4).total
                assert taken > sent / H100.link
                assert taken > 5.8e10 * 16384 / (0.5 * H100.peak)


def test_a_slower_network_is_slower_only_across_nodes():
    slow = replace(H100, network=H100.network / 40)
    assert step(WORK, Parallelism("fsdp", 8), slow, 0.5) == step(WORK, Parallelism("fsdp", 8), H100, 0.5)
    assert (
        step(WORK, Parallelism("fsdp", 16), slow, 0.5).exposed
        > 3 * step(WORK, Parallelism("fsdp", 16), H100, 0.5).exposed
    )


def test_hsdp_is_for_many_gpus_and_slow_networks():
    """Gathering stays within the node and a shard's gradients alone cross the network."""
    slow = replace(H100, network=100e9)
    fsdp, hsdp = (step(WORK, layout, slow, 0.5) for layout in (Parallelism("fsdp", 512), Parallelism("hsdp", 512, 64)))
    assert hsdp.exposed < fsdp.exposed / 2


def test_passes_multiply_fsdps_communication_and_not_ddps():
    many = replace(WORK, passes=8)
    for mode, factor in (("fsdp", 8), ("ddp", 1)):
        one, eight = (step(work, Parallelism(mode, 64), H100, 0.5).exposed for work in (WORK, many))
        assert eight == pytest.approx(factor * one)


def test_recomputing_costs_a_forward_pass():
    assert step(replace(WORK, recompute=True), Parallelism("none", 1), H100, 0.5).compute == pytest.approx(
        4 / 3 * step(WORK, Parallelism("none", 1), H100, 0.5).compute
    )


def test_what_does_not_fit_is_refused():
    require_fits(ProcessMemory(10e9, 10e9, 20e9, 2e9, 30e9), H100)
    with pytest.raises(UserError, match="172 GB do not fit a GPU of 80 GB"):
        require_fits(ProcessMemory(40e9, 40e9, 80e9, 2e9, 10e9), H100)


def test_the_table_says_why_a_mode_is_impossible():
    model = Shape(12_850e6, 7.9e10, layers=40, d_model=5120, context=2048, largest_unit=315e6)  # GPT-3 13B
    way = Way(0.41, every=True)
    ddp, fsdp, hsdp = rows(model, H100, 8, 2**21, way)
    assert "do not fit" in ddp and "needs more than one node" in hsdp
    assert fsdp.sequences * fsdp.passes * 8 * model.context == 2**21
    assert fsdp.held.total < H100.memory
    assert all("fewer sequences" in row for row in rows(model, H100, 2048, 2**21, way))
    assert all("built whole" in row for row in rows(replace(model, parameters=70e9), H100, 64, 2**21, way))
