"""Records of measurements: one JSON file per table in bench/results/, from which bench/tables.py writes the tables."""

import hashlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from isoflop.files import write_json
from isoflop.runtime import describe_machine

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"


def record(table: str, result: dict[str, Any], peers: dict[str, str] | None = None, device: str = "cpu") -> Path:
    """Write `result` with machine, versions, commit, date and command.

    Args:
        table: the name of the file, without its suffix.
        peers: versions of the other programs measured, by name.
        device: the device measured on.
    """
    path = RESULTS / f"{table}.json"
    write_json(path, {"table": table, **about(peers, device), **result})
    print(f"recorded: {path.relative_to(ROOT)}")
    return path


def about(peers: dict[str, str] | None = None, device: str = "cpu") -> dict[str, Any]:
    """Where a figure comes from, see `record`."""
    return {
        "command": command(),
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit(ROOT),
        "machine": describe_machine(device),
        "peers": peers or {},
    }


def keep_row(table: str, row: dict[str, Any], keys: Sequence[str], peers: dict[str, str] | None = None) -> Path:
    """Add a row to the `rows` of a record, in place of the one that has the same values of `keys`. Each row says
    itself where it comes from: other calls made the others."""
    rows = [one for one in read(table).get("rows", []) if any(one[key] != row[key] for key in keys)]
    rows.append({**row, **about(peers)})
    return record(table, {"rows": sorted(rows, key=lambda one: [one[key] for key in keys])}, peers)


def command() -> str:
    """The command line of this process, with only the file names of paths."""
    words = [re.sub(r"(^|=)/.*", lambda path: path[1] + Path(path[0]).name, word) for word in sys.argv[1:]]
    return " ".join(["python", f"bench/{Path(sys.argv[0]).name}", *words])


def commit(folder: Path) -> str:
    """The commit of a folder, with "+" if files differ from it; "unknown" without git."""

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(folder), *words], check=True, capture_output=True, text=True).stdout

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!bench/results", ":!docs")
        return git("rev-parse", "--short=12", "HEAD").strip() + ("+" if changed.strip() else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def version(folder: Path) -> str:
    """The commit of another program's clone; without .git, the first digits of the SHA-256 of its Python files."""
    if (folder / ".git").exists():
        return commit(folder)
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.py")) or sorted(folder.rglob("*.py")):
        digest.update(path.read_bytes())
    return f"sha256 {digest.hexdigest()[:12]}"


def read(table: str) -> dict[str, Any]:
    """A recorded result; empty if there is none."""
    path = RESULTS / f"{table}.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
