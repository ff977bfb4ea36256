"""GPUs in nodes, by name: rates from data sheets. Plain numbers, no torch."""

import re
from dataclasses import dataclass

from isoflop.config import nearest
from isoflop.errors import UserError

# What a collective attains of a wire's rate. Between nodes: all-gather at 324 GB/s and all-reduce at 331 of 400 (4
# nodes of 8 H100, NCCL 2.24.3, Voltage Park's benchmark); 340 of 400 (32 nodes, NVIDIA/nccl issue 1218).
WIRE = 0.82

MOST = 100_000  # GPUs


@dataclass(frozen=True)
class Cluster:
    """GPUs in nodes. Rates are in one direction.

    Attributes:
        peak: dense bfloat16 FLOP/s of a GPU.
        memory: bytes of a GPU.
        memory_rate: bytes/s between a GPU and its memory.
        link: bytes/s from a GPU to the others of its node.
        network: bytes/s from a node to the others, all its adapters together.
        node: GPUs in a node.
    """

    peak: float
    memory: float
    memory_rate: float
    link: float
    network: float
    node: int = 8

    def rate(self, group: int, together: int) -> float:
        """Bytes/s that each process of a group sends in a ring while all others in the node do likewise.

        A ring through several nodes enters and leaves each of them once, and as many rings as there are adapters share
        the work. So all of a node's GPUs in one group can use all of its network, and one GPU in a group its part.

        Args:
            group: processes in it.
            together: how many of them share a node.
        """
        if group <= together:
            return WIRE * self.link
        network = self.network * together / self.node
        return WIRE * (min(self.link, network) if together > 1 else network)


# H100 SXM: 989.4 TFLOP/s, 80 GB, 3.35 TB/s, NVLink 900 GB/s both ways together (NVIDIA H100 data sheet, which prints
# 1,979 with sparsity); 8 adapters of 400 Gb/s per node (DGX H100 data sheet).
# H200 SXM: the same with 141 GB at 4.8 TB/s (NVIDIA H200 data sheet).
# B200: 2,250 TFLOP/s, 180 GB, 8 TB/s, NVLink 1.8 TB/s both ways, 8 adapters of 400 Gb/s (DGX B200 data sheet: 1,440 GB
# and 64 TB/s for eight).
# A100 SXM: 312 TFLOP/s, 80 GB, 2.04 TB/s, NVLink 600 GB/s both ways (NVIDIA A100 data sheet); 8 of 200 (DGX A100's).
CLUSTERS: dict[str, Cluster] = {
    "h100": Cluster(peak=989.4e12, memory=80e9, memory_rate=3.35e12, link=450e9, network=400e9),
    "h200": Cluster(peak=989.4e12, memory=141e9, memory_rate=4.8e12, link=450e9, network=400e9),
    "b200": Cluster(peak=2250e12, memory=180e9, memory_rate=8e12, link=900e9, network=400e9),
    "a100": Cluster(peak=312e12, memory=80e9, memory_rate=2.04e12, link=300e9, network=200e9),
}


def parse_machine(text: str) -> tuple[int, str]:
    """GPUs and their name: "8xh100" is (8, "h100"), "h100" one of them.

    Raises:
        UserError: for a GPU that is not in CLUSTERS, or a number of them that does not fill its nodes.
    """
    matched = re.fullmatch(r"(?:(?P<gpus>\d+)\s*x\s*)?(?P<name>[a-z][a-z0-9-]*)", text.strip().lower())
    if not matched or matched["name"] not in CLUSTERS:
        near = nearest(matched["name"], CLUSTERS) if matched else ""
        raise UserError(f"--machine {text!r} is not GPUS x NAME, as in 8xh100, of {', '.join(CLUSTERS)}{near}")
    gpus, node = int(matched["gpus"] or 1), CLUSTERS[matched["name"]].node
    if not 1 <= gpus <= MOST or (gpus > node and gpus % node):
        raise UserError(f"--machine {text!r} has {gpus} GPUs: give 1 to {node}, or whole nodes of {node}")
    return gpus, matched["name"]
