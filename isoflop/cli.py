"""The command line: a thin shell. Each command parses, calls one public function and prints.

Imports are inside the commands, so that `isoflop --help` does not wait for torch.
"""

import io
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from isoflop import __version__
from isoflop.errors import UserError

Sources = Annotated[
    tuple[str, ...],
    tyro.conf.Positional,
    tyro.conf.arg(
        metavar="[SOURCE ...]",
        help_behavior_hint="",
        help="PATH, NAME=PATH or NAME=PATH:WEIGHT; a file, folder, glob or -",
    ),
]
Trusted = Annotated[
    tuple[str, ...],
    tyro.conf.UseAppendAction,
    tyro.conf.arg(metavar="PACKAGE", help="a package whose blocks a config may name"),
]
RunArgument = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN", help="a run folder")]


def train(
    sources: Sources = (),
    *,
    budget: Annotated[
        str,
        tyro.conf.arg(
            metavar="BUDGET",
            help_behavior_hint="(default: 3m)",
            help="90s, 3m, 2h, 1e15 (FLOPs), 5e6tok, 2000steps; +1h with --resume",
        ),
    ] = "",
    out: Annotated[
        Path | None,
        tyro.conf.arg(metavar="DIR", help_behavior_hint="", help="the run folder; by default a new one in runs/"),
    ] = None,
    recipe: Annotated[
        str,
        tyro.conf.arg(metavar="FILE.py:NAME", help_behavior_hint="", help="a Python function that returns a RunConfig"),
    ] = "",
    config: Annotated[
        Path | None, tyro.conf.arg(metavar="FILE.json", help_behavior_hint="", help="a config.json, to be run again")
    ] = None,
    task: Annotated[
        Literal["causal_lm", "seq2seq"],
        tyro.conf.arg(
            help="seq2seq: an encoder-decoder on pairs, one a line, input and output divided by a tab or blank"
        ),
    ] = "causal_lm",
    init: Annotated[
        str, tyro.conf.arg(metavar="RUN", help_behavior_hint="", help="go on from the weights of any run, on new text")
    ] = "",
    heldout: Annotated[
        tuple[str, ...],
        tyro.conf.UseAppendAction,
        tyro.conf.arg(metavar="PATH", help="text to measure on instead of a share"),
    ] = (),
    resume: Annotated[
        str | None, tyro.conf.arg(metavar="RUN", help_behavior_hint="", help="go on with a run that was stopped")
    ] = None,
    dry_run: Annotated[bool, tyro.conf.arg(help="print the plan and train nothing")] = False,
    strict: Annotated[bool, tyro.conf.arg(help="files that would be skipped are errors")] = False,
    profile: Annotated[bool, tyro.conf.arg(help="show in the report where the time of a few steps goes")] = False,
    set: Annotated[
        tuple[str, ...],
        tyro.conf.UseAppendAction,
        tyro.conf.arg(metavar="FIELD=VALUE", help="overrule one field, as in model.norm=layer"),
    ] = (),
    trust_code: Trusted = (),
) -> None:
    """Pretrain a GPT on raw text within a budget."""
    from isoflop import job
    from isoflop.config import override, to_dict
    from isoflop.files import to_json
    from isoflop.model.registry import trust_code as trusting
    from isoflop.parallel.mesh import talks
    from isoflop.recipe import load_recipe
    from isoflop.screen import Screen, show_outcome, show_plan
    from isoflop.trainer.profile import Profile

    with trusting(*trust_code):
        screen = Screen(quiet=not talks())
        listener = job.Listener(
            say=screen.say,
            progress=screen.progress,
            planned=lambda advice: show_plan(screen, advice),
            hooks=(Profile(), screen) if profile else (screen,),
            peak=lambda flops: setattr(screen, "peak", flops),
        )
        if resume is not None:
            if not resume:  # a variable that is not set, most likely; it is not a run from the beginning that is meant
                raise UserError("--resume names nothing; name the run's folder: `isoflop runs` lists them")
            refuse_with_resume(
                {
                    "SOURCE": sources,
                    "--out": out,
                    "--recipe": recipe,
                    "--config": config,
                    "--init": init,
                    "--heldout": heldout,
                    "--strict": strict,
                    "--dry-run": dry_run,
                }
            )
            show_outcome(screen, job.resume(resume, budget, assignments=set, listener=listener).folder)
            return
        base = load_recipe(recipe, config, set)
        if base is not None and not budget:
            base = job.with_sources(base, sources, heldout, strict)
            if init:
                base = override(job.start_from(base, init)[0], set)
            if dry_run:
                screen.say(to_json(to_dict(base)))
                return
            show_outcome(screen, job.train(base, out, listener=listener).folder)
            return
        result = job.pretrain(
            sources,
            budget or "3m",
            out,
            base=base,
            assignments=set,
            heldout=heldout,
            init=init,
            strict=strict,
            task=task,
            dry_run=dry_run,
            listener=listener,
        )
        if not dry_run:
            show_outcome(screen, result.folder)  # type: ignore[union-attr]


def prepare(
    sources: Sources = (),
    *,
    out: Annotated[Path, tyro.conf.arg(help="a new folder for the prepared text")],
    heldout: Annotated[
        tuple[str, ...],
        tyro.conf.UseAppendAction,
        tyro.conf.arg(metavar="PATH", help="text to measure on instead of a share"),
    ] = (),
    strict: Annotated[bool, tyro.conf.arg(help="files that would be skipped are errors")] = False,
    set: Annotated[
        tuple[str, ...],
        tyro.conf.UseAppendAction,
        tyro.conf.arg(metavar="FIELD=VALUE", help="overrule one field, as in data.vocab_size=4096"),
    ] = (),
) -> None:
    """Turn text into tokens: the data step of `train` alone. Train on it with --set data.path=DIR."""
    from isoflop.config import override
    from isoflop.data.config import DataConfig
    from isoflop.data.prepare import prepare as prepare_data
    from isoflop.screen import Screen, show_account
    from isoflop.trainer.config import RunConfig

    screen = Screen()
    data = DataConfig(sources=sources, heldout=heldout, strict=strict)
    prepared = prepare_data(override(RunConfig(data=data), set).data, out, screen.progress)
    screen.close()
    show_account(screen, prepared.account())
    screen.say(f"prepared: {prepared.folder}")


def sample(
    run: RunArgument,
    *,
    prompt: Annotated[str, tyro.conf.arg(help="text to continue, empty: a new document; seq2seq: the input")] = "",
    tokens: Annotated[int, tyro.conf.arg(help="how many to write at most")] = 200,
    temperature: Annotated[
        float | None, tyro.conf.arg(help="0: the most likely token always; 0.8 if nothing is said")
    ] = None,
    top_k: Annotated[int, tyro.conf.arg(help="only the k most likely tokens; 0: all")] = 0,
    top_p: Annotated[float, tyro.conf.arg(help="only the most likely tokens that make up this share")] = 0.95,
    seed: Annotated[int, tyro.conf.arg(help="the same seed writes the same text")] = 0,
    beam: Annotated[int, tyro.conf.arg(help="seq2seq: hypotheses kept; 1 is greedy")] = 1,
    dtype: Annotated[
        str, tyro.conf.arg(help="float32, or bfloat16: rounded weights, with which a large model writes faster")
    ] = "float32",
    stream: Annotated[bool, tyro.conf.arg(help="show each piece as it is made")] = False,
    trust_code: Trusted = (),
) -> None:
    """Let a model continue a text, or write its output for an input."""
    from isoflop import job
    from isoflop.model.registry import trust_code as trusting

    def show(piece: str) -> None:
        sys.stdout.write(piece)
        sys.stdout.flush()

    with trusting(*trust_code):
        text = job.sample(
            run,
            prompt,
            tokens=tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            on_text=show if stream else None,
            with_prompt=True,
            beam=beam,
            dtype=dtype,
        )
        print() if stream else print(text)


def evaluate(
    run: RunArgument,
    sources: Sources = (),
    *,
    json: Annotated[bool, tyro.conf.arg(help="print one JSON object")] = False,
    beam: Annotated[int, tyro.conf.arg(help="seq2seq: hypotheses kept in decoding; 1 is greedy")] = 1,
    text_column: Annotated[
        str, tyro.conf.arg(help="the column of .jsonl and .parquet files that holds the text")
    ] = "text",
    trust_code: Trusted = (),
) -> None:
    """Measure held-out loss (and error rates, for seq2seq) on what the run held out itself, or on the sources named."""
    from isoflop import job
    from isoflop.files import to_json
    from isoflop.model.registry import trust_code as trusting

    with trusting(*trust_code):
        found = job.evaluate(run, sources, text_column, beam).to_dict()
    if json:
        print(to_json(found), end="")
        return
    for name, value in found.items():
        shown = f"{value:,.4f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else value
        print(f"{name:>15}  {shown}")


def import_model(
    path: Annotated[
        Path,
        tyro.conf.Positional,
        tyro.conf.arg(metavar="PATH", help="a Hugging Face folder, a .gguf or a llama2.c .bin"),
    ],
    *,
    out: Annotated[Path, tyro.conf.arg(help="the new run folder")],
    tokenizer: Annotated[
        str, tyro.conf.arg(metavar="FILE", help="tokenizer.json, vocab.bpe or llama2.c's tokenizer.bin, if not its own")
    ] = "",
    context: Annotated[
        int, tyro.conf.arg(help="positions to keep; 0: all, at most 8,192 where positions are rotary")
    ] = 0,
) -> None:
    """Make a run of a model from elsewhere."""
    from isoflop import job

    made = job.import_model(path, out, tokenizer=tokenizer, context=context)
    print(f"imported: {made.folder} ({made.kind}, {made.parameters:,} parameters)")
    print(f"talk to it: isoflop sample {made.folder} --prompt TEXT")


def export_model(
    run: RunArgument,
    *,
    to: Annotated[str, tyro.conf.arg(metavar="hf|gguf", help="a Hugging Face folder, or llama.cpp's file")],
    out: Annotated[Path, tyro.conf.arg(help="a new folder")],
    trust_code: Trusted = (),
) -> None:
    """Write a model in another format, read it back and compare."""
    from isoflop import job
    from isoflop.model.registry import trust_code as trusting

    with trusting(*trust_code):
        made = job.export_model(run, to, out)
    print(f"exported: {made.folder} ({made.kind}, {made.parameters:,} parameters)")
    print(f"read back: same token ids, logits within {made.difference:.1e} of the largest")


def report(
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN [RUN ...]", help="run folders")],
    *,
    out: Annotated[Path | None, tyro.conf.arg(help="the HTML file; by default in the first run's folder")] = None,
) -> None:
    """Write the report of a run, also one that is still training, or compare several."""
    from isoflop.report.page import write_report

    print(write_report(list(runs), out))


def runs(
    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="[DIR]", help="where to look")] = Path("runs"),
) -> None:
    """List runs."""
    from isoflop import job
    from isoflop.screen import Screen, show_runs

    show_runs(Screen(), folder, job.list_runs(folder))


def config() -> None:
    """List every field of a run's configuration: its type, default and meaning."""
    from isoflop.config import describe
    from isoflop.trainer.config import RunConfig

    for field in describe(RunConfig):
        print(f"{field.name:28} {field.type:28} {field.default}\n{'':4}{field.meaning}")


COMMANDS: dict[str, Callable[..., None]] = {
    "train": train,
    "prepare": prepare,
    "sample": sample,
    "eval": evaluate,
    "import": import_model,
    "export": export_model,
    "report": report,
    "runs": runs,
    "config": config,
}


def run(arguments: Sequence[str]) -> int:
    """Run one command.

    Returns:
        The exit code: 0; 2 for anything the user can mend, told in one line; 1 for a run that diverged; 128 + signal
        for a run that was stopped and saved. Of several processes under torchrun one says why, and all give the code;
        torchrun itself says more, and gives 1 for any of them (parallel/mesh.py).
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that lacks a character of a sample is no reason to fail
    if list(arguments) == ["--version"]:
        print(f"isoflop {__version__}")
        return 0
    try:
        tyro.extras.subcommand_cli_from_dict(
            COMMANDS,
            prog="isoflop",
            description="Raw text and a compute budget in, the best GPT that the budget can buy out.",
            args=spread_set(arguments),
            config=(tyro.conf.FlagCreatePairsOff,),
        )
    except UserError as error:
        print(f"isoflop: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("isoflop: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 0
    except Exception as error:
        return stopped_run(error)
    return 0


def stopped_run(error: Exception) -> int:
    """The exit code of a run that ended early, said in one line; anything else is raised again."""
    from isoflop.parallel.mesh import Lost, Told
    from isoflop.trainer.guard import Diverged, Interrupted, Signals

    for number in Signals.CAUGHT:  # torchrun sends one to all when the first has left; the exit code is said already
        signal.signal(number, signal.SIG_IGN)
    if isinstance(error, Told):
        return error.exit_code
    if isinstance(error, Interrupted):
        print(f"isoflop: {error}; saved. Go on with: isoflop train --resume {error.folder}", file=sys.stderr)
        return error.exit_code
    if isinstance(error, Diverged | Lost):
        print(f"isoflop: {error}", file=sys.stderr)
        return 1
    raise error


def spread_set(arguments: Sequence[str]) -> list[str]:
    """Let one --set be followed by several assignments: `--set a.b=1 c.d=2` as `--set a.b=1 --set c.d=2`.

    A word counts as an assignment if what is before its first "=" begins with a field of RunConfig; sources such as
    `books=PATH` are left alone.
    """
    spread: list[str] = []
    open_set = False  # whether the last flag was --set and has its first assignment
    for word in arguments:
        if word.startswith("--") or not open_set:
            open_set = False
        elif is_assignment(word):
            spread.append("--set")
        if spread and spread[-1] == "--set":
            open_set = True
        spread.append(word)
    return spread


def is_assignment(word: str) -> bool:
    from isoflop.trainer.config import RunConfig

    return word.partition("=")[0].partition(".")[0] in RunConfig.__dataclass_fields__ and "=" in word


def refuse_with_resume(given: dict[str, Any]) -> None:
    for name, value in given.items():
        if value:
            raise UserError(f"{name} does not go with --resume: a run goes on as its config.json says")
