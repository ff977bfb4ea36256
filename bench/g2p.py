"""Words to phonemes: an encoder-decoder next to a decoder-only GPT, with the same budget and the same pairs.

    python bench/g2p.py PAIRS [--budget 10m] [--words 0] [--beam 4] [--threads N] [--out DIR] [--only seq2seq|gpt]

Both are planned by `isoflop train` for the budget. The encoder-decoder is trained on PAIRS, the GPT on the same
training pairs as text, one line "word TAB phonemes" per pair, shuffled once. The GPT is prompted with a line end, the
word and a tab, and completes the line greedily. Both answer the same held-out words and are scored by the same edit
distance (isoflop/evaluate/transduction.py), also without the digits that mark stress, as most of the literature counts.
"""

import argparse
import json
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from isoflop import checkpoint
from isoflop.data.config import DataConfig
from isoflop.data.pairs import prepare_pairs
from isoflop.data.tokenizer import Tokenizer
from isoflop.evaluate.transduction import judge, references
from isoflop.generate.cache import KVCache
from isoflop.generate.engine import decode, prefill
from isoflop.generate.transduce import transduce
from isoflop.job import pretrain
from isoflop.model.gpt import GPT
from isoflop.records import read_run

AT_ONCE = 256  # words per batch of the GPT
LONGEST = 60  # tokens per line, at most


def answers_of_gpt(model: GPT, tokenizer: Tokenizer, words: Sequence[str]) -> list[str]:
    """The line after "word TAB" of each word, decoded greedily, in batches of prompts of equal length."""
    prompts = [tokenizer.encode(f"\n{word}\t") for word in words]
    order = sorted(range(len(words)), key=lambda i: len(prompts[i]))
    answers = [""] * len(words)
    while order:
        length = len(prompts[order[0]])
        chosen = [i for i in order[:AT_ONCE] if len(prompts[i]) == length]
        order = order[len(chosen) :]
        for i, ids in zip(chosen, lines_after(model, tokenizer, [prompts[i] for i in chosen]), strict=True):
            answers[i] = tokenizer.decode(ids).partition("\n")[0].strip()
    return answers


def lines_after(model: GPT, tokenizer: Tokenizer, prompts: list[list[int]]) -> list[list[int]]:
    """Continuations of prompts of equal length, up to the first token that contains a line end."""
    pieces = [tokenizer.decode_bytes([i]) for i in range(tokenizer.vocab_size)]
    ends = torch.tensor([b"\n" in piece or i == tokenizer.eot for i, piece in enumerate(pieces)])
    cache = KVCache(model.config.context)
    logits = prefill(model, torch.tensor(prompts), cache)[:, : tokenizer.vocab_size]
    written, ended = [], torch.zeros(len(prompts), dtype=torch.bool)
    for _ in range(LONGEST):
        tokens = logits.argmax(-1)
        written.append(tokens)
        ended |= ends[tokens]
        if ended.all():
            break
        logits = decode(model, tokens, cache)[:, : tokenizer.vocab_size]
    return torch.stack(written, 1).tolist()


def write_lines(path: Path, pairs: Any, tokenizer: Tokenizer) -> None:
    lines = [f"{tokenizer.decode(pairs.source[i])}\t{tokenizer.decode(pairs.target[i])}" for i in range(len(pairs))]
    random.Random(0).shuffle(lines)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def without_stress(text: str) -> str:
    return "".join(character for character in text if not character.isdigit())


def rates(write: Callable[[Sequence[str]], list[str]], wanted: dict[str, list[str]], words: int) -> dict[str, Any]:
    """Error rates, with and without stress marks."""
    started = time.perf_counter()
    inputs = list(wanted)[: words or None]
    answers = dict(zip(inputs, write(inputs), strict=True))
    seconds = time.perf_counter() - started
    found = judge(lambda texts: [answers[text] for text in texts], {text: wanted[text] for text in inputs})
    plain = {text: [without_stress(reference) for reference in wanted[text]] for text in inputs}
    unstressed = judge(lambda texts: [without_stress(answers[text]) for text in texts], plain)
    return {
        "phoneme_error_rate": round(found.unit_error_rate, 4),
        "word_error_rate": round(1 - found.exact_match, 4),
        "phoneme_error_rate_without_stress": round(unstressed.unit_error_rate, 4),
        "word_error_rate_without_stress": round(1 - unstressed.exact_match, 4),
        "words": found.inputs,
        "phonemes": found.units,
        "decoding_seconds": round(seconds, 1),
    }


def summary(folder: Path) -> dict[str, Any]:
    run = read_run(folder)
    model = run.config["model"]
    return {
        "layers": model["layers"],
        "d_model": model["d_model"],
        "vocab_size": model["vocab_size"],
        "parameters": run.plan.parameters,
        "total_parameters": run.plan.total_parameters,
        "steps": run.result.step,
        "tokens": run.result.tokens,
        "flops": run.result.flops,
        "seconds": round(run.result.seconds, 1),
        "epochs": round(next(iter(run.result.data.sources.values())).epochs, 2),
        "heldout_nats_per_token": round(run.result.heldout.nats_per_token, 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs")
    parser.add_argument("--budget", default="10m")
    parser.add_argument("--words", type=int, default=0, help="number of held-out words to answer; 0: all")
    parser.add_argument("--beam", type=int, default=4)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder for the two runs; by default a temporary one")
    parser.add_argument("--only", choices=["seq2seq", "gpt"], help="train only one of the two")
    parser.add_argument("--set", nargs="*", default=[], help="fields of both runs")
    given = parser.parse_args()
    common = [f"seed={given.seed}", f"runtime.threads={given.threads}", *given.set]
    with tempfile.TemporaryDirectory() as scratch:
        out = given.out or Path(scratch)
        prepared = prepare_pairs(DataConfig(sources=(given.pairs,)))
        wanted = references(prepared)
        if given.only != "gpt":
            pretrain([given.pairs], given.budget, out / "seq2seq", task="seq2seq", assignments=common)
            model, tokenizer, _ = checkpoint.load_model(out / "seq2seq")

            def transducer(beam: int) -> Callable[[Sequence[str]], list[str]]:
                def write(words: Sequence[str]) -> list[str]:
                    found = transduce(model, tokenizer.encode_batch(list(words)), tokenizer.eot, beam)  # type: ignore[arg-type]
                    return [tokenizer.decode(ids) for ids in found]

                return write

            report("encoder-decoder, greedy", {**summary(out / "seq2seq"), **rates(transducer(1), wanted, given.words)})
            if given.beam > 1:
                report(f"encoder-decoder, beam {given.beam}", rates(transducer(given.beam), wanted, given.words))
        if given.only != "seq2seq":
            for part, pairs in (("train", prepared.train()), ("heldout", prepared.heldout())):
                write_lines(Path(scratch) / f"{part}.txt", pairs, prepared.tokenizer)
            text, held = (str(Path(scratch) / f"{part}.txt") for part in ("train", "heldout"))
            pretrain([text], given.budget, out / "gpt", heldout=[held], assignments=common, pilots=False)
            gpt, words_tokenizer, _ = checkpoint.load_model(out / "gpt")
            found = rates(lambda words: answers_of_gpt(gpt, words_tokenizer, words), wanted, given.words)  # type: ignore[arg-type]
            report("GPT on lines of text, greedy", {**summary(out / "gpt"), **found})


def report(name: str, found: dict[str, Any]) -> None:
    print(json.dumps({"model": name, **found}), flush=True)


if __name__ == "__main__":
    main()
