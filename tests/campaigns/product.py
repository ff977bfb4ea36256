"""Try every combination of the five tables' entries: it has to build, train and decode, or be refused with a reason.

    python tests/campaigns/product.py --train 1000                           in full
    python tests/campaigns/product.py --train 20 --seed 7

Builds all combinations on the meta device, counts refusals by their message, and trains a seeded random sample of the
rest: five steps with the default optimizer, then decoding with the cache, which has to equal the full forward pass.
Exit code 1 for any failure other than a refusal.
"""

import argparse
import random
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import product

import torch

from isoflop.errors import UserError
from isoflop.generate.cache import KVCache
from isoflop.model.config import ModelConfig
from isoflop.model.count import build_on_meta
from isoflop.model.gpt import GPT
from isoflop.model.registry import SLOTS
from isoflop.optim.build import build
from isoflop.optim.config import OptimConfig
from isoflop.runtime import make_runtime, seed_everything
from isoflop.trainer.step import take_step
from isoflop.trainer.task import CausalLM

SHAPE = {"vocab_size": 17, "context": 8, "layers": 2, "d_model": 16, "heads": 4}
STEPS, SEQUENCES = 5, 4

Names = dict[str, str]  # slot -> entry


def combinations() -> Iterator[Names]:
    """All combinations."""
    for names in product(*SLOTS.values()):
        yield dict(zip(SLOTS, names, strict=True))


def refusal(names: Names) -> str:
    """Why this combination cannot be built; empty if it can."""
    try:
        build_on_meta(ModelConfig(**SHAPE, **names))
    except UserError as error:
        return str(error)
    return ""


def train_and_decode(names: Names) -> None:
    """Five steps on one batch, then decoding.

    Raises:
        ArithmeticError: for a loss that is not finite, a model that did not move, or a decode that differs.
    """
    config = ModelConfig(**SHAPE, **names)
    seed_everything(0)
    model, runtime = GPT(config), make_runtime("cpu")
    before = [p.detach().clone() for p in model.parameters()]
    optimizers = build(model, OptimConfig(lr=1e-3, matrix_lr=1e-3), torch.float32)
    tokens_BT = torch.randint(config.vocab_size, (SEQUENCES, config.context + 1))
    batch = (tokens_BT[:, :-1].contiguous(), tokens_BT[:, 1:].contiguous())
    for step in range(STEPS):
        loss, norm = take_step(
            model, optimizers, CausalLM(), batch, micro=SEQUENCES, runtime=runtime, clip=1.0, scale=1.0
        )
        if not (loss.isfinite() and norm.isfinite()):
            raise ArithmeticError(f"step {step}: loss {float(loss)}, gradient norm {float(norm)}")
    if all(torch.equal(p, q) for p, q in zip(before, model.parameters(), strict=True)):
        raise ArithmeticError("no parameter moved")
    model = model.double().eval()
    cache = KVCache(config.context)
    with torch.no_grad():
        full_BTV = model(batch[0])
        one_by_one = [model(batch[0][:, t : t + 1], cache) for t in range(config.context)]
    difference = (torch.cat(one_by_one, dim=1) - full_BTV).abs().max()
    if not difference <= 1e-6 * full_BTV.abs().max().clamp(min=1.0):
        raise ArithmeticError(f"decoding from the cache differs from the full forward by {float(difference):.2g}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=int, default=1000, help="how many of those that build are trained")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    whole = list(combinations())
    why = [refusal(names) for names in whole]
    good = [names for names, reason in zip(whole, why, strict=True) if not reason]
    print(f"{len(whole):,} combinations: {len(good):,} build, {len(whole) - len(good):,} are refused", flush=True)
    for reason, times in Counter(reason for reason in why if reason).most_common():
        print(f"{times:6,}  {reason}")
    failed = 0
    chosen = random.Random(given.seed).sample(good, min(given.train, len(good)))
    for names in chosen:
        try:
            train_and_decode(names)
        except Exception as error:  # whatever it is, it is a finding
            failed += 1
            print(f"FAILED {names}: {type(error).__name__}: {error}", flush=True)
    print(f"{len(chosen):,} trained {STEPS} steps and decoded: {failed} failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
