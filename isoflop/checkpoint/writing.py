"""Taking and writing a checkpoint: whole or not at all."""

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
    """A checkpoint that is still to be written: `write` does it, now or in a thread.

    Attributes:
        final: the folder that it will be.
        tensors: name -> tensor; the live ones, or a copy that training no longer changes.
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
    copied: bool = False,
) -> Pending:
    """Gather the checkpoint of a step.

    Args:
        checkpoints: the run's folder of checkpoints; made if need be, but not what it lies in.
        step: optimiser steps taken.
        config: the run's configuration as plain JSON values.
        tokenizer: the text of tokenizer.json.
        fingerprint: of the data.
        progress: JSON values that `load` gives back.
        copied: copy the tensors into main memory, so that training may go on before they are written.
    """
    tensors = {
        **state.model_tensors(model),
        **state.optimizer_tensors(model, optimizers),
        **state.generator_tensors(),
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
    """Write a checkpoint. A kill at any moment leaves the older ones as they were.

    Args:
        then: see `disk_errors`.

    Returns:
        The checkpoint's folder. One of the same step that was there is replaced.

    Raises:
        UserError: if the disk refuses, or the run's folder is no longer there.
    """
    final = pending.final
    with disk_errors(f"checkpoint {final}", then):
        final.parent.mkdir(exist_ok=True)  # not its parents: where a mount has vanished nothing is made in its place
        if state.first():
            sweep(final.parent)
            # a checkpoint must not outlive what is on record of the steps before it
            RunFolder(final.parent.parent).settle()
        with state.folder_for_all(final) as (folder, finishes):
            (folder / "tensors").mkdir(exist_ok=True)
            state.save_tensors(folder / "tensors", pending.tensors)
            if finishes:
                finish(folder, pending.texts)
                if final.exists():
                    remove(final)
    return final


def finish(folder: Path, texts: Mapping[str, str]) -> None:
    """Add what is not a tensor to a checkpoint's folder, and the manifest of it all."""
    for name, text in texts.items():
        (folder / name).write_bytes(text.encode("utf-8"))
    files = {name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for name, path in listing(folder).items()}
    (folder / MANIFEST).write_text(to_json({"format": FORMAT, "files": files}), encoding="utf-8")
