"""One folder a step, self-contained, written whole or not at all; reading one runs nothing that lies in it.

    checkpoints/step-00001000/
      manifest.json     size and SHA-256 of every other file
      config.json       the run's resolved configuration
      tokenizer.json
      state.json        format, step, data fingerprint, and the trainer's progress (seconds, tokens)
      tensors/*.safetensors     model.*, optim.* (see parallel/state.py) and rng.*: torch's generators

A folder is what its manifest says, or it is refused: a changed byte, a missing file and a file that nobody wrote there
(a planted pickle, say) are each an error that names the file. Nothing is ever unpickled. A checkpoint may come from
anyone; what is read from it is checked first, in time and memory bounded by the size of its files.

Python's and numpy's random generators are not part of it: nothing in a step draws from them.
"""

import os
import re
import secrets
import shutil
import stat
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from isoflop.config import from_dict, load_json
from isoflop.data.tokenizer import Tokenizer
from isoflop.errors import UserError
from isoflop.files import disk_errors, sha256, to_json
from isoflop.model.build import Model, build_model
from isoflop.model.config import ModelConfig
from isoflop.model.gpt import TRAINING_ONLY
from isoflop.parallel import state
from isoflop.records import RunFolder
from isoflop.untrusted import read_text

FORMAT = "isoflop checkpoint 1"
MANIFEST = "manifest.json"
REQUIRED = ("config.json", "state.json", "tokenizer.json")
TRIES = 3  # to read the last checkpoint of a run that goes on and drops old ones meanwhile
BUFFERS = 256 * 2**20  # bytes of tables that a model may work out beside its weights, and 8 times those
STEP_FOLDER = re.compile(r"step-(\d{8,15})")
LEFT_OVER = re.compile(r"\.step-\d{8,15}\.[0-9a-f]+\.tmp")


@dataclass(frozen=True)
class Snapshot:
    """A checkpoint as readers want it: everything but the optimiser and the generators.

    Attributes:
        path: the checkpoint's folder.
        config: the run's configuration, as plain JSON values; `config["model"]` is the ModelConfig.
        weights: parameters and persistent buffers by their names in the model, on the CPU; a tied one once. What only
            training needs (further heads) is left out.
        tokenizer: the text of tokenizer.json.
        fingerprint: of the data trained on.
        step: optimiser steps taken.
        progress: what the trainer recorded: seconds, tokens.
    """

    path: Path
    config: dict[str, Any]
    weights: dict[str, Tensor] = field(repr=False)
    tokenizer: str = field(repr=False)
    fingerprint: str
    step: int
    progress: dict[str, Any]


class Damaged(UserError):
    """A checkpoint whose files are not what was written."""


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


def load(
    path: Path, model: nn.Module, optimizers: Iterable[torch.optim.Optimizer], verified: bool = False
) -> dict[str, Any]:
    """Put a run back to where it was when `path` was saved: weights, optimisers, torch's generators.

    The optimisers may be new: their state is created. What follows is bit for bit what would have followed.

    Args:
        verified: the files were checked already, by `last_whole`.

    Returns:
        The progress given to `take`, with `step` and `fingerprint`.

    Raises:
        UserError: if the checkpoint is damaged, or naming the first tensor that does not fit; nothing is changed then.
    """
    if not verified:
        verify(path)
    said = read_state(path)
    state.restore(path / "tensors", model, optimizers)
    state.restore_generators(path / "tensors")
    return {**said["progress"], "step": said["step"], "fingerprint": said["fingerprint"]}


def read(path: Path | str, step: int | None = None) -> Snapshot:
    """Read weights and everything that goes with them, without optimiser.

    Args:
        path: a run's folder, or one checkpoint's.
        step: which of a run's checkpoints; None for the last.

    Raises:
        UserError: if there is no such checkpoint, none yet, or it is damaged.
    """
    for _ in range(TRIES):
        found = find(Path(path), step)
        try:
            return read_whole(found)
        except (UserError, OSError):
            if found.is_dir():
                raise
    raise UserError(f"{found} was dropped while it was read, by the run that goes on; try again")


def read_whole(found: Path) -> Snapshot:
    """`read`, of a checkpoint's folder."""
    verify(found)
    said = read_state(found)
    config = read_object(found / "config.json")
    stored = {
        name: tensor
        for name, tensor in state.stored_tensors(found / "tensors").items()
        if name.startswith("model.") and not name.startswith(f"model.{TRAINING_ONLY}")
    }
    weights = {name: torch.zeros(tensor.shape, dtype=tensor.dtype) for name, tensor in stored.items()}
    state.load_tensors(found / "tensors", weights, stored)
    return Snapshot(
        path=found,
        config=config,
        weights={name.removeprefix("model."): tensor for name, tensor in weights.items()},
        tokenizer=read_text(found / "tokenizer.json"),
        fingerprint=said["fingerprint"],
        step=said["step"],
        progress=said["progress"],
    )


def load_model(
    path: Path | str, device: torch.device | str = "cpu", step: int | None = None
) -> tuple[Model, Tokenizer, Snapshot]:
    """The model of a run or checkpoint, with its weights, ready to be evaluated; and its tokenizer.

    Raises:
        UserError: as `read`, and if the weights do not fit the configuration beside them.
    """
    snapshot = read(path, step)
    config = from_dict(ModelConfig, snapshot.config.get("model"), "model")
    task = str(snapshot.config.get("task", "causal_lm"))
    if config.layers + config.encoder_layers > len(snapshot.weights):
        raise UserError(
            f"model.layers = {config.layers}, model.encoder_layers = {config.encoder_layers}: more than "
            f"the weights of {snapshot.path}, which it does not fit; use another checkpoint"
        )
    with torch.device("meta"):  # the shapes alone: a configuration that lies must not cost its memory
        sketch = build_model(task, config)
        check_weights(sketch, snapshot.weights)
        check_buffers(sketch, str(snapshot.path))
    tokenizer = Tokenizer.from_json(snapshot.tokenizer, str(snapshot.path / "tokenizer.json"))
    if tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"{snapshot.path}: its tokenizer has {tokenizer.vocab_size} ids and its model {config.vocab_size}; "
            "use another checkpoint"
        )
    model = build_model(task, config)
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
    """Raises UserError, naming the first tensor, unless `weights` are the model's in names and shapes."""
    own = {name.removeprefix("model."): tensor for name, tensor in state.model_tensors(model).items()}
    for name in [*weights, *own]:
        there, here = (tuple(side[name].shape) if name in side else "absent" for side in (weights, own))
        if here != there:
            raise UserError(
                f"weight {name[:200]!r} is {there} in the checkpoint and {here} in the model: configurations differ"
            )
        if weights[name].dtype.is_floating_point != own[name].dtype.is_floating_point:
            raise UserError(f"weight {name[:200]!r} is {weights[name].dtype} and should be {own[name].dtype}")


def check_buffers(model: nn.Module, origin: str) -> None:
    """Raises UserError if the tables that a model works out by itself (of rotary positions, say), which no file has to
    hold, are so large beside its weights that its configuration must be lying."""
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    tables = sum(b.numel() * b.element_size() for b in model.buffers())
    if tables > BUFFERS + 8 * weights:
        raise UserError(
            f"{origin}: its configuration asks for {tables >> 20:,} MiB of tables, with {weights >> 20:,} of weights; "
            "choose fewer positions (context)"
        )


def verify(path: Path) -> None:
    """Check every file of a checkpoint against its manifest.

    Raises:
        Damaged: naming the file that is damaged or missing, and the way out.
        UserError: naming one that is not of the checkpoint.
    """
    if not (path / MANIFEST).is_file():
        raise Damaged(f"{path} holds no checkpoint: there is no {MANIFEST} in it")
    try:
        manifest = read_object(path / MANIFEST)
    except UserError as error:
        raise Damaged(str(error)) from None
    try:
        compare(path, manifest)
    except OSError as error:  # a sector that cannot be read
        raise Damaged(f"{path} cannot be read: {error.strerror or error}") from None


def compare(path: Path, manifest: Mapping[str, Any]) -> None:
    """`verify`, of the files that a manifest names."""
    files = manifest.get("files")
    if manifest.get("format") != FORMAT or not isinstance(files, dict):
        raise UserError(
            f"{path} is not a checkpoint of the format {FORMAT!r}; name a run or use the isoflop that wrote it"
        )
    # Names in the manifest are only ever compared with those found in the folder, never opened.
    found = listing(path)
    for name in [*REQUIRED, *files]:
        if name not in files or name not in found:
            raise damaged(path, name, "is missing")
    for name, file in found.items():
        if name == MANIFEST:
            continue
        if name not in files:
            raise UserError(
                f"{path} holds {name[:200]!r}, which is not part of the checkpoint; nothing was read: remove it"
            )
        entry = files[name]
        if not isinstance(entry, dict) or entry.get("bytes") != file.stat().st_size:
            raise damaged(path, name, "has another size than when it was written")
        if entry.get("sha256") != sha256(file):
            raise damaged(path, name, "has other bytes than when it was written")


def require_same_data(path: Path, fingerprint: str, tokenizer: str = "") -> None:
    """Raises UserError unless a checkpoint was trained on the data with this fingerprint and, if it is given, with this
    tokenizer (the text of its tokenizer.json)."""
    trained_on = read_state(path)["fingerprint"]
    if trained_on != fingerprint:
        run = path.parent.parent
        raise UserError(
            f"the data of this run changed: its checkpoint was trained on {trained_on[:12]}, the sources now give "
            f"{fingerprint[:12]}; bring the old text back, or train on from its weights on what there is now: "
            f"isoflop train SOURCE ... --init {run} --out NEW"
        )
    if tokenizer and read_text(path / "tokenizer.json") != tokenizer:
        raise UserError(
            f"the tokenizer of {path} is not that of the data: its ids would mean other text; bring the old one back"
        )


def damaged(path: Path, name: str, what: str) -> Damaged:
    return Damaged(
        f"checkpoint {path} is damaged: {name[:200]!r} {what}; delete that folder to use the checkpoint before it"
    )


def listing(path: Path) -> dict[str, Path]:
    """Every file below `path` by its name there, with forward slashes.

    Raises:
        UserError: for what is neither file nor folder, such as a link that leads out of the checkpoint.
    """
    found: dict[str, Path] = {}
    for top, folders, names in os.walk(path):
        for name in [*folders, *names]:
            item = Path(top, name)
            mode = item.lstat().st_mode
            if stat.S_ISREG(mode):
                found[item.relative_to(path).as_posix()] = item
            elif not stat.S_ISDIR(mode):
                raise UserError(f"{path} holds {name[:200]!r}, which is neither a file nor a folder; remove it")
    return dict(sorted(found.items()))


def steps(checkpoints: Path) -> list[int]:
    """The steps that have a checkpoint, in order. Unfinished ones and what else lies there are passed over."""
    if not checkpoints.is_dir():
        return []
    names = [STEP_FOLDER.fullmatch(p.name) for p in checkpoints.iterdir()]
    numbers = {int(name[1]) for name in names if name}
    return sorted(n for n in numbers if (checkpoints / folder_name(n) / MANIFEST).is_file())


def latest(checkpoints: Path) -> Path | None:
    """The checkpoint of the highest step, or None if there is none."""
    found = steps(checkpoints)
    return checkpoints / folder_name(found[-1]) if found else None


def last_whole(checkpoints: Path) -> tuple[Path | None, list[tuple[Path, str]]]:
    """The highest step's checkpoint whose files are what was written, and those above it that are not, with the reason.
    Nothing is changed.

    Raises:
        UserError: if it holds a file that is not part of it.
    """
    broken: list[tuple[Path, str]] = []
    folders = [p for p in checkpoints.iterdir() if STEP_FOLDER.fullmatch(p.name)] if checkpoints.is_dir() else []
    for path in sorted(folders, key=step_of, reverse=True):
        try:
            verify(path)
            return path, broken
        except Damaged as error:
            broken.append((path, str(error)))
    return None, broken


def set_aside(path: Path) -> Path:
    """Rename a damaged checkpoint, so that nobody takes it for one and nothing of it is lost."""
    aside = path.with_name(f"damaged-{path.name}-{secrets.token_hex(2)}")
    with disk_errors(f"the damaged checkpoint {path}"):
        path.replace(aside)
    return aside


def at_step(checkpoints: Path, step: int) -> Path:
    """The checkpoint of one step.

    Raises:
        UserError: listing the steps there are.
    """
    found = steps(checkpoints)
    if step not in found:
        there = ", ".join(map(str, found)) or "none"
        raise UserError(f"{checkpoints} has no checkpoint of step {step}; there is {there}")
    return checkpoints / folder_name(step)


def prune(checkpoints: Path, keep_last: int, keep: Collection[int] = ()) -> None:
    """Delete all checkpoints but the last `keep_last` and those of the steps in `keep`; of several processes the first
    one does."""
    found = steps(checkpoints)
    if not state.first():
        return
    with disk_errors(f"old checkpoints of {checkpoints}"):
        for step in found[: max(0, len(found) - keep_last)]:
            if step not in keep:
                remove(checkpoints / folder_name(step))
        sweep(checkpoints)


def remove(folder: Path) -> None:
    """Delete a checkpoint so that no half of it is ever found: it loses its name first."""
    doomed = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
    folder.replace(doomed)
    if doomed.is_symlink():  # somebody moved it to another disk: what it leads to is theirs
        doomed.unlink()
    else:
        shutil.rmtree(doomed)


def sweep(checkpoints: Path) -> None:
    """Delete what killed saves left. A run has one writer, so nothing unfinished is anybody's."""
    if checkpoints.is_dir():
        for path in checkpoints.iterdir():
            if LEFT_OVER.fullmatch(path.name):
                shutil.rmtree(path, ignore_errors=True)


def find(path: Path, step: int | None) -> Path:
    if (path / MANIFEST).is_file():
        return path
    run = RunFolder(path)
    if not path.is_dir() or not (run.config.is_file() or run.checkpoints.is_dir()):
        raise UserError(f"{path} is neither a run nor a checkpoint; `isoflop runs` lists the runs of a folder")
    if step is not None:
        return at_step(run.checkpoints, step)
    last = latest(run.checkpoints)
    if last is None:
        raise UserError(
            f"{path} has no checkpoint yet; wait for its first one, or go on with `isoflop train --resume {path}`"
        )
    return last


def folder_name(step: int) -> str:
    return f"step-{step:08d}"


def step_of(path: Path) -> int:
    """The step that a checkpoint's folder is named for."""
    return int(path.name.removeprefix("step-"))


def read_state(path: Path) -> dict[str, Any]:
    """state.json, every field checked."""
    said = read_object(path / "state.json")
    kinds = {"step": int, "fingerprint": str, "progress": dict}
    for name, kind in kinds.items():
        if not isinstance(said.get(name), kind) or isinstance(said[name], bool):
            raise UserError(f"{path / 'state.json'}: {name} is missing or not {kind.__name__}; use another checkpoint")
    if not 0 <= said["step"] < 10**15:
        raise UserError(f"{path / 'state.json'}: step is out of range; use another checkpoint")
    if (named := STEP_FOLDER.fullmatch(path.name)) and int(named[1]) != said["step"]:
        raise UserError(f"{path / 'state.json'} is of step {said['step']}; give the folder back the name that says so")
    for name, value in said["progress"].items():
        if name in ("seconds", "aside", "tokens") and not number(value):
            raise UserError(f"{path / 'state.json'}: progress {name} = {value!r} is no number; use another checkpoint")
    if not all_pairs(said["progress"].get("recent", [])):
        raise UserError(
            f"{path / 'state.json'}: progress recent is no list of pairs of numbers; use another checkpoint"
        )
    return said


def all_pairs(value: Any) -> bool:
    """Whether a value is a list of pairs of finite numbers, of either sign."""
    return isinstance(value, list) and all(
        isinstance(pair, list) and len(pair) == 2 and all(type(n) in (int, float) and abs(n) < 1e300 for n in pair)
        for pair in value
    )


def number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1e30


def read_object(path: Path) -> dict[str, Any]:
    value = load_json(path)
    if not isinstance(value, dict):
        raise UserError(f"{path} is not a JSON object; use another checkpoint")
    return value
