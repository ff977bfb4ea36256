"""The cost of each entry of each table at one small shape: parameters, FLOPs and speed, as a table for docs/blocks.md.

    python bench/blocks.py [--seconds 3] [--threads N] [--layers 4 --d-model 128 --context 256 --sequences 8]

The entries of a slot and the default are timed in turns, so that a drifting machine speed affects all alike. The last
column is an entry's tokens/s over the default's. FLOPs are those of training, as executed (model/count.py).
"""

import argparse

import torch

from isoflop.config import override
from isoflop.errors import UserError
from isoflop.model.config import ModelConfig
from isoflop.model.count import flops_per_token, parameters
from isoflop.model.registry import SLOTS
from isoflop.processors import cores
from isoflop.runtime import describe_machine
from isoflop.trainer import RunConfig, throughput


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0, help="of steps, for each entry")
    parser.add_argument("--threads", type=int, default=cores())
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--d-model", type=int, default=128)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--sequences", type=int, default=8)
    given = parser.parse_args()
    base = override(
        RunConfig(),
        [
            f"model.layers={given.layers}",
            f"model.d_model={given.d_model}",
            f"model.context={given.context}",
            f"batch.sequences={given.sequences}",
            f"runtime.threads={given.threads}",
            "runtime.device=cpu",
            "runtime.dtype=float32",
        ],
    )
    machine = describe_machine("cpu")
    print(
        f"{machine['processor']}, {given.threads} threads, torch {torch.__version__}; {given.layers} layers x "
        f"{given.d_model}, context {given.context}, {given.sequences} sequences per step, float32, Muon\n"
    )
    print("| slot | entry | parameters | FLOPs per token | tokens/s | over the default's |")
    print("|---|---|---:|---:|---:|---:|")
    for slot, table in SLOTS.items():
        default = getattr(ModelConfig(), slot).name
        configs = {default: base}
        for name in table:
            try:
                configs.setdefault(name, override(base, [f"model.{slot}={name}"]))
            except UserError as error:
                print(f"| {slot} | {name} | {error} | | | |")
        timed = dict(zip(configs, throughput.time_in_turns(list(configs.values()), given.seconds), strict=True))
        for name, config in configs.items():
            count, flops = parameters(config.model).total, flops_per_token(config.model, convention="executed")
            rate = timed[name].tokens_per_second
            shown = f"**{name}**" if name == default else name
            share = rate / timed[default].tokens_per_second
            print(f"| {slot} | {shown} | {count:,} | {flops:,.0f} | {rate:,.0f} | {share:.2f} |", flush=True)


if __name__ == "__main__":
    main()
