"""The tables of the docs equal the records, and the benchmarks measure what they claim."""

import dataclasses
import json
from pathlib import Path

import prior
import pytest
import torch

import gpu
import lab_stats
import record
import tables
from ceilings import shapes_of
from isoflop.model.count import flops_per_token
from isoflop.runtime import describe_machine
from race import read_text, seconds_to
from shapes import CARD_SIZES, SIZES, Size, nanogpt_model
from turns import Turns, ratio
from where import Counted, make


@pytest.mark.parametrize("page", tables.PAGES, ids=lambda page: page.stem)
def test_the_tables_of_a_page_are_those_recorded(page):
    assert tables.rendered(page) == page.read_text(encoding="utf-8"), "run python bench/tables.py"


@pytest.mark.parametrize("path", sorted(record.RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_a_record_says_where_it_comes_from(path):
    result = json.loads(path.read_text(encoding="utf-8"))
    assert {"machine", "commit", "date"} <= result.keys()


def test_a_record_is_read_back(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    monkeypatch.setattr(record, "ROOT", tmp_path)
    assert record.read("speed") == {}
    record.record("speed", {"rows": [1, 2]}, {"peer": "1.0"})
    back = record.read("speed")
    assert (back["rows"], back["peers"], back["machine"]) == ([1, 2], {"peer": "1.0"}, describe_machine("cpu"))


def test_the_command_on_record_names_no_folder_of_the_machine(monkeypatch):
    monkeypatch.setattr(
        "sys.argv", ["/home/me/isoflop/bench/step.py", "--nanogpt", "/home/me/nanoGPT", "--rounds", "5"]
    )
    assert record.command() == "python bench/step.py --nanogpt nanoGPT --rounds 5"
    monkeypatch.setattr(
        "sys.argv", ["/home/me/isoflop/bench/suites.py", "ten=/home/me/runs/ten", "--items=/home/me/items"]
    )
    assert record.command() == "python bench/suites.py ten=ten --items=items"


def test_the_ratio_is_the_median_of_the_rounds():
    ours, theirs = Turns(seconds=[1.0, 1.0, 4.0]), Turns(seconds=[2.0, 1.5, 8.0])  # the last round was a busy one
    assert ratio(ours, theirs) == 2.0


def test_the_operations_seen_are_those_declared():
    torch.set_num_threads(1)
    size = Size(2, 32, 2, 16, 3, 65, steps=1)
    step = make(nanogpt_model(size), size, torch.float32)
    with Counted() as counted:
        step()
    declared = flops_per_token(nanogpt_model(size), convention="executed") * size.tokens
    assert sum(counted.operations.values()) == pytest.approx(declared, rel=1e-9)
    assert all(
        counted.calls[part] for part in ("products", "attention", "norm", "activation", "loss", "update", "clip")
    )


def test_the_shapes_of_the_products_are_those_of_the_model():
    assert shapes_of(SIZES["L"])[1] == (1024, 768, 3072)


def test_seconds_to_a_loss_lie_between_two_runs():
    runs = [{"seconds": 10.0, "bits_per_byte": 3.0}, {"seconds": 40.0, "bits_per_byte": 2.0}]
    assert seconds_to(2.5, runs) == pytest.approx(20.0)  # half-way, on a logarithmic scale
    assert seconds_to(3.5, runs) == 10.0
    assert seconds_to(1.5, runs) is None


# What a bench needs of nanoGPT's train.py: it reads its words, its data where it looks for it, and prints its steps.
PEER = """
import sys, time
words = dict(word[2:].split("=") for word in sys.argv[1:] if word.startswith("--"))
assert open(f"data/{words['dataset']}/train.bin", "rb").read(2) and words["device"] == "cpu"
assert int(words["batch_size"]) * int(words["gradient_accumulation_steps"]) == 4
for step in range(10**6):
    time.sleep(0.001)
    print(f"iter {step}: loss 1.0, time 1.00ms, mfu 0%")
"""


@pytest.mark.slow  # processes that load torch
def test_a_card_s_table_is_measured_from_end_to_end(tmp_path, monkeypatch):
    """On a CPU: ours in a process of its own, a peer's untouched train.py beside it, and the table of both."""
    (tmp_path / "train.py").write_text(PEER, encoding="utf-8")
    monkeypatch.setattr(gpu, "PASSES", {"tiny": (2,)})
    words = ["--device", "cpu", "--sizes", "tiny", "--rounds", "1", "--seconds", "0.1", "--nanogpt", str(tmp_path)]
    result = gpu.measure(gpu.arguments(words))
    [row] = result["rows"]
    assert row["pass"] == 2 and row["missing"] == {} and result["race"] is None
    ours, theirs = row["trainers"]["isoflop"], row["trainers"]["nanogpt, passes of 2"]
    assert ours["tokens_per_second"] > 0 and ours["mfu"] is None and 0 < ours["of_measured_peak"] < 1
    expected = ours["tokens_per_second"] / theirs["tokens_per_second"]
    assert theirs["isoflop_is_times_as_fast"] == pytest.approx(expected, abs=1e-3)
    about = {"command": "python bench/gpu.py", "commit": "0", "date": "today", "peers": {}}
    machine = {**describe_machine("cpu"), "gpu": "NVIDIA H100", "cuda": "13.0"}
    page = tables.gpu({**about, "machine": machine, **result})
    assert "| tiny isoflop |" in page and "(1.5)" in page and "NVIDIA H100, CUDA 13.0" in page


def test_mfu_is_palm_s_count_of_the_data_sheet():
    size, turns = CARD_SIZES["124M"], Turns(seconds=[1.0], cpu_seconds=[1.0], faults=[0.0])
    palm = flops_per_token(nanogpt_model(size), convention="palm")
    found = gpu.one(size, turns, palm, 989e12, 700e12, turns)
    by_hand = 6 * (12 * 12 * 768**2 + 50_304 * 768) + 12 * 12 * 768 * 1024
    assert found["mfu"] == pytest.approx(by_hand * 480 * 1024 / 989e12, abs=1e-4)
    assert all(size.batch % passes == 0 for name, size in CARD_SIZES.items() for passes in gpu.PASSES[name])


def test_without_a_card_the_bench_says_so_in_one_line(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["gpu.py"])
    with pytest.raises(SystemExit) as stopped:
        gpu.main()
    assert stopped.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and "--device cpu --sizes tiny" in captured.err


def test_the_held_out_text_is_a_fiftieth_and_not_trained_on(tmp_path: Path):
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": f"document {n} " * 20}) + "\n" for n in range(300)))
    text = read_text(str(path), 40_000)
    assert not set(text.train) & set(text.heldout)
    train, held = (sum(map(len, side)) for side in (text.train, text.heldout))
    assert 0.01 < held / (train + held) < 0.03 and 40_000 <= train + held < 41_000


def recipe():
    pytest.importorskip("scipy", reason="bench/recipe.py needs the extra bench")
    return __import__("recipe")


def test_an_arm_is_the_default_except_for_its_assignments():
    bench = recipe()
    base = bench.configure(["x"], ["model.d_model=64"], bench.DEFAULT, 1000)
    assert base.optim.head_lr == 2 * base.optim.lr  # the plan's rule for a width, before anything is changed
    arm = bench.configure(["x"], ["model.d_model=64"], "vocabulary double", 1000)
    assert (arm.data.vocab_size, arm.model.vocab_size) == (2 * base.data.vocab_size, 2 * base.model.vocab_size)
    assert bench.configure(["x"], ["model.d_model=64"], "batch half", 1000).batch.sequences == base.batch.sequences // 2
    for name in bench.ARMS:
        bench.configure(["x"], [], name, 1000)


def test_a_batch_that_grows_reads_as_many_tokens():
    bench = recipe()
    base = bench.configure(["x"], [], bench.DEFAULT, 1000)
    grown = bench.configure(["x"], [], "batch.ramp_from=2 batch.ramp_share=0.4 batch.rates=sqrt", 1000)
    read = [dataclasses.replace(one, steps=bench.steps_for(one, 1e6)).tokens for one in (base, grown)]
    assert read[0] == pytest.approx(1e6, rel=0.01) == read[1]


def test_only_rates_are_free():
    bench = recipe()
    free = {name for name in bench.ARMS if not bench.costs_time(name)}
    assert {"matrix lr half", "cosine", "averaged over the last 10 %"} <= free
    assert not {"adamw, lr 3e-3", "no clipping", "gelu", "batch half, rates 0.7x"} & free


def test_two_seeds_per_arm_use_the_scatter_of_all_arms():
    bench = recipe()
    losses = {bench.DEFAULT: (2.0, 2.1), "steady": (1.9, 2.0), "the same": (2.01, 2.09), "noisy": (2.0, 2.12)}
    rows = [
        {"arm": arm, "seed": seed, "ratio": 1.0, "bits_per_byte": loss}
        for arm, both in losses.items()
        for seed, loss in enumerate(both)
    ]
    found = {line[0]: line for line in bench.compare(rows)}
    halves = {line[3] for line in found.values()}
    assert len(halves) == 1  # one variance, three degrees of freedom: sqrt((0.0002 + 0.0002) / 3) * 3.182 / sqrt(2)
    assert halves.pop() == pytest.approx(0.02598, rel=1e-3)
    assert [found[arm][5] for arm in ("steady", "the same", "noisy")] == [
        "better",
        "no difference shown",
        "no difference shown",
    ]


def test_a_new_run_of_the_prior_replaces_the_same_run(tmp_path, monkeypatch):
    monkeypatch.setattr(prior, "TABLE", tmp_path / "prior.json")
    run = {"corpus": "books", "seed": 0, "flops": 5e11, "bits_per_byte": 2.0}
    others = [run | {"seed": 1}, run | {"flops": 2e12}, run | {"corpus": "gov"}]
    for row in [run, *others, run | {"flops": 5.1e11, "bits_per_byte": 1.9}]:
        prior.add_row(row)
    rows = json.loads((tmp_path / "prior.json").read_text())["runs"]
    assert len(rows) == 4
    assert [row["bits_per_byte"] for row in rows if row["corpus"] == "books" and row["seed"] == 0] == [1.9, 2.0]


def test_the_lab_s_tables_say_what_was_found_and_how_often():
    about = {"command": "python bench/lab.py LAB", "commit": "0", "date": "today", "peers": {}}
    about |= {"machine": describe_machine("cpu"), "runs_at": "abc"}
    one = {"prediction": "it is worse", "verdict": "refuted", "found": "+0.1 bits (+0.0 to +0.2)"}
    row = {"claim": "norms", "verdict": "refuted", "predictions": [one]}
    row |= {"pairs": 8, "process_seconds": 600.0, "machines": ["A"]}
    said = tables.lab({**about, "rows": [row, {**row, "predictions": [one, {**one, "verdict": "supported"}]}]})
    assert "| `norms` | **refuted** | it is worse: +0.1 bits (+0.0 to +0.2) | 8 | 10 |" in said and "abc on A" in said
    assert "(+0.0 to +0.2), refuted<br>it is worse: +0.1 bits (+0.0 to +0.2), supported | 8 |" in said

    share = lab_stats.share(1000, 20_000)
    rows = [lab_stats.row("no effect: rejects", "normal", pairs, "5%", 1000, 20_000) for pairs in (6, 9)]
    rows.append(lab_stats.row("found", "normal", 5, "at least 80%", 17_000, 20_000))
    said = tables.lab_stats({**about, "rows": rows})
    low, high = 100 * share["low"], 100 * share["high"]
    assert f"| no effect: rejects | normal | 5% | {f'5.0 % ({low:.1f} to {high:.1f}) | ' * 2}".rstrip() in said
    assert "| found | normal | at least 80% | 5 | 85.0 %" in said and "Up to 20,000 studies" in said
