"""TensorBoard, Weights & Biases and MLflow: each is a hook that logs the metrics of the run folder to the service.

Each is an extra (`pip install isoflop[tensorboard]`), imported only when it is used.

A resumed run continues the same run of the service. The repeated steps after the checkpoint have the same numbers as
before: they are not logged twice, and TensorBoard is told to purge them. An extended run returns to before its decay
and its further steps differ: W&B and MLflow get a new run for it, with the whole history, next to the old one.
"""

import importlib
import secrets
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from isoflop.config import load_json, nearest, to_dict
from isoflop.errors import UserError
from isoflop.files import write_json
from isoflop.records import EventLine, HeldOutLine, Record, RunFolder, TrainingLine, read_lines
from isoflop.trainer.hooks import Hook
from isoflop.trainer.state import RunState

Write = Callable[[dict[str, float], int], None]
Close = Callable[[], None]
Open = Callable[[RunState], tuple[Write, Close]]
IDS_FILE = "trackers.json"  # in a run folder: each service's id of the run
FLUSH_INTERVAL = 1.0  # seconds between flushes: TensorBoard loses at most these if the process is killed


class Tracker(Hook):
    """Logs metrics to one service. If it fails, the run continues without it, with a warning and a line in its history.

    Args:
        name: of the service.
        open_: given the run, returns a function that writes {name: value} at a step, and one that closes the service.
    """

    def __init__(self, name: str, open_: Open) -> None:
        self.name = name
        self._open = open_
        self._service: tuple[Write, Close] | None = None
        self._last = {"train": 0, "heldout": -1}  # the last step of each that was logged
        self._early: list[HeldOutLine] = []
        self._started = False

    def started(self, state: RunState) -> None:
        self._started = True
        logged = last_logged_step(state.folder, self.name)
        self._guarded(state, lambda: setattr(self, "_service", self._open(state)))
        if self.name == "tensorboard" and logged is not None:
            logged = min(logged, state.step)  # later steps are purged there
        if logged is not None:
            self._last = {"train": logged, "heldout": logged}

        # what the service missed, or the history of an extended run
        early_steps = {line.step for line in self._early}
        for line in read_lines(state.folder.log("metrics")):
            if "heldout_loss" in line and line["step"] not in early_steps:
                self.measured(state, HeldOutLine.read(line))
            elif "loss" in line and "heldout_loss" not in line:
                self._training(state, TrainingLine.read(line))
        for heldout in self._early:
            self._write(state, metrics_of(heldout, "heldout"), state.step)
            self._last["heldout"] = max(self._last["heldout"], state.step)

    def stepped(self, state: RunState) -> None:
        if state.line is not None and state.due(state.config.every.log):
            self._training(state, state.line)

    def measured(self, state: RunState, line: HeldOutLine) -> None:
        if not self._started:  # an evaluation that a signal cut short is repeated before this hook has started
            self._early.append(line)
        elif line.step is not None and line.step > self._last["heldout"]:
            self._last["heldout"] = line.step
            self._write(state, metrics_of(line, "heldout"), line.step)

    def ended(self, state: RunState) -> None:
        if self._service is not None:
            self._guarded(state, self._service[1])

    def _training(self, state: RunState, line: TrainingLine) -> None:
        if line.step is not None and line.step > self._last["train"]:
            self._last["train"] = line.step
            self._write(state, metrics_of(line, "train"), line.step)

    def _write(self, state: RunState, values: dict[str, float], step: int) -> None:
        if self._service is not None:
            write = self._service[0]
            self._guarded(state, lambda: write(values, step))

    def _guarded(self, state: RunState, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:  # no exception of a service may end a run
            self._service = None
            reason = f"{type(error).__name__}: {error}".partition("\n")[0][:200]
            warnings.warn(f"{self.name} failed, and nothing more is logged to it: {reason}", stacklevel=2)
            state.folder.event("tracker failed", step=state.step, tracker=self.name, reason=reason)


def last_logged_step(folder: RunFolder, name: str) -> int | None:
    """The last step of this run that was logged to a service; None if the service has no run for it since its last
    extension."""
    exists = (folder.path / "tensorboard").is_dir() if name == "tensorboard" else stored_id(folder, name) is not None
    if not exists:
        return None
    last_step = 0
    for event in folder.lines("events", EventLine):
        if event.event == "extended":
            last_step = 0
        elif event.event in ("resumed", "stopped", "trained"):
            last_step = max(last_step, (event.step or 0) + (event.taken_again or 0))
    return last_step


def stored_id(folder: RunFolder, name: str) -> str | None:
    """A service's id of the run since its last extension, or None."""
    entry = read_ids(folder).get(name)
    if not isinstance(entry, dict) or entry.get("extensions") != extensions(folder):
        return None
    identity = entry.get("id")
    return identity if isinstance(identity, str) else None


def store_id(folder: RunFolder, name: str, identity: str) -> None:
    """Store a service's id of the run, to continue it there on resume."""
    ids = read_ids(folder)
    write_json(folder.path / IDS_FILE, {**ids, name: {"id": identity, "extensions": extensions(folder)}})


def read_ids(folder: RunFolder) -> dict[str, Any]:
    """The services' ids of the run, by service, as stored in its folder."""
    path: Path = folder.path / IDS_FILE
    try:
        ids = load_json(path)
    except UserError:  # none yet, or damaged: then a new run begins there
        return {}
    return ids if isinstance(ids, dict) else {}


def extensions(folder: RunFolder) -> int:
    """How often the run was extended."""
    return sum(event.event == "extended" for event in folder.lines("events", EventLine))


def display_name(folder: RunFolder) -> str:
    """The name under which the services display the run."""
    number = extensions(folder)
    return folder.path.name + (f"-extended-{number}" if number else "")


def metrics_of(line: Record, prefix: str) -> dict[str, float]:
    """The numbers of a line except its step, by name with `prefix`."""
    values = line.to_dict().items()
    return {f"{prefix}/{name}": value for name, value in values if name != "step" and isinstance(value, (int, float))}


def open_tensorboard(state: RunState) -> tuple[Write, Close]:
    from torch.utils.tensorboard import SummaryWriter

    folder = state.folder.path / "tensorboard"
    # TensorBoard then ignores the steps from this one on in earlier files
    purge = state.step + 1 if folder.is_dir() else None
    writer = SummaryWriter(str(folder), purge_step=purge)
    last_flush = [time.monotonic()]

    def write(values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)
        if state.due(state.config.every.checkpoint) or time.monotonic() - last_flush[0] > FLUSH_INTERVAL:
            writer.flush()  # the steps before a checkpoint must be there if the run resumes from it
            last_flush[0] = time.monotonic()

    return write, writer.close


def open_wandb(state: RunState) -> tuple[Write, Close]:
    import wandb

    identity = stored_id(state.folder, "wandb") or secrets.token_hex(4)
    store_id(state.folder, "wandb", identity)
    run = wandb.init(
        project="isoflop",
        name=display_name(state.folder),
        dir=str(state.folder.path),
        config=to_dict(state.config),
        id=identity,
        resume="allow",
    )
    # W&B's own step must increase, but a held-out line precedes the training line of its step. Without explicit steps,
    # each part of a run that was resumed offline would start at 0 again.
    run.define_metric("*", step_metric="step")
    last_step = [-1]

    def write(values: dict[str, float], step: int) -> None:
        last_step[0] = max(last_step[0] + 1, 2 * step)
        run.log({"step": step, **values}, step=last_step[0])

    return write, run.finish


def open_mlflow(state: RunState) -> tuple[Write, Close]:
    import mlflow

    mlflow.set_experiment("isoflop")
    identity = stored_id(state.folder, "mlflow")
    run = mlflow.start_run(run_id=identity) if identity else mlflow.start_run(run_name=display_name(state.folder))
    store_id(state.folder, "mlflow", run.info.run_id)
    mlflow.log_dict(to_dict(state.config), "config.json")
    return (lambda values, step: mlflow.log_metrics(values, step=step)), mlflow.end_run


# name -> (the module that must be importable, the function that opens the service)
TRACKERS: dict[str, tuple[str, Open]] = {
    "tensorboard": ("torch.utils.tensorboard", open_tensorboard),
    "wandb": ("wandb", open_wandb),
    "mlflow": ("mlflow", open_mlflow),
}


def make_trackers(names: tuple[str, ...]) -> list[Hook]:
    """One hook for each name.

    Raises:
        UserError: for an unknown name, or an extra that cannot be imported.
    """
    hooks: list[Hook] = []
    for name in names:
        if name not in TRACKERS:
            raise UserError(f"trackers: {name!r} is not one of {', '.join(TRACKERS)}{nearest(name, TRACKERS)}")
        module, open_ = TRACKERS[name]
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise UserError(f"trackers: {name} cannot be imported ({error}); pip install 'isoflop[{name}]'") from None
        hooks.append(Tracker(name, open_))
    return hooks
