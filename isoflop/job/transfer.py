"""Imports models of other formats as runs, and exports runs to them."""

from dataclasses import dataclass
from pathlib import Path

from isoflop import checkpoint, export
from isoflop.config import to_dict
from isoflop.data.config import DataConfig
from isoflop.errors import UserError, quoted
from isoflop.files import disk_errors, new_folder, write_json, write_text
from isoflop.job.reopen import run_folder_of
from isoflop.model.build import MODELS
from isoflop.model.count import count
from isoflop.model.gpt import GPT
from isoflop.records import Plan, RunFolder
from isoflop.runtime import describe_machine
from isoflop.trainer.config import RunConfig, RuntimeConfig


@dataclass(frozen=True)
class Transfer:
    """The result of an import or export.

    Attributes:
        folder: of the new run, or of the export.
        kind: format and architecture.
        parameters: all weights.
        difference: largest difference between the logits of the run and of the export read back, relative to the
            largest logit; None for an import.
        notes: what a reader of the export has to know.
    """

    folder: Path
    kind: str
    parameters: int
    difference: float | None = None
    notes: tuple[str, ...] = ()


def import_model(
    path: Path | str, out: Path | str, *, tokenizer: str = "", context: int = 0, end_of_text: str = ""
) -> Transfer:
    """Import a model as a run: a Hugging Face folder, a .gguf, or a llama2.c .bin.

    The run has a checkpoint of step 0 and no training. It can be sampled, evaluated on text that is named, listed,
    exported, and used as initial weights with --init.

    Args:
        out: the run folder, which must be new or empty.
        tokenizer, context, end_of_text: see export.read.

    Raises:
        UserError: for anything that cannot be used, before anything is written.
    """
    final = Path(out)
    RunFolder(final).refuse_used()
    if final.is_dir() and any(final.iterdir()):
        raise UserError(f"--out {final} is not empty; name a new folder")

    if RunFolder(Path(path)).checkpoints.is_dir():
        raise UserError(
            f"{path} is a run already, ready for isoflop sample, eval and export; to train from its weights: isoflop "
            f"train SOURCE --init {quoted(path)}"
        )
    bundle = export.read(Path(path), tokenizer, context, end_of_text)
    model = bundle.model()
    parameters = count(model)
    # the run's own tokenizer, so that config.json can be trained unchanged
    data = DataConfig(tokenizer=str((final / "tokenizer.json").resolve()))
    config = to_dict(RunConfig(model=bundle.config, data=data, runtime=RuntimeConfig(device="cpu", dtype="float32")))
    plan = Plan.imported(str(path), bundle.source, parameters.matmul, parameters.total)

    with disk_errors(f"the run folder {final}"), new_folder(final) as temporary:
        folder = RunFolder(temporary)
        checkpoint.write(
            checkpoint.take(
                folder.checkpoints,
                step=0,
                model=model,
                optimizers=(),
                config=config,
                tokenizer=bundle.tokenizer,
                fingerprint="",
                progress={"seconds": 0.0, "tokens": 0},
            )
        )
        write_json(folder.plan, plan.to_dict())
        write_json(folder.environment, describe_machine("cpu"))
        write_text(folder.tokenizer, bundle.tokenizer)
        write_json(folder.config, config)
        folder.event("imported", source=str(path), format=bundle.source)
    return Transfer(final, bundle.source, parameters.total)


def export_model(run: Path | str, to: str, out: Path | str, *, own_code: bool = False) -> Transfer:
    """Write the last checkpoint of a run in another format, with its model card, completely or not at all. The files
    are read back before they are kept, and their logits and token ids compared with those of the run.

    Args:
        to: one of export.FORMATS.
        out: a new folder.
        own_code: write isoflop's own modeling code also if an architecture of the format fits (docs/export.md).

    Raises:
        UserError: naming the block that the format cannot express; if the folder is not new.
    """
    export.check_target(to, own_code)
    final = Path(out)
    if final.exists() and (not final.is_dir() or any(final.iterdir())):
        raise UserError(f"--out {final} is not empty; name a new folder")
    model, _, snapshot = checkpoint.load_model(run)
    if not isinstance(model, GPT):
        kind = MODELS[snapshot.task].kind
        raise UserError(
            f"{run} is an {kind} (--task {snapshot.task}), which no format supports; --task causal_lm trains a GPT"
        )
    bundle = export.Bundle(model.config, snapshot.weights, snapshot.tokenizer)
    needed = export.needs_own_code(bundle.config, to)
    notes = export.OWN_CODE_NOTES if needed or own_code else ()
    with disk_errors(f"the export {final}"), new_folder(final) as temporary:
        folder = run_folder_of(Path(run).resolve())
        architecture, difference = export.write(bundle, to, temporary, folder.name, own_code)
        if RunFolder(folder).config.is_file():
            from isoflop.report.card import write_card  # noqa: PLC0415 - matplotlib loads as long as a start takes

            write_card(folder, temporary / "README.md", notes=notes)
    ways = ("for a model that fits every format, train with --set model=portable",) if needed else ()
    return Transfer(final, f"{to} {architecture}", count(model).total, difference, (*notes, *ways))
