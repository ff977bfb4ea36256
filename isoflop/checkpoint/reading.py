"""Reads a checkpoint: restores a run, or loads a model with its tokenizer and configuration."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from isoflop.checkpoint.folder import find, read_object, read_state, verify
from isoflop.config import from_dict
from isoflop.data.tokenizer import Tokenizer
from isoflop.errors import UserError, quoted
from isoflop.model.build import Model, build_model
from isoflop.model.config import ModelConfig
from isoflop.model.mtp import TRAINING_ONLY
from isoflop.parallel import state
from isoflop.untrusted import read_text

TRIES = 3  # attempts to read the last checkpoint of a running run, which deletes old ones at the same time
BUFFERS = 256 * 2**20  # bytes of computed tables that a model may have, in addition to 8 times its weights


@dataclass(frozen=True)
class Snapshot:
    """A checkpoint without the optimiser's state and the random generators.

    Attributes:
        path: the checkpoint's folder.
        config: the run's configuration, as plain JSON values; `config["model"]` is the ModelConfig.
        weights: parameters and persistent buffers by their names in the model, on the CPU; a tied one once. Heads that
            only training uses are omitted. Of a run that averages its weights (trainer/average.py), the average.
        tokenizer: the text of tokenizer.json.
        fingerprint: of the training data.
        step: optimiser steps taken.
        progress: the trainer's counters: seconds, tokens.
    """

    path: Path
    config: dict[str, Any]
    weights: dict[str, Tensor] = field(repr=False)
    tokenizer: str = field(repr=False)
    fingerprint: str
    step: int
    progress: dict[str, Any]

    @property
    def task(self) -> str:
        """The name of the run's task (trainer/task.py)."""
        return str(self.config.get("task", "causal_lm"))


def load(
    path: Path, model: nn.Module, optimizers: Iterable[torch.optim.Optimizer], verified: bool = False
) -> dict[str, Any]:
    """Restore a run as it was when `path` was saved: weights, optimisers, torch's generators.

    The optimisers may be new: their state is created. Training then continues with the same bits as without the
    interruption.

    Args:
        verified: the files were checked already, by `last_intact`.

    Returns:
        The progress given to `take`, with `step` and `fingerprint`.

    Raises:
        UserError: if the checkpoint is damaged, or naming the first tensor that differs; nothing is changed then.
    """
    if not verified:
        verify(path)
    saved = read_state(path)
    state.restore(path / "tensors", model, optimizers)
    state.restore_generators(path / "tensors")
    return {**saved["progress"], "step": saved["step"], "fingerprint": saved["fingerprint"]}


def load_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Load further tensors of a verified checkpoint, in place, by their names in its files.

    Raises:
        UserError: naming the first one that is missing or differs in shape or dtype; nothing is changed then.
    """
    state.load_tensors(path / "tensors", tensors)


def read(path: Path | str, step: int | None = None) -> Snapshot:
    """Read a checkpoint without its optimiser state.

    Args:
        path: a run's folder, or a checkpoint's.
        step: which of a run's checkpoints; None for the last.

    Raises:
        UserError: if there is no such checkpoint, none yet, or it is damaged.
    """
    for _ in range(TRIES):
        folder = find(Path(path), step)
        try:
            return read_folder(folder)
        except (UserError, OSError):
            if folder.is_dir():
                raise
    raise UserError(f"{folder} was deleted while it was read, by the running run; try again")


def read_folder(folder: Path) -> Snapshot:
    """`read` for the folder of a checkpoint."""
    verify(folder)
    saved = read_state(folder)
    config = read_object(folder / "config.json")
    stored = state.stored_tensors(folder / "tensors")
    sources = {}  # name in the model -> name in the folder
    for name in (name.removeprefix(state.MODEL) for name in stored if name.startswith(state.MODEL)):
        if not name.startswith(TRAINING_ONLY):
            average = f"{state.AVERAGE}{name}"
            sources[name] = average if average in stored else f"{state.MODEL}{name}"
    weights = {source: torch.zeros(stored[source].shape, dtype=stored[source].dtype) for source in sources.values()}
    state.load_tensors(folder / "tensors", weights, stored)
    return Snapshot(
        path=folder,
        config=config,
        weights={name: weights[source] for name, source in sources.items()},
        tokenizer=read_text(folder / "tokenizer.json"),
        fingerprint=saved["fingerprint"],
        step=saved["step"],
        progress=saved["progress"],
    )


def load_model(
    path: Path | str, device: torch.device | str = "cpu", step: int | None = None
) -> tuple[Model, Tokenizer, Snapshot]:
    """The model of a run or checkpoint with its weights, in evaluation mode; and its tokenizer.

    Raises:
        UserError: as `read`, and if the weights do not match the configuration.
    """
    snapshot = read(path, step)
    config = from_dict(ModelConfig, snapshot.config.get("model"), "model")
    if config.layers + config.encoder_layers > len(snapshot.weights):
        raise UserError(
            f"model.layers = {config.layers}, model.encoder_layers = {config.encoder_layers}: more than "
            f"the weights of {snapshot.path}, which it does not fit; use another checkpoint"
        )

    with torch.device("meta"):  # shapes only: a false configuration must not allocate memory
        shapes = build_model(snapshot.task, config)
        check_weights(shapes, snapshot.weights)
        check_buffers(shapes, str(snapshot.path))
    tokenizer = Tokenizer.from_json(snapshot.tokenizer, str(snapshot.path / "tokenizer.json"))
    if tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"{snapshot.path}: its tokenizer has {tokenizer.vocab_size} ids and its model {config.vocab_size}; "
            "use another checkpoint"
        )

    model = build_model(snapshot.task, config)
    load_weights(model, snapshot.weights)
    return model.to(device).eval(), tokenizer, snapshot


def load_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy a snapshot's weights into a model of the same configuration.

    Raises:
        UserError: naming the first tensor that only one side has or that differs in shape; nothing is changed then.
    """
    check_weights(model, weights)
    with torch.no_grad():
        for name, tensor in state.model_tensors(model).items():
            tensor.copy_(weights[name.removeprefix("model.")])


def check_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Raises UserError, naming the first tensor, unless `weights` have the names and shapes of the model's."""
    own = {name.removeprefix("model."): tensor for name, tensor in state.model_tensors(model).items()}
    for name in [*weights, *own]:
        saved, built = (tuple(side[name].shape) if name in side else "absent" for side in (weights, own))
        if built != saved:
            raise UserError(
                f"weight {name[:200]!r} is {saved} in the checkpoint and {built} in the model: configurations differ"
            )
        if weights[name].dtype.is_floating_point != own[name].dtype.is_floating_point:
            raise UserError(f"weight {name[:200]!r} is {weights[name].dtype} and should be {own[name].dtype}")


def check_buffers(model: nn.Module, origin: str) -> None:
    """Raises UserError if the tables that a model computes (of rotary positions, say), which are not in the file, are
    so large compared with its weights that its configuration must be false."""
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    tables = sum(b.numel() * b.element_size() for b in model.buffers())
    if tables > BUFFERS + 8 * weights:
        raise UserError(
            f"{origin}: its configuration asks for {tables >> 20:,} MiB of tables, with {weights >> 20:,} of weights; "
            "choose fewer positions (context)"
        )


def require_same_data(path: Path, fingerprint: str, tokenizer: str = "") -> None:
    """Raises UserError unless a checkpoint was trained on the data with this fingerprint and, if given, with this
    tokenizer (the text of its tokenizer.json)."""
    trained_on = read_state(path)["fingerprint"]
    if trained_on != fingerprint:
        run = path.parent.parent
        raise UserError(
            f"the data of this run changed: its checkpoint was trained on {trained_on[:12]}, the sources now give "
            f"{fingerprint[:12]}; restore the old text, or start a new run on the new text from these weights: "
            f"isoflop train SOURCE --init {quoted(run)} --out NEW"
        )
    if tokenizer and read_text(path / "tokenizer.json") != tokenizer:
        raise UserError(
            f"the tokenizer of {path} differs from that of the data: the same ids would mean other text; "
            "restore the file that the run began with"
        )
