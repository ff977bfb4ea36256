"""All commands by name, their parser, and their exit codes."""

import shutil
import signal
import sys
from collections.abc import Callable, Mapping, Sequence

import tyro

from isoflop import __version__
from isoflop.cli.arguments import refuse_empty, spread_set
from isoflop.cli.inference import evaluate, sample
from isoflop.cli.inspect import config, report, runs, suites
from isoflop.cli.lab import LAB, lab
from isoflop.cli.ladder import ladder
from isoflop.cli.plan import PLAN, plan
from isoflop.cli.prepare import prepare
from isoflop.cli.train import train
from isoflop.cli.transfer import export_model, import_model
from isoflop.errors import UserError, quoted
from isoflop.terminal import OutputLost, exit_code, wrapped

COMMANDS: Mapping[str, Callable[..., int | None]] = {
    "train": train,
    "prepare": prepare,
    "sample": sample,
    "eval": evaluate,
    "import": import_model,
    "export": export_model,
    "report": report,
    "runs": runs,
    "suites": suites,
    "config": config,
    "plan": plan,
    "ladder": ladder,
    "lab": lab,
}
# commands that have commands of their own
GROUPS: Mapping[str, Mapping[str, Callable[..., int | None]]] = {"plan": PLAN, "lab": LAB}


def run(arguments: Sequence[str]) -> int:
    """Run one command.

    Returns:
        The exit code: 0, or the command's own for its result (`lab run`: 10 to 13); 2 for an error that the user can
        correct, with a one-line message; 1 for a run that diverged; 128 + signal for a run that was stopped and saved.
        Of several processes under torchrun, one prints the reason and all return the code; torchrun itself prints more,
        and returns 1 in all these cases (parallel/failures.py).
    """
    commands, prog, rest = COMMANDS, "isoflop", list(arguments)
    description: str | None = "Raw text and a compute budget in, the best GPT that the budget can buy out."
    if rest and rest[0] in GROUPS:
        group, *rest = rest
        commands, prog, description = GROUPS[group], f"isoflop {group}", COMMANDS[group].__doc__

    try:
        if list(arguments) == ["--version"]:
            print(f"isoflop {__version__}")
            return 0
        refuse_empty(rest)
        result = tyro.extras.subcommand_cli_from_dict(
            dict(commands),
            prog=prog,
            description=description,
            args=spread_set(rest),
            config=(tyro.conf.FlagCreatePairsOff,),
        )
    except UserError as error:
        complain(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        complain("stopped")
        return 130
    except OutputLost as error:
        return exit_code(error)
    except Exception as error:
        return stopped_run(error)
    return result if isinstance(result, int) else 0


def complain(text: str) -> None:
    """Print one line on standard error, wrapped between words if that is a terminal."""
    width = shutil.get_terminal_size().columns if sys.stderr.isatty() else None
    print("\n".join(wrapped(f"isoflop: {text}", width)), file=sys.stderr)


def stopped_run(error: Exception) -> int:
    """Print one line about a run that ended early and return its exit code; raise any other exception again."""
    from isoflop.parallel.failures import FailedElsewhere, Lost
    from isoflop.trainer.recovery import Diverged
    from isoflop.trainer.signals import Interrupted, Signals

    for number in Signals.CAUGHT:  # torchrun sends one to all when the first process exits
        signal.signal(number, signal.SIG_IGN)
    if isinstance(error, FailedElsewhere):
        return error.exit_code
    if isinstance(error, Interrupted):
        complain(f"{error}; saved. Resume with: isoflop train --resume {quoted(error.folder)}")
        return error.exit_code
    if isinstance(error, Diverged | Lost):
        complain(str(error))
        return 1
    raise error
