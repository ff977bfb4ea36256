"""A run as read back, and the runs below a folder."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from isoflop.errors import UserError
from isoflop.records.folder import LOGS, RunFolder
from isoflop.records.lines import read_lines, read_object


@dataclass(frozen=True)
class Run:
    """A run as read back. Missing files read as empty: a run that is still training has no result yet.

    Attributes:
        training: lines of metrics.jsonl with `step`, `loss` (what is trained on, nats per token), `lr`, `grad_norm`,
            `tokens` (so far), `seconds` (of training, time down left out), `tokens_per_second`, `flops` (6ND so far).
        heldout: lines with `step`, `tokens`, `seconds`, `heldout_loss` (plain cross-entropy, nats per
            token), `heldout_bits_per_byte`, and what the model's parts report, such as `load_entropy`.
        samples: lines with `step`, `prompt`, `text`.
        skips: lines with `step`, `kind` ("non-finite" or "spike"), `action` ("keep", "skip", "rollback", "stop"),
            `reason`, `loss` and `grad_norm` (null where not finite), `tokens` left out or passed over; with a rollback
            also the range of sequences passed over (data/gaps.py), `first` and `sequences`.
        profile: where the time of a few steps went (trainer/profile.py), if the run was watched.
        status: "running", "finished", "stopped", "imported" for weights that came from elsewhere, or "damaged".
    """

    folder: RunFolder
    config: dict[str, Any]
    environment: dict[str, Any]
    plan: dict[str, Any]
    data: dict[str, Any]
    result: dict[str, Any]
    training: list[dict[str, Any]] = field(repr=False)
    heldout: list[dict[str, Any]] = field(repr=False)
    samples: list[dict[str, Any]] = field(repr=False)
    decisions: list[dict[str, Any]] = field(repr=False)
    skips: list[dict[str, Any]] = field(repr=False)
    events: list[dict[str, Any]] = field(repr=False)
    status: str = "stopped"
    profile: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def name(self) -> str:
        return self.folder.path.resolve().name


def read_run(path: Path | str) -> Run:
    """Read a run folder, finished or running.

    Raises:
        UserError: if there is no run in `path`.
    """
    folder = RunFolder(Path(path))
    if not folder.config.is_file():
        raise UserError(
            f"{path} holds no run: there is no config.json in it; `isoflop runs` lists the runs of a folder"
        )
    logs = {name: read_lines(folder.log(name)) for name in LOGS}
    result, plan = read_object(folder.result), read_object(folder.plan)
    imported = plan.get("kind") == "imported"
    status = "running" if folder.is_locked() else "finished" if result else "imported" if imported else "stopped"
    return Run(
        folder=folder,
        config=read_object(folder.config),
        environment=read_object(folder.environment),
        plan=plan,
        data=read_object(folder.data),
        result=result,
        training=[line for line in logs["metrics"] if "loss" in line],
        heldout=[line for line in logs["metrics"] if "heldout_loss" in line],
        samples=logs["samples"],
        decisions=logs["decisions"],
        skips=logs["skips"],
        events=logs["events"],
        status=status,
        profile=read_object(folder.profile / "profile.json"),
    )


def find_runs(path: Path | str) -> list[Run]:
    """Every run at or below `path`, up to two folders deep, in order of name."""
    top = Path(path)
    if not top.is_dir():
        raise UserError(f"{path} is not a folder; name the folder that holds your runs, as in `isoflop runs runs`")
    found = sorted({p.parent for depth in ("", "*/", "*/*/") for p in top.glob(f"{depth}config.json")})
    return [read_or_say(folder) for folder in found if (folder / "environment.json").is_file()]


def read_or_say(path: Path) -> Run:
    """A run, or one of the status "damaged" where its files cannot be read: one of many must not hide the others."""
    try:
        return read_run(path)
    except UserError:
        return Run(RunFolder(path), {}, {}, {}, {}, {}, [], [], [], [], [], [], status="damaged")
