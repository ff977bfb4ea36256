"""The commands that show runs, suites and settings: `report`, `runs`, `suites` and `config`."""

from pathlib import Path
from typing import Annotated

import tyro


def report(
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN [RUN ...]", help="run folders")],
    *,
    out: Annotated[Path | None, tyro.conf.arg(help="the file; default: in the first run's folder")] = None,
    card: Annotated[bool, tyro.conf.arg(help="write a model card, README.md, which exports include")] = False,
    licence: Annotated[
        tuple[str, ...],
        tyro.conf.UseAppendAction,
        tyro.conf.arg(metavar="[SOURCE=]LICENCE", help="with --card: of a source of the text, or of the model"),
    ] = (),
) -> None:
    """Write the report of a run, which may still be training, or compare several runs; or write a model card."""
    from isoflop.errors import UserError

    if card:
        from isoflop.report.card import write_card

        if len(runs) != 1:
            raise UserError(f"--card is for one run, and {len(runs)} are named")
        print(write_card(runs[0], out, licence))
        return
    if licence:
        raise UserError("--licence goes with --card")
    from isoflop.report.page import write_report

    print(write_report(list(runs), out))


def runs(
    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="[DIR]", help="the folder to search")] = Path(
        "runs"
    ),
) -> None:
    """List the runs below a folder."""
    from isoflop import job
    from isoflop.screen import Screen, show_runs

    screen = Screen(is_result=True)
    show_runs(screen, folder, job.list_runs(folder))
    screen.require_shown()


def suites() -> None:
    """List the evaluation suites that come with isoflop."""
    from isoflop.evaluate.suite import find_suite, names

    for suite in map(find_suite, names()):
        print(f"{suite.name:15} {suite.about}")
        print(f"{'':15} {suite.items:,} items in {', '.join(suite.files)}, {suite.licence}; from {suite.source}")
    print("score a run: isoflop eval RUN --suite NAME --items FOLDER; a suite of your own: --suite FILE.toml")


def config() -> None:
    """List every field of the configuration of a run, with type, default and meaning."""
    from isoflop.config import describe
    from isoflop.trainer.config import RunConfig

    for field in describe(RunConfig):
        print(f"{field.name:28} {field.type:28} {field.default}\n{'':4}{field.meaning}")
