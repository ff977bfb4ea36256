import random

import pytest

from isoflop.errors import UserError
from isoflop.parallel.cost import Parallelism, memory, traffic

WIDTH = 4  # bytes of a number


class Ring:
    """N processes in a ring that count the bytes they send: an independent look at what a collective costs."""

    def __init__(self, processes):
        self.n = processes
        self.sent = [0] * processes

    def rotate(self, chunks):
        """Everyone sends one chunk to the next one: what each receives."""
        for process, chunk in enumerate(chunks):
            self.sent[process] += WIDTH * len(chunk)
        return [chunks[process - 1] for process in range(self.n)]

    def reduce_scatter(self, tensors):
        """tensors[p][c]: chunk c on process p. Returns the finished chunk that each process ends with."""
        held = [[list(chunk) for chunk in tensor] for tensor in tensors]
        for turn in range(self.n - 1):
            arrived = self.rotate([held[p][(p - turn - 1) % self.n] for p in range(self.n)])
            for p, chunk in enumerate(arrived):
                own = held[p][(p - turn - 2) % self.n]
                own[:] = [a + b for a, b in zip(own, chunk, strict=True)]
        return [held[p][p] for p in range(self.n)]

    def all_gather(self, chunks):
        """Chunk p lies on process p. Returns what each process ends with: all chunks, in order."""
        held = [{p: chunk} for p, chunk in enumerate(chunks)]
        for turn in range(self.n - 1):
            arrived = self.rotate([held[p][(p - turn) % self.n] for p in range(self.n)])
            for p, chunk in enumerate(arrived):
                held[p][(p - turn - 1) % self.n] = chunk
        return [[h[c] for c in range(self.n)] for h in held]


def tensors(processes, length=3):
    """One tensor a process, cut into as many chunks as there are processes."""
    rng = random.Random(0)
    return [[[rng.randrange(100) for _ in range(length)] for _ in range(processes)] for _ in range(processes)]


def column_sums(given):
    return [[sum(t[c][i] for t in given) for i in range(len(given[0][c]))] for c in range(len(given))]


@pytest.mark.parametrize("processes", [1, 2, 3, 4, 8])
def test_ddp_sends_what_a_ring_all_reduce_sends(processes):
    ring, given = Ring(processes), tensors(processes)
    parameters = 3 * processes
    results = ring.all_gather(ring.reduce_scatter(given))
    assert all(result == column_sums(given) for result in results)
    asked = traffic(Parallelism("ddp", processes), parameters)
    assert ring.sent == [pytest.approx(asked.total)] * processes
    assert asked.reduced == asked.total


@pytest.mark.parametrize("processes", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("passes", [1, 3])
@pytest.mark.parametrize("reshard", [True, False])
def test_fsdp_sends_what_its_ring_collectives_send(processes, passes, reshard):
    ring, given = Ring(processes), tensors(processes)
    parameters = 3 * processes
    for _ in range(passes):
        for _ in range(2 if reshard else 1):
            assert ring.all_gather(given[0])[-1] == given[0]
        ring.reduce_scatter(given)
    asked = traffic(Parallelism("fsdp", processes), parameters, passes=passes, reshard=reshard, reduce_every_pass=True)
    assert ring.sent == [pytest.approx(asked.total)] * processes
    assert asked.reduced == 0


def test_hsdp_sends_what_its_two_groups_send():
    """Six processes: two replicas of three shards each."""
    shards, replicas, length = 3, 2, 4
    parameters = shards * length
    rings, given = [Ring(shards) for _ in range(replicas)], tensors(shards, length)
    for ring in rings:
        ring.all_gather(given[0])
        ring.all_gather(given[0])
    own = [ring.reduce_scatter(given) for ring in rings]
    across = Ring(replicas)
    halves = [[own[r][0][:2], own[r][0][2:]] for r in range(replicas)]
    total = across.all_gather(across.reduce_scatter(halves))[0]
    assert [number for half in total for number in half] == [replicas * number for number in column_sums(given)[0]]
    asked = traffic(Parallelism("hsdp", 6, replicas=2), parameters)
    assert asked.gathered + asked.scattered == pytest.approx(rings[0].sent[0])
    assert asked.reduced == pytest.approx(across.sent[0])


@pytest.mark.parametrize("processes", [2, 8, 96])
def test_hsdp_lies_between_fsdp_and_ddp(processes):
    settings = {"parameter_bytes": 2, "reduce_bytes": 4, "passes": 2, "kept": 100}
    assert traffic(Parallelism("hsdp", processes, 1), 1000, **settings) == traffic(
        Parallelism("fsdp", processes), 1000, **settings
    )
    assert (
        traffic(Parallelism("hsdp", processes, processes), 1000, **settings).total
        == traffic(Parallelism("ddp", processes), 1000, **settings).total
    )


def test_fsdp_costs_half_as_much_again_as_ddp():
    """What ZeRO's authors say of its third stage (1910.02054, section 7), in one dtype and one pass."""
    assert traffic(Parallelism("fsdp", 64), 1e9).total == pytest.approx(
        1.5 * traffic(Parallelism("ddp", 64), 1e9).total
    )


def test_ddp_sums_once_however_many_passes():
    assert traffic(Parallelism("ddp", 4), 1000, passes=7) == traffic(Parallelism("ddp", 4), 1000)


def test_parameters_kept_for_backward_are_gathered_once():
    assert traffic(Parallelism("fsdp", 4), 1000, kept=1000) == traffic(Parallelism("fsdp", 4), 1000, reshard=False)


def test_shards_divide_the_memory():
    settings = {"largest_unit": 100, "activations": 7}
    alone, sharded = (memory(Parallelism("fsdp", n), 1600, **settings) for n in (1, 16))
    for name in ("parameters", "gradients", "optimizer"):
        assert getattr(sharded, name) == getattr(alone, name) / 16
    assert alone.total == 1600 * (4 + 4 + 8) + 7
    assert memory(Parallelism("ddp", 16), 1600, **settings) == alone
    assert memory(Parallelism("hsdp", 16, 4), 1600, **settings) == memory(Parallelism("fsdp", 4), 1600, **settings)


def test_autocasts_copies_are_not_sharded():
    settings = {"largest_unit": 100, "activations": 7}
    for layout in (Parallelism("ddp", 16), Parallelism("fsdp", 16), Parallelism("hsdp", 16, 4)):
        more = memory(layout, 1600, cast_bytes=2, **settings).total - memory(layout, 1600, **settings).total
        assert more == 2 * 1600


def test_memory_falls_from_8_to_128_gpus_as_published():
    """torchtitan, Llama 3.1 8B (8.03e9 parameters), FSDP2 at 2 sequences a GPU: 82.4 GiB on 8 H100 and 67.0 on 128;
    compiled 77.0 and 62.0 (benchmarks/llama3_h100_202412_torchtitan.md, tables 1 and 3). Nothing but the shards
    differs, and nothing is fitted: ours is 14.0 GiB, theirs 15.4 and 15.0."""
    settings = {"largest_unit": 525e6, "activations": 0, "compute_bytes": 2}
    eight, many = (memory(Parallelism("fsdp", n), 8.03e9, **settings).total for n in (8, 128))
    assert (eight - many) / 2**30 == pytest.approx(15.2, rel=0.1)


@pytest.mark.parametrize(
    ("mode", "processes", "replicas", "message"),
    [
        ("ddp", 0, 0, "0 is not a number of processes"),
        ("none", 2, 0, "mode none is for one process, not 2"),
        ("fsdp", 8, 2, "2 replicas do not fit fsdp"),
        ("hsdp", 8, 3, "3 replicas do not divide 8"),
        ("hsdp", 8, 0, "0 replicas do not divide 8"),
    ],
)
def test_invalid_layouts_are_refused(mode, processes, replicas, message):
    with pytest.raises(UserError, match=message):
        Parallelism(mode, processes, replicas)
