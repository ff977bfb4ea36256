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
    """Import a model of another format as a run."""
    from isoflop import job

    imported = job.import_model(path, out, tokenizer=tokenizer, context=context, end_of_text=end_of_text)
    print(f"imported: {imported.folder} ({imported.kind}, {imported.parameters:,} parameters)")
    print(f"talk to it: isoflop sample {quoted(imported.folder)} --prompt TEXT")


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
    own_code: Annotated[
        bool,
        tyro.conf.arg(help="for hf: write isoflop's modeling code even if an architecture of transformers fits"),
    ] = False,
    trust_code: Trusted = (),
) -> None:
    """Export a model to another format, read it back and compare."""
    from isoflop import job
    from isoflop.model.registry import trust_code as trusting

    with trusting(*trust_code):
        exported = job.export_model(run, to, out, own_code=own_code)
    print(f"exported: {exported.folder} ({exported.kind}, {exported.parameters:,} parameters)")
    print(f"read back: same token ids, logits within {exported.difference:.1e} of the largest")
    for note in exported.notes:
        print(f"note: {note}")
