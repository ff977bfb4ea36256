"""The commands that exchange models with other formats: `import` and `export`."""

from pathlib import Path
from typing import Annotated

import tyro

from isoflop.cli.arguments import RunArgument, Trusted
from isoflop.errors import quoted


def import_model(
    path: Annotated[
        Path,
        tyro.conf.Positional,
        tyro.conf.arg(metavar="PATH", help="a Hugging Face folder, a .gguf or a llama2.c .bin"),
    ],
    *,
    out: Annotated[Path, tyro.conf.arg(help="the new run folder")],
    tokenizer: Annotated[
        str,
        tyro.conf.arg(
            metavar="FILE", help="tokenizer.json, vocab.bpe or tokenizer.bin to use in place of the model's own"
        ),
    ] = "",
    context: Annotated[
        int, tyro.conf.arg(help="context length to keep; 0: all, at most 8,192 with rotary positions")
    ] = 0,
    end_of_text: Annotated[
        str, tyro.conf.arg(metavar="TOKEN", help="the token that ends a document, if the model's files do not say")
    ] = "",
) -> None:
    """Make a run of a model in another format."""
    from isoflop import job

    made = job.import_model(path, out, tokenizer=tokenizer, context=context, end_of_text=end_of_text)
    print(f"imported: {made.folder} ({made.kind}, {made.parameters:,} parameters)")
    print(f"talk to it: isoflop sample {quoted(made.folder)} --prompt TEXT")


def export_model(
    run: RunArgument,
    *,
    to: Annotated[
        str,
        tyro.conf.arg(
            metavar="hf|gguf|llama2c", help="a Hugging Face folder, llama.cpp's file, or llama2.c's two files"
        ),
    ],
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
