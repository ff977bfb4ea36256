"""The commands that use a trained model: `sample` and `eval`."""

import sys
from dataclasses import replace
from typing import Annotated

import tyro

from isoflop.cli.arguments import RunArgument, Sources, Strict, Trusted


def sample(
    run: RunArgument,
    *,
    prompt: Annotated[str, tyro.conf.arg(help="text to continue, empty: a new document; seq2seq: the input")] = "",
    tokens: Annotated[int, tyro.conf.arg(help="the most tokens to write")] = 200,
    temperature: Annotated[float | None, tyro.conf.arg(help="0: always the most likely token; default: 0.8")] = None,
    top_k: Annotated[int, tyro.conf.arg(help="only the k most likely tokens; 0: all")] = 0,
    top_p: Annotated[float, tyro.conf.arg(help="only the most likely tokens that make up this share")] = 0.95,
    min_p: Annotated[
        float, tyro.conf.arg(help="only tokens at least this fraction as likely as the likeliest; 0: all")
    ] = 0.0,
    repetition_penalty: Annotated[
        float, tyro.conf.arg(help="divide the logits of tokens already in the text by this; 1: no penalty")
    ] = 1.0,
    stop: Annotated[
        tuple[str, ...],
        tyro.conf.UseAppendAction,
        tyro.conf.arg(metavar="TEXT", help="end the text before this string"),
    ] = (),
    seed: Annotated[int, tyro.conf.arg(help="the same seed writes the same text")] = 0,
    beam: Annotated[int, tyro.conf.arg(help="seq2seq: beam width; 1 is greedy")] = 1,
    dtype: Annotated[
        str, tyro.conf.arg(help="float32, or bfloat16: rounded weights, faster for large models")
    ] = "float32",
    stream: Annotated[bool, tyro.conf.arg(help="print each piece of text as it is generated")] = False,
    trust_code: Trusted = (),
) -> None:
    """Continue a text with a trained model (seq2seq: write the output for an input)."""
    from isoflop import job
    from isoflop.generate.request import Request
    from isoflop.model.registry import trust_code as trusting

    def show(piece: str) -> None:
        sys.stdout.write(piece)
        sys.stdout.flush()

    request = Request(
        tokens=tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        beam=beam,
        dtype=dtype,
        with_prompt=True,
        on_text=show if stream else None,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        stops=stop,
    )
    with trusting(*trust_code):
        text = job.sample(run, prompt, request)
        print() if stream else print(text)


def evaluate(
    run: RunArgument,
    sources: Sources = (),
    *,
    json: Annotated[bool, tyro.conf.arg(help="print one JSON object")] = False,
    suite: Annotated[
        tuple[str, ...],
        tyro.conf.UseAppendAction,
        tyro.conf.arg(
            metavar="NAME[,NAME]",
            help="score suites (`isoflop suites` lists them), or files of your own; SOURCE then names further runs",
        ),
    ] = (),
    items: Annotated[str, tyro.conf.arg(metavar="PATH", help="the folder or tar archive with the suites' items")] = "",
    limit: Annotated[int, tyro.conf.arg(help="items per subset of a suite, evenly spaced; 0: all")] = 0,
    contamination: Annotated[
        bool, tyro.conf.arg(help="look for the suites' items in the training text; also score without those found")
    ] = False,
    stride: Annotated[
        int, tyro.conf.arg(help="perplexity with a window that slides by this many tokens; 0: disjoint windows")
    ] = 0,
    windows: Annotated[
        str,
        tyro.conf.arg(
            metavar="running|documents",
            help="windows through all documents, or each beginning with one; default: as in training",
        ),
    ] = "",
    beam: Annotated[int, tyro.conf.arg(help="seq2seq: beam width; 1 is greedy")] = 1,
    text_column: Annotated[
        str, tyro.conf.arg(help="the column of records that holds the text; default: as in training")
    ] = "",
    set: Annotated[
        tuple[str, ...],
        tyro.conf.UseAppendAction,
        tyro.conf.arg(metavar="FIELD=VALUE", help="how the sources are read, as in data.encoding=cp1252"),
    ] = (),
    moved: Annotated[
        tuple[str, ...],
        tyro.conf.UseAppendAction,
        tyro.conf.arg(metavar="SOURCE", help="the new place of the run's own text, if it was moved"),
    ] = (),
    heldout: Annotated[
        tuple[str, ...],
        tyro.conf.UseAppendAction,
        tyro.conf.arg(metavar="PATH", help="the new place of the run's --heldout text, if it was moved"),
    ] = (),
    strict: Strict = False,
    trust_code: Trusted = (),
) -> None:
    """Measure held-out loss (seq2seq: and error rates) on the run's own held-out text, or on the sources named; or
    score suites."""
    from isoflop import job
    from isoflop.files import to_json
    from isoflop.model.registry import trust_code as trusting
    from isoflop.records import not_used

    if suite or items or limit or contamination or stride:
        from isoflop.cli import show_suites

        conflicting = {"--beam": beam != 1, "--strict": strict, "--windows": windows}
        with trusting(*trust_code):
            if suite:
                of_text = {"--text-column": text_column, "--set": set, "--stride": stride, "--heldout": heldout}
                show_suites.refuse(conflicting | of_text, "--suite")
                show_suites.evaluate_suites((run, *sources), suite, items, limit, contamination, moved, json)
            else:
                show_suites.require_suite({"--items": items, "--limit": limit, "--contamination": contamination})
                show_suites.refuse(conflicting, "--stride")
                show_suites.evaluate_strided(run, sources, stride, text_column, set, moved, heldout, json)
        return

    with trusting(*trust_code):
        measured = job.evaluate(run, sources, text_column, beam, set, moved, heldout, strict, windows)
    if json:
        print(to_json(measured.to_dict()), end="")
        return
    for name, value in replace(measured, unused=(), notes=()).to_dict().items():
        text = f"{value:,.4f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else value
        print(f"{name:>15}  {text}")
    for line in not_used(measured.unused, measured.found_bytes, measured.notes).all():
        print(line)
