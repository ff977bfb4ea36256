"""A generated run that looks like a real one: three minutes of a small GPT, stopped once, its end moved once."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from isoflop.files import write_json
from isoflop.records import RunFolder

TOKENS_A_STEP = 8192
PLANNED_STEPS, STEPS, DECISION_STEP, RESUMED_STEP = 1160, 1100, 820, 400
PARAMETERS, TOTAL_PARAMETERS = 430_000, 561_072
NATS_TO_BITS = 1 / math.log(2) / 2.86  # 2.86 bytes a token
STARTED = 1_760_000_000.0

PROMPTS = ("def read(", "The module")
EARLY = (
    "e tn o  ihs)a,e\n rt=oe  .ln",
    "self the return of (the\n        and in a not",
    "path):\n    return the file of name",
)
LAST = (
    'path, mode="r"):\n    """Read the file and return its lines.\n\n'
    '    The file is closed when it has been read.\n    """\n'
    "    with open(path, mode) as file:\n        return file.read().split()\n"
)


def loss_at(step: int) -> float:
    """Nats per token of the made-up model: a power law, and the drop of the decay."""
    fall = 2.35 + 4.6 / (1 + step / 14) ** 0.62
    decay = max(0.0, (step - 880) / (STEPS - 880))
    return fall - 0.22 * decay


def lr_at(step: int) -> float:
    return 3e-3 * min(1.0, step / 40, (STEPS - step) / (STEPS - 880) if step > 880 else 1.0)


@pytest.fixture
def blimp() -> dict[str, Any]:
    """The record of scores on BLiMP, as `isoflop eval` keeps it."""
    return {
        "suite": "blimp",
        "metric": "likelihood",
        "score": 0.71,
        "low": 0.7,
        "high": 0.72,
        "chance": 0.5,
        "items": 67000,
    }


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    def make(name: str = "stdlib-3m", steps: int = STEPS, finished: bool = True, seed: int = 0, **changes: Any) -> Path:
        return write_run(tmp_path / name, steps, finished, seed, changes)

    return make


def write_run(path: Path, steps: int, finished: bool, seed: int, changes: dict[str, Any]) -> Path:
    """`changes` replace whole files by the name in front of .json."""
    path.mkdir(parents=True)
    folder, rng = RunFolder(path), np.random.default_rng(seed)
    files = {"config": config(), "environment": environment(), "plan": plan(), "data": data()}
    folder.append("events", {"event": "started", "time": STARTED, "step": 0})
    flops = 6.0 * PARAMETERS * TOKENS_A_STEP
    for step in range(steps + 1):
        common = {"step": step, "tokens": step * TOKENS_A_STEP, "seconds": round(step * 0.1644, 3)}
        if step:
            noise = rng.normal(0, 0.05)
            folder.append(
                "metrics",
                common
                | {
                    "loss": loss_at(step) + noise - 0.06,
                    "lr": lr_at(step),
                    "grad_norm": 0.35
                    + 3 * math.exp(-step / 25)
                    + abs(rng.normal(0, 0.08))
                    + (4.0 if step == 610 else 0.0),
                    "tokens_per_second": 49_800 + 500 * rng.normal() - (6000 if 700 < step < 760 else 0),
                    "flops": step * flops,
                },
            )
        if step % 100 == 0:
            held = {"heldout_loss": loss_at(step), "heldout_bits_per_byte": loss_at(step) * NATS_TO_BITS}
            folder.append("metrics", common | held)
            if steps:
                for prompt in PROMPTS:
                    written = LAST if step == STEPS else EARLY[min(step // 300, 2)]
                    folder.append("samples", {"step": step, "prompt": prompt, "text": written})
        if step == RESUMED_STEP:
            folder.append("events", {"event": "stopped", "time": STARTED + 66, "step": step, "signal": "SIGINT"})
            folder.append("events", {"event": "resumed", "time": STARTED + 900, "step": step})
        if step == DECISION_STEP:
            reason = "the clock is 5.4 % behind the plan"
            folder.append("decisions", {"at_step": step, "steps": STEPS, "reason": reason, "time": STARTED + 970})
    if finished:
        files["result"] = result(steps)
        folder.append("events", {"event": "finished", "time": STARTED + 1020, "step": steps})
    for name, value in (files | changes).items():
        write_json(path / f"{name}.json", value)
    return path


def config() -> dict[str, Any]:
    return {
        "model": {"layers": 4, "d_model": 128, "heads": 4, "vocab_size": 1024, "norm": "rms"},
        "data": {"sources": [], "tokenizer": "bpe"},
        "optim": {"name": "muon", "lr": 0.003},
        "schedule": {"name": "wsd", "steps": PLANNED_STEPS},
        "seed": 0,
    }


def environment() -> dict[str, Any]:
    return {
        "python": "3.12.4",
        "torch": "2.13.0",
        "numpy": "2.3.1",
        "system": "Linux 6.1.0",
        "processor": "AMD EPYC 7B13 64-Core Processor",
        "cores": 2,
        "device": "cpu",
        "threads": 2,
        "peak": {"float32": 3.2e11, "bfloat16": 2.1e11},
    }


def plan() -> dict[str, Any]:
    shapes = [
        (2, 64, 0.13e6, 96_000, 2.09),
        (3, 96, 0.27e6, 71_000, 1.99),
        (4, 128, PARAMETERS, 50_400, 1.95),
        (6, 160, 1.2e6, 23_900, 2.04),
    ]
    return {
        "budget": "3m",
        "kind": "prior",
        "choices": [
            {"name": "parameters", "value": "0.43 M", "reason": "the lowest expected loss of the shapes timed here"},
            {
                "name": "vocabulary",
                "value": 1024,
                "reason": "small models spend less on a small one; 2.86 bytes a token",
            },
            {
                "name": "context",
                "value": 256,
                "reason": "documents are longer, and attention costs little at this width",
            },
            {"name": "batch", "value": "8,192 tokens", "reason": "about the critical batch at this loss"},
            {"name": "learning rate", "value": 0.003, "reason": "from our own sweep at this width"},
        ],
        "parameters": PARAMETERS,
        "total_parameters": TOTAL_PARAMETERS,
        "tokens": PLANNED_STEPS * TOKENS_A_STEP,
        "flops": 6.0 * PARAMETERS * PLANNED_STEPS * TOKENS_A_STEP,
        "steps": PLANNED_STEPS,
        "seconds": 180.0,
        "expected": {"bits_per_byte": 1.35, "low": 1.2, "high": 1.5, "level": 0.9, "source": "a table of 24 runs"},
        "candidates": [
            {
                "layers": layers,
                "d_model": width,
                "parameters": parameters,
                "tokens_per_second": speed,
                "tokens": speed * 180,
                "expected_bits_per_byte": bits - 0.6,
                "chosen": width == 128,
            }
            for layers, width, parameters, speed, bits in shapes
        ],
        "calibration": {"seconds": 11.4, "dtype": "float32", "threads": 2},
        "peak": {"float32": 3.2e11, "bfloat16": 2.1e11},
    }


def data() -> dict[str, Any]:
    return {
        "fingerprint": "5b1f0c",
        "vocab_size": 1024,
        "tokenizer": "bpe",
        "bytes_per_token": 2.86,
        "documents": 1834,
        "pieces": 1910,
        "duplicates": 41,
        "duplicate_bytes": 310_000,
        "skipped": [{"path": "test/bad_coding.py", "reason": "invalid UTF-8 at byte 64", "bytes": 24}],
        "skipped_files": 7,
        "skipped_bytes": 91_000,
        "sampled_share": 1.0,
        "train": {"documents": 1818, "bytes": 12_760_000, "tokens": 4_461_538},
        "heldout": {"documents": 19, "bytes": 131_000, "tokens": 45_804, "how": "hash split 1 %"},
        "sources": {
            "stdlib": {"weight": 0.7, "documents": 1700, "bytes": 11_000_000, "tokens": 3_846_000},
            "notes": {"weight": 0.3, "documents": 134, "bytes": 1_760_000, "tokens": 615_538},
        },
        "seconds": 6.1,
        "reused": False,
    }


def result(steps: int) -> dict[str, Any]:
    tokens, seconds = steps * TOKENS_A_STEP, round(steps * 0.1644, 3)
    flops = 6.0 * PARAMETERS * tokens
    nats = loss_at(steps)
    return {
        "step": steps,
        "loss": nats - 0.06,
        "heldout": {
            "nats_per_token": nats,
            "perplexity": math.exp(nats),
            "bits_per_byte": nats * NATS_TO_BITS,
            "tokens": 45_804,
            "bytes": 131_000,
        },
        "seconds": seconds,
        "tokens": tokens,
        "flops": flops,
        "tokens_per_second": tokens / seconds,
        "peak_share": flops / seconds / 3.2e11,
        "peak_memory_bytes": 612_000_000,
        "data": {
            "sources": {
                "stdlib": {"tokens": 0.7003 * tokens, "share": 0.7003, "asked": 0.7, "epochs": 1.64},
                "notes": {"tokens": 0.2997 * tokens, "share": 0.2997, "asked": 0.3, "epochs": 4.39},
            }
        },
        "phases": {"prepare": 6.1, "calibrate": 11.4, "train": seconds, "evaluate": 4.2, "report": 1.3},
        "verdict": "inside",
    }
