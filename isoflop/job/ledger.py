"""What a planned run is expected to reach goes on record before its first step, and what it reached after its last one:
two lines of $ISOFLOP_HOME/ledger.jsonl (records/ledger.py), which `isoflop plan score` compares."""

import hashlib
import json
import secrets
import time
from collections.abc import Callable
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from isoflop.errors import UserError
from isoflop.files import NAME_HOME, disk_errors, home
from isoflop.plan.prior import table
from isoflop.records import DataAccount, LedgerForecast, LedgerLine, Plan, Run, RunFolder
from isoflop.records.ledger import DIVERGED, FINISHED, OUTCOME, append
from isoflop.records.record import Record

LEDGER = "ledger.jsonl"
TOP = Path(__file__).resolve().parents[1]  # the package


def put_on_record(
    folder: RunFolder,
    plan: Plan,
    data: DataAccount,
    seed: int | None,
    say: Callable[[str], None],
    replaces: str | None = None,
) -> Plan:
    """Add the forecast of a run that is about to begin, or to begin anew, to the ledger.

    Args:
        data: the account of the prepared data.
        say: is told where the ledger cannot be written; the run goes on all the same.
        replaces: the name of the forecast that this one takes the place of.

    Returns:
        The plan with the forecast's name; as it is where nothing is expected.
    """
    if plan.expected is None:
        return plan
    name = secrets.token_hex(8)
    line = LedgerForecast(
        id=name,
        replaces=replaces,
        time=time.time(),
        run=str(folder.path.resolve()),
        corpus="+".join(data.sources) or None,
        fingerprint=data.fingerprint,
        predictability=plan.predictability,
        budget=plan.budget,
        parameters=plan.parameters,
        tokens=plan.tokens,
        flops=plan.flops,
        unique_tokens=plan.unique_tokens,
        seed=seed,
        expected=plan.expected,
        pilots=len(plan.pilots or ()),
        recipe=plan.recipe or None,
        plan=digest(plan.to_dict()),
        law=digest({name: table().get(name) for name in ("population", "calibration", "recipe")}),
        version=version(),
        commit=commit() or None,
        code=code(),
    )
    return plan.updated(forecast=name) if add(line, say) else plan


def add_outcome(run: Run, say: Callable[[str], None]) -> None:
    """Add what a planned run reached to the ledger."""
    if run.plan.expected is None:
        return
    add(
        outcome_of(run).updated(
            reached_bits_per_byte=run.result.heldout.bits_per_byte,
            verdict=run.result.verdict,
            tokens=run.result.tokens,
            flops=run.result.flops,
            status=FINISHED,
        ),
        say,
    )


def add_divergence(run: Run, say: Callable[[str], None]) -> None:
    """Add to the ledger that a planned run diverged: that is an outcome too."""
    if run.plan.expected is None:
        return
    last = run.training[-1] if run.training else None
    read = (last.tokens, last.flops) if last else (0, 0.0)
    add(outcome_of(run).updated(tokens=read[0], flops=read[1], status=DIVERGED), say)


def outcome_of(run: Run) -> LedgerLine:
    return LedgerLine(
        run=str(run.folder.path.resolve()),
        time=time.time(),
        fingerprint=run.data.fingerprint,
        predictability=run.plan.predictability,
        unique_tokens=run.plan.unique_tokens,
        parameters=run.plan.parameters,
        seed=run.settings.seed,
        expected=run.plan.expected,
        kind=OUTCOME,
        forecast=run.plan.forecast,
    )


def add(line: Record, say: Callable[[str], None]) -> bool:
    """Whether the line is on the disk; where it is not, the user is told why."""
    try:
        with disk_errors(f"the ledger {home() / LEDGER}", instead=NAME_HOME):
            append(home() / LEDGER, line)
    except UserError as error:
        say(f"note: {error}")
        return False
    return True


def digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


@cache
def code() -> str:
    """The SHA-256 of isoflop's source: what a version or a commit leaves open is whether files were changed."""
    found = hashlib.sha256()
    for path in sorted(TOP.rglob("*.py")):
        found.update(f"{path.relative_to(TOP)}\0".encode() + path.read_bytes() + b"\0")
    return found.hexdigest()


def version() -> str | None:
    """Of the isoflop that is installed; None where it runs from a folder that was not."""
    try:
        return metadata.version("isoflop")
    except metadata.PackageNotFoundError:
        return None


def commit() -> str:
    """The commit that a clone is at, where isoflop runs from one; empty otherwise. Read from the files of git, which
    need not be installed."""
    top = TOP.parent
    try:
        git = top / ".git"
        if git.is_file():  # a worktree: "gitdir: PATH"
            git = (top / git.read_text(encoding="utf-8").removeprefix("gitdir:").strip()).resolve()
        head = (git / "HEAD").read_text(encoding="utf-8").strip()
        if not head.startswith("ref:"):
            return head
        name = head.removeprefix("ref:").strip()
        common = git / "commondir"
        shared = (git / common.read_text(encoding="utf-8").strip()).resolve() if common.is_file() else git
        if (shared / name).is_file():
            return (shared / name).read_text(encoding="utf-8").strip()
        packed = (shared / "packed-refs").read_text(encoding="utf-8").splitlines()
        return next((line.split()[0] for line in packed if line.endswith(f" {name}")), "")
    except (OSError, ValueError):
        return ""
