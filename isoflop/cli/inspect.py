"""The commands that show runs and settings: `report`, `runs` and `config`."""

from pathlib import Path
from typing import Annotated

import tyro


def report(
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN [RUN ...]", help="run folders")],
    *,
    out: Annotated[Path | None, tyro.conf.arg(help="the HTML file; default: in the first run's folder")] = None,
) -> None:
    """Write the report of a run, which may still be training, or compare several runs."""
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

    screen = Screen(is_product=True)
    show_runs(screen, folder, job.list_runs(folder))
    screen.require_shown()


def config() -> None:
    """List every field of the configuration of a run, with type, default and meaning."""
    from isoflop.config import describe
    from isoflop.trainer.config import RunConfig

    for field in describe(RunConfig):
        print(f"{field.name:28} {field.type:28} {field.default}\n{'':4}{field.meaning}")
