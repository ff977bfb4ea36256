"""Takes and writes a checkpoint, atomically."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from isoflop.checkpoint.folder import FORMAT, MANIFEST, folder_name, listing, remove, sweep
from isoflop.files import disk_errors, sha256, to_json
from isoflop.parallel import state
from isoflop.records import RunFolder


@dataclass(frozen=True)
class Pending:
    """A checkpoint to be written by `write`, now or in a thread.

    Attributes:
        final: its folder.
        tensors: name -> tensor; the live ones, or copies that training does not change.
        texts: file name -> content.
    """

    final: Path
    tensors: dict[str, Tensor] = field(repr=False)
    texts: dict[str, str] = field(repr=False)


def take(
    checkpoints: Path,
    *,
    step: int,
    model: nn.Module,
    optimizers: Iterable[torch.optim.Optimizer],
    config: dict[str, Any],
    tokenizer: str,
    fingerprint: str,
    progress: dict[str, Any],
    average: Mapping[str, Tensor] | None = None,
    more: Mapping[str, Tensor] | None = None,
    copied: bool = False,
) -> Pending:
    """Collect the checkpoint of a step.

    Args:
        checkpoints: the run's folder of checkpoints; created if missing, but not its parents.
        step: optimiser steps taken.
        config: the run's configuration as plain JSON values.
        tokenizer: the text of tokenizer.json.
        fingerprint: of the data.
        progress: JSON values that `load` returns.
        average: the average of the weights, as `average.<name>`.
        more: further tensors by name, which `load` ignores.
        copied: copy the tensors into main memory, so that training can continue before they are written.
    """
    tensors = {
        **state.model_tensors(model),
        **state.optimizer_tensors(model, optimizers),
        **state.generator_tensors(),
        **(average or {}),
        **(more or {}),
    }

    return Pending(
        final=checkpoints / folder_name(step),
        tensors=state.copied(tensors) if copied else tensors,
        texts={
            "config.json": to_json(config),
            "tokenizer.json": tokenizer,
            "state.json": to_json({"format": FORMAT, "step": step, "fingerprint": fingerprint, "progress": progress}),
        },
    )


def write(pending: Pending, then: str = "") -> Path:
    """Write a checkpoint. A kill at any moment leaves the older ones unchanged.

    Args:
        then: see `disk_errors`.

    Returns:
        The checkpoint's folder. An existing one of the same step is replaced.

    Raises:
        UserError: for an error of the disk, or if the run's folder no longer exists.
    """
    final = pending.final
    with disk_errors(f"checkpoint {final}", then):
        final.parent.mkdir(exist_ok=True)  # not its parents: a vanished mount must not be replaced by a folder
        if state.first():
            sweep(final.parent)
            RunFolder(final.parent.parent).sync_logs()  # the logs of the steps before it must be on disk first

        with state.folder_for_all(final) as (folder, finishes):
            (folder / "tensors").mkdir(exist_ok=True)
            state.save_tensors(folder / "tensors", pending.tensors)
            if finishes:
                finish(folder, pending.texts)
                if final.exists():
                    remove(final)
    return final


def finish(folder: Path, texts: Mapping[str, str]) -> None:
    """Add the files other than tensors to a checkpoint's folder, and the manifest of all files."""
    for name, text in texts.items():
        (folder / name).write_bytes(text.encode("utf-8"))
    files = {name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for name, path in listing(folder).items()}
    (folder / MANIFEST).write_text(to_json({"format": FORMAT, "files": files}), encoding="utf-8")
