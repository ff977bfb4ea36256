"""Many short continuations side by side: 3 layers x 96, 256 prompts of 1 to 16 tokens, 32 tokens each.

    python bench/many.py [--rows 256] [--tokens 32] [--rounds 5] [--threads 1]

Prints tokens per second, the prompts' reading included: greedy, and drawn with temperature 0.8 and top-p 0.95 as
`isoflop sample` does. To compare two commits, run it in turns with PYTHONPATH at a checkout of each.
"""

import argparse
import json
import statistics
import time

import torch

from isoflop.generate.engine import stream_all
from isoflop.model.config import ModelConfig
from isoflop.model.gpt import GPT

WAYS = {"greedy": {"temperature": 0.0}, "drawn": {"temperature": 0.8, "top_p": 0.95}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--vocabulary", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    model = GPT(ModelConfig(vocab_size=given.vocabulary, context=256, layers=3, d_model=96, heads=2))
    with torch.no_grad():  # logits as wide as a trained model's, so that top-p has something to leave out
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.08)
    lengths = torch.randint(1, 17, (given.rows,)).tolist()
    prompts = [torch.randint(given.vocabulary, (n,)).tolist() for n in lengths]
    found = {}
    for name, how in WAYS.items():
        took = []
        for _ in range(given.rounds + 1):
            started = time.process_time()
            written = sum(1 for _ in stream_all(model, prompts, given.tokens, **how))
            took.append(time.process_time() - started)
            assert written == given.rows * given.tokens
        found[name] = round(given.rows * given.tokens / statistics.median(took[1:]))
    print(json.dumps({"rows": given.rows, "tokens_per_second_of_processor": found}), flush=True)


if __name__ == "__main__":
    main()
