"""What can be done with a run that is there: load it, let it write, measure it, list it."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from isoflop import checkpoint
from isoflop.config import from_dict, load_json
from isoflop.data.config import DataConfig
from isoflop.data.prepare import Prepared, Progress, documents, open_prepared, prepare
from isoflop.data.tokenizer import Tokenizer
from isoflop.errors import UserError
from isoflop.generate.engine import generate
from isoflop.measure import HeldOut, measure
from isoflop.model.gpt import GPT
from isoflop.records import RunFolder, find_runs, read_run
from isoflop.runtime import choose_device, make_runtime
from isoflop.trainer import RunConfig

CHUNK_TOKENS = 1_000_000  # tokens of other people's text held at once by `evaluate`


def load(run: Path | str, device: str = "cpu") -> tuple[GPT, Tokenizer]:
    """The model of a run's last checkpoint, ready to evaluate or sample, and its tokenizer.

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
    temperature: float = 0.8,
    top_k: int = 0,
    top_p: float = 0.95,
    seed: int = 0,
    on_text: Callable[[str], None] | None = None,
) -> str:
    """Continue `prompt` with a run's last checkpoint; see generate/engine.py for the arguments."""
    model, tokenizer = load(run, choose_device())
    return generate(
        model, tokenizer, prompt, tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed, on_text=on_text
    )


def evaluate(run: Path | str, sources: Sequence[str] = (), text_column: str = "text") -> HeldOut:
    """Held-out loss of a run on its own held-out text, or on every document of `sources`.

    Raises:
        UserError: if there is no run or no text.
    """
    if not sources and was_imported(Path(run)):
        raise UserError(f"{run} was imported and has no text of its own; name some: isoflop eval {run} SOURCE")
    model, tokenizer, snapshot = checkpoint.load_model(Path(run))
    run_as = from_dict(RunConfig, snapshot.config)
    runtime = make_runtime("auto", run_as.runtime.dtype, run_as.runtime.threads)
    model.to(runtime.device)
    if not sources:
        prepared = data_of(RunFolder(run_folder_of(Path(run))), run_as.data, None)
        return measure(model, prepared.heldout(), tokenizer.token_bytes(), tokenizer.eot, runtime)
    config = DataConfig(sources=tuple(sources), text_column=text_column)
    parts = [
        measure(model, tokens, tokenizer.token_bytes(), tokenizer.start, runtime)
        for tokens in token_chunks(config, tokenizer)
    ]
    if not parts:
        raise UserError(f"there is no text in {' '.join(sources)}")
    return HeldOut(sum(p.nats for p in parts), sum(p.tokens for p in parts), sum(p.bytes for p in parts))


def token_chunks(config: DataConfig, tokenizer: Tokenizer) -> Iterator[npt.NDArray[np.int64]]:
    """The tokens of every document of the sources, each followed by end-of-text, some CHUNK_TOKENS at a time."""
    held: list[npt.NDArray[np.int64]] = []
    for document in documents(config):
        held.append(np.array([*tokenizer.encode(document), tokenizer.eot], dtype=np.int64))
        if sum(map(len, held)) >= CHUNK_TOKENS:
            yield np.concatenate(held)
            held = []
    if held:
        yield np.concatenate(held)


def list_runs(path: Path | str = "runs") -> list[dict[str, Any]]:
    """One summary for each run below `path`: what `isoflop runs` shows."""
    rows = []
    for run in find_runs(path):
        last = run.heldout[-1] if run.heldout else {}
        reached = run.result.get("heldout", {}).get("bits_per_byte", last.get("heldout_bits_per_byte"))
        expected = (run.plan.get("expected") or {}).get("bits_per_byte")
        rows.append(
            {
                "run": str(run.folder.path),
                "status": run.status,
                "parameters": run.plan.get("parameters"),
                "steps": run.training[-1]["step"] if run.training else 0,
                "tokens": run.training[-1]["tokens"] if run.training else 0,
                "seconds": run.training[-1]["seconds"] if run.training else 0.0,
                "bits_per_byte": reached,
                "expected": expected,
            }
        )
    return rows


def data_of(folder: RunFolder, data: DataConfig, progress: Progress | None) -> Prepared:
    """The prepared data of a run: where it lay when the run began, if it still does, else prepared anew."""
    account = load_json(folder.data) if folder.data.is_file() else {}
    where = Path(str(account.get("folder", "")))
    if account.get("folder") and (where / "manifest.json").is_file():
        prepared = open_prepared(where)
        if prepared.fingerprint == account.get("fingerprint"):
            return prepared
    return prepare(data, progress=progress)


def was_imported(path: Path) -> bool:
    folder = run_folder_of(path)
    return RunFolder(folder).config.is_file() and read_run(folder).status == "imported"


def run_folder_of(path: Path) -> Path:
    """The run that a path belongs to, be it the run's folder or one of its checkpoints."""
    return path.parent.parent if path.parent.name == "checkpoints" else path
