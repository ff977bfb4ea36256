"""What a measurement says of itself beside its rows: machine, versions, commit, date."""

import subprocess
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from isoflop.runtime import describe_machine


def stamped(rows: list[dict[str, Any]], *packages: str) -> dict[str, Any]:
    """{machine, versions, commit, date, rows}; `packages` are those that were measured beside us."""
    return {
        "machine": describe_machine("cpu"),
        "versions": {package: version(package) for package in ("torch", *packages)},
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
        "rows": rows,
    }


def commit() -> str:
    """The commit that is measured, with "+" where files differ from it; "unknown" without git."""
    try:
        git = ["git", "-C", str(Path(__file__).parent)]
        head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], check=True, capture_output=True, text=True)
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")
