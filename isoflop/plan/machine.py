"""Device, dtype, threads and compilation of a run, from what this machine was seen to do."""

from dataclasses import replace
from typing import Any

from isoflop.budget import Budget
from isoflop.config import load_json
from isoflop.files import home, write_json
from isoflop.runtime import default_dtype, describe_machine
from isoflop.trainer import RunConfig, throughput

TRIAL_SECONDS = 2.0  # of steps in each dtype, in turns
COMPILED_FROM = 600.0  # seconds of a budget: every shape that is timed takes up to a minute to compile
PATHS = 2  # goes up where a step in one of the dtypes becomes faster, so that what is known of before is timed again
GAIN = 1.15  # how much faster a step in bfloat16 has to be to be chosen


def choose_runtime(
    config: RunConfig, device: str, threads: int, peak: dict[str, float]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Device, dtype and threads: what the user asked for, else what timed steps say.

    bfloat16 has to be GAIN times as fast to be chosen, and is not tried where its matrix products run at less than half
    of float32's speed; a GPU that has units for it needs no trial. The choice is kept in $ISOFLOP_HOME/dtype.json for
    this machine and shape: were it made anew each time, noise could give the same command different bits.

    Args:
        config: a candidate, to be timed in both.
        peak: FLOP/s by dtype, see runtime.measure_peak.

    Returns:
        The fields of RuntimeConfig, and the same with the `reason`.
    """
    asked = config.runtime
    runtime: dict[str, Any] = {"device": device, "dtype": asked.dtype, "threads": threads}
    if asked.dtype != "auto":
        return runtime, {"reason": "as asked for", **runtime}
    if peak["bfloat16"] < 0.5 * peak["float32"]:  # far from a matter of noise
        runtime["dtype"] = "float32"
        ratio = peak["bfloat16"] / peak["float32"]
        return runtime, {"reason": f"matrix products in bfloat16 run at {ratio:.2g} times float32's speed", **runtime}
    if device.startswith("cuda"):
        runtime["dtype"] = default_dtype(device)
        return runtime, {"reason": "what its units are for", **runtime}
    machine = describe_machine(device)
    shape = f"{config.model.layers} x {config.model.d_model}, {config.tokens_per_step} tokens of {config.model.context}"
    paths = f"paths {PATHS}"
    key = ", ".join([machine["processor"], device, f"{threads} threads", f"torch {machine['torch']}", paths, shape])
    stored = home() / "dtype.json"
    known: dict[str, float] = load_json(stored) if stored.is_file() else {}
    if key not in known:
        trials = [
            replace(config, runtime=replace(asked, device=device, dtype=dtype, threads=threads))
            for dtype in ("float32", "bfloat16")
        ]
        in_float32, in_bfloat16 = throughput.time_in_turns(trials, TRIAL_SECONDS)
        known = {**known, key: in_bfloat16.tokens_per_second / in_float32.tokens_per_second}
        write_json(stored, known)
    runtime["dtype"] = "bfloat16" if known[key] > GAIN else "float32"
    return runtime, {"reason": f"a step in bfloat16 ran at {known[key]:.2f} times float32's speed", **runtime}


def worth_compiling(device: str, budget: Budget) -> bool:
    """Whether a planned run's blocks are compiled where nobody says: on a GPU, whose kernels wait for memory otherwise,
    unless the compiler would take as long as the run. On a CPU it wins a few percent, more at the smallest sizes
    (LAB.md)."""
    return device.startswith("cuda") and (budget.kind != "seconds" or budget.amount >= COMPILED_FROM)
