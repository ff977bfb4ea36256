"""The processors that this process may use, and their load by other programs.

Another program makes a timing worthless. The timing itself does not show it, but these counters do: our processor
seconds are fewer than the wall-clock seconds, our processors do work that is not ours (/proc/stat), a host takes
processors away from a virtual machine (steal), or tasks wait for a processor (/proc/pressure/cpu). Systems other than
Linux report only our own processor seconds; unknown values are None.
"""

import contextlib
import os
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

PROC, CGROUP = Path("/proc"), Path("/sys/fs/cgroup")
STOLEN = 0.05  # share of the processors' time above which a host counts as taking them away
OTHERS = 0.2  # processors used by others above which a timing is disturbed, if hardly any is idle
BARELY = 0.7  # our processor seconds per second below which we had to wait: at least one thread always works
SHORT = 0.03  # seconds below which the counters, in units of 10 ms, are too coarse
WAITING = 0.25  # share of the time in which some task waited for a processor; used only without /proc/stat


def cores(groups: Path = CGROUP, proc: Path = PROC) -> int:
    """The number of processors that this process may use: those it may run on, at most the quota of its control group.

    For a quota of 2.5 it is 2: a third thread would be stopped half of the time, and the others would wait for it.
    """
    allowed = len(processors())
    limit = quota(groups, proc)
    return allowed if limit is None else max(1, min(allowed, int(limit)))


def processors() -> Collection[int]:
    """The numbers of the processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return range(os.cpu_count() or 1)


def quota(groups: Path = CGROUP, proc: Path = PROC) -> float | None:
    """The quota of this process's control groups in processors (cgroup v2, or v1); None: no limit."""
    return min(filter(None, map(quota_of, control_groups("cpu", groups, proc))), default=None)


def quota_of(group: Path) -> float | None:
    with contextlib.suppress(OSError, ValueError, ZeroDivisionError):  # v2: "150000 100000", or "max 100000"
        limit, period = (group / "cpu.max").read_text().split()
        return float(limit) / float(period) if limit != "max" else None
    with contextlib.suppress(OSError, ValueError, ZeroDivisionError):  # v1: -1 is no limit
        limit, period = ((group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return float(limit) / float(period) if float(limit) > 0 else None
    return None


def control_groups(controller: str, groups: Path = CGROUP, proc: Path = PROC) -> list[Path]:
    """The folders of this process's control groups, and of those above them, that can limit a `controller`."""
    folders: list[Path] = []
    with contextlib.suppress(OSError, ValueError):
        for line in (proc / "self" / "cgroup").read_text(encoding="utf-8").splitlines():
            _, controllers, name = line.split(":", 2)
            if controllers and controller not in controllers.split(","):
                continue
            for top in dict.fromkeys((groups / controllers, groups / controller if controllers else groups)):
                own = top / name.lstrip("/")
                folders += [parent for parent in (own, *own.parents) if parent.is_relative_to(top)]
    return folders


@dataclass(frozen=True)
class Reading:
    """The clocks and the system's counters at one moment, in seconds since an arbitrary origin.

    Attributes:
        wall: wall-clock time.
        own: processor seconds of this process.
        worked, idle, stolen: processor seconds, summed over the processors that it may run on.
        waited: time in which some task of the system waited for a processor.
    """

    wall: float
    own: float
    worked: float | None = None
    idle: float | None = None
    stolen: float | None = None
    waited: float | None = None


def read(proc: Path = PROC) -> Reading:
    """Read all counters, in some tens of microseconds."""
    own, wall = time.process_time(), time.perf_counter()
    worked, idle, stolen = read_stat(proc / "stat") or (None, None, None)
    return Reading(wall, own, worked, idle, stolen, read_pressure(proc / "pressure" / "cpu"))


def read_stat(path: Path) -> tuple[float, float, float] | None:
    """Seconds in which the processors of this process worked, were idle, and were used by a host for other guests; None
    if the file is missing or its counters are 0."""
    ours = {f"cpu{number}" for number in processors()}
    worked = idle = stolen = 0
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in path.read_text(encoding="utf-8").splitlines():
            name, _, counts = line.partition(" ")
            if name in ours:
                user, nice, system, no_work, no_disk, hard, soft, steal = (int(count) for count in counts.split()[:8])
                worked += user + nice + system + hard + soft
                idle += no_work + no_disk
                stolen += steal
    if not worked + idle:
        return None
    tick = os.sysconf("SC_CLK_TCK")
    return worked / tick, idle / tick, stolen / tick


def read_pressure(path: Path) -> float | None:
    """Seconds in which some task waited for a processor, or None."""
    with contextlib.suppress(OSError, ValueError):
        for line in path.read_text(encoding="utf-8").splitlines():
            kind, *pairs = line.split()
            if kind == "some":
                return int(dict(pair.split("=") for pair in pairs)["total"]) / 1e6
    return None


@dataclass(frozen=True)
class Load:
    """The use of the processors between two readings, as average numbers of processors.

    Attributes:
        seconds: between the readings.
        own: used by this process.
        others: used by other programs; None: unknown.
        idle, stolen: idle, and used by a host for other guests; None: unknown.
        waiting: the share of the time in which some task waited for a processor; None: unknown.
    """

    seconds: float
    own: float
    others: float | None = None
    idle: float | None = None
    stolen: float | None = None
    waiting: float | None = None

    @classmethod
    def between(cls, before: Reading, after: Reading) -> "Load":
        seconds = max(after.wall - before.wall, 1e-9)

        def rate(name: str) -> float | None:
            start, end = getattr(before, name), getattr(after, name)
            return None if start is None or end is None else (end - start) / seconds

        own, worked, idle, stolen = (rate(name) for name in ("own", "worked", "idle", "stolen"))
        if worked is None or idle is None or worked + idle + (stolen or 0.0) < 0.5:  # counters that stand still
            return cls(seconds, own or 0.0, waiting=rate("waited"))
        return cls(seconds, own or 0.0, max(0.0, worked - (own or 0.0)), idle, stolen, rate("waited"))

    def trouble(self, computing: bool = True) -> str:
        """The reason why this process did not get its processors, in words; "" if it got them.

        Args:
            computing: whether the process computed all the time, rather than waiting for a GPU.
        """
        if self.seconds < SHORT:
            return ""
        if self.stolen is not None and self.stolen > STOLEN * (self.stolen + self.own + (self.others or 0.0)):
            return f"the host took {self.stolen:.1f} processors away"
        if self.others is not None and self.idle is not None:
            if self.others > OTHERS and self.idle < OTHERS:
                return f"other programs used {self.others:.1f} processors"
        elif self.waiting is not None and self.waiting > WAITING:
            return f"programs waited for a processor {self.waiting:.0%} of the time"
        if computing and self.own < BARELY:
            return f"it got {self.own:.1f} processor seconds per second"
        return ""


def load_now(seconds: float = 0.3, proc: Path = PROC) -> Load:
    """The load while this process sleeps for `seconds`."""
    before = read(proc)
    time.sleep(seconds)
    return Load.between(before, read(proc))


def busy_now(load: Load) -> str:
    """The use of the processors by others while this process slept, in words; "" if it is low enough to time steps."""
    if load.stolen is not None and load.others is not None:
        if load.stolen > OTHERS / 2:
            return f"the host took {load.stolen:.1f} processors away"
        if load.others > OTHERS:
            return f"other programs used {load.others:.1f} processors"
    elif load.waiting is not None and load.waiting > WAITING:
        return f"programs waited for a processor {load.waiting:.0%} of the time"
    return ""


def thread_counts(most: int) -> Iterator[int]:
    """The numbers of threads worth trying: one, half of the processors, all; ascending."""
    yield from sorted({1, max(1, most // 2), most})
