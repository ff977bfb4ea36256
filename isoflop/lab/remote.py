"""A job for another machine: as text there and back, with its prepared data if that machine has none.

    to_text ─> worker: work ─> read_result
                   └─ data: found in its $ISOFLOP_HOME by fingerprint, else sent once and kept there

Both sides need the same isoflop and the same torch, which is checked: a result has to mean the same wherever it was
made.
"""

import contextlib
import hashlib
import json
import platform
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from isoflop import files
from isoflop.config import from_dict, load_json, to_dict
from isoflop.data.manifest import MANIFEST
from isoflop.errors import UserError
from isoflop.lab.procedures.job import Job, Measured
from isoflop.lab.procedures.table import PROCEDURES
from isoflop.lab.store import told
from isoflop.lab.workers import Performed, perform
from isoflop.model.registry import trust_code
from isoflop.runtime import describe_machine
from isoflop.trainer import RunConfig

PACKAGE = Path(__file__).parents[1]
SOURCES = (".py", ".toml", ".json")

Files = Mapping[str, bytes]  # of a folder of prepared data, by name


@lru_cache(1)
def code() -> str:
    """What both sides need to share: isoflop as a hash of its files, and the version of torch."""
    digest = hashlib.sha256()
    for path in sorted(path for path in PACKAGE.rglob("*") if path.suffix in SOURCES):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(PACKAGE).as_posix()} {len(content)}\n".encode() + content)
    return f"isoflop {digest.hexdigest()[:12]}, torch {torch.__version__.partition('+')[0]}"


def to_text(job: Job, trusted: tuple[str, ...] = ()) -> str:
    """A job as a worker gets it."""
    return json.dumps(
        {
            "code": code(),
            "trusted": list(trusted),
            "procedure": job.procedure,
            "config": to_dict(job.config),
            "order": job.order,
            "options": dict(job.options),
            "data": job.data,
        }
    )


def work(text: str, fetch: Callable[[], Files]) -> str:
    """Run the job of a text. Returns what `read_result` reads, an error of the user's included.

    Args:
        fetch: gives the files of the job's prepared data; called only if this machine has no such data.
    """
    asked = json.loads(text)
    try:
        if asked["code"] != code():
            raise UserError(f"it has {code()}, and this command has {asked['code']}: install the same on all machines")
        trusted = tuple(asked["trusted"])
        with trust_code(*trusted):
            config = from_dict(RunConfig, asked["config"])
        job = Job(asked["procedure"], config, asked["order"], asked["options"], asked["data"])
        done = perform(with_data(job, fetch), trusted)
    except UserError as error:
        return json.dumps({"error": f"{platform.node()}: {error}"})
    measured = done.measured
    return json.dumps(
        {
            "measures": measured.measures,
            "lists": measured.lists,
            "diverged": measured.diverged,
            "seconds": done.seconds,
            "machine": told(describe_machine("cpu")),
        }
    )


def read_result(text: str) -> Performed:
    """What a worker's text says.

    Raises:
        UserError: if the worker had one, with its machine's name in front.
    """
    found: dict[str, Any] = json.loads(text)
    if "error" in found:
        raise UserError(found["error"])
    measured = Measured(found["measures"], found["lists"], found["diverged"])
    return Performed(measured, found["seconds"], found["machine"])


def packed(job: Job) -> dict[str, bytes]:
    """The files of a job's prepared data, as sent to a machine."""
    task = PROCEDURES[job.procedure].task(job.config)
    folder = data_here(job.data) or task.prepare_data(job.config.data).folder
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def with_data(job: Job, fetch: Callable[[], Files]) -> Job:
    """The job with this machine's copy of its prepared data.

    Raises:
        UserError: if the data that arrived is not what the job names, or cannot be kept.
    """
    if not job.data:
        return job
    folder = data_here(job.data)
    if folder is None:
        folder = files.home() / "data" / f"sent-{job.data[:16]}"
        keep(fetch(), folder)
        found = PROCEDURES[job.procedure].task(job.config).open_data(folder).fingerprint
        if found != job.data:
            raise UserError(f"data {found[:12]} was sent where {job.data[:12]} was asked for; delete {folder}")
    data = replace(job.config.data, sources=(), heldout=(), path=str(folder))
    return replace(job, config=replace(job.config, data=data))


def data_here(fingerprint: str) -> Path | None:
    """The folder in $ISOFLOP_HOME with the prepared data of a fingerprint."""
    for path in sorted((files.home() / "data").glob(f"*/{MANIFEST}")):
        with contextlib.suppress(UserError):
            found = load_json(path)
            if isinstance(found, dict) and found.get("fingerprint") == fingerprint:
                return path.parent
    return None


def keep(sent: Files, folder: Path) -> None:
    """Write the files that were sent, whole or not at all.

    Raises:
        UserError: for a name that is none, or a full disk.
    """
    for name in sent:
        if Path(name).name != name or name.startswith("."):
            raise UserError(f"prepared data with a file {name!r} was sent; files of prepared data have plain names")
    try:
        with files.new_folder(folder) as temporary:
            for name, content in sent.items():
                (temporary / name).write_bytes(content)
    except OSError:
        if (folder / MANIFEST).is_file():  # another worker of this machine wrote it first
            return
        with files.disk_errors("the prepared data", instead=files.NAME_HOME):
            raise
