"""TensorBoard, Weights & Biases and MLflow: each a hook that passes on what the run folder gets anyway.

Each is an extra (`pip install isoflop[tensorboard]`), imported only when asked for.
"""

import importlib
import warnings
from collections.abc import Callable

from isoflop.config import nearest, to_dict
from isoflop.errors import UserError
from isoflop.records import HeldOutLine, Record
from isoflop.trainer.hooks import Hook
from isoflop.trainer.state import RunState

Write = Callable[[dict[str, float], int], None]
Close = Callable[[], None]
Open = Callable[[RunState], tuple[Write, Close]]


class Tracker(Hook):
    """Passes numbers on to one service. A service that fails is told nothing more: the run goes on without it, with a
    warning and a line in the run's history.

    Args:
        name: of the service.
        open_: given the run, returns a function that writes {name: value} at a step, and one that closes.
    """

    def __init__(self, name: str, open_: Open) -> None:
        self.name = name
        self._open = open_
        self._service: tuple[Write, Close] | None = None
        self._last = 0

    def started(self, state: RunState) -> None:
        self._guarded(state, lambda: setattr(self, "_service", self._open(state)))

    def stepped(self, state: RunState) -> None:
        line = state.line
        if line is not None and line.step is not None and line.step > self._last:
            self._last = line.step
            self._write(state, numbers(line, "train"), line.step)

    def measured(self, state: RunState, line: HeldOutLine) -> None:
        self._write(state, numbers(line, "heldout"), state.step)

    def ended(self, state: RunState) -> None:
        if self._service is not None:
            self._guarded(state, self._service[1])

    def _write(self, state: RunState, values: dict[str, float], step: int) -> None:
        if self._service is not None:
            write = self._service[0]
            self._guarded(state, lambda: write(values, step))

    def _guarded(self, state: RunState, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:  # whatever a service raises, hours of training are worth more
            self._service = None
            reason = f"{type(error).__name__}: {error}".partition("\n")[0][:200]
            warnings.warn(f"{self.name} failed and is told nothing more: {reason}", stacklevel=2)
            state.folder.event("tracker failed", step=state.step, tracker=self.name, reason=reason)


def numbers(line: Record, prefix: str) -> dict[str, float]:
    """What a line measured, by name."""
    said = line.to_dict().items()
    return {f"{prefix}/{name}": value for name, value in said if name != "step" and isinstance(value, (int, float))}


def open_tensorboard(state: RunState) -> tuple[Write, Close]:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(state.folder.path / "tensorboard"))

    def write(values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)

    return write, writer.close


def open_wandb(state: RunState) -> tuple[Write, Close]:
    import wandb

    run = wandb.init(
        project="isoflop", name=state.folder.path.name, dir=str(state.folder.path), config=to_dict(state.config)
    )
    # wandb's own step only ever rises, and drops what comes late; training lines come a step after held-out ones
    run.define_metric("*", step_metric="step")
    return (lambda values, step: run.log({"step": step, **values})), run.finish


def open_mlflow(state: RunState) -> tuple[Write, Close]:
    import mlflow

    mlflow.set_experiment("isoflop")
    mlflow.start_run(run_name=state.folder.path.name)
    mlflow.log_dict(to_dict(state.config), "config.json")
    return (lambda values, step: mlflow.log_metrics(values, step=step)), mlflow.end_run


# name -> (the module that has to be there, how to open it)
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
