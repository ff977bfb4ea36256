"""A run's folder of checkpoints: listing, verifying and pruning them."""

import os
import re
import secrets
import shutil
import stat
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from isoflop.config import load_json
from isoflop.errors import UserError, quoted
from isoflop.files import disk_errors, sha256
from isoflop.parallel import state
from isoflop.records import RunFolder

FORMAT = "isoflop checkpoint 1"
MANIFEST = "manifest.json"
REQUIRED = ("config.json", "state.json", "tokenizer.json")
STEP_FOLDER = re.compile(r"step-(\d{8,15})")
LEFT_OVER = re.compile(r"\.step-\d{8,15}\.[0-9a-f]+\.tmp")


class Damaged(UserError):
    """A checkpoint whose files differ from those that were written."""


def verify(path: Path) -> None:
    """Check every file of a checkpoint against its manifest.

    Raises:
        Damaged: naming the file that is damaged or missing, with advice.
        UserError: naming a file that is not part of the checkpoint.
    """
    if not (path / MANIFEST).is_file():
        raise Damaged(f"{path} holds no checkpoint: there is no {MANIFEST} in it")
    try:
        manifest = read_object(path / MANIFEST)
    except UserError as error:
        raise Damaged(str(error)) from None
    try:
        compare(path, manifest)
    except OSError as error:  # an unreadable sector
        raise Damaged(f"{path} cannot be read: {error.strerror or error}") from None


def compare(path: Path, manifest: Mapping[str, Any]) -> None:
    """`verify` for the files of a manifest."""
    files = manifest.get("files")
    if manifest.get("format") != FORMAT or not isinstance(files, dict):
        raise UserError(
            f"{path} is not a checkpoint of the format {FORMAT!r}; name a run or use the isoflop that wrote it"
        )

    # Names in the manifest are only compared with those in the folder, never opened.
    present = listing(path)
    for name in [*REQUIRED, *files]:
        if name not in files or name not in present:
            raise damaged(path, name, "is missing")
    for name, file in present.items():
        if name == MANIFEST:
            continue
        if name not in files:
            raise UserError(
                f"{path} holds {name[:200]!r}, which is not part of the checkpoint; nothing was read: remove it"
            )
        entry = files[name]
        if not isinstance(entry, dict) or entry.get("bytes") != file.stat().st_size:
            raise damaged(path, name, "does not have the size with which it was written")
        if entry.get("sha256") != sha256(file):
            raise damaged(path, name, "does not have the content with which it was written")


def damaged(path: Path, name: str, problem: str) -> Damaged:
    return Damaged(
        f"checkpoint {path} is damaged: {name[:200]!r} {problem}; delete that folder to use the previous checkpoint"
    )


def listing(path: Path) -> dict[str, Path]:
    """All files below `path` by their relative names, with forward slashes.

    Raises:
        UserError: for anything other than files and folders, such as a link out of the checkpoint.
    """
    files: dict[str, Path] = {}
    for top, folders, names in os.walk(path):
        for name in [*folders, *names]:
            item = Path(top, name)
            mode = item.lstat().st_mode
            if stat.S_ISREG(mode):
                files[item.relative_to(path).as_posix()] = item
            elif not stat.S_ISDIR(mode):
                raise UserError(f"{path} holds {name[:200]!r}, which is neither a file nor a folder; remove it")
    return dict(sorted(files.items()))


def steps(checkpoints: Path) -> list[int]:
    """The steps that have a checkpoint, in order. Unfinished ones and other files are ignored."""
    if not checkpoints.is_dir():
        return []
    names = [STEP_FOLDER.fullmatch(p.name) for p in checkpoints.iterdir()]
    numbers = {int(name[1]) for name in names if name}
    return sorted(n for n in numbers if (checkpoints / folder_name(n) / MANIFEST).is_file())


def latest(checkpoints: Path) -> Path | None:
    """The checkpoint of the highest step, or None if there is none."""
    numbers = steps(checkpoints)
    return checkpoints / folder_name(numbers[-1]) if numbers else None


def last_intact(checkpoints: Path) -> tuple[Path | None, list[tuple[Path, str]]]:
    """The undamaged checkpoint of the highest step, and the damaged ones above it with the reasons. Nothing is changed.

    Raises:
        UserError: if a checkpoint contains a file that is not part of it.
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
    """Rename a damaged checkpoint, so that it is not used and no file of it is lost."""
    aside = path.with_name(f"damaged-{path.name}-{secrets.token_hex(2)}")
    with disk_errors(f"the damaged checkpoint {path}"):
        path.replace(aside)
    return aside


def at_step(checkpoints: Path, step: int) -> Path:
    """The checkpoint of one step.

    Raises:
        UserError: listing the steps that have one.
    """
    numbers = steps(checkpoints)
    if step not in numbers:
        existing = ", ".join(map(str, numbers)) or "none"
        raise UserError(f"{checkpoints} has no checkpoint of step {step}; the steps that have one: {existing}")
    return checkpoints / folder_name(step)


def prune(checkpoints: Path, keep_last: int, keep: Collection[int] = ()) -> None:
    """Delete all checkpoints except the last `keep_last` and those of the steps in `keep`, in the first process."""
    numbers = steps(checkpoints)
    if not state.first():
        return
    with disk_errors(f"old checkpoints of {checkpoints}"):
        for step in numbers[: max(0, len(numbers) - keep_last)]:
            if step not in keep:
                remove(checkpoints / folder_name(step))
        sweep(checkpoints)


def remove(folder: Path) -> None:
    """Delete a checkpoint. It is renamed first, so that a partly deleted one is never used."""
    doomed = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
    folder.replace(doomed)
    if doomed.is_symlink():  # moved to another disk by the user: its target stays
        doomed.unlink()
    else:
        shutil.rmtree(doomed)


def sweep(checkpoints: Path) -> None:
    """Delete the temporary folders of killed saves. A run has one writer, so no other process is writing to them."""
    if checkpoints.is_dir():
        for path in checkpoints.iterdir():
            if LEFT_OVER.fullmatch(path.name):
                shutil.rmtree(path, ignore_errors=True)


def find(path: Path, step: int | None) -> Path:
    """The folder of a checkpoint: `path` itself, or one of a run's, by default the last.

    Raises:
        UserError: if there is none.
    """
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
            f"{path} has no checkpoint yet; wait for its first one, or resume the run: "
            f"isoflop train --resume {quoted(path)}"
        )
    return last


def folder_name(step: int) -> str:
    return f"step-{step:08d}"


def step_of(path: Path) -> int:
    """The step in the name of a checkpoint's folder."""
    return int(path.name.removeprefix("step-"))


def read_state(path: Path) -> dict[str, Any]:
    """state.json, with every field checked."""
    content = read_object(path / "state.json")
    kinds = {"step": int, "fingerprint": str, "progress": dict}
    for name, kind in kinds.items():
        if not isinstance(content.get(name), kind) or isinstance(content[name], bool):
            raise UserError(f"{path / 'state.json'}: {name} is missing or not {kind.__name__}; use another checkpoint")

    if not 0 <= content["step"] < 10**15:
        raise UserError(f"{path / 'state.json'}: step is out of range; use another checkpoint")
    if (named := STEP_FOLDER.fullmatch(path.name)) and int(named[1]) != content["step"]:
        raise UserError(f"{path / 'state.json'} is of step {content['step']}; rename the folder to that step")

    for name, value in content["progress"].items():
        if name in ("seconds", "aside", "tokens", "averaged") and not number(value):
            raise UserError(
                f"{path / 'state.json'}: progress {name} = {value!r} is not a number; use another checkpoint"
            )
    if not all_pairs(content["progress"].get("recent", [])):
        raise UserError(
            f"{path / 'state.json'}: progress recent is not a list of pairs of numbers; use another checkpoint"
        )
    return content


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
