"""The machine: device and dtype, threads, seeds, memory, and the peak of its matrix products."""

import contextlib
import itertools
import platform
import random
import re
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from isoflop.errors import UserError
from isoflop.processors import control_groups, cores

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


# Dense FLOP/s in bfloat16 with float32 accumulation, from NVIDIA's data sheets (half of figures with sparsity), by
# words of the GPU's name in torch; the first row whose words all occur is used.
CARDS = {
    "gb200": 2500e12,
    "b200": 2250e12,
    "h200 nvl": 835e12,
    "h200": 989e12,
    "gh200": 989e12,
    "h100 nvl": 835e12,
    "h100 pcie": 756e12,
    "h100": 989e12,
    "a100": 312e12,
    "a40": 149.7e12,
    "a30": 165e12,
    "a10": 125e12,
    "l40s": 362e12,
    "l40": 181e12,
    "l4": 121e12,
    "rtx a6000": 154.8e12,
    "rtx 5090": 209.5e12,
    "rtx 4090": 165.2e12,
    "rtx 3090": 71e12,
}
OTHER_MODELS = {"laptop", "mig", "d", "ti", "max"}  # words in names of GPUs that are slower or faster than the row's


@dataclass(frozen=True)
class Runtime:
    """The device of a step, and the `dtype` of its matrix products. Weights stay in float32."""

    device: torch.device
    dtype: torch.dtype

    def autocast(self) -> torch.autocast:
        """The context of the forward pass."""
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32)

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()

    def send(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Copy tensors from main memory to the device. To a GPU the copy is asynchronous, from pinned memory: kernels
        launched later see the result. torch reuses the pinned memory only after the copy is done."""
        if self.device.type != "cuda":
            return [tensor.to(self.device) for tensor in tensors]
        return [tensor.pin_memory().to(self.device, non_blocking=True) for tensor in tensors]

    def fetch(self, numbers: Sequence[torch.Tensor]) -> Callable[[], list[float]]:
        """Start to copy 0-dimensional tensors from the device. The returned function waits for them, but not for work
        that is launched after this call, and returns their values."""
        if self.device.type != "cuda":
            return lambda: [float(number) for number in numbers]
        copy = torch.empty(len(numbers), pin_memory=True)
        copy.copy_(torch.stack(list(numbers)), non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record(torch.cuda.current_stream(self.device))

        def wait() -> list[float]:
            arrived.synchronize()
            values: list[float] = copy.tolist()
            return values

        return wait


def make_runtime(device: str = "auto", dtype: str = "float32", threads: int = 0) -> Runtime:
    """Choose a device and set this process's number of threads (0: unchanged).

    Raises:
        UserError: for an unknown or absent device or dtype.
    """
    if dtype not in DTYPES:
        raise UserError(f"runtime.dtype = {dtype!r} is not one of {', '.join(DTYPES)}")
    if threads > 0:
        torch.set_num_threads(threads)
    chosen = torch.device(choose_device(device))
    if chosen.type == "cuda" and chosen.index is not None:
        torch.cuda.set_device(chosen)  # the default device of kernels
    return Runtime(chosen, DTYPES[dtype])


def choose_device(wanted: str = "auto") -> str:
    """ "auto" -> "cuda", "mps" or "cpu", the first that is available.

    Raises:
        UserError: for a device that is not available.
    """
    available = ["cpu"]
    if torch.backends.mps.is_available():
        available.insert(0, "mps")
    if torch.cuda.is_available():
        available.insert(0, "cuda")
    if wanted == "auto":
        return available[0]

    kind, _, number = wanted.partition(":")
    if kind not in available:
        raise UserError(f"runtime.device = {wanted!r} is not available; this machine has {', '.join(available)}")
    if kind == "cuda" and number and not (number.isdigit() and int(number) < torch.cuda.device_count()):
        cards = ", ".join(f"cuda:{index}" for index in range(torch.cuda.device_count()))
        raise UserError(f"runtime.device = {wanted!r} is not available; this machine has {cards}")
    return wanted


def default_dtype(device: str) -> str:
    """The default dtype of matrix products: bfloat16 on a GPU with units for it (Ampere and later), else float32.
    float32 is exact: TF32 is never enabled, since every GPU with TF32 has bfloat16."""
    if not device.startswith("cuda"):
        return "float32"
    with torch.cuda.device(device):
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"


def card_peak(card: str) -> float | None:
    """Dense bfloat16 FLOP/s in the data sheet of a GPU, by its name in torch; None if unknown."""
    words = set(re.split(r"[^a-z0-9]+", card.lower()))
    if words & OTHER_MODELS:
        return None
    return next((peak for name, peak in CARDS.items() if words.issuperset(name.split())), None)


def utilisation(flops_per_second: float, device: str, dtype: str) -> float | None:
    """The share of the bfloat16 peak in a GPU's data sheet: the MFU, if FLOPs are counted as in PaLM (model/count.py).
    None on other devices, in other dtypes and for GPUs that are not in CARDS."""
    if not device.startswith("cuda") or dtype != "bfloat16":
        return None
    peak = card_peak(torch.cuda.get_device_name(device))
    return flops_per_second / peak if peak else None


def seed_everything(seed: int) -> None:
    """Seed every random generator that a run may use."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


@contextlib.contextmanager
def keep_threads_and_random_state() -> Iterator[None]:
    """A context that restores this process's thread count and the states of the CPU's random generators."""
    threads, plain, numbers = torch.get_num_threads(), random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(plain)
        np.random.set_state(numbers)
        torch.set_num_threads(threads)


def measure_peak(device: str, seconds: float = 1.0) -> dict[str, float]:
    """The highest FLOP/s of square matrix products on this machine, by dtype: the peak with which steps are compared.

    A product of n x n matrices is 2 n^3 FLOPs. Sizes are 256 to 2048 on a CPU, to 8192 on a GPU; the best of repeated
    calls counts, since the peak is wanted and not the average. A size that would take too long at the speed of the
    previous one is skipped: a CPU without bfloat16 units computes such products a hundred times slower.
    """
    if device != "cpu":
        sizes = (1024, 2048, 4096, 8192)
        return {name: peak_of(device, dtype, sizes, seconds / len(DTYPES)) for name, dtype in DTYPES.items()}

    # With all threads, and with one: next to another program all threads wait for the one that shares its core.
    best, threads = dict.fromkeys(DTYPES, 0.0), torch.get_num_threads()
    try:
        counts = sorted({1, threads})
        for name, count in itertools.product(DTYPES, counts):
            torch.set_num_threads(count)
            share = seconds / len(DTYPES) / len(counts)
            best[name] = max(best[name], peak_of(device, DTYPES[name], (256, 512, 1024, 2048), share))
    finally:
        torch.set_num_threads(threads)
    return best


def peak_of(device: str, dtype: torch.dtype, sizes: tuple[int, ...], seconds: float) -> float:
    """The best FLOP/s over `sizes` (ascending) in about `seconds`."""
    runtime = Runtime(torch.device(device), dtype)
    best = 0.0
    for n in sizes:
        if best and 2.0 * n**3 / best > seconds / len(sizes):
            break
        a = torch.randn(n, n, device=device).to(dtype)
        b = torch.randn(n, n, device=device).to(dtype)
        a @ b
        runtime.synchronize()

        deadline = time.perf_counter() + seconds / len(sizes)
        while time.perf_counter() < deadline:
            started = time.perf_counter()
            a @ b
            runtime.synchronize()
            best = max(best, 2.0 * n**3 / (time.perf_counter() - started))
    return best


def peak_memory(device: str) -> int:
    """The peak memory of this process in bytes: device memory on a GPU, resident memory on a CPU."""
    if device.startswith("cuda"):
        return int(torch.cuda.max_memory_allocated(device))
    with contextlib.suppress(OSError):  # Linux, whose getrusage includes the parent's peak before the fork
        for line in Path("/proc/self/status").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def free_memory(device: str) -> int | None:
    """Free bytes on a device, or in main memory for "cpu"; None if the system does not report it.

    For main memory, the smaller of what Linux calls available (free, or used by caches that it would drop) and the
    remainder of the limit of the process's control group.
    """
    if device.startswith("cuda"):
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + cached
    if device.startswith("mps"):
        return int(torch.mps.recommended_max_memory()) - int(torch.mps.driver_allocated_memory())
    limits = (available(Path("/proc/meminfo")), *map(remaining, control_groups("memory")))
    return min(filter(None, limits), default=None)


def available(meminfo: Path) -> int | None:
    """Bytes of main memory that Linux calls available; None on other systems."""
    with contextlib.suppress(OSError, ValueError):
        for line in meminfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    return None


def remaining(group: Path) -> int | None:
    """The remainder of a control group's limit in bytes (cgroup v2, or v1), with file caches counted as free; None
    without a limit."""
    names = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))
    for limit, used in names:
        with contextlib.suppress(OSError, ValueError):  # "max": no limit
            free = int((group / limit).read_text()) - int((group / used).read_text())
            for line in (group / "memory.stat").read_text().splitlines():
                if line.startswith("inactive_file "):
                    free += int(line.split()[1])
            return max(free, 1)
    return None


def describe_machine(device: str) -> dict[str, Any]:
    """The machine and the versions, for environment.json."""
    described: dict[str, Any] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "system": f"{platform.system()} {platform.release()}",
        "processor": processor_name(),
        "cores": cores(),
        "device": device,
        "threads": torch.get_num_threads(),
    }
    if device.startswith("cuda"):
        described["gpu"] = torch.cuda.get_device_name(device)
        described["cuda"] = torch.version.cuda
    return described


def processor_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:  # noqa: PTH123 - a kernel file
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
