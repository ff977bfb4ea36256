"""The command `prepare`: the data step of `train` alone."""

from pathlib import Path
from typing import Annotated

import tyro

from isoflop.cli.arguments import Heldout, Sources, Strict


def prepare(
    sources: Sources = (),
    *,
    out: Annotated[Path, tyro.conf.arg(help="a new folder for the prepared text")],
    heldout: Heldout = (),
    strict: Strict = False,
    set: Annotated[
        tuple[str, ...],
        tyro.conf.UseAppendAction,
        tyro.conf.arg(metavar="FIELD=VALUE", help="set one field of the configuration, as in data.vocab_size=4096"),
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
    show_account(screen, prepared.account())
    screen.say(f"prepared: {prepared.folder}")
