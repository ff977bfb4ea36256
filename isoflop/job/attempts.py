"""A second attempt: a run starts again, once, because the machine's speed differs from the one it was planned with.

    hook checks the speed ─> worth it? ─> all processes stop between two steps ─> plan ─> switch ─> train

If the switch is killed at any point, one attempt is left to resume. The first files of the next attempt are written to
`attempts/next`, completely or not at all: without that folder the first attempt continues. With it, the switch can be
completed by any later process: the files of the first attempt move to `attempts/1`, config.json last, then those of the
next one take their place, config.json last again.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field

from isoflop import processors
from isoflop.config import to_dict
from isoflop.data.manifest import Data
from isoflop.files import make_folder, new_folder, sync_folder, write_json, write_text
from isoflop.plan.advice import Advice
from isoflop.plan.replan import FROM, UNTIL, may_have_too_few_threads, outlook, speedup_of_all_threads
from isoflop.records import EventLine, RunFolder, read_object
from isoflop.records.folder import UNFINISHED
from isoflop.records.lines import json_line
from isoflop.records.plan import Plan
from isoflop.trainer import RunConfig
from isoflop.trainer.config import resolve_runtime
from isoflop.trainer.hooks import Hook
from isoflop.trainer.signals import RESTART
from isoflop.trainer.state import RunState

CHECK_INTERVAL = 0.01  # share of the budget between two checks of the speed
STEADY_RATIO = 1.15  # largest ratio of the speeds of two checks for the later one to be used
TRIAL_SHARE, TRIAL_SECONDS = 0.02, 2.0  # share of the budget for timing steps with all threads, and seconds at most


@dataclass
class SpeedCheck(Hook):
    """Asks the run to start again with a new plan, at most once, in the first fifth of its seconds, if a lower loss is
    expected of that.

    If the plan chose few threads because another program was running, steps with all threads are timed, once, as soon
    as that program is idle: the speed of the run itself cannot show what more threads would gain.

    A run whose steps grow is not planned again.

    Attributes:
        advice: the plan that the run follows.
        say: called with the reason, one line.
        planned_threads: the number of threads was planned, not set by the user.
        reason: why the run is to start again; empty if it is not.
        marks: (tokens, seconds of steps) at the checks so far.
        rate: tokens per second between the last two checks.
        reading: the system's counters at the last check.
        gain: speed with all threads, relative to the run's, once timed.
    """

    advice: Advice
    say: Callable[[str], None]
    planned_threads: bool = True
    reason: str = ""
    marks: list[tuple[int, float]] = field(default_factory=list)
    rate: float = 0.0
    reading: processors.Reading | None = None
    gain: float = 1.0
    timed: bool = False

    def stepped(self, state: RunState) -> None:
        budget = self.advice.seconds or self.advice.budget.amount
        stepping = state.seconds - state.aside_seconds
        if self.reason or state.signals is None or state.seconds > UNTIL * budget:
            return
        if state.config.batch.grows:  # its first steps say little about the later ones; its pace moves the end
            return
        if self.marks and stepping - self.marks[-1][1] < CHECK_INTERVAL * budget:
            return

        # the speed since the last check; it must be steady to be used
        self.marks.append((state.tokens, stepping))
        previous_reading, self.reading = self.reading, processors.read()
        if len(self.marks) < 2 or previous_reading is None:
            return
        (tokens, seconds), (last_tokens, last_seconds) = self.marks[-2:]
        previous_rate, self.rate = self.rate, (last_tokens - tokens) / max(last_seconds - seconds, 1e-9)
        steady = previous_rate and max(previous_rate, self.rate) < STEADY_RATIO * min(previous_rate, self.rate)
        if not steady or state.seconds < FROM * budget:
            return

        self.time_threads(state, processors.Load.between(previous_reading, self.reading))
        expected = outlook(self.advice, self.rate, state.tokens, budget - state.seconds, self.gain)
        if expected is not None and expected.replanned < expected.continued and state.signals.received is None:
            speed = f"steps run at {self.rate:,.0f} tokens/s, not as planned"
            if self.gain > 1:
                speed = f"now that nothing else uses the processors, all threads are {self.gain:.1f} times as fast"
            self.reason = (
                f"{speed}: a run that starts again with the remaining {budget - state.seconds:.0f} s is expected to "
                f"reach {expected.replanned:.3f} bits per byte, this one {expected.continued:.3f}"
            )
            self.say(f"step {state.step:,}: {self.reason}")
            state.signals.received = RESTART

    def time_threads(self, state: RunState, load: processors.Load) -> None:
        """Time steps with all threads, if they were not timed yet and no other program ran since the last check."""
        alone = state.layout.group.alone and not processors.busy_now(load)
        if self.timed or not alone or not self.planned_threads or not may_have_too_few_threads(self.advice):
            return
        self.timed = True
        self.gain = max(
            1.0, speedup_of_all_threads(self.advice.config, min(TRIAL_SHARE * state.config.seconds, TRIAL_SECONDS))
        )
        self.reading = None  # the next interval starts after the trial
        self.marks.clear()


def write_next_attempt(
    folder: RunFolder, config: RunConfig, plan: Plan, data: Data, reason: str, seconds: float
) -> None:
    """Write the first files of the next attempt, all of them or none.

    Args:
        reason: why the run starts again; seconds: of training before that.
    """
    event = EventLine(event="restarted", reason=reason, seconds=seconds).written_as("event", "reason", "seconds")
    with new_folder(folder.attempts / "next") as path:
        next_attempt = RunFolder(path)
        write_json(next_attempt.plan, plan.to_dict())
        write_json(next_attempt.environment, {**read_object(folder.environment), "peak": plan.peak})
        write_json(next_attempt.data, data.account().to_dict())
        write_text(next_attempt.tokenizer, data.tokenizer.to_json())
        write_text(next_attempt.log("events"), json_line(event.to_dict()) + "\n")
        write_json(next_attempt.config, to_dict(resolve_runtime(config)))


def switch_to_next_attempt(folder: RunFolder) -> None:
    """Move the first attempt to `attempts/1` and the next one to its place, if one is ready. Completes an interrupted
    switch."""
    next_attempt, first_attempt = folder.attempts / "next", folder.attempts / "1"
    if not next_attempt.is_dir():
        return

    if not (first_attempt / folder.config.name).exists() and (next_attempt / folder.config.name).exists():
        make_folder(first_attempt)
        for path in sorted(folder.path.iterdir()):
            is_shared = path.name in (".lock", folder.attempts.name, folder.config.name)
            if not is_shared and not UNFINISHED.fullmatch(path.name):
                path.replace(first_attempt / path.name)
        sync_folder(folder.path)
        write_text(first_attempt / folder.config.name, folder.config.read_text(encoding="utf-8"))

    for path in sorted(next_attempt.iterdir(), key=lambda path: path.name == folder.config.name):
        path.replace(folder.path / path.name)
        sync_folder(folder.path)
    shutil.rmtree(next_attempt)
    sync_folder(folder.attempts)
