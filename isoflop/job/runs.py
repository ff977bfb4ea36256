"""What can be done with a run that is there: load it, let it write, measure it, list it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from isoflop import checkpoint
from isoflop.config import from_dict
from isoflop.data.config import DataConfig
from isoflop.data.kinds import find_kind
from isoflop.data.pairs import pairs_to_measure
from isoflop.data.prepare import Progress, documents
from isoflop.data.prepared import Data
from isoflop.data.tokenizer import Tokenizer
from isoflop.errors import UserError
from isoflop.generate.engine import generate
from isoflop.generate.layout import lay_out, narrow
from isoflop.generate.transduce import transduce
from isoflop.job.outcome import judge
from isoflop.measure import HeldOut, measure
from isoflop.model.build import Model
from isoflop.model.encoder_decoder import EncoderDecoder
from isoflop.records import RunFolder, find_runs, read_object, read_run
from isoflop.report.words import number
from isoflop.runtime import DTYPES, choose_device, make_runtime
from isoflop.trainer import RunConfig
from isoflop.trainer.task import make_task

CHUNK_TOKENS = 1_000_000  # tokens of other people's text held at once by `evaluate`


def load(run: Path | str, device: str = "cpu") -> tuple[Model, Tokenizer]:
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
    temperature: float | None = None,
    top_k: int = 0,
    top_p: float = 0.95,
    seed: int = 0,
    on_text: Callable[[str], None] | None = None,
    with_prompt: bool = False,
    beam: int = 1,
    dtype: str = "float32",
) -> str:
    """Let a run's last checkpoint write: on from `prompt`, or (seq2seq) its output for `prompt`.

    Args:
        temperature, ...: see generate/engine.py; None is 0.8. An encoder-decoder writes the likeliest output that a
            search with `beam` hypotheses finds, and takes none of them.
        dtype: bfloat16: the weights that are multiplied are rounded, and a large model writes faster.
        with_prompt: the text that is given back and shown begins with the prompt, where it goes on from it.

    Raises:
        UserError: for a run that cannot be read, or an argument that its model has no use for.
    """
    if dtype not in DTYPES:
        raise UserError(f"--dtype {dtype} is not one of {', '.join(DTYPES)}")
    model, tokenizer = load(run, choose_device())
    if isinstance(model, EncoderDecoder):
        if dtype != "float32":
            raise UserError(f"--dtype {dtype} is for runs that continue a text; leave it out for one of --task seq2seq")
        return output_for(model, tokenizer, prompt, temperature, beam, on_text)
    if beam != 1:
        raise UserError(f"--beam {beam} is for runs of --task seq2seq; this one continues a text, token by token")
    narrow(model) if dtype == "bfloat16" else lay_out(model)
    begun = prompt if with_prompt else ""
    if begun and on_text is not None:
        on_text(begun)
    return begun + generate(
        model,
        tokenizer,
        prompt,
        tokens,
        temperature=0.8 if temperature is None else temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        on_text=on_text,
    )


def output_for(
    model: EncoderDecoder,
    tokenizer: Tokenizer,
    prompt: str,
    temperature: float | None,
    beam: int,
    on_text: Callable[[str], None] | None,
) -> str:
    if temperature:
        raise UserError(
            f"--temperature {temperature:g} is for runs that continue a text; this one (--task seq2seq) writes its "
            "likeliest output: leave it out, or search wider with --beam 4"
        )
    if not prompt:
        raise UserError("--prompt is empty; this run (--task seq2seq) needs an input, as in --prompt WORD")
    [ids] = transduce(model, tokenizer.encode_batch([prompt]), tokenizer.eot, beam)
    text = tokenizer.decode(ids)
    if on_text is not None:
        on_text(text)
    return text


def evaluate(run: Path | str, sources: Sequence[str] = (), text_column: str = "text", beam: int = 1) -> HeldOut:
    """Held-out loss of a run on what it held out itself, or on every document (seq2seq: pair) of `sources`; and what
    its task is judged by beside that.

    Args:
        beam: hypotheses kept in decoding (seq2seq); 1 is greedy.

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
        data: Any = data_of(RunFolder(run_folder_of(Path(run))), run_as, None)
        return judge(run_as, model, data, runtime, beam=beam)
    config = DataConfig(sources=tuple(sources), text_column=text_column)
    if isinstance(model, EncoderDecoder):
        loose = pairs_to_measure(config, tokenizer)
        if loose.pairs.longest > model.config.context:
            raise UserError(
                f"the longest pair in {' '.join(sources)} takes {loose.pairs.longest} positions and the model has "
                f"{model.config.context}: leave longer pairs out"
            )
        return judge(run_as, model, loose, runtime, beam=beam)
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
    count = 0
    for document in documents(config):
        held.append(np.array([*tokenizer.encode(document), tokenizer.eot], dtype=np.int64))
        count += len(held[-1])
        if count >= CHUNK_TOKENS:
            yield np.concatenate(held)
            held, count = [], 0
    if held:
        yield np.concatenate(held)


def list_runs(path: Path | str = "runs") -> list[dict[str, Any]]:
    """One summary for each run below `path`: what `isoflop runs` shows."""
    rows = []
    for run in find_runs(path):
        last = run.heldout[-1] if run.heldout else {}
        latest = run.training[-1] if run.training else {}
        reached = number(run.result, "heldout", "bits_per_byte") or number(last, "heldout_bits_per_byte")
        rows.append(
            {
                "run": str(run.folder.path),
                "status": run.status,
                "parameters": whole(number(run.plan, "parameters")),
                "steps": whole(number(latest, "step")) or 0,
                "tokens": whole(number(latest, "tokens")) or 0,
                "seconds": number(run.result, "seconds") or number(latest, "seconds") or 0.0,
                "bits_per_byte": reached,
                "expected": number(run.plan, "expected", "bits_per_byte"),
            }
        )
    return rows


def whole(value: float | None) -> int | None:
    return None if value is None else round(value)


def data_of(folder: RunFolder, config: RunConfig, progress: Progress | None) -> Data:
    """The prepared data of a run: where it lay when the run began, if it still does, else prepared anew."""
    account = read_object(folder.data)
    where = Path(str(account.get("folder", "")))
    if account.get("folder") and (where / "manifest.json").is_file():
        prepared = make_task(config).open_data(where)
        if prepared.fingerprint == account.get("fingerprint"):
            return prepared
    data = config.data
    if find_kind(data.tokenizer) is None and folder.tokenizer.is_file():  # its own copy: the one named may be gone
        data = replace(data, tokenizer=str(folder.tokenizer))
    return make_task(config).prepare_data(data, progress)


def was_imported(path: Path) -> bool:
    folder = run_folder_of(path)
    return RunFolder(folder).config.is_file() and read_run(folder).status == "imported"


def run_folder_of(path: Path) -> Path:
    """The run that a path belongs to, be it the run's folder or one of its checkpoints."""
    return path.parent.parent if path.parent.name == "checkpoints" else path
