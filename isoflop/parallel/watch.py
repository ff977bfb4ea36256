"""Who is silent? When one of many processes hangs, all wait for it, and none says so.

Every process leaves a beat in the store each second or two: who it is, where, at which step, and whether its main
thread waits for others. While steps are taken nobody reads them. Where this process has made no progress for half of
`timeout` it begins to read them all, and after the whole of it the silent ones are named, by the first of these that
finds any:

    no beat any more             killed, stopped, or its host is gone
    beats, and does not wait     its own code hangs
    beats, waits, fewest marks   it waits for something that the others do not

The store lies on one host, and may be what is gone: then the others name that host. The Python stack of every process
that makes no progress is in the run folder, `stacks/rank-N.txt` (faulthandler writes it, also where the interpreter is
stuck). All leave with exit code 1; the checkpoints are untouched, and --resume goes on.

Nothing here trusts a call to the store to return: one thread talks, another one judges by its own clock.
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

from isoflop.parallel.failures import FailedElsewhere, Lost, broken
from isoflop.parallel.mesh import Group

BEATS = 20  # beats in one timeout, but no more often than the next and no less than the last
FASTEST, SLOWEST = 0.1, 2.0  # seconds between two beats
MISSED = 3  # beats that a process may miss before it is silent
WAITING = ("torch/distributed/", "torch/autograd/graph.py", "isoflop/parallel/")  # files in which others are waited for


class Watchdog:
    """Within this context, the main thread says `at` where it is.

    Args:
        timeout: seconds without progress that are too many.
        folder: the run folder.
        step: that the run goes on from.
    """

    def __init__(self, group: Group, timeout: float, folder: Path, step: int) -> None:
        self.group, self.timeout, self.folder = group, timeout, folder
        self.every = min(SLOWEST, max(FASTEST, timeout / BEATS))
        self.step, self.doing, self.marks, self.moved = step, "at its start", 0, time.monotonic()
        self.main = threading.get_ident()
        self.pulse = 0
        self.listening = False  # whether the others' beats are read
        self.answered = time.monotonic()  # when the store last did
        self.heard: dict[int, tuple[dict[str, Any], float]] = {}  # rank -> its last beat, and when it was new
        self.over = threading.Event()

    def at(self, step: int, doing: str) -> None:
        """The main thread is here."""
        self.step, self.doing, self.marks, self.moved = step, doing, self.marks + 1, time.monotonic()

    def __enter__(self) -> Self:
        if self.group.alone:
            return self
        assert self.group.store is not None
        store: Any = self.group.store
        self.store = store.clone()  # a connection of its own: a call that does not return blocks no other
        path = self.folder / "stacks" / f"rank-{self.group.rank}.txt"
        path.parent.mkdir(exist_ok=True)
        self.stack = path.open("w", encoding="utf-8")
        self.at(self.step, self.doing)
        self.threads = [threading.Thread(target=run, daemon=True) for run in (self.talk, self.judge)]
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
        """What a broken connection means: another process failed and said so, or it is gone, and is named."""
        self.at(self.step, "without a connection")
        self.listening = True
        deadline = time.monotonic() + (MISSED + 3) * self.every + 2
        gone: list[int] = []
        store: Any = self.group.store
        with contextlib.suppress(RuntimeError):
            while not gone and time.monotonic() < deadline:
                time.sleep(self.every)
                if store.check(["failure"]):
                    return FailedElsewhere(int(store.get("failure")))
                gone = [rank for rank in self.heard if self.missing(rank, time.monotonic())]
        gone = gone or [rank for rank in range(self.group.size) if rank not in self.heard]
        named = "; ".join(self.name(rank, time.monotonic()) for rank in gone[:8]) or f"to an unknown one ({error})"
        return Lost(
            f"the connection to another process broke, which was killed or whose host is gone: {named}. Go on with: "
            f"isoflop train --resume {self.folder}"
        )

    def close(self) -> None:
        self.over.set()
        faulthandler.cancel_dump_traceback_later()
        self.threads[1].join()
        self.stack.close()
        with contextlib.suppress(OSError):
            path = Path(self.stack.name)
            if path.stat().st_size == 0:
                path.unlink()
                path.parent.rmdir()  # refuses where another process has something in it

    @property
    def still(self) -> float:
        """Seconds without progress."""
        return time.monotonic() - self.moved

    def talk(self) -> None:
        """Leave beats; read those of the others when nothing moves."""
        while not self.over.is_set():
            with contextlib.suppress(RuntimeError):  # the judge sees how long ago the store last answered
                self.pulse += 1
                self.store.set(f"beat/{self.group.rank}", json.dumps(self.beat()))
                if self.listening or self.still > self.timeout / 2:
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
        """Whether the main thread is where others are waited for."""
        frame = sys._current_frames().get(self.main)
        return frame is not None and any(place in frame.f_code.co_filename for place in WAITING)

    def listen(self) -> None:
        names = [f"beat/{rank}" for rank in range(self.group.size)]
        there = [rank for rank, name in enumerate(names) if self.store.check([name])]
        for rank, text in zip(there, self.store.multi_get([names[rank] for rank in there]), strict=True):
            beat = json.loads(text)
            before = self.heard.get(rank)
            if before is None or before[0]["pulse"] != beat["pulse"]:
                self.heard[rank] = (beat, time.monotonic())

    def judge(self) -> None:
        """End this process when nothing moves for too long, and say who is silent."""
        armed = -1
        while not self.over.wait(self.every):
            if armed != self.marks:
                armed = self.marks
                faulthandler.dump_traceback_later(self.timeout, file=self.stack)
            if self.still > self.timeout + self.every:
                self.end()

    def end(self) -> None:
        """Leave, after one process has said why: one that is not to blame, where there is any."""
        now = time.monotonic()
        if now - self.answered > self.timeout / 2:
            if self.group.local_rank == 0:
                self.say(self.store_is_gone())
            os._exit(1)
        blamed = self.silent(now)
        if self.group.rank in blamed and len(blamed) < self.group.size:
            self.over.wait(4 * self.every + 1)
        if self.group.failures.claims_error(1):
            self.say(self.words(blamed, now))
        os._exit(1)

    def silent(self, now: float) -> list[int]:
        """The ranks to blame."""
        ranks = range(self.group.size)
        if missing := [rank for rank in ranks if self.missing(rank, now)]:
            return missing
        busy = [rank for rank in ranks if not self.heard[rank][0]["waits"]]
        fewest = min(beat["marks"] for beat, _ in self.heard.values())
        return busy or [rank for rank in ranks if self.heard[rank][0]["marks"] == fewest]

    def missing(self, rank: int, now: float) -> bool:
        return rank not in self.heard or now - self.heard[rank][1] > MISSED * self.every + 1

    def words(self, blamed: list[int], now: float) -> str:
        named = "; ".join(self.name(rank, now) for rank in blamed[:8])
        more = f" and {len(blamed) - 8} more" if len(blamed) > 8 else ""
        return f"no progress for {self.timeout:g} s: {named}{more}"

    def name(self, rank: int, now: float) -> str:
        if rank not in self.heard:
            return f"rank {rank} was never heard of"
        beat, _ = self.heard[rank]
        where = f"rank {rank} on host {beat['host']}"
        if self.missing(rank, now):
            return f"{where} is silent, last heard of at step {beat['step']}, {beat['doing']}"
        what = "waits" if beat["waits"] else "hangs"
        return f"{where} {what} at step {beat['step']}, {beat['doing']}"

    def store_is_gone(self) -> str:
        host = os.environ.get("MASTER_ADDR", "?")
        there = [str(rank) for rank, (beat, _) in sorted(self.heard.items()) if beat["node"] == 0] or ["0"]
        return (
            f"no progress for {self.timeout:g} s: host {host}, which the processes meet at, does not answer (rank "
            f"{', '.join(there)} and what else runs there); this one was at step {self.step}, {self.doing}"
        )

    def say(self, text: str) -> None:
        """One line, to whoever started the run and into its history."""
        line = (
            f"isoflop: {text}; the stacks are in {self.folder / 'stacks'}. Go on with: "
            f"isoflop train --resume {self.folder}"
        )
        record = {"event": "hung", "time": time.time(), "step": self.step, "reason": text}
        with contextlib.suppress(OSError), (self.folder / "events.jsonl").open("ab") as file:
            file.write(json.dumps(record).encode() + b"\n")
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()
