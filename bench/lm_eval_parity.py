"""Our scores next to those of lm-eval with transformers, on the same weights: every choice of five suites.

    python bench/lm_eval_parity.py RUN --items FOLDER [--limit 300] [--suites ...] [--threads N] [--json]
    python bench/lm_eval_parity.py RUN --text FILE [--stride 512] [--threads N]

needs the extras `lm-eval` and `bench` (transformers). RUN is exported to a Hugging Face folder, which lm-eval reads
with its own model class; ours reads RUN. lm-eval's tasks are written here from local files (`dataset_path: json`), with
the templates of its own tasks of these names, so that our suite files are checked too and not only what scores them.
FOLDER holds the items as the suites of isoflop name them. Both compute in float32 on the CPU, and neither puts an id in
front of a text that has a context.

Of each item the option that each side chooses is compared, by every metric that both have, and the likelihoods
themselves. A choice differs for nothing but rounding where the two best options are nearer to each other than the sides
are: such items are listed with the gap. The sides take turns suite by suite, models loaded; with --json the record is
written after each suite, so that an interrupted comparison keeps what it has.

With --text: strided perplexity next to the recipe of transformers' documentation ("Perplexity of fixed-length models"),
with its weighing of windows, on transformers' model of the same weights.
"""

import argparse
import json
import math
import re
import tempfile
import time
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from isoflop.evaluate.likelihood import Request, likelihoods
from isoflop.evaluate.perplexity import strided
from isoflop.evaluate.scores import Asked, ask
from isoflop.job.suites import load_for_scoring
from isoflop.job.transfer import export_model
from isoflop.processors import cores
from record import record

SUITES = ("blimp", "winogrande", "piqa", "arc_easy", "hellaswag")  # those that cost least first
FILES = {
    "blimp": "blimp/*.jsonl",
    "hellaswag": "hellaswag_validation.jsonl",
    "piqa": "piqa.jsonl",
    "arc_easy": "arc_easy.jsonl",
    "winogrande": "winogrande.jsonl",
}
# as lm-eval's own tasks of these names ask, on the fields that the local files have
TASKS: dict[str, dict[str, Any]] = {
    "blimp": {
        "doc_to_text": "",
        "doc_to_choice": "{{[sentence_good, sentence_bad]}}",
        "doc_to_target": 0,
        "target_delimiter": "",
    },
    "hellaswag": {"doc_to_text": "{{query}}", "doc_to_choice": "endings", "doc_to_target": "{{label}}"},
    "piqa": {"doc_to_text": "{{query}}Answer:", "doc_to_choice": "choices", "doc_to_target": "gold"},
    "arc_easy": {"doc_to_text": "{{query}}\nAnswer:", "doc_to_choice": "choices", "doc_to_target": "gold"},
    "winogrande": {"doc_to_text": "gold", "doc_to_choice": "context_options", "doc_to_target": "continuation"},
}
COMMON = {"likelihood": "acc", "per_character": "acc_norm"}


def cleaned(text: str) -> str:
    """HellaSwag's texts as lm-eval's task cleans what was taken from WikiHow."""
    text = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
    return text.replace("  ", " ")


def prepared(name: str, record: dict[str, Any]) -> dict[str, Any]:
    """An item with the fields that lm-eval's task computes in Python."""
    if name != "hellaswag":
        return record
    begun = f"{record['activity_label']}: {record['ctx_a']} {record['ctx_b'].capitalize()}"
    return {
        "query": cleaned(begun),
        "endings": [cleaned(ending) for ending in record["endings"]],
        "label": int(record["label"]),
    }


def their_model(folder: Path, begins: bool = False) -> Any:
    """lm-eval's model of an exported folder.

    Args:
        begins: whether the tokenizer itself writes an id in front of each text, as LLaMA's does. (transformers 5 puts
            one in front of any text where the exported tokenizer names one, unless it is told not to.)
    """
    return import_module("lm_eval.models.huggingface").HFLM(
        pretrained=str(folder),
        tokenizer=str(folder),
        device="cpu",
        dtype="float32",
        batch_size=16,
        add_bos_token=begins,
    )


def theirs(model: Any, names: list[str], items: Path, limit: int, work: Path) -> tuple[dict[str, list[Any]], float]:
    """For each suite the likelihoods of each item's options by lm-eval, and the seconds that all took."""
    lm_eval, manager = import_module("lm_eval"), import_module("lm_eval.tasks").TaskManager
    for name in names:
        lines = []
        for path in sorted(path for path in items.rglob(Path(FILES[name]).name) if path.match(FILES[name])):
            read = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
            lines += read[: -(-limit // 67)] if name == "blimp" else read
        chosen = [prepared(name, one) for one in lines[:limit]]
        (work / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in chosen), encoding="utf-8")
        task = {
            "task": f"local_{name}",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(work / f"{name}.jsonl")}},
            "test_split": "test",
            "output_type": "multiple_choice",
            "metric_list": [{"metric": metric} for metric in COMMON.values()],
            **TASKS[name],
        }
        (work / f"{name}.yaml").write_text(json.dumps(task), encoding="utf-8")  # JSON is YAML
    started = time.perf_counter()
    results = lm_eval.simple_evaluate(
        model=model,
        tasks=[f"local_{name}" for name in names],
        task_manager=manager(include_path=str(work), include_defaults=False),
        log_samples=True,
        bootstrap_iters=0,
    )
    seconds = time.perf_counter() - started
    return {name: ordered(results["samples"][f"local_{name}"]) for name in names}, seconds


def ordered(samples: list[dict[str, Any]]) -> list[Any]:
    """The likelihoods of each item's options, in the order of the items."""
    by_item = {sample["doc_id"]: sample for sample in samples}
    return [[float(pair[0]) for pair in by_item[i]["filtered_resps"]] for i in range(len(by_item))]


def ours(scored: tuple[Any, ...], asked: dict[str, Asked]) -> tuple[dict[str, list[Any]], float]:
    """The same by our code, given what `load_for_scoring` returns."""
    model, tokenizer, _, runtime = scored
    started = time.perf_counter()
    by_suite: dict[str, list[Any]] = {}
    for name, one in asked.items():
        requests = [
            Request(item.shots + context, text)
            for item in one.items
            for context, text in zip(item.contexts, item.continuations, strict=True)
        ]
        nats = iter(likelihoods(model, tokenizer, requests, runtime))
        by_suite[name] = [[next(nats).nats for _ in item.contexts] for item in one.items]
    return by_suite, time.perf_counter() - started


def limited(asked: Asked, name: str, limit: int) -> Asked:
    """The first items, as `theirs` takes them: of BLiMP as many of each of its 67 files."""
    if name != "blimp":
        return Asked(asked.suite, asked.items[:limit])
    each = -(-limit // 67)
    return Asked(asked.suite, tuple(item for item in asked.items if (item.number - 1) % 1000 < each)[:limit])


def compared(name: str, asked: Asked, our: list[Any], their: list[Any]) -> dict[str, Any]:
    """How many choices differ by each metric, and by how much the likelihoods do."""
    differing: dict[str, list[dict[str, Any]]] = {metric: [] for metric in COMMON}
    furthest = 0.0
    for item, a, b in zip(asked.items, our, their, strict=True):
        furthest = max(furthest, float(np.abs(np.subtract(a, b)).max()))
        lengths = [len(option) for option in item.options]
        for metric in COMMON:
            per = np.ones(len(a)) if metric == "likelihood" or asked.suite.method == "contexts" else np.array(lengths)
            mine, other = np.array(a) / per, np.array(b) / per
            if mine.argmax() != other.argmax():
                best = np.sort(mine)[::-1]
                differing[metric].append({"item": item.number, "gap": float(best[0] - best[1])})
    right = {
        side: float(np.mean([int(np.argmax(row)) == item.answer for row, item in zip(rows, asked.items, strict=True)]))
        for side, rows in (("ours", our), ("lm_eval", their))
    }
    return {"suite": name, "items": len(asked.items), "differing": differing, "furthest_nats": furthest, **right}


def perplexities(run: Path, folder: Path, text: str, stride: int) -> tuple[float, float]:
    """Strided perplexity per token by our code, and by transformers' model with the recipe of its documentation."""
    mine = perplexity_of(run, text, stride)
    transformers = import_module("transformers")
    other = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    _, tokenizer, _, _ = load_for_scoring(run)
    ids = torch.tensor([[tokenizer.start, *tokenizer.encode(text)]])
    length, count = other.config.max_position_embeddings, ids.shape[1]
    total, counted, before = 0.0, 0, 0
    for begin in range(0, count, stride):
        end = min(begin + length, count)
        inputs = ids[:, begin:end]
        targets = inputs.clone()
        targets[:, : -(end - before)] = -100
        with torch.no_grad():
            loss = float(other(inputs, labels=targets).loss)
        new = int((targets != -100).sum()) - 1  # the page's own: one less than the window predicts, but for the first
        total, counted, before = total + loss * new, counted + new, end
        if end == count:
            break
    return mine, math.exp(total / counted)


def perplexity_of(run: Path, text: str, stride: int) -> float:
    model, tokenizer, _, runtime = load_for_scoring(run)
    return float(strided(model, tokenizer, [text], stride, runtime).to_dict()["perplexity"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--items", type=Path)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--stride", type=int, default=512)
    parser.add_argument("--limit", type=int, default=300)
    parser.add_argument("--suites", nargs="+", default=list(SUITES), choices=SUITES)
    parser.add_argument("--threads", type=int, default=cores())
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    if arguments.text:
        with tempfile.TemporaryDirectory() as temporary:
            export_model(arguments.run, "hf", Path(temporary) / "hf")
            text = arguments.text.read_text(encoding="utf-8")
            mine, other = perplexities(arguments.run, Path(temporary) / "hf", text, arguments.stride)
        print(f"perplexity per token, stride {arguments.stride}: ours {mine:.6g}, transformers {other:.6g}")
        return
    if not arguments.items:
        parser.error("name the items with --items, or a text with --text")

    asked = {name: limited(ask(name, arguments.items), name, arguments.limit) for name in arguments.suites}
    scored = load_for_scoring(arguments.run)
    torch.set_num_threads(arguments.threads)  # after the model, which sets those that it was trained with
    rows: list[dict[str, Any]] = []
    seconds = {"ours": 0.0, "lm_eval": 0.0}
    print("suite        items   ours  lm-eval   choices that differ: likelihood, per character   furthest (nats)")
    with tempfile.TemporaryDirectory() as temporary:
        export_model(arguments.run, "hf", Path(temporary) / "hf")
        model = their_model(Path(temporary) / "hf", scored[1].begins)
        for name in arguments.suites:
            work = Path(temporary) / name
            work.mkdir()
            their, their_seconds = theirs(model, [name], arguments.items, arguments.limit, work)
            our, our_seconds = ours(scored, {name: asked[name]})
            rows.append(compared(name, asked[name], our[name], their[name]))
            seconds = {"ours": seconds["ours"] + our_seconds, "lm_eval": seconds["lm_eval"] + their_seconds}
            show(rows[-1])
            if arguments.json:
                result = {"threads": arguments.threads, "rows": rows, "seconds": seconds}
                record("lm_eval_parity", result, {name: version(name) for name in ("lm-eval", "transformers")})

    items = sum(row["items"] for row in rows)
    speeds = ", ".join(f"{side} {items / took:.1f}" for side, took in seconds.items())
    print(f"items per second: {speeds}")


def show(row: dict[str, Any]) -> None:
    """One line for a suite, and one for each choice that differs."""
    differ = [len(row["differing"][metric]) for metric in COMMON]
    print(
        f"{row['suite']:12} {row['items']:5}  {row['ours']:.3f}  {row['lm_eval']:.3f}   "
        f"{differ[0]:3}, {differ[1]:3}   {row['furthest_nats']:.2e}"
    )
    for metric, choices in row["differing"].items():
        for one in choices:
            print(f"    item {one['item']}: by {metric} the two best options are {one['gap']:.2e} apart", flush=True)


if __name__ == "__main__":
    main()
