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
from typing import TYPE_CHECKING, Any

# A package sets its name in its parent when it is first imported. This one is imported before the function of the same
# name is defined below, so that no later import takes the function's place (tests/test_public.py).
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

# classes by module, imported when first asked for, as what the functions below call is: `import isoflop` and
# `isoflop --help` do not wait for torch
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


def several(given: Texts) -> tuple[str, ...]:
    """What was given as a list of strings: one string or path is a list of one, not of its characters."""
    return (str(given),) if isinstance(given, str | Path) else tuple(map(str, given))


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
    """Pretrain the best GPT that `budget` buys on `sources`, and show on standard output how far it is.

    Args:
        sources: a file, folder, glob or "-", or several, each as [NAME=]PATH[@COLUMN][:WEIGHT]; none: the running
            Python's standard library.
        budget: "90s", "3m", "2h", "1e15" (FLOPs), "5e6tok", "2000steps".
        out: the run folder, which must not hold a run; by default a new one in `runs/`.
        base: a configuration whose model and rates are kept, and only its length chosen.
        assignments: "dotted.field=value" strings that overrule the plan, such as "model.norm=layer".
        heldout: text to measure on, in place of a share of the sources.
        init: a run whose weights and tokenizer to start from.
        strict: skipped files are errors.
        task: "causal_lm", or "seq2seq": an encoder-decoder on pairs, one per line.
        dry_run: return the plan and train nothing.
        pilots: make tiny runs on the text first, within 5 % of the budget, where they make the forecast better.
        quiet: show nothing.
        listener: told what happens, in place of standard output.

    Returns:
        What the run came to, or the plan with `dry_run`.

    Raises:
        UserError: for anything that cannot be used, before anything is written.
    """
    from isoflop import job
    from isoflop.screen import shown

    with shown(listener, quiet) as screen:
        return screen.outcome(
            job.pretrain(
                several(sources),
                str(budget),
                out,
                base=base,
                assignments=several(assignments),
                heldout=several(heldout),
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
    """Train a configuration as it is: a recipe, or a run's config.json.

    Args:
        out: the run folder, which must not hold a run; by default a new one in `runs/`.
        quiet: show nothing.
        listener: told what happens, in place of standard output.
        expected: the loss to compare with afterwards.

    Raises:
        UserError: for anything that cannot be used, before anything is written.
    """
    from isoflop import job
    from isoflop.screen import shown

    with shown(listener, quiet) as screen:
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
    """Resume a run from its last checkpoint; with a budget such as "+1h", from before its decay.

    Args:
        sources: where the run's text is now, if it was moved; it has to be the same text.
        heldout: where the held-out text is now that the run was given, if it was moved.
        assignments: "parallel.mode=fsdp" and the like: where and by how many processes a run computes may change on its
            way, as nothing that it learns depends on it.
        quiet: show nothing.
        listener: told what happens, in place of standard output.

    Raises:
        UserError: if there is no run, it is finished and no budget is added, or its data changed.
    """
    from isoflop import job
    from isoflop.screen import shown

    with shown(listener, quiet) as screen:
        moved = {"sources": several(sources), "heldout": several(heldout)}
        done = job.resume(out, budget, **moved, assignments=several(assignments), listener=screen.listener)
        return screen.outcome(done)


def load(run: Path | str, device: str = "cpu") -> "tuple[Model, Tokenizer]":
    """The model of a run's last checkpoint, ready to evaluate or sample, and its tokenizer.

    Raises:
        UserError: if there is no run, it has no checkpoint yet, or its files are damaged.
    """
    from isoflop import job

    return job.load(run, device)


def sample(
    run: Path | str,
    prompt: str = "",
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
    """Let a run's last checkpoint continue `prompt`, or (seq2seq) write its output for `prompt`.

    Args:
        prompt: text to continue; empty: a new document.
        tokens: how many to write at most.
        temperature: 0: the most likely token always; None is 0.8.
        top_k: only the k most likely tokens; 0: all.
        top_p: only the most likely tokens that make up this share.
        seed: the same seed writes the same text.
        on_text: given each piece of text as it is made.
        with_prompt: the text begins with the prompt.
        beam: seq2seq: hypotheses kept; 1 is greedy. An encoder-decoder takes none of temperature, top_k and top_p.
        dtype: "float32", or "bfloat16": rounded weights, with which a large model writes faster.
        min_p: only tokens at least this many times as likely as the likeliest; 0: all.
        repetition_penalty: makes tokens that are there already less likely, where it is above 1.
        stops: texts at which the continuation ends.

    Raises:
        UserError: for a run that cannot be read, or an argument that its model has no use for.
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
        stops=several(stops),
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
) -> "HeldOut":
    """Held-out loss of a run on what it held out itself, or on every document (seq2seq: pair) of `sources`.

    Args:
        text_column: of records, holds the text; by default the one that the run was trained on.
        beam: hypotheses kept in decoding (seq2seq); 1 is greedy.
        set: how the sources are to be read, as "data.encoding=cp1252"; by default as the run's own.
        moved: where the run's own text is now, if it was moved, to measure on what the run held out of it.
        heldout: where the held-out text is now that the run was given, if it was moved.
        strict: what of the sources would be skipped is an error.

    Returns:
        Nats per token, perplexity, bits per byte (measure.HeldOut), and for seq2seq error rates.

    Raises:
        UserError: if there is no run or no text.
    """
    from isoflop import job

    return job.evaluate(
        run, several(sources), text_column, beam, several(set), several(moved), several(heldout), strict
    )


def score(
    runs: Texts,
    suites: Texts,
    *,
    items: Path | str = "",
    limit: int = 0,
    contamination: bool = False,
    say: Callable[[str], None] | None = None,
) -> "Scored":
    """Put evaluation suites (docs/evaluation.md) to runs, and compare them item by item.

    Args:
        runs: run folders, or one.
        suites: names of suites, such as "blimp", or paths of suite files, or one of them.
        items: the folder or tar archive that holds the items; "": those of a suite of one's own lie next to its file.
        limit: only so many items of each subset, evenly spaced; 0: all.
        contamination: look for the items in each run's training text, and score without those found too.
        say: is told how far it is, a line at a time.

    Returns:
        `runs`: for each run its scores on the suites; `compared`: every two runs on every suite; `to_dict()`: all of it
        as JSON. Scores are shares of 1 with 95 % intervals, or perplexities.

    Raises:
        UserError: for a run that cannot be read or is no GPT, and for a malformed suite or item.
    """
    from isoflop import job

    return job.score(several(runs), several(suites), items=items, limit=limit, contamination=contamination, say=say)


def __getattr__(name: str) -> Any:
    if name in CLASSES:
        return getattr(import_module(CLASSES[name]), name)
    raise AttributeError(f"module 'isoflop' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
