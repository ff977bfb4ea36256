"""Records the forecast of each planned run before its first step, and its outcome after the last: two lines of
$ISOFLOP_HOME/ledger.jsonl (records/ledger.py), which `isoflop plan score` compares."""

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
from isoflop.plan.fitted import of_key
from isoflop.plan.prior import table
from isoflop.records import DataAccount, LedgerForecast, LedgerLine, Plan, Run, RunFolder
from isoflop.records.ledger import DIVERGED, FINISHED, OUTCOME, append
from isoflop.records.record import Record

LEDGER = "ledger.jsonl"
PACKAGE = Path(__file__).resolve().parents[1]  # the package


def record_forecast(
    folder: RunFolder,
    plan: Plan,
    data: DataAccount,
    seed: int | None,
    say: Callable[[str], None],
    replaces: str | None = None,
) -> Plan:
    """Add the forecast of a run to the ledger, before its first step or before it starts again.

    Args:
        data: the account of the prepared data.
        say: called with a note if the ledger cannot be written; the run continues all the same.
        replaces: the id of the forecast that this one replaces.

    Returns:
        The plan with the forecast's id; unchanged if no loss is expected or the ledger cannot be written.
    """
    if plan.expected is None:
        return plan

    forecast_id = secrets.token_hex(8)
    line = LedgerForecast(
        id=forecast_id,
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
        plan=sha256_of(plan.to_dict()),
        law=law_sha256(plan),
        version=installed_version(),
        commit=git_commit() or None,
        code=source_sha256(),
    )

    return plan.updated(forecast=forecast_id) if append_or_say(line, say) else plan


def record_outcome(run: Run, say: Callable[[str], None]) -> None:
    """Add the outcome of a planned run to the ledger."""
    if run.plan.expected is None:
        return
    append_or_say(
        outcome_of(run).updated(
            reached_bits_per_byte=run.result.heldout.bits_per_byte,
            verdict=run.result.verdict,
            tokens=run.result.tokens,
            flops=run.result.flops,
            status=FINISHED,
        ),
        say,
    )


def record_divergence(run: Run, say: Callable[[str], None]) -> None:
    """Add to the ledger that a planned run diverged, which is an outcome too."""
    if run.plan.expected is None:
        return
    last = run.training[-1] if run.training else None
    reached = (last.tokens, last.flops) if last else (0, 0.0)
    append_or_say(outcome_of(run).updated(tokens=reached[0], flops=reached[1], status=DIVERGED), say)


def outcome_of(run: Run) -> LedgerLine:
    """The part of an outcome that does not depend on how the run ended."""
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


def append_or_say(line: Record, say: Callable[[str], None]) -> bool:
    """Append a line to the ledger. Returns whether it is on disk; if not, the user is told why."""
    try:
        with disk_errors(f"the ledger {home() / LEDGER}", instead=NAME_HOME):
            append(home() / LEDGER, line)
    except UserError as error:
        say(f"note: {error}")
        return False
    return True


def law_sha256(plan: Plan) -> str:
    """The SHA-256 of what a forecast was estimated from: the file of a ladder's law, or the prior."""
    law = of_key(plan.ladder.key) if plan.ladder else None
    prior = {name: table().get(name) for name in ("population", "calibration", "recipe")}
    return law.digest if law else sha256_of(prior)


def sha256_of(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


@cache
def source_sha256() -> str:
    """The SHA-256 of isoflop's source, since a version or a commit does not show whether files were edited."""
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        digest.update(f"{path.relative_to(PACKAGE)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


def installed_version() -> str | None:
    """The version of the installed package; None if isoflop runs from a folder that is not installed."""
    try:
        return metadata.version("isoflop")
    except metadata.PackageNotFoundError:
        return None


def git_commit() -> str:
    """The checked-out commit, if isoflop runs from a git clone; otherwise empty. Read from git's files, since git may
    not be installed."""
    root = PACKAGE.parent
    try:
        git = root / ".git"
        if git.is_file():  # a worktree: "gitdir: PATH"
            git = (root / git.read_text(encoding="utf-8").removeprefix("gitdir:").strip()).resolve()
        head = (git / "HEAD").read_text(encoding="utf-8").strip()
        if not head.startswith("ref:"):
            return head
        name = head.removeprefix("ref:").strip()
        common_file = git / "commondir"
        common = (git / common_file.read_text(encoding="utf-8").strip()).resolve() if common_file.is_file() else git
        if (common / name).is_file():
            return (common / name).read_text(encoding="utf-8").strip()
        packed = (common / "packed-refs").read_text(encoding="utf-8").splitlines()
        return next((line.split()[0] for line in packed if line.endswith(f" {name}")), "")
    except (OSError, ValueError):
        return ""
