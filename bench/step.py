"""Our training step next to other programs': same architecture, optimiser, batch and context, in turns in one run.

    python bench/step.py --nanogpt FOLDER [--modes compile bfloat16] [--packages transformers litgpt] [--sizes S M L]
                         [--also compile recompute plain-malloc] [--rounds 5] [--device cpu] [--json]

nanoGPT is run as its README says, from a clone of karpathy/nanoGPT: its own train.py with its CPU default, and in its
other --modes. (On a CPU its --dtype has no effect: it does not use autocast there.) Hugging Face's GPT2LMHeadModel
needs the extra `bench`, litgpt's GPT the package litgpt; both run in a plain loop. Ours is the complete training loop,
with loader and logging. Each trainer has its own process. They take turns of about two seconds, each round gives one
ratio, and the printed ratios are medians over rounds.
Share of peak: the FLOPs of the step as executed (model/count.py; attention without the masked part), over the best
matrix product in the same dtype in the same run. Peak memory is that of the process.

With --device cuda all train there, nanoGPT with its GPU defaults (compiled, bfloat16). gpu.py has the larger batches
that a GPU is made for.

Before nanoGPT is timed, its model gets our weights, and the losses and gradients of the two are compared.
"""

import argparse
import importlib.util
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from ceilings import peaks, shapes_of, units_for
from isoflop.errors import UserError
from isoflop.model.count import flops_per_token
from isoflop.model.cross_entropy import cross_entropy
from isoflop.model.gpt import GPT
from record import record, version
from shapes import SIZES, Size, nanogpt_model
from turns import Turns, random_tokens, ratio, take_turns

ALSO = {
    "compile": {"compile": True},
    "recompute": {"recompute": True},
    "plain-malloc": {"keep": False},
}
MODES = {
    "compile": {"compile": True},
    "bfloat16": {"dtype": "bfloat16"},
    "compile-bfloat16": {"compile": True, "dtype": "bfloat16"},
}


def contenders(given: argparse.Namespace, dtypes: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, specification for contender.py) of each trainer: first ours, then nanoGPT, with their defaults."""
    for dtype in dtypes:
        yield f"isoflop {dtype}", {"trainer": "isoflop", "dtype": dtype}
    for name in given.also:
        yield f"isoflop {dtypes[0]} {name}", {"trainer": "isoflop", "dtype": dtypes[0], **ALSO[name]}
    if given.nanogpt:
        folder = str(given.nanogpt.resolve())
        yield "nanogpt", {"trainer": "nanogpt", "folder": folder, "compile": given.device != "cpu"}
        for name in given.modes:
            yield f"nanogpt {name}", {"trainer": "nanogpt", "folder": folder, **MODES[name]}
    for name in given.packages:
        for dtype in dtypes:
            yield f"{name} {dtype}", {"trainer": name, "dtype": dtype}


def load_nanogpt(folder: Path) -> Any:
    """nanoGPT's model.py as a module."""
    spec = importlib.util.spec_from_file_location("nanogpt_model", folder / "model.py")
    if spec is None or spec.loader is None or not (folder / "train.py").is_file():
        raise UserError(f"--nanogpt {folder} has no model.py and train.py; name a clone of karpathy/nanoGPT")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclass looks up its own module
    spec.loader.exec_module(module)
    return module


def nanogpt_weights(model: GPT) -> dict[str, torch.Tensor]:
    """Our weights under nanoGPT's names."""
    names = {
        "embedding.weight": "transformer.wte.weight",
        "position.table.weight": "transformer.wpe.weight",
        "norm.weight": "transformer.ln_f.weight",
    }
    inside = {
        "wiring.norms.0.weight": "ln_1.weight",
        "wiring.norms.1.weight": "ln_2.weight",
        "attention.out.weight": "attn.c_proj.weight",
        "feed_forward.up.weight": "mlp.c_fc.weight",
        "feed_forward.down.weight": "mlp.c_proj.weight",
    }
    ours = dict(model.named_parameters())
    theirs = {theirs: ours.pop(name) for name, theirs in names.items()}
    for layer in range(model.config.layers):
        for name, other in inside.items():
            theirs[f"transformer.h.{layer}.{other}"] = ours.pop(f"blocks.{layer}.{name}")
        qkv = [ours.pop(f"blocks.{layer}.attention.{name}.weight") for name in "qkv"]
        theirs[f"transformer.h.{layer}.attn.c_attn.weight"] = torch.cat(qkv)
    if ours:
        raise RuntimeError(f"nanoGPT has no place for {', '.join(ours)}")
    return {**theirs, "lm_head.weight": theirs["transformer.wte.weight"]}


def same_model(folder: Path, size: Size) -> dict[str, float]:
    """The losses of both on the same tokens with the same weights, and the norms of the gradients.

    Raises:
        RuntimeError: if they differ by more than float32's rounding explains.
    """
    module = load_nanogpt(folder)
    torch.manual_seed(0)
    config = nanogpt_model(size)
    ours = GPT(config)
    shape = {"n_layer": config.layers, "n_head": config.heads, "n_embd": config.d_model, "dropout": 0.0, "bias": False}
    theirs = module.GPT(module.GPTConfig(block_size=config.context, vocab_size=config.vocab_size, **shape))
    theirs.load_state_dict(nanogpt_weights(ours))
    tokens = torch.randint(config.vocab_size, (2, config.context + 1))
    inputs, targets = tokens[:, :-1], tokens[:, 1:].contiguous()
    losses = [cross_entropy(ours.hidden(inputs), ours.head_weight, targets), theirs(inputs, targets)[1]]
    norms = []
    for model, loss in zip((ours, theirs), losses, strict=True):
        loss.backward()
        norms.append(float(torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])))
    found = {"loss": losses[0].item(), "nanogpt_loss": losses[1].item(), "norm": norms[0], "nanogpt_norm": norms[1]}
    if abs(found["loss"] - found["nanogpt_loss"]) > 1e-4 or abs(norms[0] / norms[1] - 1) > 1e-3:
        raise RuntimeError(f"the two are not the same model: {found}")
    return found


def measure(given: argparse.Namespace) -> dict[str, Any]:
    if given.nanogpt:
        alike = same_model(given.nanogpt, SIZES["S"])
        print(f"same weights, same tokens: loss {alike['loss']:.6f}, nanoGPT's {alike['nanogpt_loss']:.6f}", flush=True)
    wanted = [SIZES[name] for name in given.sizes]
    peak = peaks(dict.fromkeys(shape for size in wanted for shape in shapes_of(size)), device=given.device)
    best = {dtype: max(by_shape.values()) for dtype, by_shape in peak.items()}
    print("  ".join(f"{dtype} peak {value / 1e9:.1f} GFLOP/s" for dtype, value in best.items()), flush=True)
    dtypes = ["float32"]
    if units_for(peak, "bfloat16"):
        dtypes.insert(0, "bfloat16")
    else:
        print("bfloat16 is left out: this processor has no units for it")
    rows = [measure_size(name, given, dtypes, best) for name in given.sizes]
    return {"rounds": given.rounds, "peak": peak, "rows": rows}


def measure_size(name: str, given: argparse.Namespace, dtypes: list[str], best: dict[str, float]) -> dict[str, Any]:
    size = SIZES[name]
    flops = flops_per_token(nanogpt_model(size), convention="executed") * size.tokens
    with tempfile.TemporaryDirectory() as scratch:
        tokens = str(random_tokens(Path(scratch), size.vocabulary))
        common = {"size": name, "tokens": tokens, "device": given.device}
        specs = {who: {**spec, **common} for who, spec in contenders(given, dtypes)}
        done, missing = take_turns(specs, size.steps, given.rounds, Path(scratch))
    row: dict[str, Any] = {"size": name, "shape": str(size), "flops_per_step": flops, "trainers": {}, "missing": {}}
    for who, turns in done.items():
        own = "float32" if given.device == "cpu" else "bfloat16"  # nanoGPT does not use autocast on a CPU
        dtype = specs[who].get("dtype", "float32") if specs[who]["trainer"] != "nanogpt" else own
        row["trainers"][who] = {
            "tokens_per_second": round(size.tokens / turns.median, 1),
            "peak_share": round(flops / turns.median / best[dtype], 4),
            "slower_than_isoflop": round(ratio(ours(done), turns), 4),
            **turns.to_dict(),
        }
        show(name, who, row["trainers"][who])
    for who, why in missing.items():
        row["missing"][who] = why.strip().splitlines()[-1][:200]
        print(f"{name}  {who:24} did not run: {row['missing'][who]}", flush=True)
    return row


def ours(done: dict[str, Turns]) -> Turns:
    """The faster of ours with its defaults, in float32 and, if there are units for it, in bfloat16."""
    plain = [turns for who, turns in done.items() if who in ("isoflop float32", "isoflop bfloat16")]
    return min(plain, key=lambda turns: turns.median)


def show(size: str, who: str, row: dict[str, Any]) -> None:
    print(
        f"{size}  {who:24} {row['tokens_per_second']:>10,.0f} tok/s  {row['peak_share']:>4.0%} of peak  "
        f"{row['peak_bytes'] / 2**20:>6,.0f} MiB  {row['faults_per_step']:>9,.0f} page faults per step  "
        f"isoflop is {row['slower_than_isoflop']:.2f} times as fast",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nanogpt", type=Path, metavar="FOLDER", help="a clone of karpathy/nanoGPT")
    parser.add_argument(
        "--packages", nargs="+", choices=["transformers", "litgpt"], default=[], help="also these, if installed"
    )
    parser.add_argument(
        "--modes", nargs="*", choices=list(MODES), default=["compile"], help="also nanoGPT with these of its flags"
    )
    parser.add_argument("--also", nargs="+", choices=list(ALSO), default=[], help="also ours with these options")
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--json", action="store_true", help="record the result in bench/results/step.json")
    given = parser.parse_args()
    if given.json and given.device != "cpu":
        parser.error("bench/results/step.json is a CPU's; gpu.py has a record of its own")
    result = measure(given)
    if given.json:
        peers = {"nanogpt": version(given.nanogpt)} if given.nanogpt else {}
        record("step", result, peers | {name: metadata.version(name) for name in given.packages})


if __name__ == "__main__":
    main()
