"""Chooses device, dtype, threads and compilation of a run from timings on this machine."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from isoflop import processors
from isoflop.budget import Budget
from isoflop.config import load_json
from isoflop.errors import UserError
from isoflop.files import home, write_json
from isoflop.kernels.compiled import available
from isoflop.plan import known
from isoflop.plan.asked import Asked
from isoflop.plan.trials import Trial
from isoflop.records.plan import Calibration
from isoflop.runtime import describe_machine
from isoflop.trainer import RunConfig, throughput
from isoflop.trainer.config import resolve_runtime
from isoflop.trainer.workload import Workload

TRIAL_SECONDS = 2.0  # at most, for the steps of each dtype or number of threads, timed in turns
COMPILED_FROM = 600.0  # seconds of a budget: every shape that is timed takes up to a minute to compile
PATHS = 3  # increased when a change of the code makes a step faster in one of the dtypes, so that they are timed again
GAIN = 1.15  # bfloat16 is chosen if its steps are at least so many times as fast
STALLS = 3.0  # more threads may take so many times as long as one for a small product; on an idle machine, briefly 1.5
STALLED = "threads waited for a processor"
FEWER = 1.05  # fewer threads are chosen if steps are at least so many times as fast


@dataclass(frozen=True)
class Chosen:
    """A chosen value and its reason.

    Attributes:
        doubt: what makes the timing behind it doubtful; "" if nothing does.
        tokens_per_second: the measured speed; 0 if none was measured.
    """

    value: str | int
    reason: str = ""
    doubt: str = ""
    tokens_per_second: float = 0.0


def choose_runtime(
    config: RunConfig,
    budget: Budget,
    peak: dict[str, float],
    workload: Workload,
    asked: Asked,
    trial: Trial | None = None,
    until: float = math.inf,
) -> tuple[RunConfig, Calibration]:
    """Choose device, dtype, threads and compilation of a planned run: what the user set, else what timed steps show.

    Args:
        config: a candidate.
        peak: FLOP/s by dtype, see runtime.measure_peak.
        trial: what can be timed of it, or of a smaller one; None if nothing can.
        until: when to be done, approximately, on time.perf_counter's clock.

    Returns:
        The configuration with its runtime chosen, and what was measured for it.
    """
    if workload.data is not None:
        return resolve_runtime(config), Calibration(reason=workload.notes.dtype)

    half_time = time.perf_counter() + (until - time.perf_counter()) / 2
    threads = choose_threads(config, trial, budget, half_time)
    config = replace(config, runtime=replace(config.runtime, threads=int(threads.value)))
    dtype = choose_dtype(config, trial, peak, until)
    config = resolve_runtime(replace(config, runtime=replace(config.runtime, dtype=str(dtype.value))))

    runtime = config.runtime
    calibration = Calibration(
        reason="; ".join(filter(None, [dtype.reason, threads.reason])),
        device=runtime.device,
        dtype=runtime.dtype,
        threads=runtime.threads,
        doubt=threads.doubt or dtype.doubt or None,
    )
    if worth_compiling(runtime.device, budget):
        config = asked.choose(config, "runtime", compile=True)
    if trial is not None and threads.tokens_per_second:
        reached = threads.tokens_per_second * workload.flops_per_token(trial.config)
        calibration = calibration.updated(flops_per_second=reached)
    return config, calibration


def choose_kernels(config: RunConfig, workload: Workload, asked: Asked) -> RunConfig:
    """Choose the compiled kernels (isoflop/kernels) for text on a CPU, where they can be compiled. They are not timed:
    at the shapes of a plan they were faster everywhere (bench/paths.py), and noise could give the same command
    different bits."""
    if workload.text is None or resolve_runtime(config).runtime.device != "cpu" or not available():
        return config
    return asked.choose(config, "runtime", kernels="compiled")


def choose_threads(config: RunConfig, trial: Trial | None, budget: Budget, until: float) -> Chosen:
    """Choose how many threads a CPU computes with: one, half of the processors or all, by timed steps.

    All is the default. But if another program is running, a step waits at every barrier for the thread that has to
    share its processor, which can cost more than a thread gains. A budget that is not in seconds keeps all threads,
    because the same command must then give the same bits.
    """
    resolved = resolve_runtime(config).runtime
    if config.runtime.threads or trial is None or resolved.device != "cpu" or budget.kind != "seconds":
        return Chosen(resolved.threads)
    counts = list(processors.thread_counts(resolved.threads))
    if len(counts) == 1:
        return Chosen(resolved.threads)

    key = known.key(replace(trial.config, runtime=replace(resolved, dtype="float32", threads=0)))
    before = known.recall("threads", resolved.device, key)
    if before is not None and int(before) in counts and quiet(resolved.device):
        return Chosen(int(before))

    counts = list(keeping_up(counts, throughput.time_matmul))
    each = [
        Trial(replace(trial.config, runtime=replace(resolved, dtype="float32", threads=count)), trial.times)
        for count in counts
    ]
    timed = time_trials(each, until)

    best, everything = counts[-1], resolved.threads
    for count, one in zip(counts, timed, strict=True):
        if one.tokens_per_second > FEWER * timed[counts.index(best)].tokens_per_second:
            best = count
    doubt, fastest = trouble_of(timed), timed[counts.index(best)].tokens_per_second

    if counts[-1] < everything:
        reason = f"with all {everything} threads matrix products wait for other programs"
        return Chosen(best, reason, doubt or STALLED, fastest)
    if not doubt:
        known.remember("threads", resolved.device, {key: (known.shape(trial.config), float(best))})
    if best == counts[-1]:
        return Chosen(best, doubt=doubt, tokens_per_second=fastest)
    gain = fastest / timed[-1].tokens_per_second
    reason = f"a step with {best} of {counts[-1]} threads was {gain:.2f} times as fast as with all"
    return Chosen(best, reason, doubt, fastest)


def keeping_up(counts: Sequence[int], time_matmul: Callable[[int], float]) -> Iterator[int]:
    """The numbers of threads with which small matrix products are not much slower than with one thread. With the
    others, each of the hundreds of such products of a step would wait, and the step would take seconds.

    Args:
        counts: ascending, starting at 1.
        time_products: seconds of such a product with the given number of threads.
    """
    alone = time_matmul(1) if len(counts) > 1 else 0.0
    for count in counts:
        if count == 1 or time_matmul(count) < STALLS * alone:
            yield count


def choose_dtype(config: RunConfig, trial: Trial | None, peak: dict[str, float], until: float) -> Chosen:
    """Choose the dtype of the matrix products, with the reason.

    bfloat16 is chosen if it is GAIN times as fast, and not tried if its matrix products run at less than half of
    float32's speed; a GPU with units for it needs no trial. The choice is cached in $ISOFLOP_HOME/dtype.json for this
    machine and shape: if it were made again each time, noise could give the same command different bits. A timing taken
    while another program was running is not cached.
    """
    resolved = resolve_runtime(config).runtime
    if config.runtime.dtype != "auto":
        return Chosen(resolved.dtype, "set by you")
    if peak["bfloat16"] < 0.5 * peak["float32"]:  # too large a difference to be noise
        ratio = peak["bfloat16"] / peak["float32"]
        return Chosen("float32", f"matrix products in bfloat16 run at {ratio:.2g} times float32's speed")
    if resolved.device.startswith("cuda"):
        return Chosen(resolved.dtype, "what its units are for")
    if trial is None:
        return Chosen(resolved.dtype, "not timed: no shape of this kind is small enough for this machine")

    machine, timed = describe_machine(resolved.device), trial.config
    words = f"{known.shape(timed)}, {timed.tokens_per_step} tokens of {timed.model.context}"
    paths, threads = f"paths {PATHS}", f"{resolved.threads} threads"
    key = ", ".join([machine["processor"], resolved.device, threads, f"torch {machine['torch']}", paths, words])
    ratios, doubt = read_ratios(), ""
    if key not in ratios:
        dtypes = ("float32", "bfloat16")
        trials = [Trial(replace(timed, runtime=replace(resolved, dtype=dtype)), trial.times) for dtype in dtypes]
        in_float32, in_bfloat16 = time_trials(trials, until)
        ratios = {**ratios, key: in_bfloat16.tokens_per_second / in_float32.tokens_per_second}
        doubt = trouble_of([in_float32, in_bfloat16])
        if not doubt:
            with contextlib.suppress(OSError):  # if it cannot be written, it is timed again the next time
                write_json(home() / "dtype.json", ratios)
    dtype = "bfloat16" if ratios[key] > GAIN else "float32"
    return Chosen(dtype, f"a step in bfloat16 ran at {ratios[key]:.2f} times float32's speed", doubt)


def read_ratios() -> dict[str, float]:
    """dtype.json: how many times as fast a step in bfloat16 was as one in float32."""
    stored = home() / "dtype.json"
    try:
        ratios = load_json(stored) if stored.is_file() else {}
    except UserError:  # damaged: as if there were none
        return {}
    entries: dict[str, float] = ratios if isinstance(ratios, dict) else {}
    return {key: ratio for key, ratio in entries.items() if type(ratio) in (int, float)}


def forget_dtypes() -> None:
    """Drop the cached ratios of the dtypes: a run has contradicted what was timed."""
    with contextlib.suppress(OSError):
        (home() / "dtype.json").unlink(missing_ok=True)


def time_trials(trials: Sequence[Trial], until: float) -> list[throughput.Throughput]:
    """Time some trials in turns, for TRIAL_SECONDS each, or less if `until` is sooner."""
    times, left = [trial.times for trial in trials], max(0.0, until - time.perf_counter())
    seconds = min(TRIAL_SECONDS, left / (len(trials) + 1))  # one more, for building them and warming up
    return throughput.time_in_turns([trial.config for trial in trials], seconds, times=times, until=until)


def trouble_of(timed: Sequence[throughput.Throughput]) -> str:
    """What makes some timings doubtful, in words; "" if nothing does."""
    return next((one.trouble for one in timed if one.trouble), "")


def quiet(device: str) -> bool:
    """Whether timings that were taken while the machine was idle hold now."""
    return not device.startswith("cpu") or not processors.busy_now(processors.load_now())


def worth_compiling(device: str, budget: Budget) -> bool:
    """Whether a planned run's blocks are compiled by default: on a GPU, whose kernels otherwise wait for memory, unless
    compiling would take as long as the run. On a CPU it gains a few percent, more at the smallest sizes (LAB.md)."""
    return device.startswith("cuda") and (budget.kind != "seconds" or budget.amount >= COMPILED_FROM)
