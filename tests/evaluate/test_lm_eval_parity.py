"""Choices equal lm-eval's, if it is installed: `pip install 'isoflop[lm-eval]'`."""

import json
from itertools import pairwise
from pathlib import Path

import pytest

import isoflop
from isoflop.evaluate.scores import ask
from isoflop.job import lm_eval_model
from small import TINY

pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'isoflop[lm-eval]'")
pytest.importorskip("transformers")

NOUNS = ["cat", "dog", "fox", "hen", "cow", "owl", "ant", "bee", "elk", "yak"]


def write_items(folder: Path) -> Path:
    """Made-up items of the five suites that the comparison asks."""

    def lines(name, made):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(one) + "\n" for one in made))

    pairs = [
        {"sentence_good": f"The {a} sees a {b}.", "sentence_bad": f"The {a} see a {b}."} for a in NOUNS for b in NOUNS
    ]
    lines("blimp/a.jsonl", [{**pair, "linguistics_term": "agreement"} for pair in pairs[:70]])
    endings = [[f"sees the {b}.", f"[x] eats  the {b}", f"is {a}"] for a, b in pairwise(NOUNS)]
    scene = {"activity_label": "Seeing", "ctx_a": "A [title] animal.", "ctx_b": "the Cat", "split": "val"}
    lines("hellaswag_validation.jsonl", [{**scene, "endings": one, "label": "1"} for one in endings])
    asked = [{"query": f"Question: what is {a}?\n", "choices": [a, "a thing", "é"], "gold": 1} for a in NOUNS]
    lines("piqa.jsonl", asked)
    lines("arc_easy.jsonl", [{**one, "query": one["query"].strip()} for one in asked])
    names = [
        {"context_options": [f"The {a} ate it as the {x}" for x in (a, "hen")], "gold": 0} for a in NOUNS if a != "hen"
    ]
    lines("winogrande.jsonl", [{**one, "continuation": "was hungry."} for one in names])
    return folder


@pytest.mark.slow
def test_every_choice_is_lm_evals(corpus, tmp_path):
    from isoflop.job.suites import load_for_scoring
    from isoflop.job.transfer import export_model
    from lm_eval_parity import COMMON, SUITES, compared, limited, ours, their_model, theirs

    run, items = tmp_path / "run", write_items(tmp_path / "items")
    shape = [one for one in TINY if not one.startswith("model.")]
    gpt2 = ["model=gpt2", "model.layers=2", "model.d_model=32", "model.heads=2", "model.context=64"]
    isoflop.pretrain([str(corpus)], "12steps", run, assignments=[*gpt2, *shape], quiet=True)
    export_model(run, "hf", tmp_path / "hf")
    (tmp_path / "tasks").mkdir()
    their, _ = theirs(their_model(tmp_path / "hf"), list(SUITES), items, 300, tmp_path / "tasks")
    asked = {name: limited(ask(name, items), name, 300) for name in SUITES}
    our, _ = ours(load_for_scoring(run), asked)
    for name in SUITES:
        row = compared(name, asked[name], our[name], their[name])
        assert row["furthest_nats"] < 1e-3
        for metric in COMMON:
            assert all(one["gap"] < 1e-4 for one in row["differing"][metric]), (name, metric)


@pytest.mark.slow
def test_lm_eval_asks_a_run(corpus, tmp_path):
    import lm_eval
    from lm_eval.tasks import TaskManager

    run, items = tmp_path / "run", write_items(tmp_path / "items")
    isoflop.pretrain([str(corpus)], "12steps", run, assignments=TINY, quiet=True)
    (tmp_path / "tasks").mkdir()
    common = {
        "dataset_path": "json",
        "test_split": "test",
        "dataset_kwargs": {"data_files": {"test": str(items / "piqa.jsonl")}},
    }
    tasks = {
        "choose": {"output_type": "multiple_choice", "doc_to_text": "{{query}}", "doc_to_choice": "choices"}
        | {"doc_to_target": "gold", "metric_list": [{"metric": "acc"}]},
        "write": {"output_type": "generate_until", "doc_to_text": "{{query}}", "doc_to_target": "é"}
        | {"generation_kwargs": {"until": ["\n"], "max_gen_toks": 4}, "metric_list": [{"metric": "exact_match"}]},
    }
    for name, task in tasks.items():
        (tmp_path / "tasks" / f"{name}.yaml").write_text(json.dumps({"task": name, **common, **task}))
    manager = TaskManager(include_path=str(tmp_path / "tasks"), include_defaults=False)
    found = lm_eval.simple_evaluate(
        model=lm_eval_model(run), tasks=list(tasks), task_manager=manager, bootstrap_iters=0
    )
    assert 0 <= found["results"]["choose"]["acc,none"] <= 1 and found["results"]["write"]["exact_match,none"] == 0
