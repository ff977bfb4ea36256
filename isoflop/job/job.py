"""A run on its way, from configuration, data and plan to its result: what every job of start.py comes to."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from isoflop import checkpoint
from isoflop.config import from_dict, to_dict
from isoflop.data.manifest import Data
from isoflop.files import disk_errors, write_json
from isoflop.job.ledger import add_divergence, add_outcome, put_on_record
from isoflop.job.listener import Listener, Phases
from isoflop.job.outcome import FINAL_TOKENS, judge, mfu, pieces_of
from isoflop.measure import HeldOut
from isoflop.optim.schedules import Decision
from isoflop.parallel.mesh import Group
from isoflop.plan.ceiling import is_peak, machine_peak, raised
from isoflop.plan.far import far_off
from isoflop.records import HeldOutFigures, Plan, Result, Run, RunFolder, read_run
from isoflop.runtime import make_runtime, peak_memory
from isoflop.trainer import RunConfig, RunResult
from isoflop.trainer import train as train_steps
from isoflop.trainer.config import RuntimeConfig, resolve_runtime
from isoflop.trainer.diagnose import Diagnose
from isoflop.trainer.guard import count_bad_steps, gaps
from isoflop.trainer.hooks import HeldOut as HeldOutHook
from isoflop.trainer.hooks import Hook, Samples
from isoflop.trainer.recovery import Diverged
from isoflop.trainer.running_forecast import RunningForecast
from isoflop.trainer.signals import Restarting
from isoflop.trainer.suites import make_suites
from isoflop.trainer.task import Task, make_task
from isoflop.trainer.trackers import make_trackers


@dataclass
class Job:
    """A run and what it needs: train it, measure what came of it, and write that down.

    Where several processes train it, each has a Job of its own: the first one's does everything, the others' are made
    of its order (together.py), train along and measure along.

    Attributes:
        group: the processes that train it.
        folder: the run folder.
        config: what is trained, as it is sent to the others; `runtime` is this process's part of it, without "auto".
        data: prepared.
        plan: what is expected of the run: plan.json.
        listener: who is told what.
        phases: seconds by phase so far.
        resumed: the run is there already, and goes on.
        known_peak: FLOP/s by dtype that are on record of this run; empty: none are.
        decided: how the end moves on the way, where that is known before.
        thoughts: hooks that may end the run for another plan; then `anew` gives the job that follows.
    """

    group: Group
    folder: RunFolder
    config: RunConfig
    data: Data
    plan: Plan = field(default_factory=Plan.nothing)
    listener: Listener = field(default_factory=Listener)
    phases: Phases = field(default_factory=Phases)
    resumed: bool = False
    known_peak: dict[str, float] = field(default_factory=dict)
    decided: tuple[Decision, ...] = ()
    thoughts: tuple[Hook, ...] = ()
    anew: Callable[["Job", Restarting], "Job"] | None = None

    @classmethod
    def ordered(cls, group: Group, order: Mapping[str, Any]) -> "Job":
        """The same job in another process, of the order that the first one sent."""
        config, folder = from_dict(RunConfig, order["config"]), RunFolder(Path(order["folder"]), is_writer=False)
        data = make_task(config).open_data(Path(order["data"]), verify_checksums=False)  # the first one did
        return cls(group, folder, config, data, resumed=order["resume"])

    def order(self) -> dict[str, Any]:
        """What the other processes make their job of."""
        return {
            "config": to_dict(self.config),
            "folder": str(self.folder.path.resolve()),
            "data": self.data.account().folder,
            "resume": self.resumed,
        }

    @cached_property
    def task(self) -> Task:
        return make_task(self.config)

    @cached_property
    def runtime(self) -> RuntimeConfig:
        """Where and how this machine computes."""
        return resolve_runtime(self.config).runtime

    @cached_property
    def peak(self) -> dict[str, float]:
        """FLOP/s by dtype that this machine reaches at best: on record, measured by the plan, or measured now."""
        if is_peak(self.known_peak):
            return self.known_peak
        with self.phases.time("calibrate"):
            return self.plan.peak if is_peak(self.plan.peak) else machine_peak(self.runtime.device)

    def run(self) -> RunResult:
        """Train, measure and finish.

        Raises:
            UserError, Interrupted, Diverged: see trainer.train.
        """
        try:
            result = self.train()
        except Restarting as left:
            if self.anew is None:
                raise
            self.phases.seconds["abandoned"] = round(left.seconds, 2)
            return self.anew(self, left).run()
        except Diverged:
            add_divergence(read_run(self.folder.path), self.listener.say)
            raise
        self.finish(result, self.measure())
        return result

    def train(self) -> RunResult:
        """All steps that are left, by this process and those that follow it."""
        asked = any(isinstance(hook, Diagnose) for hook in self.listener.hooks)
        diagnosing = [Diagnose()] if self.config.every.diagnose and not asked else []
        if (asked or diagnosing) and not self.group.alone:
            self.listener.say("note: diagnostics are for a run of one process; none are taken")
        watching = [*make_trackers(self.config.trackers), *self.listener.hooks, *self.thoughts]
        told = [RunningForecast(self.plan, watching, self.listener.say), *watching, *diagnosing]
        if not self.resumed:
            for line in far_off(self.config):
                self.listener.say(line)
        ceiling = self.peak.get(self.runtime.dtype, 0.0) * self.group.machines(self.runtime.device)
        self.listener.peak(ceiling)

        if self.config.init and not self.resumed:
            self.measure_start()
        if not self.resumed:
            about = self.data.account()
            self.plan = put_on_record(self.folder, self.plan, about, self.config.seed, self.listener.say)
        self.group.order(self.order())
        plan = self.plan.updated(phases=dict(self.phases.seconds))
        result = self.take_steps(told, plan=plan, environment={"peak": self.peak}, decided=self.decided)
        self.phases.seconds["train"] = round(result.seconds, 2)
        return result

    def take_steps(self, told: list[Hook], **first: Any) -> RunResult:
        """`trainer.train` with the hooks that every process has. `told`, `first`: what the first one alone passes."""
        return train_steps(
            self.config,
            self.folder.path,
            hooks=[HeldOutHook(tuple(told)), Samples(tuple(told)), *make_suites(self.config), *told],
            prepared=self.data,
            task=self.task,
            resume=self.resumed,
            group=self.group,
            **first,
        )

    def measure_start(self) -> None:
        """Measure the weights that the run starts from, on the held-out text that it is measured on in the end."""
        if self.data.vocab_size > self.config.model.vocab_size:
            return  # refused where the model is made
        with self.phases.time("evaluate"):
            model, _, _ = checkpoint.load_model(Path(self.config.init))
            runtime = make_runtime(self.group.device(self.runtime.device), self.runtime.dtype, self.runtime.threads)
            model.to(runtime.device)
            before = self.task.measure(model, self.data, runtime, FINAL_TOKENS).bits_per_byte
        self.plan = self.plan.updated(init_bits_per_byte=before)
        self.listener.say(f"before training: {before:.3f} bits per byte held-out, with the weights of --init")

    def measure(self) -> HeldOut:
        """`judge` the last checkpoint, over everything held out up to FINAL_TOKENS. The processes share out the
        held-out loss; what the task is judged by next to it is the first one's alone."""
        with self.phases.time("evaluate"):
            model, _, snapshot = checkpoint.load_model(self.folder.path)
            run_as = from_dict(RunConfig, snapshot.config).runtime
            device, threads = self.group.device(run_as.device), self.group.threads(run_as.threads)
            runtime = make_runtime(device, run_as.dtype, threads)
            model.to(runtime.device)
            return judge(self.task, model, self.data, runtime, FINAL_TOKENS, group=self.group, pieces=True)

    def finish(self, result: RunResult, reached: HeldOut) -> None:
        """Write result and report, and add a line to the ledger."""
        with disk_errors(f"the run folder {self.folder.path}"):
            if reached.pieces:
                write_json(self.folder.pieces, pieces_of(reached, self.data.fingerprint).to_dict())
            self.write_result(result, reached)
            self.folder.event("finished", step=result.step)
            self.phases.seconds.pop("report", None)
            with self.phases.time("report"):
                from isoflop.report.page import write_report  # noqa: PLC0415 - matplotlib loads as long as a start takes

                write_report([self.folder.path])
            run = self.write_result(result, reached)
        add_outcome(run, self.listener.say)

    def write_result(self, result: RunResult, reached: HeldOut) -> Run:
        """Write result.json. Returns the run as it is on record now."""
        run = read_run(self.folder.path)
        record = self.outcome(run, result, reached)
        write_json(self.folder.result, record.to_dict())
        return replace(run, result=record)

    def outcome(self, run: Run, result: RunResult, reached: HeldOut) -> Result:
        """What the run came to, next to what was expected of it."""
        ran = from_dict(RuntimeConfig, run.config["runtime"], "runtime")
        batches = self.task.batches(self.config, self.data, gaps(run.skips))

        stepping = result.seconds - result.aside_seconds
        flops_per_second = result.flops / stepping if stepping else 0.0
        tokens_per_second = result.tokens / stepping if stepping else 0.0
        machines = self.group.machines(ran.device)
        measured = self.peak.get(ran.dtype, 0.0)
        peak = raised(ran.device, self.peak, ran.dtype, flops_per_second / machines).get(ran.dtype, 0.0)
        expected = self.plan.expected
        outcome = Result(
            step=result.step,
            loss=result.loss,
            heldout=HeldOutFigures.read(reached.to_dict()),
            seconds=result.seconds,
            tokens=result.tokens,
            flops=result.flops,
            aside_seconds=result.aside_seconds,
            tokens_per_second=tokens_per_second,
            peak_share=flops_per_second / machines / peak if peak else None,
            mfu=mfu(self.task.palm_flops_per_token(self.config), ran, tokens_per_second, self.group),
            peak_memory_bytes=peak_memory(ran.device),
            data=batches.account(result.step),
            guard=count_bad_steps(run.skips),
            phases=self.phases.seconds,
            verdict=expected.verdict(reached.bits_per_byte) if expected else None,
        )
        return outcome.updated(peak_flops=peak) if peak > measured else outcome
