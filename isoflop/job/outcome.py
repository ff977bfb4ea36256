"""What a run came to, beside what was expected of it: result.json, and the ledger that later plans can learn from."""

import time
from dataclasses import replace
from typing import Any

from isoflop import checkpoint
from isoflop.config import from_dict
from isoflop.data.prepared import Data
from isoflop.files import disk_errors, home, write_json
from isoflop.job.listener import Phases
from isoflop.measure import HeldOut
from isoflop.parallel.mesh import ALONE, Group
from isoflop.records import HeldOutFigures, LedgerLine, Plan, Result, RunFolder, read_run
from isoflop.runtime import Runtime, make_runtime, peak_memory, utilisation
from isoflop.trainer import RunConfig, RunResult
from isoflop.trainer.config import RuntimeConfig
from isoflop.trainer.guard import account, gaps
from isoflop.trainer.task import make_task

FINAL_TOKENS = 4_000_000  # held-out tokens measured at the end; all of them where there are fewer


def judge(
    config: RunConfig, model: Any, data: Any, runtime: Runtime, max_tokens: int = 0, beam: int = 1, group: Group = ALONE
) -> HeldOut:
    """Held-out loss of a model, and what its task is judged by beside it."""
    task = make_task(config)
    found = task.measure(model, data, runtime, max_tokens, group)
    return replace(found, beside=task.judge(model, data, beam)) if group.first else found


def measure_last(folder: RunFolder, prepared: Data, config: RunConfig, group: Group = ALONE) -> HeldOut:
    """`judge` the last checkpoint, over everything held out up to FINAL_TOKENS. Several processes share out the
    held-out loss; what the task is judged by beside it is the first one's alone."""
    model, _, snapshot = checkpoint.load_model(folder.path)
    run_as = from_dict(RunConfig, snapshot.config).runtime
    runtime = make_runtime(group.device(run_as.device), run_as.dtype, group.threads(run_as.threads))
    model.to(runtime.device)
    return judge(config, model, prepared, runtime, FINAL_TOKENS, group=group)


def write_result(
    folder: RunFolder,
    config: RunConfig,
    prepared: Data,
    result: RunResult,
    reached: HeldOut,
    peak: dict[str, float],
    plan: Plan,
    phases: Phases,
    group: Group = ALONE,
) -> None:
    """result.json: what the run came to, next to what was expected of it."""
    run = read_run(folder.path)
    batches = make_task(config).batches(config, prepared, gaps(run.skips))
    ran = from_dict(RuntimeConfig, run.config["runtime"], "runtime")
    ceiling = peak.get(ran.dtype, 0.0) * group.machines(ran.device)
    stepping = result.seconds - result.aside
    rate = result.flops / stepping if stepping else 0.0
    tokens_per_second = result.tokens / stepping if stepping else 0.0
    record = Result(
        step=result.step,
        loss=result.loss,
        heldout=HeldOutFigures.read(reached.to_dict()),
        seconds=result.seconds,
        tokens=result.tokens,
        flops=result.flops,
        aside_seconds=result.aside,
        tokens_per_second=tokens_per_second,
        peak_share=rate / ceiling if ceiling else None,
        mfu=mfu(config, ran, tokens_per_second, group),
        peak_memory_bytes=peak_memory(ran.device),
        data=batches.account(result.step),
        guard=account(run.skips),
        phases=phases.seconds,
        verdict=plan.expected.verdict(reached.bits_per_byte) if plan.expected else None,
    )
    write_json(folder.result, record.to_dict())


def mfu(config: RunConfig, ran: RuntimeConfig, tokens_per_second: float, group: Group) -> float | None:
    """Model FLOPs utilisation as PaLM counts it (2204.02311, appendix B), of the GPUs' data sheet in bfloat16; None for
    other devices and dtypes, for cards whose data sheet is not known, and for tasks that it does not apply to.

    Args:
        ran: the run's resolved runtime.
    """
    flops = make_task(config).palm_flops_per_token(config)
    if flops is None:
        return None
    each = tokens_per_second / group.machines(ran.device)
    return utilisation(flops * each, ran.device, ran.dtype)


def add_to_ledger(folder: RunFolder) -> None:
    """Add prediction and outcome of a planned run to $ISOFLOP_HOME/ledger.jsonl, whence later plans can learn."""
    run = read_run(folder.path)
    if run.plan.expected is None:
        return
    line = LedgerLine(
        run=str(folder.path.resolve()),
        time=time.time(),
        fingerprint=run.data.fingerprint,
        predictability=run.plan.predictability,
        unique_tokens=run.plan.unique_tokens,
        parameters=run.plan.parameters,
        tokens=run.result.tokens,
        flops=run.result.flops,
        seed=run.settings.seed,
        expected=run.plan.expected,
        reached_bits_per_byte=run.result.heldout.bits_per_byte,
        verdict=run.result.verdict,
    )
    ledger = RunFolder(home())
    with disk_errors(f"the ledger {home()}"):
        ledger.path.mkdir(parents=True, exist_ok=True)
        ledger.append("ledger", line)
