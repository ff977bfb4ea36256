"""FLOPs and seconds per stage of a chain of runs: a run, the one whose weights it started from, and so on."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isoflop.errors import UserError
from isoflop.records import Run, read_run

MOST_STAGES = 100

# Shares of pretraining in the compute of a final model, as reported. Figures and sources are those of the claim
# pretraining-share.
PUBLISHED = (
    ("DeepSeek-V3", 0.956, "GPU hours, technical report, table 1"),
    ("DeepSeek-V3 and R1", 0.908, "GPU hours, supplement of the Nature paper"),
    ("OLMo 3 32B", 0.89, "GPU hours, 0.86 to 0.92 by what is counted"),
    ("nanochat d24", 0.88, "hours on one GPU, model card"),
    ("Grok 4", 0.5, "GPU time, second-hand; in FLOPs perhaps more"),
)


@dataclass(frozen=True)
class Stage:
    """One run of a chain.

    Attributes:
        flops, seconds, tokens: of its training; None if they are not in its folder.
    """

    name: str
    kind: str
    flops: float | None
    seconds: float | None
    tokens: float | None

    def to_dict(self) -> dict[str, Any]:
        return {
            "run": self.name,
            "kind": self.kind,
            "flops": self.flops,
            "seconds": self.seconds,
            "tokens": self.tokens,
        }


def chain(run: Path) -> list[Stage]:
    """The stages that led to a run, the first one first.

    Raises:
        UserError: if a run is not there, or one leads back to itself.
    """
    found: list[Run] = []
    at: Path | None = run
    while at is not None:
        one = read_run(at)
        if any(one.folder.path.resolve() == other.folder.path.resolve() for other in found):
            raise UserError(f"{run} starts from itself, by way of {at}")
        if len(found) == MOST_STAGES:
            raise UserError(f"{run} has more than {MOST_STAGES} runs before it")
        found.append(one)
        init = one.settings.init
        at = folder_of(Path(init), run) if init else None
    return [stage(one, first=index == 0) for index, one in enumerate(reversed(found))]


def folder_of(init: Path, run: Path) -> Path:
    """The run folder that a checkpoint lies in, or `init` itself if it is one.

    Raises:
        UserError: if it is gone.
    """
    for folder in (init, *init.parents):
        if (folder / "config.json").exists() and (folder / "plan.json").exists():
            return folder
    raise UserError(f"{run} started from {init}, which is no longer there: bring it back to account for it")


def stage(run: Run, first: bool) -> Stage:
    """FLOPs, seconds and tokens of a run, from its result; from its last training line if it is not finished."""
    result = run.result
    last = run.training[-1] if run.training else None
    return Stage(
        name=run.name,
        kind="pretraining" if first else "further training",
        flops=result.flops if result.flops is not None else getattr(last, "flops", None),
        seconds=result.seconds if result.seconds is not None else getattr(last, "seconds", None),
        tokens=result.tokens if result.tokens is not None else getattr(last, "tokens", None),
    )


def shares(stages: list[Stage], what: str) -> list[float | None]:
    """Each stage's share of all FLOPs or seconds; None for all where one stage does not say."""
    amounts = [getattr(one, what) for one in stages]
    if any(amount is None for amount in amounts) or not sum(amounts):
        return [None] * len(stages)
    return [amount / sum(amounts) for amount in amounts]
