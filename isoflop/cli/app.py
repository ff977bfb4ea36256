"""All commands by name, their parser, and the exit code of each way in which one can end."""

import io
import signal
import sys
from collections.abc import Callable, Sequence

import tyro

from isoflop import __version__
from isoflop.cli.arguments import spread_set
from isoflop.cli.inference import evaluate, sample
from isoflop.cli.inspect import config, report, runs
from isoflop.cli.prepare import prepare
from isoflop.cli.train import train
from isoflop.cli.transfer import export_model, import_model
from isoflop.errors import UserError

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
        torchrun itself says more, and gives 1 for any of them (parallel/failures.py).
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
    from isoflop.parallel.failures import FailedElsewhere, Lost
    from isoflop.trainer.recovery import Diverged
    from isoflop.trainer.signals import Interrupted, Signals

    for number in Signals.CAUGHT:  # torchrun sends one to all when the first has left; the exit code is said already
        signal.signal(number, signal.SIG_IGN)
    if isinstance(error, FailedElsewhere):
        return error.exit_code
    if isinstance(error, Interrupted):
        print(f"isoflop: {error}; saved. Go on with: isoflop train --resume {error.folder}", file=sys.stderr)
        return error.exit_code
    if isinstance(error, Diverged | Lost):
        print(f"isoflop: {error}", file=sys.stderr)
        return 1
    raise error
