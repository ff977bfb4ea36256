"""Finds the process that hangs. When one of many processes hangs, all others wait for it without an error.

Every process writes a heartbeat into the store every second or two: rank, host, step, and whether its main thread waits
for others. While the run makes progress, nobody reads them. A process without progress for half of `timeout` starts to
read all heartbeats, and after `timeout` it names the processes at fault, by the first of these rules that applies:

    no heartbeat                         killed, stopped, or its host is lost
    heartbeat, not waiting               its own code hangs
    heartbeat, waiting, fewest reports   it waits for something that the others do not wait for

The store is on one host, which may itself be lost: then the others name that host. The Python stack of every process
without progress is in the run folder, `stacks/rank-N.txt` (faulthandler writes it even if the interpreter is stuck).
All processes exit with code 1; the checkpoints are unchanged, and the run can be resumed.

A call to the store may never return, so one thread communicates and another judges by its own clock.
"""

import contextlib
import faulthandler
import json
import os
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any, Self

from isoflop.errors import quoted
from isoflop.parallel.failures import FailedElsewhere, Lost, broken
from isoflop.parallel.mesh import Group

BEATS = 20  # heartbeats per timeout, within the bounds of the next line
FASTEST, SLOWEST = 0.1, 2.0  # bounds of the seconds between two heartbeats
MISSED = 3  # heartbeats that a process may miss before it counts as silent
WAITING = ("torch/distributed/", "torch/autograd/graph.py", "isoflop/parallel/")  # files whose code waits for others


class Watchdog:
    """A context in which the main thread reports its progress by calling `at`.

    Args:
        timeout: seconds without progress until the run ends.
        folder: the run folder.
        step: the step from which the run starts or resumes.
    """

    def __init__(self, group: Group, timeout: float, folder: Path, step: int) -> None:
        self.group, self.timeout, self.folder = group, timeout, folder
        self.every = min(SLOWEST, max(FASTEST, timeout / BEATS))
        self.step, self.doing, self.marks, self.moved = step, "at its start", 0, time.monotonic()
        self.main = threading.get_ident()
        self.pulse = 0
        self.listening = False  # whether to read the others' heartbeats
        self.answered = time.monotonic()  # when the store last answered
        self.heard: dict[int, tuple[dict[str, Any], float]] = {}  # rank -> its last heartbeat, and when it arrived
        self.over = threading.Event()

    def at(self, step: int, doing: str) -> None:
        """Report progress: the main thread is at this step, doing this."""
        self.step, self.doing, self.marks, self.moved = step, doing, self.marks + 1, time.monotonic()

    def __enter__(self) -> Self:
        if self.group.alone:
            return self
        assert self.group.store is not None
        store: Any = self.group.store
        self.store = store.clone()  # a separate connection: a call that does not return blocks no other
        path = self.folder / "stacks" / f"rank-{self.group.rank}.txt"
        path.parent.mkdir(exist_ok=True)
        self.stack = path.open("w", encoding="utf-8")
        self.at(self.step, self.doing)
        self.threads = [threading.Thread(target=run, daemon=True) for run in (self.communicate, self.judge)]
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *_: object) -> None:
        if self.group.alone:
            return
        lost = self.lost(error) if error is not None and broken(error) else None
        self.close()
        if lost is not None:
            raise lost from error

    def lost(self, error: BaseException) -> Exception:
        """The error behind a broken connection: a failure that another process reported, or the processes that are
        lost."""
        self.at(self.step, "without a connection")
        self.listening = True
        deadline = time.monotonic() + (MISSED + 3) * self.every + 2
        ranks: list[int] = []
        store: Any = self.group.store
        with contextlib.suppress(RuntimeError):
            while not ranks and time.monotonic() < deadline:
                time.sleep(self.every)
                if store.check(["failure"]):
                    return FailedElsewhere(int(store.get("failure")))
                ranks = [rank for rank in self.heard if self.missing(rank, time.monotonic())]

        ranks = ranks or [rank for rank in range(self.group.size) if rank not in self.heard]
        named = "; ".join(self.name(rank, time.monotonic()) for rank in ranks[:8]) or f"unknown ({error})"
        return Lost(
            f"the connection to another process broke, which was killed or whose host is lost: {named}. Resume with: "
            f"isoflop train --resume {quoted(self.folder)}"
        )

    def close(self) -> None:
        """End both threads, and delete this process's stack file if it is empty."""
        self.over.set()
        faulthandler.cancel_dump_traceback_later()
        self.threads[1].join()
        self.stack.close()
        with contextlib.suppress(OSError):
            path = Path(self.stack.name)
            if path.stat().st_size == 0:
                path.unlink()
                path.parent.rmdir()  # fails, as it should, if another process has a file in it

    @property
    def idle(self) -> float:
        """Seconds without progress."""
        return time.monotonic() - self.moved

    def communicate(self) -> None:
        """The communicating thread: write heartbeats; without progress, read those of the others."""
        while not self.over.is_set():
            with contextlib.suppress(RuntimeError):  # `judge` sees how long ago the store last answered
                self.pulse += 1
                self.store.set(f"beat/{self.group.rank}", json.dumps(self.beat()))
                if self.listening or self.idle > self.timeout / 2:
                    self.listen()
                self.answered = time.monotonic()
            self.over.wait(self.every)

    def beat(self) -> dict[str, Any]:
        return {
            "pulse": self.pulse,
            "host": socket.gethostname(),
            "node": self.group.node,
            "step": self.step,
            "doing": self.doing,
            "marks": self.marks,
            "waits": self.waits(),
        }

    def waits(self) -> bool:
        """Whether the main thread is in code that waits for other processes."""
        frame = sys._current_frames().get(self.main)
        return frame is not None and any(place in frame.f_code.co_filename for place in WAITING)

    def listen(self) -> None:
        """Read the heartbeats of all processes."""
        names = [f"beat/{rank}" for rank in range(self.group.size)]
        existing = [rank for rank, name in enumerate(names) if self.store.check([name])]
        for rank, text in zip(existing, self.store.multi_get([names[rank] for rank in existing]), strict=True):
            beat = json.loads(text)
            before = self.heard.get(rank)
            if before is None or before[0]["pulse"] != beat["pulse"]:
                self.heard[rank] = (beat, time.monotonic())

    def judge(self) -> None:
        """The judging thread: end this process after too long without progress, and name the one at fault."""
        armed = -1
        while not self.over.wait(self.every):
            if armed != self.marks:
                armed = self.marks
                faulthandler.dump_traceback_later(self.timeout, file=self.stack)
            if self.idle > self.timeout + self.every:
                self.end()

    def end(self) -> None:
        """Exit, after one process has printed the reason: preferably one that is not at fault."""
        now = time.monotonic()
        if now - self.answered > self.timeout / 2:
            if self.group.local_rank == 0:
                self.report(self.store_lost())
            os._exit(1)

        at_fault = self.at_fault(now)
        if self.group.rank in at_fault and len(at_fault) < self.group.size:
            self.over.wait(4 * self.every + 1)
        if self.group.failures.claims_error(1):
            self.report(self.words(at_fault, now))
        os._exit(1)

    def at_fault(self, now: float) -> list[int]:
        """The ranks at fault, by the rules at the top of this file."""
        ranks = range(self.group.size)
        if missing := [rank for rank in ranks if self.missing(rank, now)]:
            return missing
        busy = [rank for rank in ranks if not self.heard[rank][0]["waits"]]
        fewest = min(beat["marks"] for beat, _ in self.heard.values())
        return busy or [rank for rank in ranks if self.heard[rank][0]["marks"] == fewest]

    def missing(self, rank: int, now: float) -> bool:
        """Whether a process sends no heartbeats."""
        return rank not in self.heard or now - self.heard[rank][1] > MISSED * self.every + 1

    def words(self, ranks: list[int], now: float) -> str:
        named = "; ".join(self.name(rank, now) for rank in ranks[:8])
        more = f" and {len(ranks) - 8} more" if len(ranks) > 8 else ""
        return f"no progress for {self.timeout:g} s: {named}{more}"

    def name(self, rank: int, now: float) -> str:
        if rank not in self.heard:
            return f"rank {rank} never sent a heartbeat"
        beat, _ = self.heard[rank]
        where = f"rank {rank} on host {beat['host']}"
        if self.missing(rank, now):
            return f"{where} is silent, its last heartbeat was at step {beat['step']}, {beat['doing']}"
        verb = "waits" if beat["waits"] else "hangs"
        return f"{where} {verb} at step {beat['step']}, {beat['doing']}"

    def store_lost(self) -> str:
        host = os.environ.get("MASTER_ADDR", "?")
        ranks = [str(rank) for rank, (beat, _) in sorted(self.heard.items()) if beat["node"] == 0] or ["0"]
        return (
            f"no progress for {self.timeout:g} s: host {host}, the rendezvous of the processes, does not answer (it "
            f"runs rank {', '.join(ranks)}); this process was at step {self.step}, {self.doing}"
        )

    def report(self, text: str) -> None:
        """Print one line, and record it in the run's history."""
        line = (
            f"isoflop: {text}; the stacks are in {self.folder / 'stacks'}. Resume with: "
            f"isoflop train --resume {quoted(self.folder)}"
        )
        record = {"event": "hung", "time": time.time(), "step": self.step, "reason": text}
        with contextlib.suppress(OSError), (self.folder / "events.jsonl").open("ab") as file:
            file.write(json.dumps(record).encode() + b"\n")
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()
