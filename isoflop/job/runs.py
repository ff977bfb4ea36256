"""Work with existing runs: load, sample, evaluate, list."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from isoflop import checkpoint
from isoflop.config import from_dict, override
from isoflop.data.config import DataConfig, check
from isoflop.data.manifest import MANIFEST
from isoflop.data.tokenizer import Tokenizer
from isoflop.errors import UserError, quoted
from isoflop.generate.request import Request
from isoflop.job.outcome import judge
from isoflop.job.reopen import data_of, run_folder_of
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
from isoflop.trainer.task import make_task, task_named

READ_AS = ("data.text_column", "data.encoding", "data.document_separator", "data.format", "data.strict")
EVALUATE = ("isoflop eval RUN", "--moved SOURCE")  # names the new place of a run's text, if it was moved


def load(run: Path | str, device: str = "cpu") -> tuple[Model, Tokenizer]:
    """The model of a run's last checkpoint, in evaluation mode, and its tokenizer.

    Raises:
        UserError: if there is no run, it has no checkpoint yet, or its files are damaged.
    """
    model, tokenizer, _ = checkpoint.load_model(Path(run), device)
    return model.eval(), tokenizer


@torch.no_grad()
def sample(
    run: Path | str,
    prompt: str,
    *,
    tokens: int = 200,
    temperature: float | None = None,
    top_k: int = 0,
    top_p: float = 0.95,
    seed: int = 0,
    on_text: Callable[[str], None] | None = None,
    with_prompt: bool = False,
    beam: int = 1,
    dtype: str = "float32",
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    stops: Sequence[str] = (),
) -> str:
    """Generate text with a run's last checkpoint: a continuation of `prompt`, or (seq2seq) the output for `prompt`.

    Args:
        temperature, ...: see generate/engine.py; None is 0.8. An encoder-decoder returns the likeliest output that a
            beam search with `beam` hypotheses finds, and takes none of these.
        dtype: bfloat16: the weight matrices are rounded, and a large model generates faster.
        with_prompt: a continuation is returned, and shown, with its prompt.

    Raises:
        UserError: for a run that cannot be read, or an argument that does not apply to its model.
    """
    if not isinstance(prompt, str):
        raise UserError(f"the prompt {prompt!r} is not a string; decode bytes first")
    if dtype not in DTYPES:
        raise UserError(f"--dtype {dtype} is not one of {', '.join(DTYPES)}")
    further = (min_p, repetition_penalty, tuple(stops))
    request = Request(tokens, temperature, top_k, top_p, seed, beam, dtype, with_prompt, on_text, *further)
    model, tokenizer, snapshot = checkpoint.load_model(Path(run), choose_device())
    return task_named(snapshot.task).write(model, tokenizer, prompt, request)


def evaluate(
    run: Path | str,
    sources: Sequence[str] = (),
    text_column: str = "",
    beam: int = 1,
    set: Sequence[str] = (),
    moved: Sequence[str] = (),
    heldout: Sequence[str] = (),
    strict: bool = False,
) -> HeldOut:
    """Held-out loss of a run on its own held-out text, or on every document (seq2seq: pair) of `sources`; with the
    task's other metrics.

    Args:
        text_column: the column of records that holds the text; "": the one that the run was trained on.
        beam: hypotheses kept in decoding (seq2seq); 1 is greedy.
        set: assignments to fields of `data` that determine how the sources are read; otherwise they are as in the run.
        moved, heldout: the new places of the run's own text, and of named held-out text, if they were moved.
        strict: raise an error for anything in the sources that would be skipped.

    Raises:
        UserError: if there is no run or no text, for an assignment to another field, or if `moved` is other text.
    """
    path = Path(run)
    refuse_mixed(path, sources, {"--moved": moved, "--heldout": heldout}, {"--set": set, "--strict": strict})
    if text_column and not sources:
        raise only_for_sources("--text-column", path)
    if not sources and was_imported(path):
        raise UserError(f"{run} was imported and has no text of its own; name some: isoflop eval {quoted(run)} SOURCE")

    model, tokenizer, snapshot = checkpoint.load_model(path)
    run_as = from_dict(RunConfig, snapshot.config)
    task = make_task(run_as)
    runtime = make_runtime("auto", run_as.runtime.dtype, run_as.runtime.threads)
    model.to(runtime.device)
    if not sources:
        data: Any = data_of(read_run(run_folder_of(path)), run_as, None, moved, heldout, EVALUATE)
        return judge(task, model, data, runtime, beam=beam)
    named = reading_of(run_as.data, sources, text_column, [*set, *(["data.strict=true"] if strict else [])])
    found = task.measure_sources(model, tokenizer, named, runtime, beam)
    return replace(found, notes=(*found.notes, *trained_on(run_folder_of(path), found)))


def refuse_mixed(run: Path, sources: Sequence[str], own: dict[str, Any], others: dict[str, Any]) -> None:
    """Raise UserError for an option about the run's own text (`own`) with sources, or about sources (`others`) without
    any."""
    for name, value in own.items():
        if value and sources:
            raise UserError(
                f"{name} says where the text of {run} itself is; leave it out, or {sources[0]}: other text is measured "
                f"with isoflop eval {quoted(run)} {quoted(sources[0])}"
            )
    for name, value in others.items():
        if value and not sources:
            raise only_for_sources(name, run)


def only_for_sources(name: str, run: Path) -> UserError:
    return UserError(
        f"{name} says how text that is named is read, and none is: isoflop eval {quoted(run)} SOURCE {name} ...; what "
        "the run held out itself is measured as it was prepared"
    )


def trained_on(folder: Path, found: HeldOut) -> list[str]:
    """A note if the sources have as many bytes as the run's own text: a user who names its new place may expect a
    held-out loss."""
    account = read_run(folder).data if RunFolder(folder).config.is_file() else DataAccount()
    if not found.found_bytes or found.found_bytes != account.found_bytes:
        return []
    prepared = account.folder and (Path(account.folder) / MANIFEST).is_file()
    command = EVALUATE[0] if prepared else " ".join(EVALUATE)
    return [
        f"this is as much text as the run was trained on, {found.found_bytes:,} bytes: if it is that text, the figures "
        f"are not held-out ones; those are given by {command.replace('RUN', quoted(folder))}"
    ]


def reading_of(trained: DataConfig, sources: Sequence[str], text_column: str, set: Sequence[str]) -> DataConfig:
    """Sources that are read like a run's own text.

    Raises:
        UserError: for an assignment to a field that does not determine how text is read.
    """
    named = DataConfig(
        sources=tuple(sources),
        text_column=text_column or trained.text_column,
        encoding=trained.encoding,
        document_separator=trained.document_separator,
        format=trained.format,
    )
    for assignment in set:
        field = assignment.partition("=")[0].strip()
        if field not in READ_AS:
            raise UserError(f"eval takes no --set {assignment!r}; only {', '.join(READ_AS)}: the rest is the run's own")
    data = override(RunConfig(data=named), set).data
    check(data)
    return data


def list_runs(path: Path | str = "runs") -> list[dict[str, Any]]:
    """One summary per run in `path`, as `isoflop runs` shows it."""
    rows = []
    for run in find_runs(path):
        last = run.heldout[-1] if run.heldout else HeldOutLine()
        latest = run.training[-1] if run.training else TrainingLine()
        expected = run.plan.expected or Expectation()
        rows.append(
            {
                "run": str(run.folder.path),
                "status": run.status,
                "parameters": run.plan.total_parameters or run.plan.parameters,
                "steps": latest.step or 0,
                "tokens": latest.tokens or 0,
                "seconds": float(run.result.seconds or latest.seconds or 0.0),
                "bits_per_byte": run.result.heldout.bits_per_byte or last.heldout_bits_per_byte,
                "expected": expected.bits_per_byte,
            }
        )
    return rows


def was_imported(path: Path) -> bool:
    folder = run_folder_of(path)
    return RunFolder(folder).config.is_file() and read_run(folder).status == "imported"
