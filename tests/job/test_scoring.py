"""Suites and strided perplexity from the command line and from Python, on existing runs."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import isoflop
from isoflop import checkpoint
from isoflop.cli.app import run as command
from isoflop.cli.show_suites import comparison_text
from isoflop.evaluate.suite import names
from isoflop.job import suites as scoring
from isoflop.records import read_run

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module")
def golden(tmp_path_factory) -> Path:
    """Two runs of one tokenizer that differ in their weights, and a suite with its items next to it."""
    top = tmp_path_factory.mktemp("scored") / "golden"
    shutil.copytree(GOLDEN, top)
    shutil.copytree(top / "words", top / "other")
    alter(top / "other")
    items = [
        {"question": f"{word} {i} the", "choices": ["same", "other", "thing"], "gold": i % 3, "kind": "ab"[i % 2]}
        for i, word in enumerate(["one", "two", "three", "four", "five", "six"] * 2)
    ]
    (top / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    (top / "own.toml").write_text(
        'name = "own"\nmethod = "options"\nfiles = ["items.jsonl"]\ncontext = "{question}"\noptions = "choices"\n'
        'answer = "{gold}"\nsubset = "{kind}"\n[[reference]]\nmodel = "another"\nscore = 0.5\nsource = "nowhere"\n'
    )
    return top


def alter(run: Path) -> None:
    """Give a run other weights."""
    model, _, snapshot = checkpoint.load_model(run)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    folder = run / "checkpoints"
    shutil.rmtree(folder)
    what = {"config": snapshot.config, "tokenizer": snapshot.tokenizer, "fingerprint": snapshot.fingerprint}
    checkpoint.write(
        checkpoint.take(folder, step=snapshot.step, model=model, optimizers=(), progress=snapshot.progress, **what)
    )


def called(capsys, *words) -> tuple[int, str, str]:
    capsys.readouterr()
    code = command([str(word) for word in words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_a_suite_is_scored_kept_and_shown(golden, capsys, monkeypatch):
    monkeypatch.chdir(golden)
    code, out, _ = called(capsys, "eval", "words", "--suite", "own.toml")
    assert code == 0
    for word in ("own", "33.3 %", "12", "likelihood", "published: another 50.0 %", "nowhere"):
        assert word in out
    kept = read_run("words").suites
    assert [one.suite for one in kept] == ["own"] and kept[0].items == 12 and set(kept[0].subsets) == {"a", "b"}
    assert kept[0].step == checkpoint.read("words").step and kept[0].references[0].source == "nowhere"

    code, out, _ = called(capsys, "eval", "words", "--suite", "own.toml", "--json", "--limit", "2")
    score = json.loads(out)["runs"]["words"][0]
    assert code == 0 and score["items"] == 4 and score["low"] <= score["score"] <= score["high"]
    assert read_run("words").suites == kept  # a part of a suite is not kept


def test_the_shipped_suites_are_listed(capsys):
    code, out, _ = called(capsys, "suites")
    assert code == 0 and all(f"\n{name} " in f"\n{out}" for name in names()) and "67,000 items in blimp/*.jsonl" in out


def test_a_part_of_a_suite_is_not_stored_as_the_suite(golden, capsys, monkeypatch):
    """Fewer items than a suite's file says are a part of it, in a shipped suite and in a user's own."""
    monkeypatch.chdir(golden)
    kept = read_run("words").suites
    Path("part").mkdir()
    pairs = [{"sentence_good": f"It is {i}.", "sentence_bad": "It are.", "linguistics_term": "x"} for i in range(3)]
    Path("part/blimp").mkdir()
    Path("part/blimp/a.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    code, out, _ = called(capsys, "eval", "words", "--suite", "blimp", "--items", "part")
    assert (
        code == 0 and "note: blimp has 67,000 items, not the 3 found; this score is not stored as that on blimp" in out
    )
    assert "note" not in called(capsys, "eval", "words", "--suite", "blimp", "--items", "part", "--limit", "2")[1]

    for items, is_stored in ((13, False), (11, False), (12, True)):
        text = Path("own.toml").read_text().replace('name = "own"', f'name = "says"\nitems = {items}')
        Path("says.toml").write_text(text)
        scored = isoflop.score("words", "says.toml")
        assert bool(scored.notes) != is_stored
        assert [one.suite for one in read_run("words").suites if one not in kept] == (["says"] if is_stored else [])
    Path("words/suites/says.json").unlink()


def test_two_runs_are_compared_item_by_item(golden, capsys, monkeypatch):
    monkeypatch.chdir(golden)
    code, out, _ = called(capsys, "eval", "words", "other", "--suite", "own.toml")
    line = next(line for line in out.splitlines() if "McNemar" in line)
    assert code == 0 and " points (" in line and " over 12 items, alone right on " in line and "p = " in line
    scored = isoflop.score(["words", "other", "words/checkpoints/step-00000024"], ["own.toml"])
    assert isoflop.score("words", "own.toml").to_dict()["runs"].keys() == {"words"}  # one is a list of one
    first, same, _ = scored.compared  # `same`: the run and its last checkpoint
    assert (first.first, first.second) == ("words", "other")
    assert same.measured.p == 1.0 and not same.real and same.only_first == same.only_second == 0
    assert comparison_text(same) == (
        "own by likelihood: words and words/checkpoints/step-00000024 differ by 0.0 points (-16.4 to 16.4) over 12 "
        "items, alone right on 0 and 0; p = 1, McNemar, exact: not shown to differ"
    )


def test_models_of_which_none_is_right_are_compared_by_perplexity(golden, capsys, monkeypatch):
    monkeypatch.chdir(golden)
    Path("words.jsonl").write_text("".join(json.dumps({"c": f"one {i} the", "w": "same"}) + "\n" for i in range(9)))
    Path("last.toml").write_text(
        'name = "last"\nmethod = "last_word"\nfiles = ["words.jsonl"]\ncontext = "{c}"\ncontinuation = "{w}"\n'
    )
    scored = isoflop.score(["words", "other"], "last.toml")
    by = {one.metric: one for one in scored.compared}
    assert list(by) == ["first_choice", "perplexity"] and by["perplexity"].items == 9
    assert by["perplexity"].only_first is None and by["perplexity"].better in ("words", "other")
    assert " nats per item (" in comparison_text(by["perplexity"])
    scored = isoflop.score(["words", "words/checkpoints/step-00000024"], "last.toml")
    assert "differ by 0.000 nats per item (0.000 to 0.000) over 9 items; p = 1," in comparison_text(scored.compared[1])


def test_contamination_is_searched_in_the_runs_own_text(golden, capsys, monkeypatch):
    monkeypatch.chdir(golden)
    text = (golden / "texts" / sorted(path.name for path in (golden / "texts").iterdir())[0]).read_text()
    words = text.split()
    items = [
        {"question": " ".join(words[5:25]), "choices": ["same", "other"], "gold": 0},
        {"question": "thirteen words in a row that nobody has ever written down so far at all, are they", "gold": 0}
        | {"choices": ["same", "other"]},
        {"question": "short", "choices": ["same", "other"], "gold": 0},
    ]
    (golden / "own2.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    (golden / "own2.toml").write_text(
        (golden / "own.toml")
        .read_text()
        .replace("items.jsonl", "own2.jsonl")
        .replace('name = "own"', 'name = "own2"')
        .replace('subset = "{kind}"\n', "")
    )
    code, out, err = called(capsys, "eval", "words", "--suite", "own2.toml", "--contamination", "--json")
    assert code == 0, err
    found = json.loads(out)["runs"]["words"][0]["contamination"]
    assert found["too_short"] == 1 and found["overlapping"] in (0, 1)  # held out, if it is not found
    if found["overlapping"]:
        assert found["without"]["items"] == 2


def test_a_strided_perplexity_is_per_token_word_and_byte(golden, capsys, monkeypatch):
    monkeypatch.chdir(golden)
    (golden / "page.txt").write_text("the same thing and the other thing again. " * 20)
    code, out, _ = called(capsys, "eval", "words", "page.txt", "--stride", "16", "--json")
    coarse = json.loads(out)
    assert code == 0 and coarse["words"] == 160 and coarse["bytes"] == 840 and coarse["stride"] == 16
    finer = json.loads(called(capsys, "eval", "words", "page.txt", "--stride", "4", "--json")[1])
    assert finer["tokens"] == coarse["tokens"] and finer["perplexity"] != coarse["perplexity"]
    assert called(capsys, "eval", "words", "--stride", "8")[0] == 0  # what it held out


def test_a_list_of_runs_is_checked_before_the_first_is_scored(golden, capsys, monkeypatch):
    monkeypatch.chdir(golden)
    monkeypatch.setattr("isoflop.job.suites.score_suite", lambda *arguments: pytest.fail("something was scored"))
    for wrong, message in (("absent", "neither a run nor a checkpoint"), ("pairs", "pairs is an encoder-decoder")):
        code, _, err = called(capsys, "eval", "words", wrong, "--suite", "own.toml")
        assert code == 2 and message in err
    shutil.copytree("words", "moved")
    record = json.loads(Path("moved/data.json").read_text())
    Path("moved/data.json").write_text(json.dumps({**record, "folder": ""}))
    config = json.loads(Path("moved/config.json").read_text())
    config["data"]["sources"] = ["nowhere.txt"]
    Path("moved/config.json").write_text(json.dumps(config))
    code, _, err = called(capsys, "eval", "moved", "--suite", "own.toml", "--contamination")
    assert code == 2 and "isoflop eval moved --suite NAME --contamination --moved SOURCE" in err


def test_each_suite_is_stored_before_the_next_is_scored(golden, capsys, monkeypatch):
    monkeypatch.chdir(golden)
    Path("second.toml").write_text(Path("own.toml").read_text().replace('name = "own"', 'name = "second"'))
    shutil.rmtree("words/suites", ignore_errors=True)
    score_suite = scoring.score_suite

    def stopped_at_the_second(model, tokenizer, asked, runtime):
        if asked.suite.name == "second":
            raise KeyboardInterrupt
        return score_suite(model, tokenizer, asked, runtime)

    monkeypatch.setattr("isoflop.job.suites.score_suite", stopped_at_the_second)
    code, _, err = called(capsys, "eval", "words", "--suite", "own.toml,second.toml", "--contamination")
    assert code == 130 and err == "isoflop: stopped\n"
    (kept,) = read_run("words").suites
    assert kept.suite == "own" and kept.contamination is not None


def test_contamination_that_was_found_stays_with_its_score(golden, capsys, monkeypatch):
    monkeypatch.chdir(golden)
    assert called(capsys, "eval", "words", "--suite", "own.toml", "--contamination")[0] == 0
    (found,) = [one for one in read_run("words").suites if one.suite == "own"]
    assert found.contamination is not None and found.contamination.too_short == 12
    assert called(capsys, "eval", "words", "--suite", "own.toml")[0] == 0
    (again,) = [one for one in read_run("words").suites if one.suite == "own"]
    assert again.contamination == found.contamination

    changed = [json.loads(line) for line in Path("items.jsonl").read_text().splitlines()]
    texts = "".join(json.dumps({**item, "question": f"{item['question']} "}) + "\n" for item in changed)
    Path("changed").mkdir()
    Path("changed/items.jsonl").write_text(texts)
    assert called(capsys, "eval", "words", "--suite", "own.toml", "--items", "changed")[0] == 0
    (others,) = [one for one in read_run("words").suites if one.suite == "own"]
    assert others.items == again.items and others.contamination is None

    assert called(capsys, "eval", "words", "--suite", "own.toml", "--contamination")[0] == 0
    path = golden / "words" / "suites" / "own.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "step": 1}))  # of an earlier checkpoint
    assert called(capsys, "eval", "words", "--suite", "own.toml")[0] == 0
    assert json.loads(path.read_text()).get("contamination") is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["words", "--suite", "nothing"], "suite 'nothing' is not one of"),
        (["words", "--suite", "own.toml,own.toml"], "--suite names own twice"),
        (["words", "--suite", "blimp"], "--items FOLDER"),
        (["words", "--suite", "own.toml", "--limit", "-1"], "--limit -1 is negative"),
        (["words", "--suite", "own.toml", "--stride", "4"], "--stride does not go with --suite"),
        (["words", "--suite", "own.toml", "--text-column", "x"], "--text-column does not go with --suite"),
        (["words", "--items", "texts"], "--items goes with a suite; name one, as in"),
        (["words", "--contamination"], "--contamination goes with a suite"),
        (["words", "words/", "--suite", "own.toml"], "words/ is named twice"),
        (["words", "other/../words", "--suite", "own.toml"], "other/../words and words are the same run"),
        (["words", "other"], "other is a run, not text; runs are compared on suites, isoflop eval words other --suite"),
        (["words", "other", "--stride", "4"], "other is a run, not text"),
        (["words", "--suite", "own.toml", "--moved", "texts"], "--moved is the new place of one run's text"),
        (["words", "--stride", "4", "--text-column", "x"], "--text-column determines how sources are read"),
        (["words", "--stride", "32"], "--stride 32 is not from 1 to 31"),
        (["pairs", "--suite", "own.toml"], "encoder-decoder"),
        (["absent", "--suite", "own.toml"], "absent"),
    ],
)
def test_impossible_requests_give_one_line(golden, capsys, monkeypatch, words, message):
    monkeypatch.chdir(golden)
    code, _, err = called(capsys, "eval", *words)
    assert code == 2 and message in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        ("5", "--limit '5' is not a whole number; write 5"),
        (1.5, "--limit 1.5 is not a whole number; write 1 or 2"),
        (None, "--limit None is not a whole number"),
    ],
)
def test_a_limit_from_python_is_a_whole_number(golden, limit, message):
    with pytest.raises(isoflop.UserError, match=message):
        isoflop.score([golden / "words"], [golden / "own.toml"], limit=limit)
    with pytest.raises(isoflop.UserError, match="--stride 'x' is not a whole number"):
        scoring.perplexity(golden / "words", stride="x")


def test_scores_that_cannot_be_saved_are_reported(golden, capsys, monkeypatch):
    monkeypatch.chdir(golden)
    shutil.rmtree(golden / "other" / "suites", ignore_errors=True)
    (golden / "other" / "suites").write_text("a file in its place")
    try:
        code, out, _ = called(capsys, "eval", "other", "--suite", "own.toml")
    finally:
        (golden / "other" / "suites").unlink()
    assert code == 0 and "note: the score on own is not stored" in out
