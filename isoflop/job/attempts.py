"""A run that begins anew, once, because its plan was made in a moment in which the machine ran at another speed.

    a hook looks at the speed ─> worth it? ─> all processes leave between two steps ─> plan anew ─> switch ─> train

The switch leaves one attempt to resume, whenever it is killed. The next attempt's first files are made ready in
`attempts/next`, which is there whole or not at all: without it the first attempt is what goes on. With it `switch` is
all that is left to do, by whoever comes next: the first attempt's files go to `attempts/1`, config.json the last of
them, then the next one's come in their place, config.json again the last.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field

from isoflop import processors
from isoflop.config import to_dict
from isoflop.data.manifest import Data
from isoflop.files import make_folder, new_folder, sync_folder, write_json, write_text
from isoflop.plan.advice import Advice
from isoflop.plan.second import FROM, UNTIL, gain_of_threads, may_have_too_few_threads, outlook
from isoflop.records import EventLine, RunFolder, read_object
from isoflop.records.folder import UNFINISHED
from isoflop.records.lines import json_line
from isoflop.records.plan import Plan
from isoflop.trainer import RunConfig
from isoflop.trainer.config import resolve_runtime
from isoflop.trainer.hooks import Hook
from isoflop.trainer.signals import RESTART
from isoflop.trainer.state import RunState

LOOKS = 0.01  # share of the budget between two looks at the speed
STEADY = 1.15  # times that the speeds of two looks may differ for the later one to be believed
TRIAL, LONGEST_TRIAL = 0.02, 2.0  # share of the budget for timing steps with all threads, and seconds at most


@dataclass
class SecondThoughts(Hook):
    """Asks the run to begin anew, at most once, in the first fifth of its seconds, if more is to be expected of that.

    Where the plan chose few threads next to another program, steps with all threads are timed, once, as soon as that
    program rests: the speed of the run itself does not show what it lacks.

    Attributes:
        advice: the plan that the run follows.
        say: gets the reason, one line.
        threads_are_ours: the user did not set their number.
    """

    advice: Advice
    say: Callable[[str], None]
    threads_are_ours: bool = True
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
        if self.marks and stepping - self.marks[-1][1] < LOOKS * budget:
            return
        self.marks.append((state.tokens, stepping))
        before_that, self.reading = self.reading, processors.read()
        if len(self.marks) < 2 or before_that is None:
            return
        (tokens, seconds), (last_tokens, last_seconds) = self.marks[-2:]
        before, self.rate = self.rate, (last_tokens - tokens) / max(last_seconds - seconds, 1e-9)
        steady = before and max(before, self.rate) < STEADY * min(before, self.rate)
        if not steady or state.seconds < FROM * budget:
            return

        self.time_threads(state, processors.Load.between(before_that, self.reading))
        found = outlook(self.advice, self.rate, state.tokens, budget - state.seconds, self.gain)
        if found is not None and found.anew < found.onward and state.signals.received is None:
            speed = f"steps run at {self.rate:,.0f} tokens/s, not as planned"
            if self.gain > 1:
                speed = f"now that nothing else uses the processors, all threads are {self.gain:.1f} times as fast"
            self.reason = (
                f"{speed}: {found.anew:.3f} bits per byte are to be "
                f"expected of a run that begins anew on the {budget - state.seconds:.0f} s that are left, "
                f"{found.onward:.3f} of this one"
            )
            self.say(f"step {state.step:,}: {self.reason}")
            state.signals.received = RESTART

    def time_threads(self, state: RunState, load: processors.Load) -> None:
        """Time steps with all threads, if that was not done yet and the machine was left alone for the last look."""
        alone = state.layout.group.alone and not processors.busy_now(load)
        if self.timed or not alone or not self.threads_are_ours or not may_have_too_few_threads(self.advice):
            return
        self.timed = True
        self.gain = max(1.0, gain_of_threads(self.advice.config, min(TRIAL * state.config.seconds, LONGEST_TRIAL)))
        self.reading = None  # the next look begins after this
        self.marks.clear()


def make_ready(folder: RunFolder, config: RunConfig, plan: Plan, data: Data, reason: str, seconds: float) -> None:
    """Write the next attempt's first files, all of them or none."""
    event = EventLine(event="restarted", reason=reason, seconds=seconds).written_as("event", "reason", "seconds")
    with new_folder(folder.attempts / "next") as path:
        ready = RunFolder(path)
        write_json(ready.plan, plan.to_dict())
        write_json(ready.environment, {**read_object(folder.environment), "peak": plan.peak})
        write_json(ready.data, data.account().to_dict())
        write_text(ready.tokenizer, data.tokenizer.to_json())
        write_text(ready.log("events"), json_line(event.to_dict()) + "\n")
        write_json(ready.config, to_dict(resolve_runtime(config)))


def switch(folder: RunFolder) -> None:
    """Do what is left to do of going over to the next attempt, if one is ready."""
    ready, kept = folder.attempts / "next", folder.attempts / "1"
    if not ready.is_dir():
        return
    if not (kept / folder.config.name).exists() and (ready / folder.config.name).exists():
        make_folder(kept)
        for path in sorted(folder.path.iterdir()):
            stays = path.name in (".lock", folder.attempts.name, folder.config.name)
            if not stays and not UNFINISHED.fullmatch(path.name):
                path.replace(kept / path.name)
        sync_folder(folder.path)
        write_text(kept / folder.config.name, folder.config.read_text(encoding="utf-8"))
    for path in sorted(ready.iterdir(), key=lambda path: path.name == folder.config.name):
        path.replace(folder.path / path.name)
        sync_folder(folder.path)
    shutil.rmtree(ready)
    sync_folder(folder.attempts)
