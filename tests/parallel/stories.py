"""Whole runs by all processes of a group (members.py): bad steps in one process, and a signal to one process during
an evaluation."""

import hashlib
import math
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

from torch.distributed.tensor import DTensor

from divided import save_divided
from isoflop import checkpoint, measure
from isoflop.config import override
from isoflop.data.prepare import open_prepared
from isoflop.errors import UserError
from isoflop.parallel import pause
from isoflop.parallel.cost import Parallelism
from isoflop.parallel.watch import Watchdog
from isoflop.records import RunFolder, read_run
from isoflop.trainer import RunConfig, train
from isoflop.trainer.guard import count_bad_steps
from isoflop.trainer.hooks import HeldOut, Hook, Samples
from isoflop.trainer.memory import estimate, portion
from isoflop.trainer.recovery import Diverged
from isoflop.trainer.signals import Interrupted
from isoflop.trainer.task import CausalLM
from small import TINY, GradientNorms

STEPS = 12
ROW = 5  # of 8 in a step: the second process of two has it
PARTS, SLEEP = 300, 0.05  # a measurement that would take long, and seconds of each of its parts
WORDS = ["guard.window=4", "guard.sigmas=50", "guard.spike=rollback", "sample.tokens=4", 'sample.prompts=["a", "b"]']


class Poisoned(CausalLM):
    """Text in which one row of some steps multiplies the loss by a factor, in whichever process has the row."""

    def __init__(self, config, data, factors):
        super().__init__()
        batches = super().batches(config, data)
        self.rows = [(batches.batch(step)[0][ROW], factor) for step, factor in factors.items()]

    def loss(self, model, inputs_BT, targets_BT):
        loss = super().loss(model, inputs_BT, targets_BT)
        for row, factor in self.rows:
            if (inputs_BT == row).all(1).any():
                loss = loss * factor
        return loss


class Recorder(Hook):
    """The messages that reached this process, and its weights at the end, as bits."""

    def __init__(self):
        self.lines, self.weights = [], ""

    def troubled(self, state, line):
        self.lines.append({name: value for name, value in line.to_dict().items() if name != "time"})

    def ended(self, state):
        local = [p.to_local() if isinstance(p, DTensor) else p for p in state.model.parameters()]
        self.weights = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in local)).hexdigest()


class Slow(CausalLM):
    """Its first measurement would take long, and in the third of its parts this process gets a signal."""

    def __init__(self, hit):
        super().__init__()
        self.hit, self.parts = hit, 0

    def measure(self, model, *arguments):
        slow = model.units()[0].register_forward_pre_hook(self.part)
        try:
            return super().measure(model, *arguments)
        finally:
            slow.remove()

    def part(self, *_):
        self.parts += 1
        time.sleep(SLEEP)
        if self.parts == 3 and self.hit:
            os.kill(os.getpid(), signal.SIGTERM)


def setting(texts, mode, group, more=()):
    """A configuration, and the data that the first process prepares."""
    start = RunConfig()
    start = replace(start, data=replace(start.data, sources=(str(texts),)))
    copies = 2 if mode == "hsdp" else 0
    mine = [f"parallel.mode={mode}", f"parallel.replicas={copies}", "model.vocab_size=320", f"steps={STEPS}"]
    config = override(start, [*TINY, *mine, "every.checkpoint=4", *WORDS, *more])
    where = group.order(str(CausalLM().prepare_data(config.data).folder) if group.first else None)
    return config, open_prepared(Path(where), verify_checksums=False)


def weights(folder):
    return {name: w.flatten().tolist() for name, w in checkpoint.read(RunFolder(folder).path).weights.items()}


def records_of(folder):
    run = read_run(folder)
    return {
        "losses": [(line.step, line.loss) for line in run.training],
        "heldout": [(line.step, line.heldout_loss) for line in run.heldout],
        "samples": [line.step for line in run.samples],
        "skips": [[getattr(line, name) for name in ("step", "kind", "action", "tokens")] for line in run.skips],
        "passed": [[line.first, line.sequences] for line in run.skips if line.action == "rollback"],
        "back": [(event.from_step, event.step) for event in run.events if event.event == "rolled back"],
    }


def trouble(folder, mode, group):
    """Not a number at step 3, a spike at step 8; and a run in which too much goes wrong."""
    config, data = setting(folder.parent / "texts", mode, group, ["every.evaluate=0", "every.sample=0"])
    recorder = Recorder()
    bad = Poisoned(config, data, {2: math.nan, 7: 1e4})
    train(config, folder / "run", task=bad, prepared=data, hooks=[recorder], group=group)
    found = records_of(folder / "run") | {
        "weights": weights(folder / "run"),
        "account": count_bad_steps(read_run(folder / "run").skips).to_dict(),
    }
    found["reported"], found["bits"] = group.gather(recorder.lines), group.gather(recorder.weights)

    bad = Poisoned(config, data, {2: math.nan, 4: math.nan, 5: math.nan})
    config = override(config, ["guard.in_a_row=2"])
    try:
        train(config, folder / "stopped", task=bad, prepared=data, group=group)
        why = "nothing"
    except Diverged as error:
        why = str(error)
    return found | {"why": group.gather(why), "last": checkpoint.steps(folder / "stopped" / "checkpoints")}


def signals(folder, mode, group):
    """A run that is stopped while it measures, and goes on. One process alone is not stopped."""
    more = ["every.evaluate=6", "every.sample=6", f"evaluate_tokens={64 * PARTS}"]
    config, data = setting(folder.parent / "texts", mode, group, more)
    rows, every = measure.BATCH_TOKENS, pause.EVERY
    measure.BATCH_TOKENS, pause.EVERY = 64, 0.2
    began, cut = time.monotonic(), {}
    try:
        if not group.alone:
            slow = Slow(hit=group.rank == 1)
            hooks = [HeldOut(), Samples()]
            try:
                train(config, folder / "run", task=slow, prepared=data, hooks=hooks, group=group)
            except Interrupted as error:
                ended = [error.exit_code, error.step, slow.parts]
                cut = {
                    "seconds": time.monotonic() - began,
                    "ended": group.gather(ended),
                    "cut": records_of(folder / "run"),
                }
        train(config, folder / "run", prepared=data, hooks=[HeldOut(), Samples()], group=group, resume=bool(cut))
    finally:
        measure.BATCH_TOKENS, pause.EVERY = rows, every
    return records_of(folder / "run") | cut


def memory(folder, mode, group):
    """A run that does not fit, refused; then with the setting that the refusal named."""
    config, data = setting(folder.parent / "texts", mode, group, ["every.evaluate=0", "steps=1", "model.layers=8"])
    task = CausalLM()
    need = portion.measure_footprint(config, task, task.batches(config, data), "cpu")
    free = group.local_size * need.per_process(Parallelism("fsdp", group.size), 1, 4)
    known = estimate.free_memory, portion.free_memory
    estimate.free_memory = portion.free_memory = lambda device: free + 10**6 * group.rank  # the least counts
    try:
        train(config, folder / "run", prepared=data, group=group)
        why = ""
    except UserError as error:
        why = str(error)
    there = (folder / "run").exists()
    fits = override(config, ["parallel.mode=fsdp", "batch.micro_sequences=1"])
    step = train(fits, folder / "fits", prepared=data, group=group).step
    estimate.free_memory, portion.free_memory = known
    return {"why": group.gather(why), "there": there, "step": step}


def observed(folder, mode, group):
    """The same run without and with a hook that looks at the gradients of every step."""
    more = ["every.evaluate=0", "every.sample=0", "steps=4", "batch.micro_sequences=2"]
    config, data = setting(folder.parent / "texts", mode, group, more)
    plain, recorder, norms = Recorder(), Recorder(), GradientNorms()
    train(config, folder / "plain", prepared=data, hooks=[plain], group=group)
    train(config, folder / "observed", prepared=data, hooks=[norms, recorder], group=group)
    return {
        "norms": group.gather(norms.lines),
        "whole": [line.grad_norm for line in read_run(folder / "observed").training],
        "bits": [group.gather(hook.weights) for hook in (plain, recorder)],
        "losses": [records_of(folder / name)["losses"] for name in ("plain", "observed")],
    }


def saved_state(folder, mode, group):
    folder.mkdir(exist_ok=True)
    save_divided(folder)


STORIES = {"trouble": trouble, "signals": signals, "observed": observed, "memory": memory, "state": saved_state}


def tell(story, mode, group, folder):
    return STORIES[story](folder / f"{story}-{mode}-{group.size}", mode, group)


def sleeps_for_ever():
    time.sleep(1000)


def hang(folder, group):
    """The second process hangs: the end of the group."""
    folder.mkdir(exist_ok=True)
    group.barrier()
    with Watchdog(group, 2.0, folder, 5) as watchdog:
        watchdog.at(5, "in the step")
        group.barrier()
        if group.rank == 1:
            sleeps_for_ever()
        group.barrier()
