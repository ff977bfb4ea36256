"""How long a step takes on a cluster of GPUs, by a small model of compute and bandwidth. Plain numbers, no torch.

    step = compute + exposed communication + update

- compute: FLOPs of a process over the peak times the share of it that kernels reach with nobody to talk to. The share
  is the caller's: it belongs to software and shapes, and one run on one node tells it (0.35 to 0.61 on H100 so far).
- communication: the bytes of `cost.traffic` over the slowest wire that they cross, and each collective's latency. It
  overlaps compute: the forward pass the gathers, the backward pass gathers and sums. What there is too little compute
  to hide is exposed; and in any case the first gather and the last sum, which have nothing to hide behind, and PAID of
  the time that the same transfer takes within a node: its kernels hold processors and memory that the products lack,
  however fast the network. That it is the time within a node, and not on the wire, is what runs on slow networks show.
- update: the optimiser reads and writes its shard at the memory's rate.

PAID is fitted (`python bench/cluster.py --fit`), on one published table; all other constants have their source next to
them. docs/many-machines.md says how far off the model is for published runs that nothing was fitted to.
"""

import math
from dataclasses import dataclass

from isoflop.errors import UserError
from isoflop.parallel.cost import Parallelism, ProcessMemory, traffic
from isoflop.plan.cluster.machines import WIRE, Cluster

# Seconds of a ring's collective before its first byte: once, and for each step to the next GPU, in the node and across
# the network (NVIDIA/nccl, src/graph/tuning.cc, baseLat and hwLat: ring, protocol "Simple").
START, HOP, HOP_NETWORK = 8.4e-6, 3.4e-6, 14e-6

BUCKET = 25 * 2**20  # bytes of gradients that DistributedDataParallel sums at once (its bucket_cap_mb)

PAID = 0.71

# bytes per parameter in float32: read it, its gradient (twice: the norm first) and two moments, write three
UPDATE = 32

USABLE = 0.9  # of a GPU's memory; our choice. The rest is the CUDA context, NCCL's buffers and the allocator's gaps


@dataclass(frozen=True)
class Work:
    """A model, and what one process does of a step.

    Attributes:
        parameters: trainable.
        flops: of a token, forward and backward, attention included, nothing recomputed ("palm" in model/count.py).
        tokens: of one process in one pass.
        units: how many pieces the model is gathered in: the blocks, and the rest.
        passes: forward and backward passes in a step.
        recompute: the blocks' forward pass is worked out again in the backward pass.
    """

    parameters: float
    flops: float
    tokens: float
    units: int
    passes: int = 1
    recompute: bool = False

    @property
    def forward(self) -> float:
        """FLOPs of the forward half of a pass."""
        return self.flops * self.tokens / 3

    @property
    def backward(self) -> float:
        return self.forward * (3 if self.recompute else 2)


@dataclass(frozen=True)
class Step:
    """Seconds of an optimiser step, and what became of them."""

    compute: float
    exposed: float
    update: float

    @property
    def seconds(self) -> float:
        return self.compute + self.exposed + self.update


@dataclass(frozen=True)
class Transfer:
    """Collectives of one model's worth.

    Attributes:
        wire: seconds on the slowest wire, latency included.
        busy: seconds that they would take within a node, latency included.
        edge: seconds of the one that has nothing to hide behind.
    """

    wire: float = 0.0
    busy: float = 0.0
    edge: float = 0.0

    def __add__(self, other: "Transfer") -> "Transfer":
        return Transfer(self.wire + other.wire, self.busy + other.busy, self.edge + other.edge)

    def exposed(self, compute: float, paid: float = PAID) -> float:
        """Seconds that they add to the computation that they overlap with."""
        return max(self.edge + paid * self.busy, self.wire - compute)


def step(
    work: Work,
    layout: Parallelism,
    cluster: Cluster,
    share: float,
    *,
    parameter_bytes: float = 2,
    reduce_bytes: float = 4,
    reshard: bool = True,
    reduce_every_pass: bool = True,
    paid: float = PAID,
) -> Step:
    """The time of one optimiser step.

    Args:
        share: of the peak, that the products reach when nothing is communicated; recomputed ones count as work here.
        parameter_bytes: of a parameter as it is gathered.
        reduce_bytes: of a gradient as it is summed.
        reshard: as in `cost.traffic`.
        reduce_every_pass: likewise; ddp sums after the last pass in any case.
        paid: another value than the fitted one, to fit it.
    """
    forward, backward = (flops / (cluster.peak * share) for flops in (work.forward, work.backward))
    gather = gathering(work, layout, cluster, parameter_bytes)
    again = gather if reshard else Transfer()
    last = (again + summing(work, layout, cluster, reduce_bytes)).exposed(backward, paid)
    other = last if reduce_every_pass and layout.shards > 1 else again.exposed(backward, paid)
    return Step(
        compute=work.passes * (forward + backward),
        exposed=work.passes * gather.exposed(forward, paid) + (work.passes - 1) * other + last,
        update=UPDATE * work.parameters / layout.shards / cluster.memory_rate,
    )


def gathering(work: Work, layout: Parallelism, cluster: Cluster, width: float) -> Transfer:
    """All parameters gathered once, unit by unit.

    Processes are numbered node by node, and those of a shard group are neighbours, as in FSDP's 2-D mesh.
    """
    sent = traffic(layout, work.parameters, parameter_bytes=width, reshard=False).gathered
    return transfer(cluster, sent, work.units, layout.shards, min(layout.shards, cluster.node))


def summing(work: Work, layout: Parallelism, cluster: Cluster, width: float) -> Transfer:
    """All gradients summed once: within the shard groups, then across the replicas. ddp sums in buckets, not units."""
    sent = traffic(layout, work.parameters, reduce_bytes=width)
    within = transfer(cluster, sent.scattered, work.units, layout.shards, min(layout.shards, cluster.node))
    pieces = work.units if layout.shards > 1 else math.ceil(width * work.parameters / BUCKET)
    together = max(1, min(layout.replicas, cluster.node // layout.shards))
    return within + transfer(cluster, sent.reduced, pieces, layout.replicas, together, there_and_back=True)


def transfer(
    cluster: Cluster, sent: float, pieces: int, group: int, together: int, *, there_and_back: bool = False
) -> Transfer:
    """`sent` bytes of each process in so many collectives among `group` processes, `together` of them on each node."""
    if group == 1:
        return Transfer()
    latency = ring_latency(group, together)
    if there_and_back:  # all-reduce, for which NCCL has a ring and a tree, and takes the faster
        latency = min(2 * latency, tree_latency(group, together))
    wire = sent / cluster.rate(group, together)
    busy = sent / (WIRE * cluster.link)
    return Transfer(wire + pieces * latency, busy + pieces * latency, wire / pieces)


def ring_latency(group: int, together: int) -> float:
    """Seconds of a ring's all-gather or reduce-scatter of nothing."""
    across = math.ceil(group / together) - 1
    return START + (group - 1 - across) * HOP + across * HOP_NETWORK


def tree_latency(group: int, together: int) -> float:
    """Seconds of an all-reduce of nothing up and down a tree of nodes, as NCCL reckons it (the same file)."""
    return START + 2 * ((together - 1) * HOP + math.log2(math.ceil(group / together)) * HOP_NETWORK)


def require_fits(held: ProcessMemory, cluster: Cluster) -> None:
    """Raises UserError unless a GPU holds it."""
    if held.total > USABLE * cluster.memory:
        raise UserError(
            f"{held.total / 1e9:.0f} GB do not fit a GPU of {cluster.memory / 1e9:.0f} GB ({USABLE:.0%} usable): "
            "cut the model into more shards, or take fewer sequences a pass"
        )
