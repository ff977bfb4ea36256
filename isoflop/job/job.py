"""A job: one run, from configuration, data and plan to its result. All functions of start.py create one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from isoflop import checkpoint
from isoflop.config import from_dict, to_dict
from isoflop.data.manifest import Data
from isoflop.files import disk_errors, write_json
from isoflop.job.ledger import record_divergence, record_forecast, record_outcome
from isoflop.job.listener import Listener, Phases
from isoflop.job.outcome import judge, mfu, pieces_of
from isoflop.measure import FINAL_TOKENS, HeldOut
from isoflop.optim.timetable import Decision
from isoflop.parallel.mesh import Group
from isoflop.plan.ceiling import is_peak, machine_peak, raised
from isoflop.plan.far import check_against_plan
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
    """A run and what it needs: trains it, evaluates the model, and writes the results.

    If several processes train the run, each has a Job: that of rank 0 does everything; those of the others are created
    from its order (distributed.py), and take part in training and evaluation.

    Attributes:
        group: the processes that train the run.
        folder: the run folder.
        config: the configuration, as sent to the other processes; `runtime` is this process's part of it, without
            "auto".
        data: prepared.
        plan: plan.json.
        listener: receives progress reports.
        phases: seconds per phase so far.
        resumed: the run exists already and continues.
        known_peak: the recorded peak FLOP/s by dtype; empty: none is recorded.
        decisions: known moves of the run's end, if it repeats another run.
        replan_hooks: hooks that may end the run to plan it again; `next_attempt` then gives the job that follows.
    """

    group: Group
    folder: RunFolder
    config: RunConfig
    data: Data
    plan: Plan = field(default_factory=Plan.blank)
    listener: Listener = field(default_factory=Listener)
    phases: Phases = field(default_factory=Phases)
    resumed: bool = False
    known_peak: dict[str, float] = field(default_factory=dict)
    decisions: tuple[Decision, ...] = ()
    replan_hooks: tuple[Hook, ...] = ()
    next_attempt: Callable[["Job", Restarting], "Job"] | None = None

    @classmethod
    def from_order(cls, group: Group, order: Mapping[str, Any]) -> "Job":
        """The same job in another process, from the order that rank 0 sent."""
        config, folder = from_dict(RunConfig, order["config"]), RunFolder(Path(order["folder"]), is_writer=False)
        data = make_task(config).open_data(Path(order["data"]), verify_checksums=False)  # rank 0 verified them
        return cls(group, folder, config, data, resumed=order["resume"])

    def order(self) -> dict[str, Any]:
        """What the other processes need to create the same job."""
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
        """Device, dtype and threads on this machine."""
        return resolve_runtime(self.config).runtime

    @cached_property
    def peak(self) -> dict[str, float]:
        """The machine's peak FLOP/s by dtype: recorded, measured by the plan, or measured now."""
        if is_peak(self.known_peak):
            return self.known_peak
        with self.phases.time("calibrate"):
            return self.plan.peak if is_peak(self.plan.peak) else machine_peak(self.runtime.device)

    def run(self) -> RunResult:
        """Train, evaluate and write the results.

        Raises:
            UserError, Interrupted, Diverged: see trainer.train.
        """
        try:
            result = self.train()
        except Restarting as restart:
            if self.next_attempt is None:
                raise
            self.phases.seconds["abandoned"] = round(restart.seconds, 2)
            return self.next_attempt(self, restart).run()
        except Diverged:
            record_divergence(read_run(self.folder.path), self.listener.say)
            raise
        self.finish(result, self.measure())
        return result

    def train(self) -> RunResult:
        """Train the remaining steps, together with the processes that follow this one."""
        diagnose_requested = any(isinstance(hook, Diagnose) for hook in self.listener.hooks)
        diagnosing = [Diagnose()] if self.config.every.diagnose and not diagnose_requested else []
        if (diagnose_requested or diagnosing) and not self.group.alone:
            self.listener.say("note: diagnostics are taken only in runs of one process; this run has none")
        listening = [*make_trackers(self.config.trackers), *self.listener.hooks, *self.replan_hooks]
        rank_0_hooks = [RunningForecast(self.plan, listening, self.listener.say), *listening, *diagnosing]
        if not self.resumed:
            for line in check_against_plan(self.config):
                self.listener.say(line)
        peak = self.peak.get(self.runtime.dtype, 0.0) * self.group.machines(self.runtime.device)
        self.listener.peak(peak)

        if self.config.init and not self.resumed:
            self.measure_start()
        if not self.resumed:
            account = self.data.account()
            self.plan = record_forecast(self.folder, self.plan, account, self.config.seed, self.listener.say)
        self.group.order(self.order())
        plan = self.plan.updated(phases=dict(self.phases.seconds))
        result = self.take_steps(rank_0_hooks, plan=plan, environment={"peak": self.peak}, decisions=self.decisions)
        self.phases.seconds["train"] = round(result.seconds, 2)
        return result

    def take_steps(self, rank_0_hooks: list[Hook], **arguments: Any) -> RunResult:
        """Call `trainer.train` with the hooks that every process has.

        Args:
            rank_0_hooks, arguments: hooks and arguments that only rank 0 passes.
        """
        return train_steps(
            self.config,
            self.folder.path,
            hooks=[
                HeldOutHook(tuple(rank_0_hooks), probe=True),
                Samples(tuple(rank_0_hooks)),
                *make_suites(self.config),
                *rank_0_hooks,
            ],
            prepared=self.data,
            task=self.task,
            resume=self.resumed,
            group=self.group,
            **arguments,
        )

    def measure_start(self) -> None:
        """Evaluate the weights that the run starts from (--init), on the held-out text of the final evaluation."""
        if self.data.vocab_size > self.config.model.vocab_size:
            return  # training refuses it (begin.check_fits)
        with self.phases.time("evaluate"):
            model, _, _ = checkpoint.load_model(Path(self.config.init))
            runtime = make_runtime(self.group.device(self.runtime.device), self.runtime.dtype, self.runtime.threads)
            model.to(runtime.device)
            bits_per_byte = self.task.measure(model, self.data, runtime, FINAL_TOKENS).bits_per_byte
        self.plan = self.plan.updated(init_bits_per_byte=bits_per_byte)
        self.listener.say(f"before training: {bits_per_byte:.3f} bits per byte held-out, with the weights of --init")

    def measure(self) -> HeldOut:
        """`judge` the last checkpoint, on at most FINAL_TOKENS held-out tokens. All processes compute the held-out loss
        together; rank 0 alone computes the other metrics of the task."""
        with self.phases.time("evaluate"):
            model, _, snapshot = checkpoint.load_model(self.folder.path)
            run_as = from_dict(RunConfig, snapshot.config).runtime
            device, threads = self.group.device(run_as.device), self.group.threads(run_as.threads)
            runtime = make_runtime(device, run_as.dtype, threads)
            model.to(runtime.device)
            return judge(self.task, model, self.data, runtime, FINAL_TOKENS, group=self.group, pieces=True)

    def finish(self, result: RunResult, reached: HeldOut) -> None:
        """Write the result and the report, and add the outcome to the ledger."""
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
        record_outcome(run, self.listener.say)

    def write_result(self, result: RunResult, reached: HeldOut) -> Run:
        """Write result.json. Returns the run as it is recorded now."""
        run = read_run(self.folder.path)
        record = self.outcome(run, result, reached)
        write_json(self.folder.result, record.to_dict())
        return replace(run, result=record)

    def outcome(self, run: Run, result: RunResult, reached: HeldOut) -> Result:
        """The run's result, with the verdict on the expected loss."""
        runtime = from_dict(RuntimeConfig, run.config["runtime"], "runtime")
        batches = self.task.batches(self.config, self.data, gaps(run.skips))

        stepping = result.seconds - result.aside_seconds
        flops_per_second = result.flops / stepping if stepping else 0.0
        tokens_per_second = result.tokens / stepping if stepping else 0.0
        machines = self.group.machines(runtime.device)
        measured_peak = self.peak.get(runtime.dtype, 0.0)
        peak = raised(runtime.device, self.peak, runtime.dtype, flops_per_second / machines).get(runtime.dtype, 0.0)
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
            mfu=mfu(self.task.palm_flops_per_token(self.config), runtime, tokens_per_second, self.group),
            peak_memory_bytes=peak_memory(runtime.device),
            data=batches.account(result.step),
            guard=count_bad_steps(run.skips),
            phases=self.phases.seconds,
            verdict=expected.verdict(reached.bits_per_byte) if expected else None,
        )
        return outcome.updated(peak_flops=peak) if peak > measured_peak else outcome
