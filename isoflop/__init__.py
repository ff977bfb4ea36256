"""isoflop: raw text and a compute budget in, the best GPT that the budget can buy out.

import isoflop

isoflop.pretrain(["books=books.jsonl.xz"], budget="3m", out="runs/books")
print(isoflop.sample("runs/books", "It was"))
print(isoflop.evaluate("runs/books").bits_per_byte)
model, tokenizer = isoflop.load("runs/books")
"""

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

# A package sets its name in its parent when it is first imported. This one is imported before the function of the same
# name is defined below, so that no later import replaces the function (tests/test_public.py).
import isoflop.evaluate  # noqa: F401
from isoflop.errors import UserError

if TYPE_CHECKING:
    from isoflop.data.tokenizer import Tokenizer
    from isoflop.job import Listener
    from isoflop.job.suites import Scored
    from isoflop.measure import HeldOut
    from isoflop.model.build import Model
    from isoflop.model.config import ModelConfig as ModelConfig
    from isoflop.plan.advice import Advice
    from isoflop.records import Expectation
    from isoflop.trainer import RunConfig as RunConfig
    from isoflop.trainer import RunResult

__version__ = "0.1.0"

# Classes by module. They are imported on first use, like everything that the functions below call, so that
# `import isoflop` and `isoflop --help` do not wait for torch.
CLASSES = {"ModelConfig": "isoflop.model.config", "RunConfig": "isoflop.trainer.config"}

__all__ = [
    "ModelConfig",
    "RunConfig",
    "UserError",
    "evaluate",
    "load",
    "pretrain",
    "resume",
    "sample",
    "score",
    "train",
]

Texts = Sequence[str | Path] | Path  # one path, or several
Prompts = list[str] | tuple[str, ...]


def as_tuple(paths: Texts) -> tuple[str, ...]:
    """Paths as a tuple of strings. A single string is one path, not a sequence of characters."""
    return (str(paths),) if isinstance(paths, str | Path) else tuple(map(str, paths))


def pretrain(
    sources: Texts = (),
    budget: str = "3m",
    out: Path | str | None = None,
    *,
    base: "RunConfig | None" = None,
    assignments: Sequence[str] = (),
    heldout: Texts = (),
    init: Path | str = "",
    strict: bool = False,
    task: str = "causal_lm",
    dry_run: bool = False,
    pilots: bool = True,
    quiet: bool = False,
    listener: "Listener | None" = None,
) -> "RunResult | Advice":
    """Pretrain the best GPT that `budget` buys on `sources`, with progress on standard output.

    Args:
        sources: a file, folder, glob or "-", or several, each as [NAME=]PATH[@COLUMN][:WEIGHT]; none: the running
            Python's standard library.
        budget: "90s", "3m", "2h", "1e15" (FLOPs), "5e6tok", "2000steps".
        out: the run folder, which must not hold a run; by default a new one in `runs/`.
        base: a configuration whose model and learning rates are kept; only its length is planned.
        assignments: "dotted.field=value" strings that overrule the plan, such as "model.norm=layer".
        heldout: held-out text, in place of a share of the sources.
        init: a run whose weights and tokenizer to start from.
        strict: treat files that would be skipped as errors.
        task: "causal_lm", or "seq2seq": an encoder-decoder on pairs, one per line.
        dry_run: return the plan and train nothing.
        pilots: first make tiny runs on the text, within 5 % of the budget, if they improve the forecast.
        quiet: show nothing.
        listener: receives progress reports, in place of standard output.

    Returns:
        The run's result, or the plan with `dry_run`.

    Raises:
        UserError: for unusable arguments or text, before anything is written.
    """
    from isoflop import job
    from isoflop.screen import open_screen

    with open_screen(listener, quiet) as screen:
        return screen.outcome(
            job.pretrain(
                as_tuple(sources),
                str(budget),
                out,
                base=base,
                assignments=as_tuple(assignments),
                heldout=as_tuple(heldout),
                init=init,
                strict=strict,
                task=task,
                dry_run=dry_run,
                pilots=pilots,
                listener=screen.listener,
            )
        )


def train(
    config: "RunConfig",
    out: Path | str | None = None,
    *,
    quiet: bool = False,
    listener: "Listener | None" = None,
    expected: "Expectation | None" = None,
) -> "RunResult":
    """Train a given configuration: a recipe, or a run's config.json.

    Args:
        out: the run folder, which must not hold a run; by default a new one in `runs/`.
        quiet: show nothing.
        listener: receives progress reports, in place of standard output.
        expected: the loss to compare with afterwards.

    Raises:
        UserError: for an unusable configuration or text, before anything is written.
    """
    from isoflop import job
    from isoflop.screen import open_screen

    with open_screen(listener, quiet) as screen:
        return screen.outcome(job.train(config, out, listener=screen.listener, expected=expected))


def resume(
    out: Path | str,
    budget: str = "",
    *,
    sources: Texts = (),
    heldout: Texts = (),
    assignments: Sequence[str] = (),
    quiet: bool = False,
    listener: "Listener | None" = None,
) -> "RunResult":
    """Resume a run from its last checkpoint; with a budget such as "+1h", from the checkpoint before its decay.

    Args:
        sources: the new place of the run's text, if it was moved; it must be the same text.
        heldout: the new place of the held-out text that was named, if it was moved.
        assignments: such as "parallel.mode=fsdp": settings of where and by how many processes the run computes, which
            do not affect what is learned.
        quiet: show nothing.
        listener: receives progress reports, in place of standard output.

    Raises:
        UserError: if there is no run, it is finished and no budget is added, or its data has changed.
    """
    from isoflop import job
    from isoflop.screen import open_screen

    with open_screen(listener, quiet) as screen:
        moved = {"sources": as_tuple(sources), "heldout": as_tuple(heldout)}
        result = job.resume(out, budget, **moved, assignments=as_tuple(assignments), listener=screen.listener)
        return screen.outcome(result)


def load(run: Path | str, device: str = "cpu") -> "tuple[Model, Tokenizer]":
    """The model of a run's last checkpoint, in evaluation mode, and its tokenizer.

    Raises:
        UserError: if there is no run, it has no checkpoint yet, or its files are damaged.
    """
    from isoflop import job

    return job.load(run, device)


@overload
def sample(
    run: Path | str,
    prompt: str = ...,
    *,
    tokens: int = ...,
    temperature: float | None = ...,
    top_k: int = ...,
    top_p: float = ...,
    seed: int = ...,
    on_text: Callable[[str], None] | None = ...,
    with_prompt: bool = ...,
    beam: int = ...,
    dtype: str = ...,
    min_p: float = ...,
    repetition_penalty: float = ...,
    stops: Sequence[str] = ...,
) -> str: ...


@overload
def sample(
    run: Path | str,
    prompt: Prompts,
    *,
    tokens: int = ...,
    temperature: float | None = ...,
    top_k: int = ...,
    top_p: float = ...,
    seed: int = ...,
    on_text: Callable[[str], None] | None = ...,
    with_prompt: bool = ...,
    beam: int = ...,
    dtype: str = ...,
    min_p: float = ...,
    repetition_penalty: float = ...,
    stops: Sequence[str] = ...,
) -> list[str]: ...


def sample(
    run: Path | str,
    prompt: str | Prompts = "",
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
) -> str | list[str]:
    """Generate text with a run's last checkpoint: a continuation of `prompt`, or (seq2seq) the output for `prompt`.

    Args:
        prompt: text to continue; empty: a new document. A list of prompts, of any lengths, is continued as one batch;
            prompt number i gets the text that it gets alone with the seed `seed + i`.
        tokens: the most new tokens.
        temperature: 0: always the most likely token; None: 0.8.
        top_k: only the k most likely tokens; 0: all.
        top_p: only the most likely tokens that make up this share of probability.
        seed: the same seed generates the same text.
        on_text: called with each piece of the text as it is generated; for one prompt.
        with_prompt: the returned text begins with the prompt.
        beam: seq2seq: beam width; 1 is greedy. An encoder-decoder takes none of temperature, top_k and top_p.
        dtype: "float32", or "bfloat16": rounded weights, faster for large models.
        min_p: only tokens at least this fraction as likely as the likeliest; 0: all.
        repetition_penalty: the logits of tokens already in the text are divided by it; 1: no penalty.
        stops: strings before which the text ends.

    Returns:
        The text; for a list of prompts a list of texts, in their order.

    Raises:
        UserError: for a run that cannot be read, or an argument that does not apply to its model.
    """
    from isoflop import job
    from isoflop.generate.request import Request

    request = Request(
        tokens=tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        beam=beam,
        dtype=dtype,
        with_prompt=with_prompt,
        on_text=on_text,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        stops=as_tuple(stops),
    )
    return job.sample(run, prompt, request)


def evaluate(
    run: Path | str,
    sources: Texts = (),
    text_column: str = "",
    beam: int = 1,
    set: Sequence[str] = (),
    moved: Texts = (),
    heldout: Texts = (),
    strict: bool = False,
    windows: str = "",
) -> "HeldOut":
    """Evaluate a run on its own held-out text, or on each document (seq2seq: pair) of `sources`.

    Args:
        text_column: the column of records that holds the text; by default as in training.
        beam: beam width (seq2seq); 1 is greedy.
        set: how the sources are read, such as "data.encoding=cp1252"; by default as in training.
        moved: the new place of the run's own text, if it was moved.
        heldout: the new place of the held-out text that was named, if it was moved.
        strict: treat files that would be skipped as errors.
        windows: "running" through all documents, or "documents", each beginning with one; by default as in training.

    Returns:
        Nats per token, perplexity and bits per byte (measure.HeldOut); for seq2seq also error rates.

    Raises:
        UserError: if there is no run or no text.
    """
    from isoflop import job

    return job.evaluate(
        run, as_tuple(sources), text_column, beam, as_tuple(set), as_tuple(moved), as_tuple(heldout), strict, windows
    )


def score(
    runs: Texts,
    suites: Texts,
    *,
    items: Path | str = "",
    limit: int = 0,
    contamination: bool = False,
    moved: Texts = (),
    say: Callable[[str], None] | None = None,
) -> "Scored":
    """Score runs on evaluation suites (docs/evaluation.md), and compare the runs item by item.

    Args:
        runs: one or several run folders.
        suites: one or several suites, by name (such as "blimp") or by the path of a suite file.
        items: the folder or tar archive with the items; "": next to the suite's own file.
        limit: items per subset, evenly spaced; 0: all.
        contamination: look for the items in each run's training text, and also score without those found.
        moved: for the contamination of one run, the new places of its text, if that was moved.
        say: called with one line of progress at a time.

    Returns:
        `runs`: the scores of each run on the suites; `compared`: comparisons of all pairs of runs on all suites;
        `to_dict()`: both as JSON. Scores are shares between 0 and 1 with 95 % intervals, or perplexities.

    Raises:
        UserError: for a run that cannot be read or is not a GPT, and for a malformed suite or item.
    """
    from isoflop import job

    how: Any = {"items": items, "limit": limit, "contamination": contamination, "moved": as_tuple(moved), "say": say}
    return job.score(as_tuple(runs), as_tuple(suites), **how)


def __getattr__(name: str) -> Any:
    if name in CLASSES:
        return getattr(import_module(CLASSES[name]), name)
    raise AttributeError(f"module 'isoflop' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
