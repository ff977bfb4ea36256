"""TensorBoard, Weights & Biases and MLflow: each a hook that passes on what the run folder gets anyway.

Each is an extra (`pip install isoflop[tensorboard]`), imported only when asked for.
"""

import importlib
import warnings
from collections.abc import Callable
from typing import Any

from isoflop.config import nearest, to_dict
from isoflop.errors import UserError
from isoflop.trainer.hooks import Hook, Live

Write = Callable[[dict[str, float], int], None]
Close = Callable[[], None]
Open = Callable[[Live], tuple[Write, Close]]


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

    def started(self, live: Live) -> None:
        self._guarded(live, lambda: setattr(self, "_service", self._open(live)))

    def stepped(self, live: Live) -> None:
        if live.line is not None and live.line["step"] > self._last:
            self._last = live.line["step"]
            self._write(live, {f"train/{name}": live.line[name] for name in numbers(live.line)}, self._last)

    def measured(self, live: Live, line: dict[str, Any]) -> None:
        self._write(live, {f"heldout/{name}": line[name] for name in numbers(line)}, line["step"])

    def ended(self, live: Live) -> None:
        if self._service is not None:
            self._guarded(live, self._service[1])

    def _write(self, live: Live, values: dict[str, float], step: int) -> None:
        if self._service is not None:
            write = self._service[0]
            self._guarded(live, lambda: write(values, step))

    def _guarded(self, live: Live, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:  # whatever a service raises, hours of training are worth more
            self._service = None
            reason = f"{type(error).__name__}: {error}".partition("\n")[0][:200]
            warnings.warn(f"{self.name} failed and is told nothing more: {reason}", stacklevel=2)
            live.folder.event("tracker failed", step=live.step, tracker=self.name, reason=reason)


def numbers(line: dict[str, Any]) -> list[str]:
    return [name for name, value in line.items() if name != "step" and isinstance(value, (int, float))]


def open_tensorboard(live: Live) -> tuple[Write, Close]:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(live.folder.path / "tensorboard"))

    def write(values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)

    return write, writer.close


def open_wandb(live: Live) -> tuple[Write, Close]:
    import wandb

    run = wandb.init(
        project="isoflop", name=live.folder.path.name, dir=str(live.folder.path), config=to_dict(live.config)
    )
    # wandb's own step only ever rises, and drops what comes late; training lines come a step after held-out ones
    run.define_metric("*", step_metric="step")
    return (lambda values, step: run.log({"step": step, **values})), run.finish


def open_mlflow(live: Live) -> tuple[Write, Close]:
    import mlflow

    mlflow.set_experiment("isoflop")
    mlflow.start_run(run_name=live.folder.path.name)
    mlflow.log_dict(to_dict(live.config), "config.json")
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
