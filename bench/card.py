"""Measure one GPU in nine minutes: stages in order of value, each in its own process with its own time limit.

    python bench/card.py --pack .card --out DIR [--minutes 9] [--stages about checks ...] [--device cuda]

A GPU may be available for minutes only, on a bare machine without a network. The wheels of a pack (bench/card_pack.py)
are installed into a scratch folder, and each stage (bench/card_stages.py) writes its rows as it measures them. A stage
that crashes, hangs or exceeds its time limit is recorded with its rows so far and its last lines, and the next stage
runs. Files in DIR:

    card.json   rows of every stage, machine and versions; rewritten whenever a row arrives
    card.txt    the table that is printed last
    logs.txt    the last lines of every stage

The table in docs/on-a-gpu.md comes from bench/results/card.json. `--record DIR [DIR ...]` merges the card.json of
one or several calls into it, without a GPU: the newest finished result of each stage, with its commit. `--device cpu`
runs everything at tiny sizes on a computer without a GPU, as a rehearsal; its numbers mean nothing.
"""

import argparse
import contextlib
import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# isoflop is imported only when the wheels that it needs are there
ROOT = Path(__file__).parents[1]
STAGES_FILE = Path(__file__).with_name("card_stages.py")
LAST_LINES = 15  # of a failed stage that are kept in card.json
LOG_BYTES = 20_000  # of each stage that are kept in logs.txt
POLL = 0.3  # seconds between two looks at a stage
GRACE = 5.0  # seconds from SIGTERM to SIGKILL
PIP = ("--quiet", "--no-index", "--no-deps", "--no-compile", "--disable-pip-version-check")
MARGIN = 5.0  # seconds at the end of all that are left for writing


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        limit: seconds after which it is stopped.
        least: it is not started with fewer seconds left.
        about: what it measures, in a few words.
    """

    limit: float
    least: float
    about: str


# In order of value: the first ones are done when there is little time.
STAGES = {
    "about": Stage(60, 10, "versions, and the card's two ceilings"),
    "checks": Stage(140, 30, "tests: a step on the card equals the CPU's"),
    "main": Stage(120, 70, "the main job: 60 s, from text to report"),
    "124M": Stage(125, 60, "GPT-2 124M next to nanoGPT's train.py"),
    "loop": Stage(75, 25, "what calibration times against what the loop then does"),
    "fits": Stage(60, 20, "passes that the planner finds to fit"),
    "residual": Stage(80, 25, "the residual stream in bfloat16"),
    "fsdp": Stage(50, 20, "FSDP with one process over NCCL"),
    "decode": Stage(70, 25, "decoding at batch 1 and 64"),
    "1.5B": Stage(75, 45, "GPT-2 1.5B, a few steps"),
    "race": Stage(600, 150, "seconds to nanoGPT's held-out loss"),
}


class Report:
    """card.json, rewritten whole whenever something is added."""

    def __init__(self, out: Path, about: dict[str, Any]) -> None:
        self.out, self.content = out, {**about, "stages": {}}

    def begin(self, name: str) -> dict[str, Any]:
        stage: dict[str, Any] = {"about": STAGES[name].about, "status": "running", "seconds": 0.0, "rows": []}
        stage |= {key: self.content[key] for key in ("commit", "date")}
        self.content["stages"][name] = stage
        self.write()
        return stage

    def write(self) -> None:
        write_whole(self.out / "card.json", json.dumps(self.content, indent=1, ensure_ascii=False) + "\n")


def write_whole(path: Path, text: str) -> None:
    """Write a file whole or not at all. (isoflop.files does the same, but its dependencies may be missing here.)"""
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def install(pack: Path | None, site: Path) -> list[str]:
    """Install into `site` the wheels of the pack whose distribution is missing here.

    Returns:
        What was installed, and pip's reason for each wheel that it refused.
    """
    said = []
    for wheel in sorted((pack / "wheels").glob("*.whl")) if pack else []:
        name, release = wheel.name.split("-")[:2]
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            importlib.metadata.version(name)
            continue
        done = subprocess.run(
            [sys.executable, "-m", "pip", "install", *PIP, "--target", str(site), str(wheel)],
            capture_output=True,
            text=True,
        )
        said.append(f"{name} {release}" + (f": {done.stderr.strip()[-200:]}" if done.returncode else ""))
    return said


def run_stage(name: str, spec: dict[str, Any], limit: float, report: Report, scratch: Path, site: Path) -> None:
    """Run one stage until it ends or reaches its limit, storing its rows as they arrive."""
    stage = report.begin(name)
    rows, log = scratch / f"{name}.jsonl", scratch / f"{name}.log"
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "bench"), str(site)]),
        "PYTHONUNBUFFERED": "1",
        "ISOFLOP_HOME": str(scratch / "home"),
    }
    started = time.monotonic()
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, str(STAGES_FILE), name, json.dumps({**spec, "rows": str(rows), "limit": limit})],
            stdout=file,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
            cwd=ROOT,
        )
        try:
            while process.poll() is None and time.monotonic() - started < limit:
                time.sleep(POLL)
                found = read_rows(rows)
                if len(found) != len(stage["rows"]):
                    stage["rows"] = found
                    report.write()
        finally:  # also where this process itself is interrupted
            late = process.poll() is None
            end(process)

    stage["seconds"] = round(time.monotonic() - started, 1)
    stage["rows"] = read_rows(rows)
    stage["status"] = "done" if process.returncode == 0 else "failed"
    if late:
        stage["status"] = f"stopped after {limit:.0f} s"
    if process.returncode != 0:
        stage["last_lines"] = last_lines(log)
    report.write()
    show(name, stage)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The complete lines that a stage has written so far."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
    return [json.loads(line) for line in lines if line.strip()]


def last_lines(log: Path) -> list[str]:
    lines = [line.rstrip()[:300] for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    return [line for line in lines if line.strip()][-LAST_LINES:]


def end(process: "subprocess.Popen[bytes]") -> None:
    """Stop a process and all its descendants, including those in other sessions (as torchrun's workers are)."""
    everyone = [process.pid, *descendants(process.pid)]
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in everyone:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=GRACE if number == signal.SIGTERM else None)
    everyone = [pid for pid in everyone if pid != process.pid]
    deadline = time.monotonic() + GRACE
    while any(alive(pid) for pid in everyone) and time.monotonic() < deadline:
        time.sleep(0.05)


def descendants(pid: int) -> list[int]:
    """The descendants of a process, from /proc; empty on systems without it."""
    parents: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            after_name = path.read_text(errors="replace").rpartition(")")[2].split()
            parents.setdefault(int(after_name[1]), []).append(int(path.parent.name))
    found, left = [], [pid]
    while left:
        children = parents.get(left.pop(), [])
        found += children
        left += children
    return found


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def show(name: str, stage: dict[str, Any]) -> None:
    print(f"\n{name}: {stage['status']}, {stage['seconds']:.0f} s ({stage['about']})")
    for line in lines_of(stage):
        print(f"  {line}", flush=True)


def lines_of(stage: dict[str, Any]) -> Iterator[str]:
    """A stage's rows as text, and its last line if it failed."""
    for row in stage["rows"]:
        yield f"{row['what']:<44} {shown(row)}"
    for line in stage.get("last_lines", []):
        yield f"| {line}"


def shown(row: dict[str, Any]) -> str:
    """A row's value with unit, target and note."""
    value = row["value"]
    text = (
        f"{value:,.4g}"
        if isinstance(value, float) and abs(value) < 1e4
        else f"{value:,}"
        if is_number(value)
        else value
    )
    words = [str(text), row.get("unit", "")]
    if row.get("target"):
        words.append(f"(target {row['target']})")
    if row.get("note"):
        words.append(f"[{row['note']}]")
    return " ".join(word for word in words if word)


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def run(given: argparse.Namespace) -> dict[str, Any]:
    """Run the requested stages, as far as the time suffices.

    Returns:
        The content of card.json.
    """
    deadline = time.monotonic() + 60 * given.minutes - MARGIN
    given.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        site = scratch / "site"
        installed = install(given.pack, site)
        sys.path += [str(ROOT), str(site)]  # isoflop need not be installed
        from isoflop.runtime import describe_machine
        from record import command, commit

        about = {
            "table": "card",
            "command": command(),
            "date": time.strftime("%Y-%m-%d"),
            "commit": given.commit or commit(ROOT),
            "machine": describe_machine("cpu"),  # the card's name is a row of the stage "about"
        }
        report = Report(given.out, {**about, "device": given.device, "minutes": given.minutes, "installed": installed})
        pack = given.pack.resolve() if given.pack else None
        spec = {"device": given.device, "pack": str(pack) if pack else "", "scratch": str(scratch)}
        for stage in given.stages:
            left = deadline - time.monotonic()
            wanted = STAGES[stage]
            if left < wanted.least:
                entry = report.begin(stage)
                entry["status"] = f"left out: {max(0, left):.0f} s were left and it needs {wanted.least:.0f}"
                report.write()
                show(stage, entry)
                continue
            run_stage(stage, spec, min(wanted.limit, left), report, scratch, site)

        logs = [
            f"==== {path.stem}\n{path.read_bytes()[-LOG_BYTES:].decode(errors='replace')}"
            for path in scratch.glob("*.log")
        ]
        write_whole(given.out / "logs.txt", "\n".join(logs))
    table = "\n".join(
        f"{stage}: {entry['status']}, {entry['seconds']:.0f} s\n" + "".join(f"  {line}\n" for line in lines_of(entry))
        for stage, entry in report.content["stages"].items()
    )
    write_whole(given.out / "card.txt", table)
    print(f"\n{'=' * 20} {given.device}, commit {report.content['commit']}\n{table}")
    return report.content


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pack", type=Path, metavar="FOLDER", help="the folder made by bench/card_pack.py")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for the results")
    parser.add_argument("--minutes", type=float, default=9.0, help="for all stages together")
    parser.add_argument("--stages", nargs="+", choices=list(STAGES), default=list(STAGES))
    parser.add_argument("--commit", default="", help="the commit of this copy, if git does not know it")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: a rehearsal at tiny sizes")
    parser.add_argument("--record", nargs="+", type=Path, metavar="DIR", help="run nothing: merge results for the docs")
    return parser.parse_args(words)


def wrong(given: argparse.Namespace) -> str:
    """Why the arguments are not valid; "" if they are."""
    if given.record:
        missing = [str(folder) for folder in given.record if not (folder / "card.json").is_file()]
        return f"--record {missing[0]} has no card.json" if missing else ""
    if not given.out:
        return "name the folder for the results by --out DIR"
    if given.pack and not (given.pack / "wheels").is_dir():
        return f"--pack {given.pack} has no folder wheels; make it by bench/card_pack.py"
    return ""


def put_together(folders: Sequence[Path]) -> dict[str, Any]:
    """The merged results of several calls: for each stage the last finished result, else the last one."""
    content: dict[str, Any] = {}
    stages: dict[str, Any] = {}
    for folder in folders:
        content = json.loads((folder / "card.json").read_text(encoding="utf-8"))
        for name, stage in content["stages"].items():
            if name not in stages or stage["status"] == "done" or stages[name]["status"] != "done":
                stages[name] = stage
    return {**content, "stages": {name: stages[name] for name in STAGES if name in stages}}


def main() -> None:
    given = arguments()
    if why := wrong(given):
        print(f"bench/card.py: {why}", file=sys.stderr)
        sys.exit(2)
    if given.record:
        content = put_together(given.record)
        write_whole(ROOT / "bench" / "results" / "card.json", json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    else:
        run(given)


if __name__ == "__main__":
    main()
