"""What the lab stores in its folder: every run once, by what decides it, and each claim as it was when it was fixed.

lab/runs.jsonl            one line per run, whichever claim it was for; found again by its key
lab/speeds.jsonl          how fast arms train next to one another, where seconds are held equal
lab/NAME/fixed.jsonl      the claim with its hash and time, before its first run; a line more if it was changed
lab/NAME/looks.jsonl      the data's fingerprints, the plan made from the noise, and every verdict with its pairs
lab/NAME/report.html      the page (page.py)
lab/index.html            all of them (front.py)
"""

import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from isoflop.config import from_dict, to_dict
from isoflop.files import disk_errors
from isoflop.job.ledger import installed_version, source_sha256
from isoflop.lab.claim import Claim
from isoflop.lab.procedures.job import Job
from isoflop.lab.verdict import Decision, number
from isoflop.lab.workers import Performed
from isoflop.records.lines import append_line, ends_with_newline, read_lines
from isoflop.runtime import describe_machine

FOLDER = Path("lab")
UNKNOWN = "not recorded"
DIGITS = 12  # of the digest of isoflop's source


@dataclass(frozen=True)
class Row:
    """A line of runs.jsonl.

    Attributes:
        seconds: of the whole job, on the clock of the wall.
        time: when it ended, in Unix seconds.
        machine: where it ran, see Store.machine.
        code: the isoflop that made it, see Store.code; empty in rows of before it was recorded.
    """

    key: str
    measures: dict[str, float]
    lists: dict[str, list[float]] = field(default_factory=dict)
    diverged: bool = False
    seconds: float = 0.0
    time: float = 0.0
    machine: Mapping[str, Any] = field(default_factory=dict)
    code: Mapping[str, Any] = field(default_factory=dict)

    @property
    def made_by(self) -> dict[str, str]:
        """The versions of isoflop, of its source and of torch, that the run was made with."""
        found = {**self.code, "torch": self.machine.get("torch")}
        return {name: str(found.get(name) or UNKNOWN) for name in ("isoflop", "source", "torch")}

    @classmethod
    def read(cls, line: Mapping[str, Any]) -> "Row":
        measures = line.get("measures") if isinstance(line.get("measures"), dict) else {}
        lists = line.get("lists") if isinstance(line.get("lists"), dict) else {}
        machine, code = line.get("machine"), line.get("code")
        return cls(
            key=str(line.get("key", "")),
            measures={str(name): back(value) for name, value in (measures or {}).items()},
            lists={
                str(n): [back(v) for v in values] for n, values in (lists or {}).items() if isinstance(values, list)
            },
            diverged=line.get("diverged") is True,
            seconds=back(line.get("seconds", 0.0)),
            time=back(line.get("time", 0.0)),
            machine=machine if isinstance(machine, dict) else {},
            code=code if isinstance(code, dict) else {},
        )


def told(machine: Mapping[str, Any]) -> dict[str, Any]:
    """What a line says of a machine."""
    return {name: machine.get(name) for name in ("processor", "torch")}


def back(value: Any) -> float:
    """A number of a line; null, which JSON has in place of infinity, is infinity."""
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.inf


class Store:
    """The lab's folder. Lines are only ever added.

    Raises:
        UserError: if it cannot be written, or a line of it is damaged.
    """

    def __init__(self, folder: Path = FOLDER) -> None:
        self.folder = folder
        self.rows = {row.key: row for row in map(Row.read, read_lines(folder / "runs.jsonl"))}

    @cached_property
    def machine(self) -> dict[str, Any]:
        """This machine, as far as results depend on it."""
        return told(describe_machine("cpu"))

    @cached_property
    def code(self) -> dict[str, Any]:
        """This isoflop: its version, and a digest of its source, which may have been edited. A cluster's machines have
        the same (remote.py). It is not in a job's key, since most edits change no result: pages name it instead."""
        return {"isoflop": installed_version(), "source": source_sha256()[:DIGITS]}

    def find(self, job: Job) -> Row | None:
        return self.rows.get(job.key)

    def add(self, job: Job, performed: Performed, claim: str) -> Row:
        """Put a run on record."""
        measured, machine = performed.measured, performed.machine or self.machine
        row = Row(
            key=job.key,
            measures=measured.measures,
            lists=measured.lists,
            diverged=measured.diverged,
            seconds=performed.seconds,
            time=time.time(),
            machine=machine,
            code=self.code,
        )
        line = {
            "key": row.key,
            "claim": claim,
            "role": job.role,
            "arm": job.arm,
            "procedure": job.procedure,
            "seed": job.config.seed,
            "order": job.order,
            "factor": job.factor,
            "measures": {name: number(value) for name, value in measured.measures.items()},
            "lists": {name: [number(value) for value in values] for name, values in measured.lists.items()},
            "diverged": measured.diverged,
            "seconds": round(performed.seconds, 3),
            "time": row.time,
            "machine": machine,
            "code": dict(row.code),
            "options": dict(job.options),
            "data": job.data,
            "config": to_dict(job.config),
        }
        self.append(self.folder / "runs.jsonl", line)
        self.rows[row.key] = row
        return row

    def fix(self, claim: Claim, command: str = "") -> float:
        """Write down a claim before its first run, with its hash and the command that runs it; what is there already
        stays. Returns when it was fixed."""
        path = self.folder / claim.name / "fixed.jsonl"
        for line in read_lines(path):
            if line.get("hash") == claim.hash:
                return back(line.get("time"))
        now = time.time()
        self.append(path, {"hash": claim.hash, "time": now, "command": command, "claim": to_dict(claim)})
        return now

    def fixings(self, claim: Claim) -> list[dict[str, Any]]:
        """The lines about a claim as it is now."""
        return [line for line in read_lines(self.folder / claim.name / "fixed.jsonl") if line.get("hash") == claim.hash]

    def versions(self, name: str) -> list[Claim]:
        """The versions of a claim that were fixed here, in order."""
        lines = read_lines(self.folder / name / "fixed.jsonl")
        return [from_dict(Claim, line.get("claim"), f"{name}: the claim on record") for line in lines]

    def names(self) -> list[str]:
        """The claims that were fixed here."""
        return sorted(path.parent.name for path in self.folder.glob("*/fixed.jsonl"))

    def note(self, claim: Claim, what: str, **said: Any) -> None:
        """A line of a claim's looks: its "plan", or a "verdict"."""
        line = {"what": what, "hash": claim.hash, "time": time.time(), **said}
        self.append(self.folder / claim.name / "looks.jsonl", line)

    def notes(self, claim: Claim, what: str) -> list[dict[str, Any]]:
        lines = read_lines(self.folder / claim.name / "looks.jsonl")
        return [line for line in lines if line.get("what") == what and line.get("hash") == claim.hash]

    def note_data(self, claim: Claim, fingerprints: Mapping[str, str]) -> None:
        """Note the fingerprints of what the arms read, unless they are the ones noted last: a report finds the runs by
        them, without the text."""
        if self.data_of(claim) != fingerprints:
            self.note(claim, "data", fingerprints=dict(fingerprints))

    def data_of(self, claim: Claim) -> dict[str, str]:
        """By arm; empty if nothing was noted."""
        noted = self.notes(claim, "data")
        found = noted[-1].get("fingerprints") if noted else None
        return {str(arm): str(value) for arm, value in found.items()} if isinstance(found, dict) else {}

    def looked(self, claim: Claim, decision: Decision, pairs: int, **said: Any) -> None:
        findings = [finding.to_dict() for finding in decision.findings]
        about = {"verdict": decision.verdict, "error_spent": decision.error_spent, "pairs": pairs}
        self.note(claim, "verdict", **about, pairs_to_settle=decision.needs, findings=findings, **said)

    def speeds(self, key: str) -> dict[str, float] | None:
        """The relative speeds of arms that were timed before, by a key of their configurations."""
        found = [line for line in read_lines(self.folder / "speeds.jsonl") if line.get("key") == key]
        if not found or not isinstance(found[-1].get("speeds"), dict):
            return None
        return {str(arm): back(value) for arm, value in found[-1]["speeds"].items()}

    def add_speeds(self, key: str, speeds: Mapping[str, float]) -> None:
        self.append(self.folder / "speeds.jsonl", {"key": key, "time": time.time(), "speeds": dict(speeds)})

    def append(self, path: Path, line: Mapping[str, Any]) -> None:
        """Add a line. An incomplete line that a kill left is removed first: it was never read."""
        with disk_errors(f"the lab's folder {self.folder}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists() and not ends_with_newline(path):
                whole = path.read_bytes().rfind(b"\n") + 1
                os.truncate(path, whole)
            append_line(path, line, lambda name, flags: os.open(name, flags, 0o666), durable=True)
