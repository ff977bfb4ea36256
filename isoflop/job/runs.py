"""Work with existing runs: load, sample, evaluate, list."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

import torch

from isoflop import checkpoint
from isoflop.config import from_dict, nearest, override
from isoflop.data.config import DataConfig, check
from isoflop.data.manifest import MANIFEST
from isoflop.data.packing import DOCUMENTS, RUNNING
from isoflop.data.tokenizer import Tokenizer
from isoflop.errors import UserError, quoted
from isoflop.generate.request import Request
from isoflop.job.outcome import judge
from isoflop.job.reopen import Moved, open_run_data, run_folder_of
from isoflop.measure import HeldOut
from isoflop.model.build import Model
from isoflop.records import (
    DataAccount,
    Expectation,
    HeldOutLine,
    RunFolder,
    TrainingLine,
    find_runs,
    read_run,
)
from isoflop.runtime import DTYPES, choose_device, make_runtime
from isoflop.trainer import RunConfig
from isoflop.trainer.causal_lm import CausalLM
from isoflop.trainer.task import make_task, task_named

# the fields that determine how text is read
READING_FIELDS = ("data.text_column", "data.encoding", "data.document_separator", "data.format", "data.strict")
EVALUATE = ("isoflop eval RUN", "--moved SOURCE")  # names the new place of a run's text, if it was moved
WINDOWS = (RUNNING, DOCUMENTS)
DEFAULT = Request()
Prompts = list[str] | tuple[str, ...]


def load(run: Path | str, device: str = "cpu") -> tuple[Model, Tokenizer]:
    """The model of a run's last checkpoint, in evaluation mode, and its tokenizer.

    Raises:
        UserError: if there is no run, it has no checkpoint yet, or its files are damaged.
    """
    model, tokenizer, _ = checkpoint.load_model(Path(run), device)
    return model.eval(), tokenizer


@overload
def sample(run: Path | str, prompt: str, request: Request = DEFAULT) -> str: ...
@overload
def sample(run: Path | str, prompt: Prompts, request: Request = DEFAULT) -> list[str]: ...
@torch.no_grad()
def sample(run: Path | str, prompt: str | Prompts, request: Request = DEFAULT) -> str | list[str]:
    """Generate text with a run's last checkpoint: a continuation of `prompt`, or (seq2seq) the output for `prompt`; for
    a list of prompts a list of texts, generated together.

    Raises:
        UserError: for a run that cannot be read, a prompt that is no string, or a setting that does not apply to the
            run's model.
    """
    prompts = list(prompt) if isinstance(prompt, list | tuple) else [prompt]
    for one in prompts:
        if not isinstance(one, str):
            raise UserError(f"the prompt {one!r} is not a string; decode bytes first")
    if request.on_text is not None and len(prompts) > 1:
        raise UserError(
            f"on_text shows one text as it is generated, not {len(prompts)}; leave it out or name one prompt"
        )
    if request.dtype not in DTYPES:
        raise UserError(f"--dtype {request.dtype} is not one of {', '.join(DTYPES)}")
    model, tokenizer, snapshot = checkpoint.load_model(Path(run), choose_device())
    texts = task_named(snapshot.task).write(model, tokenizer, prompts, request) if prompts else []
    return texts[0] if isinstance(prompt, str) else texts


def evaluate(
    run: Path | str,
    sources: Sequence[str] = (),
    text_column: str = "",
    beam: int = 1,
    set: Sequence[str] = (),
    moved: Sequence[str] = (),
    heldout: Sequence[str] = (),
    strict: bool = False,
    windows: str = "",
) -> HeldOut:
    """Evaluate a run on its own held-out text, or on each document (seq2seq: pair) of `sources`: held-out loss, and the
    task's other metrics.

    Args:
        text_column: the column of records that holds the text; "": the one that the run was trained on.
        beam: beam width (seq2seq); 1 is greedy.
        set: assignments to fields of `data` that determine how the sources are read; otherwise they are as in the run.
        moved, heldout: the new places of the run's own text, and of named held-out text, if they were moved.
        strict: raise an error for anything in the sources that would be skipped.
        windows: "running" or "documents", see batch.windows; "": as in training.

    Raises:
        UserError: if there is no run or no text, for an assignment to another field, or if `moved` is other text.
    """
    path = Path(run)
    refuse_mixed(path, sources, {"--moved": moved, "--heldout": heldout}, {"--set": set, "--strict": strict})
    refuse_runs(path, sources)
    if windows and windows not in WINDOWS:
        kinds = ", ".join(WINDOWS)
        raise UserError(f"--windows {windows} is not one of {kinds}{nearest(windows, WINDOWS)}")
    if text_column and not sources:
        raise error_without_sources("--text-column", path)
    if not sources and was_imported(path):
        raise UserError(f"{run} was imported and has no text of its own; name some: isoflop eval {quoted(run)} SOURCE")

    model, tokenizer, snapshot = checkpoint.load_model(path)
    config = from_dict(RunConfig, snapshot.config)
    task = make_task(override(config, [f"batch.windows={windows}"]) if windows else config)
    if windows and not isinstance(task, CausalLM):
        raise UserError(f"--windows {windows} is for text, and {run} has pairs; leave it out")
    runtime = make_runtime("auto", config.runtime.dtype, config.runtime.threads)
    model.to(runtime.device)

    if not sources:
        data: Any = open_run_data(read_run(run_folder_of(path)), config, None, Moved(moved, heldout), EVALUATE)
        return judge(task, model, data, runtime, beam=beam)
    assignments = [*set, *(["data.strict=true"] if strict else [])]
    data_config = config_for_sources(config.data, sources, text_column, assignments)
    measured = task.measure_sources(model, tokenizer, data_config, runtime, beam)
    return replace(measured, notes=(*measured.notes, *same_size_note(run_folder_of(path), measured)))


def refuse_mixed(run: Path, sources: Sequence[str], own: dict[str, Any], others: dict[str, Any]) -> None:
    """Raise UserError for an option about the run's own text (`own`) with sources, or about sources (`others`) without
    any."""
    for name, value in own.items():
        if value and sources:
            raise UserError(
                f"{name} names the place of the text of {run} itself; leave it out, or {sources[0]}: other text is "
                f"measured with isoflop eval {quoted(run)} {quoted(sources[0])}"
            )
    for name, value in others.items():
        if value and not sources:
            raise error_without_sources(name, run)


def refuse_runs(run: Path, sources: Sequence[str]) -> None:
    """Raise UserError for a source that is itself a run: its records would be measured as text."""
    for source in sources:
        folder = RunFolder(Path(source))
        if folder.config.is_file() and folder.checkpoints.is_dir():
            both = f"{quoted(run)} {quoted(source)}"
            raise UserError(
                f"{source} is a run, not text; runs are compared on suites, isoflop eval {both} --suite NAME, or in a "
                f"report, isoflop report {both}"
            )


def error_without_sources(name: str, run: Path) -> UserError:
    """The error for an option that applies only to sources, if none are named."""
    return UserError(
        f"{name} determines how sources are read, and none are named: isoflop eval {quoted(run)} SOURCE {name} ...; "
        "the run's own held-out text is read as it was prepared"
    )


def same_size_note(folder: Path, heldout: HeldOut) -> list[str]:
    """A note if the sources have as many bytes as the run's own text: a user who names its new place may expect the
    held-out loss. Empty otherwise."""
    account = read_run(folder).data if RunFolder(folder).config.is_file() else DataAccount()
    if not heldout.found_bytes or heldout.found_bytes != account.found_bytes:
        return []
    prepared = account.folder and (Path(account.folder) / MANIFEST).is_file()
    command = EVALUATE[0] if prepared else " ".join(EVALUATE)
    return [
        f"this is as much text as the run was trained on, {heldout.found_bytes:,} bytes: if it is that text, these "
        f"figures are not held-out ones; those are measured with {command.replace('RUN', quoted(folder))}"
    ]


def config_for_sources(
    run_data: DataConfig, sources: Sequence[str], text_column: str, set: Sequence[str]
) -> DataConfig:
    """A data configuration to read sources in the same way as a run's own text, except for the assignments `set`.

    Raises:
        UserError: for an assignment to a field that does not determine how text is read.
    """
    config = DataConfig(
        sources=tuple(sources),
        text_column=text_column or run_data.text_column,
        encoding=run_data.encoding,
        document_separator=run_data.document_separator,
        format=run_data.format,
    )
    for assignment in set:
        field = assignment.partition("=")[0].strip()
        if field not in READING_FIELDS:
            fields = ", ".join(READING_FIELDS)
            raise UserError(f"eval takes no --set {assignment!r}, only {fields}: the other settings are the run's own")
    data = override(RunConfig(data=config), set).data
    check(data)
    return data


def list_runs(path: Path | str = "runs") -> list[dict[str, Any]]:
    """One summary per run in `path`, as `isoflop runs` shows it."""
    rows = []
    for run in find_runs(path):
        last_heldout = run.heldout[-1] if run.heldout else HeldOutLine()
        last_training = run.training[-1] if run.training else TrainingLine()
        expected = run.plan.expected or Expectation()
        rows.append(
            {
                "run": str(run.folder.path),
                "status": run.status,
                "parameters": run.plan.total_parameters or run.plan.parameters,
                "steps": last_training.step or 0,
                "tokens": last_training.tokens or 0,
                "seconds": float(run.result.seconds or last_training.seconds or 0.0),
                "bits_per_byte": run.result.heldout.bits_per_byte or last_heldout.heldout_bits_per_byte,
                "expected": expected.bits_per_byte,
            }
        )
    return rows


def was_imported(path: Path) -> bool:
    folder = run_folder_of(path)
    return RunFolder(folder).config.is_file() and read_run(folder).status == "imported"
