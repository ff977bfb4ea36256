"""The run itself: everything is made, then one visible while loop.

while step < end:  batch -> step -> line (one step late) -> hooks -> clock -> checkpoint -> signals
"""

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from isoflop import checkpoint
from isoflop.config import convert, to_dict
from isoflop.data.loader import Batches
from isoflop.data.prepared import Data
from isoflop.errors import UserError
from isoflop.files import disk_errors, write_json, write_text
from isoflop.model.build import build_model
from isoflop.optim.build import build
from isoflop.optim.schedules import Decision, Timetable
from isoflop.parallel.wrap import recompute
from isoflop.records import RunFolder, read_lines
from isoflop.runtime import choose_device, cores, describe_machine, make_runtime, seed_everything
from isoflop.trainer.config import RunConfig
from isoflop.trainer.guard import Interrupted, Signals, check_finite
from isoflop.trainer.hooks import Hook, Live
from isoflop.trainer.pace import Pace
from isoflop.trainer.step import take_step
from isoflop.trainer.task import Task, make_task

RATE_LINES = 20  # training lines over which tokens per second are averaged


@dataclass(frozen=True)
class RunResult:
    """What a finished run came to.

    Attributes:
        folder: the run folder.
        step: optimiser steps done.
        loss: mean of what was trained on (config.loss, with auxiliary losses) over the last tenth of the steps logged,
            nats per token.
        heldout_loss: the last held-out loss along the way, nats per token; None if none was measured.
        seconds: of training, time spent down left out.
        aside: of these, those spent beside the steps: on measuring, sampling, checkpoints.
        tokens: read in training.
        flops: 6 N D.
    """

    folder: Path
    step: int
    loss: float
    heldout_loss: float | None
    seconds: float
    aside: float
    tokens: int
    flops: float


def train(
    config: RunConfig,
    out: Path | str,
    *,
    hooks: Sequence[Hook] = (),
    prepared: Data | None = None,
    task: Task | None = None,
    plan: dict[str, Any] | None = None,
    environment: dict[str, Any] | None = None,
    resume: bool = False,
) -> RunResult:
    """Train `config` into the run folder `out`, or go on with the run that is there.

    Args:
        hooks: told of every step, in order.
        prepared: the data, if the caller has it open already; else `config.data` is prepared (or found prepared).
        task: what is learned, if not just what `config.task` and `config.loss` name.
        plan: kept in plan.json: what was expected of this run.
        environment: kept in environment.json beside the machine's description.
        resume: go on from the last checkpoint of `out` (from nothing if it has none yet).

    Raises:
        UserError: the folder holds another run, the data does not match, a checkpoint is damaged.
        Interrupted: a signal came; the run is saved and `resume=True` goes on.
        Diverged: loss or gradient became infinite or not a number.
    """
    folder = RunFolder(Path(out))
    if not resume:
        folder.refuse_used()
    config = resolve_runtime(config)
    task = task or make_task(config)
    prepared = prepared or task.prepare_data(config.data)
    check_fits(config, prepared)
    batches = task.batches(config, prepared)
    with disk_errors(f"the run folder {folder.path}"), folder.locked(), Signals() as signals:
        if not (resume and folder.config.exists()):
            about = {**describe_machine(config.runtime.device), **(environment or {})}
            write_first_files(config, folder, prepared, plan or {}, about)
        live, optimizers = make_run(config, folder, task, prepared, batches, resume)
        try:
            for hook in hooks:
                hook.started(live)
            run_steps(live, optimizers, list(hooks), signals)
        finally:
            for hook in hooks:
                hook.ended(live)
        folder.event("trained", step=live.step, seconds=live.seconds)
    return summarize(live)


def make_run(
    config: RunConfig, folder: RunFolder, task: Task, prepared: Data, batches: Batches, resume: bool
) -> tuple[Live, list[torch.optim.Optimizer]]:
    """Build model and optimisers, and load the last checkpoint if the run goes on."""
    runtime = make_runtime(config.runtime.device, config.runtime.dtype, config.runtime.threads)
    seed_everything(config.seed)
    with runtime.device:
        model = build_model(config.task, config.model)
    last = checkpoint.latest(folder.checkpoints) if resume else None
    if config.init and last is None:
        checkpoint.load_weights(model, checkpoint.read(Path(config.init)).weights)
    task.prepare(model)
    if config.runtime.recompute:
        recompute(model, list(model.units()))
    if config.runtime.compile:
        for unit in model.units():
            unit.compile()
    optimizers = build(model, config.optim, runtime.dtype)
    timetable = Timetable(config.schedule, config.steps, read=config.batch.before)
    flops = task.flops_per_token(config, prepared)
    live = Live(config, folder, model, task, prepared, batches, runtime, timetable, flops)
    if last is not None:
        checkpoint.require_same_data(last, prepared.fingerprint)
        progress = checkpoint.load(last, model, optimizers)
        live.step, live.seconds, live.aside = progress["step"], progress["seconds"], progress.get("aside", 0.0)
    folder.forget_after(live.step)
    decisions = tuple(Decision.from_dict(line) for line in read_lines(folder.log("decisions")))
    live.timetable = replace(timetable, decisions=decisions)
    folder.event("resumed" if resume else "started", step=live.step)
    return live, optimizers


def run_steps(
    live: Live,
    optimizers: list[torch.optim.Optimizer],
    hooks: list[Hook],
    signals: Signals,
) -> None:
    """The loop. On return every planned step is done and the last checkpoint is written."""
    config = live.config
    held_to = seconds_held_to(live)
    pace = Pace(held_to) if held_to else None
    log = Log(live)
    saved = live.step if live.step else -1
    before = time.monotonic() - live.seconds
    live.model.train()
    while not live.done:
        if live.step == live.timetable.decay_step and saved != live.step:
            saved = save(live, optimizers, log)  # an extended run goes on from here
        batch = live.batches.batch(live.step)
        scale = live.timetable.scale(live.step)
        loss, norm = take_step(
            live.model,
            optimizers,
            live.task,
            [tensor.to(live.runtime.device) for tensor in batch],
            micro=config.batch.micro_sequences or len(batch[0]),
            runtime=live.runtime,
            clip=config.optim.clip,
            scale=scale,
        )
        log.flush()  # the step before this one: reading it now does not keep the device waiting
        live.step += 1
        live.seconds = time.monotonic() - before
        log.add(loss, norm, scale)
        stepped_at = time.monotonic()
        for hook in hooks:
            hook.stepped(live)
        live.seconds = time.monotonic() - before
        if pace and (decision := pace.look(live.step, live.seconds, live.timetable)):
            live.folder.append("decisions", {**decision.to_dict(), "time": time.time()}, durable=True)
            live.timetable = live.timetable.decide(decision)
            for hook in hooks:
                hook.decided(live, decision)
        if live.due(config.every.checkpoint) or live.done:
            saved = save(live, optimizers, log)
        live.aside += time.monotonic() - stepped_at
        live.seconds = time.monotonic() - before
        if signals.received is not None and not live.done:
            if saved != live.step:
                save(live, optimizers, log)
            live.folder.event("stopped", step=live.step, signal=signals.received)
            raise Interrupted(signals.received, live.step, live.folder.path)
    log.flush()


def seconds_held_to(live: Live) -> float:
    """The seconds that the run must keep to: the configuration's, or those of its last extension; 0: none."""
    extended = [line["seconds"] for line in read_lines(live.folder.log("decisions")) if "seconds" in line]
    return float(convert(float, extended[-1], "decision.seconds")) if extended else live.config.seconds


class Log:
    """Training lines, written one step late so that the device is never waited for. Their `loss` is what is trained on,
    auxiliary losses and smoothing and all; held-out lines have plain cross-entropy."""

    def __init__(self, live: Live) -> None:
        self.live = live
        self.pending: tuple[dict[str, Any], torch.Tensor, torch.Tensor, float] | None = None
        self.marks: deque[tuple[int, float]] = deque([(live.tokens, live.seconds - live.aside)], maxlen=RATE_LINES)

    def add(self, loss: torch.Tensor, norm: torch.Tensor, scale: float) -> None:
        live = self.live
        line = {
            "step": live.step,
            "loss": 0.0,
            "grad_norm": 0.0,
            "lr": live.config.optim.lr * scale,
            "tokens": live.tokens,
            "seconds": live.seconds,
            "flops": live.flops,
        }
        self.pending = (line, loss, norm, live.seconds - live.aside)

    def rate(self) -> float:
        """Tokens per second of the steps over the last RATE_LINES lines, what is done beside them left out; 0 before
        there are two."""
        (tokens, seconds), (last_tokens, last_seconds) = self.marks[0], self.marks[-1]
        return (last_tokens - tokens) / (last_seconds - seconds) if last_seconds > seconds else 0.0

    def flush(self) -> None:
        if self.pending is None:
            return
        line, loss, norm, stepping = self.pending
        self.pending = None
        line["loss"], line["grad_norm"] = float(loss), float(norm)
        check_finite(line["step"], line["loss"], line["grad_norm"])
        self.marks.append((line["tokens"], stepping))
        line["tokens_per_second"] = round(self.rate(), 1)
        line["seconds"] = round(line["seconds"], 4)
        self.live.line = line
        if line["step"] % self.live.config.every.log == 0 or line["step"] == self.live.timetable.total_steps:
            self.live.folder.append("metrics", line)


def save(live: Live, optimizers: list[torch.optim.Optimizer], log: Log) -> int:
    """Write a checkpoint and drop those no longer wanted. A run gone wrong is not saved: flush checks the last loss."""
    log.flush()
    checkpoint.save(
        live.folder.checkpoints,
        step=live.step,
        model=live.model,
        optimizers=optimizers,
        config=to_dict(live.config),
        tokenizer=live.prepared.tokenizer.to_json(),
        fingerprint=live.prepared.fingerprint,
        progress={"seconds": live.seconds, "aside": live.aside, "tokens": live.tokens},
    )
    decay = live.timetable.decay_step
    checkpoint.prune(live.folder.checkpoints, live.config.every.keep, keep=() if decay is None else (decay,))
    return live.step


def resolve_runtime(config: RunConfig) -> RunConfig:
    """Replace "auto" and 0 by what this machine has, so that config.json says what ran."""
    device = choose_device(config.runtime.device)
    dtype = config.runtime.dtype
    if dtype == "auto":
        dtype = "bfloat16" if device.startswith("cuda") else "float32"
    threads = config.runtime.threads or cores()
    return replace(config, runtime=replace(config.runtime, device=device, dtype=dtype, threads=threads))


def check_fits(config: RunConfig, prepared: Data) -> None:
    """The model must know every id of the tokenizer; more rows than ids is allowed (padding)."""
    if config.model.vocab_size < prepared.vocab_size:
        raise UserError(
            f"model.vocab_size = {config.model.vocab_size} is less than the tokenizer's {prepared.vocab_size} ids; "
            f"use --set model.vocab_size={prepared.vocab_size}"
        )


def write_first_files(
    config: RunConfig, folder: RunFolder, prepared: Data, plan: dict[str, Any], environment: dict[str, Any]
) -> None:
    """What a run folder holds before the first step. config.json comes last: with it the folder is a run."""
    write_json(folder.plan, plan)
    write_json(folder.environment, environment)
    write_json(folder.data, prepared.account())
    write_text(folder.tokenizer, prepared.tokenizer.to_json())
    write_json(folder.config, to_dict(config))


def summarize(live: Live) -> RunResult:
    lines = read_lines(live.folder.log("metrics"))
    losses = [line["loss"] for line in lines if "loss" in line]
    heldout = [line["heldout_loss"] for line in lines if "heldout_loss" in line]
    tail = losses[-max(1, len(losses) // 10) :]
    return RunResult(
        folder=live.folder.path,
        step=live.step,
        loss=sum(tail) / len(tail) if tail else float("nan"),
        heldout_loss=heldout[-1] if heldout else None,
        seconds=live.seconds,
        aside=live.aside,
        tokens=live.tokens,
        flops=live.flops,
    )
