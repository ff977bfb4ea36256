"""Our training step beside Hugging Face's, same shape, in turns in one run.

    python bench/step.py [--sizes S M L] [--dtypes float32 bfloat16] [--rounds 5] [--json FILE]

needs the extra `bench` (transformers). Both train GPT-2's architecture with AdamW (fused) on the same random tokens:
forward, backward, clip at 1, update. The two take turns, a few steps each, round after round, and each round gives one
ratio; printed are medians, so that a machine whose speed drifts does not decide. Share of peak: the step's FLOPs
counted as executed (model/count.py), over the best square matrix product in that dtype in the same run. Peak memory is
that of a process of its own for each, since a process remembers its worst moment.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from isoflop.model.config import ModelConfig
from isoflop.model.count import flops_per_token
from isoflop.model.gpt import GPT
from isoflop.model.presets import gpt2
from isoflop.optim.build import build
from isoflop.optim.config import OptimConfig
from isoflop.runtime import Runtime, describe_machine, measure_peak, peak_memory, seed_everything
from isoflop.trainer.step import take_step
from isoflop.trainer.task import CausalLM

# name: layers, d_model, heads, context, batch, vocabulary: nanoGPT's CPU default, its GPU default, GPT-2
SIZES = {
    "S": (4, 128, 4, 64, 12, 65),
    "M": (6, 384, 6, 256, 16, 65),
    "L": (12, 768, 12, 1024, 1, 50_304),
}
STEPS = {"S": 60, "M": 4, "L": 1}  # in a turn: about a second

Step = Callable[[], None]


def shape(size: str) -> tuple[ModelConfig, int]:
    layers, d_model, heads, context, batch, vocabulary = SIZES[size]
    return gpt2(layers=layers, d_model=d_model, heads=heads, context=context, vocab_size=vocabulary), batch


def random_batch(config: ModelConfig, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.randint(config.vocab_size, (batch, config.context + 1))
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


def ours(size: str, dtype: torch.dtype) -> Step:
    config, batch = shape(size)
    seed_everything(0)
    model = GPT(config)
    optimizers = build(model, OptimConfig(name="adamw", lr=1e-4), dtype=dtype)
    runtime = Runtime(torch.device("cpu"), dtype)
    data = random_batch(config, batch)
    task = CausalLM()

    def step() -> None:
        loss, _ = take_step(model, optimizers, task, data, micro=batch, runtime=runtime, clip=1.0, scale=1.0)
        float(loss)

    return step


def theirs(size: str, dtype: torch.dtype) -> Step:
    from transformers import GPT2Config, GPT2LMHeadModel

    config, batch = shape(size)
    seed_everything(0)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=config.vocab_size,
            n_positions=config.context,
            n_embd=config.d_model,
            n_layer=config.layers,
            n_head=config.heads,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            use_cache=False,
            bos_token_id=0,
            eos_token_id=0,
        )
    ).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    runtime = Runtime(torch.device("cpu"), dtype)
    inputs, targets = random_batch(config, batch)

    def step() -> None:
        with runtime.autocast():
            logits = model(input_ids=inputs).logits
            loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        float(loss.detach())

    return step


MAKERS: dict[str, Callable[[str, torch.dtype], Step]] = {"ours": ours, "theirs": theirs}


def time_in_turns(steps: dict[str, Step], repeat: int, rounds: int) -> dict[str, list[float]]:
    """Seconds a step, for each maker one figure a round; the first turn of each warms up and is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 1):
        for name, step in steps.items():
            started = time.perf_counter()
            for _ in range(repeat):
                step()
            if number:
                seconds[name].append((time.perf_counter() - started) / repeat)
    return seconds


def memory_of(maker: str, size: str, dtype: str) -> int:
    """Peak resident bytes of a process that makes the model and takes three steps."""
    command = [sys.executable, __file__, "--memory-of", maker, "--sizes", size, "--dtypes", dtype]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def run(sizes: list[str], dtypes: list[str], rounds: int) -> dict[str, Any]:
    peak = measure_peak("cpu", seconds=6.0)
    rows = []
    for size in sizes:
        config, batch = shape(size)
        tokens = batch * config.context
        flops = flops_per_token(config, convention="executed") * tokens
        for dtype in dtypes:
            if peak[dtype] < 0.1 * peak["float32"]:  # hours, on a processor without units for it
                slower = peak["float32"] / peak[dtype]
                print(f"{size}  {dtype:9} left out: its matrix products are {slower:.0f} times slower here")
                continue
            steps = {name: make(size, getattr(torch, dtype)) for name, make in MAKERS.items()}
            seconds = time_in_turns(steps, STEPS[size], rounds)
            del steps
            row: dict[str, Any] = {"size": size, "dtype": dtype}
            for name, values in seconds.items():
                median = statistics.median(values)
                row[name] = {
                    "tokens_per_second": tokens / median,
                    "peak_share": flops / median / peak[dtype],
                    "peak_memory_bytes": memory_of(name, size, dtype),
                    "seconds_per_step": values,
                }
            row["ratio"] = statistics.median(b / a for a, b in zip(seconds["ours"], seconds["theirs"], strict=True))
            rows.append(row)
            print_row(row)
    return {"machine": describe_machine("cpu"), "date": time.strftime("%Y-%m-%d"), "peak": peak, "rows": rows}


def print_row(row: dict[str, Any]) -> None:
    cells = [f"{row['size']}  {row['dtype']:9}"]
    for name in MAKERS:
        of = row[name]
        cells.append(
            f"{name} {of['tokens_per_second']:>9,.0f} tok/s {of['peak_share']:>4.0%} of peak "
            f"{of['peak_memory_bytes'] / 2**20:>6,.0f} MiB"
        )
    print("   ".join(cells) + f"   ratio {row['ratio']:.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--dtypes", nargs="+", choices=["float32", "bfloat16"], default=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the result here")
    parser.add_argument("--memory-of", choices=list(MAKERS), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.memory_of:
        step = MAKERS[given.memory_of](given.sizes[0], getattr(torch, given.dtypes[0]))
        for _ in range(3):
            step()
        print(peak_memory("cpu"))
        return
    result = run(given.sizes, given.dtypes, given.rounds)
    if given.json:
        given.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
