"""Device, dtype, threads and compilation of a run, from what this machine was seen to do."""

import contextlib
from dataclasses import replace

from isoflop.budget import Budget
from isoflop.config import load_json
from isoflop.files import home, write_json
from isoflop.plan.asked import Asked
from isoflop.records.plan import Calibration
from isoflop.runtime import describe_machine
from isoflop.trainer import RunConfig, throughput
from isoflop.trainer.config import resolve_runtime
from isoflop.trainer.workload import Workload

TRIAL_SECONDS = 2.0  # of steps in each dtype, in turns
COMPILED_FROM = 600.0  # seconds of a budget: every shape that is timed takes up to a minute to compile
PATHS = 2  # goes up where a step in one of the dtypes becomes faster, so that what is known of before is timed again
GAIN = 1.15  # how much faster a step in bfloat16 has to be to be chosen


def choose_runtime(
    config: RunConfig, budget: Budget, peak: dict[str, float], workload: Workload, asked: Asked
) -> tuple[RunConfig, Calibration]:
    """Device, dtype, threads and compilation of a planned run: what the user asked for, else what timed steps say.

    Args:
        config: a candidate, to be timed in both dtypes.
        peak: FLOP/s by dtype, see runtime.measure_peak.

    Returns:
        The same with its runtime chosen, and the reason of the dtype.
    """
    if workload.data is not None:
        return resolve_runtime(config), Calibration(reason=workload.notes.dtype)
    dtype, reason = choose_dtype(config, peak)
    config = resolve_runtime(replace(config, runtime=replace(config.runtime, dtype=dtype)))
    runtime = config.runtime
    calibration = Calibration(reason=reason, device=runtime.device, dtype=runtime.dtype, threads=runtime.threads)
    if worth_compiling(runtime.device, budget):
        config = asked.choose(config, "runtime", compile=True)
    return config, calibration


def choose_dtype(config: RunConfig, peak: dict[str, float]) -> tuple[str, str]:
    """The dtype of the matrix products, and why.

    bfloat16 has to be GAIN times as fast to be chosen, and is not tried where its matrix products run at less than half
    of float32's speed; a GPU that has units for it needs no trial. The choice is kept in $ISOFLOP_HOME/dtype.json for
    this machine and shape: were it made anew each time, noise could give the same command different bits.
    """
    resolved = resolve_runtime(config).runtime
    if config.runtime.dtype != "auto":
        return resolved.dtype, "as asked for"
    if peak["bfloat16"] < 0.5 * peak["float32"]:  # far from a matter of noise
        ratio = peak["bfloat16"] / peak["float32"]
        return "float32", f"matrix products in bfloat16 run at {ratio:.2g} times float32's speed"
    if resolved.device.startswith("cuda"):
        return resolved.dtype, "what its units are for"

    machine = describe_machine(resolved.device)
    shape = f"{config.model.layers} x {config.model.d_model}, {config.tokens_per_step} tokens of {config.model.context}"
    paths, threads = f"paths {PATHS}", f"{resolved.threads} threads"
    key = ", ".join([machine["processor"], resolved.device, threads, f"torch {machine['torch']}", paths, shape])
    stored = home() / "dtype.json"
    known: dict[str, float] = load_json(stored) if stored.is_file() else {}
    if key not in known:
        trials = [replace(config, runtime=replace(resolved, dtype=dtype)) for dtype in ("float32", "bfloat16")]
        in_float32, in_bfloat16 = throughput.time_in_turns(trials, TRIAL_SECONDS)
        known = {**known, key: in_bfloat16.tokens_per_second / in_float32.tokens_per_second}
        with contextlib.suppress(OSError):  # then it is timed again the next time
            write_json(stored, known)
    dtype = "bfloat16" if known[key] > GAIN else "float32"
    return dtype, f"a step in bfloat16 ran at {known[key]:.2f} times float32's speed"


def worth_compiling(device: str, budget: Budget) -> bool:
    """Whether a planned run's blocks are compiled where nobody says: on a GPU, whose kernels wait for memory otherwise,
    unless the compiler would take as long as the run. On a CPU it wins a few percent, more at the smallest sizes
    (LAB.md)."""
    return device.startswith("cuda") and (budget.kind != "seconds" or budget.amount >= COMPILED_FROM)
