"""TensorBoard, Weights & Biases and MLflow: each a hook that passes on what the run folder gets anyway.

Each is an extra (`pip install isoflop[tensorboard]`), imported only when asked for.
"""

from collections.abc import Callable
from typing import Any

from isoflop.config import nearest, to_dict
from isoflop.errors import UserError
from isoflop.trainer.hooks import Hook, Live

Write = Callable[[dict[str, float], int], None]


class Tracker(Hook):
    """Passes numbers on to one service.

    Args:
        open_: given the run, returns a function that writes {name: value} at a step, and one that closes.
    """

    def __init__(self, open_: Callable[[Live], tuple[Write, Callable[[], None]]]) -> None:
        self._open = open_
        self._last = 0

    def started(self, live: Live) -> None:
        self._write, self._close = self._open(live)

    def stepped(self, live: Live) -> None:
        if live.line is not None and live.line["step"] > self._last:
            self._last = live.line["step"]
            self._write({f"train/{name}": live.line[name] for name in numbers(live.line)}, self._last)

    def measured(self, live: Live, line: dict[str, Any]) -> None:
        self._write({f"heldout/{name}": line[name] for name in numbers(line)}, line["step"])

    def ended(self, live: Live) -> None:
        self._close()


def numbers(line: dict[str, Any]) -> list[str]:
    return [name for name, value in line.items() if name != "step" and isinstance(value, (int, float))]


def open_tensorboard(live: Live) -> tuple[Write, Callable[[], None]]:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(live.folder.path / "tensorboard"))

    def write(values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)

    return write, writer.close


def open_wandb(live: Live) -> tuple[Write, Callable[[], None]]:
    import wandb

    run = wandb.init(
        project="isoflop", name=live.folder.path.name, dir=str(live.folder.path), config=to_dict(live.config)
    )
    return (lambda values, step: run.log(values, step=step)), run.finish


def open_mlflow(live: Live) -> tuple[Write, Callable[[], None]]:
    import mlflow

    mlflow.set_experiment("isoflop")
    mlflow.start_run(run_name=live.folder.path.name)
    mlflow.log_dict(to_dict(live.config), "config.json")
    return (lambda values, step: mlflow.log_metrics(values, step=step)), mlflow.end_run


TRACKERS = {"tensorboard": open_tensorboard, "wandb": open_wandb, "mlflow": open_mlflow}


def make_trackers(names: tuple[str, ...]) -> list[Hook]:
    """One hook for each name.

    Raises:
        UserError: for an unknown name, or an extra that is not installed.
    """
    hooks: list[Hook] = []
    for name in names:
        if name not in TRACKERS:
            raise UserError(f"trackers: {name!r} is not one of {', '.join(TRACKERS)}{nearest(name, TRACKERS)}")
        hooks.append(Tracker(checked(name)))
    return hooks


def checked(name: str) -> Callable[[Live], tuple[Write, Callable[[], None]]]:
    """The opener of a tracker, with a missing package told in one line."""

    def open_(live: Live) -> tuple[Write, Callable[[], None]]:
        try:
            return TRACKERS[name](live)
        except ImportError:
            raise UserError(f"trackers: {name} is not installed; pip install 'isoflop[{name}]'") from None

    return open_
