"""From a claim's file to its verdict and page, with short real runs."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from isoflop.cli.app import run as command
from isoflop.errors import UserError
from isoflop.lab import arms as making
from isoflop.lab import study as studies
from isoflop.lab.claim import CLAIMS, Comparison, claim_of, read_claim
from isoflop.lab.front import write_front
from isoflop.lab.page import page, write_page
from isoflop.lab.recorded import all_recorded, claims_there, one_there, recorded
from isoflop.lab.run import run_claim
from isoflop.lab.store import Row, Store
from isoflop.lab.study import Study
from isoflop.lab.wording import measured_words, verdict_line
from small import write_texts

TINY = [
    "model.layers=1",
    "model.d_model=32",
    "model.heads=1",
    "model.context=32",
    "model.vocab_size=300",
    "data.vocab_size=300",
    "batch.sequences=4",
]
ARMS = {"plain": {}, "again": {"again": True}, "slow": {"set": ["optim.matrix_lr=1e-5", "optim.lr=1e-5"]}}


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    return write_texts(tmp_path_factory.mktemp("lab") / "texts", files=12)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """One home for the module: the text is prepared once."""
    kept = os.environ.get("ISOFLOP_HOME")
    os.environ["ISOFLOP_HOME"] = str(tmp_path_factory.mktemp("home"))
    yield os.environ["ISOFLOP_HOME"]
    os.environ.pop("ISOFLOP_HOME") if kept is None else os.environ.update(ISOFLOP_HOME=kept)


@pytest.fixture(autouse=True)
def same_home(home, monkeypatch):
    monkeypatch.setenv("ISOFLOP_HOME", home)
    monkeypatch.setattr(making, "GLANCE", 0.02)  # how long a run takes matters to none of these


def claim(texts, arm, against, expect="higher", name="tiny", **setup):
    written = {
        "statement": "Small rates <learn> less.",
        "question": "Do they?",
        "prediction": "Yes.",
        "setup": {"set": TINY, "sources": [str(texts)], "tokens": 2000, "pairs": 4, "equal": ["tokens"], **setup},
        "arms": {one: ARMS[one] for one in dict.fromkeys((against, arm))},
        "comparisons": [
            {"measure": "bits_per_byte", "arm": arm, "against": against, "expect": expect, "smallest": 0.05}
        ],
    }
    return claim_of(written, name, f"{name}.toml")


@pytest.fixture(scope="module")
def store(texts, home, tmp_path_factory):
    """A lab in which the claim `tiny` has its verdict, whichever test is the first."""
    results = Store(tmp_path_factory.mktemp("results") / "lab")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(making, "GLANCE", 0.02)
        run_claim(claim(texts, "slow", "plain"), results, workers=0)
    return results


def test_a_known_effect_is_supported_its_opposite_refuted_and_equal_arms_are_not_distinguished(texts, store):
    found = run_claim(claim(texts, "slow", "plain"), store, workers=0)
    assert found.decision.verdict == "supported" and found.exit_code == 10
    before = len(store.rows)
    opposite = run_claim(claim(texts, "plain", "slow", name="opposite"), store, workers=0)
    assert opposite.decision.verdict == "refuted" and opposite.exit_code == 11
    assert len(store.rows) == before + studies.NOISE_PAIRS  # arms are the same runs; the noise is another arm's

    same = run_claim(claim(texts, "again", "plain", name="same"), store, workers=0)
    assert same.decision.verdict in ("equivalent", "undecided")
    assert any(same.decision.findings[0].differences)  # other first weights, other losses


def test_stored_runs_are_not_repeated_and_a_broken_line_is_ignored(texts, store):
    told = []
    before = len(store.rows)
    with (store.folder / "runs.jsonl").open("a") as file:
        file.write('{"key": "half')
    again = Store(store.folder)
    found = run_claim(claim(texts, "slow", "plain"), again, workers=0, say=told.append)
    assert len(again.rows) == before and found.decision.verdict == "supported"
    again.append(store.folder / "runs.jsonl", {"key": "whole"})
    assert len(Store(store.folder).rows) == before + 1


def test_a_dry_run_estimates_the_time_and_writes_nothing(texts, tmp_path):
    told = []
    empty = Store(tmp_path / "lab")
    wanted = claim(texts, "slow", "plain", rates=[0.5, 1, 2])
    planned = run_claim(wanted, empty, workers=0, say=told.append, plan_only=True, budget=600).to_dict()
    assert planned["claim"] == "tiny" and planned["verdict"] is None and planned["runs"] > planned["pairs"] == 4
    assert planned["budget_seconds"] == 600 and 0 < min(planned["visible_effects"].values()) < 1
    said = "\n".join(told)
    for word in ("3 to 5 values", "A/A", "pairs", "a run takes about", "10 min", "see an effect of"):
        assert word in said, word
    assert not empty.folder.exists()


def test_the_effect_that_is_seen_is_by_the_claim_s_rule_and_an_interaction_s_is_larger(texts, tmp_path):
    def effects(**changes):
        told = []
        run_claim(replace(plain, **changes), Store(tmp_path / "lab"), workers=0, say=told.append, plan_only=True)
        [said] = [line for line in told if "until it is measured" in line]
        return [float(number) for number in re.findall(r"an effect of ([0-9.]+)", said)]

    plain = claim(texts, "slow", "plain", pairs=8)
    [fixed] = effects()
    [anytime] = effects(setup=replace(plain.setup, rule="anytime"))
    [two] = effects(comparisons=(replace(plain.comparisons[0], beyond=("plain", "slow")),))
    assert anytime > 1.2 * fixed and two == pytest.approx(math.sqrt(2) * fixed, rel=0.1)


def test_rates_are_tried_until_the_best_lies_between_two_others(texts, tmp_path):
    results = Store(tmp_path / "lab")
    far = claim(texts, "slow", "plain", rates=[0.05, 0.1, 0.2], tokens=1500, pairs=2)
    found = run_claim(far, results, workers=0)
    tried = found.study.tried("plain")
    assert 3 <= len(tried) <= 5 and (found.study.bracketed("plain") or len(tried) == 5)
    assert found.study.factors["plain"] == min(tried, key=tried.get)
    tuned = {job.order for job in found.study.tuning_jobs()} | {studies.TUNING}
    assert tuned == {studies.TUNING}  # a seed that no pair has


def test_the_claim_is_recorded_before_its_first_run(texts, store):
    found = recorded(claim(texts, "slow", "plain"), store)
    assert all(row.time >= found.fixed for row in store.rows.values())
    [line] = store.fixings(found.study.claim)
    assert line["hash"] == found.study.claim.hash and line["time"] == found.fixed
    assert "on record before" not in page(found)

    stricter = replace(found.study.claim.comparisons[0], smallest=0.06)
    changed = replace(found.study.claim, comparisons=(stricter,))
    run_claim(changed, store, workers=0)
    assert "2 versions of this claim" in page(recorded(changed, store))
    assert "on record before" in page(recorded(changed, store))


def test_when_time_is_up_the_verdict_is_that_of_the_runs_so_far(texts, tmp_path):
    found = run_claim(claim(texts, "slow", "plain"), Store(tmp_path / "lab"), workers=0, budget=1e-3)
    assert found.decision.verdict == "undecided" and found.pairs < 2 and found.exit_code == 13
    assert "nothing measured yet" in verdict_line(found)


def test_with_the_anytime_rule_it_stops_when_it_is_decided(texts, tmp_path):
    found = run_claim(claim(texts, "slow", "plain", rule="anytime", pairs=40), Store(tmp_path / "lab"), workers=0)
    assert found.decision.verdict == "supported" and found.pairs < 40
    assert found.decision.findings[0].estimate.test == "anytime t"


def test_what_would_settle_an_undecided_claim_settles_it_or_says_more(texts, tmp_path):
    """The advised command adds the pairs that it names, beyond the number that the claim has by itself."""
    results = Store(tmp_path / "lab")
    same = claim(texts, "again", "plain", pairs=2, tokens=1000)
    narrow = replace(same, comparisons=(replace(same.comparisons[0], smallest=0.004),))
    first = run_claim(narrow, results, workers=0, command="isoflop lab run same.toml")
    wanted = first.settle()
    assert first.decision.verdict == "undecided" and first.pairs == 2
    if wanted is None:  # so noisy that ten thousand pairs would not do
        return
    assert wanted["pairs"] > 2 and wanted["more_pairs"] == wanted["pairs"] - 2
    assert wanted["command"].startswith("isoflop lab run same.toml --budget ")
    again = run_claim(narrow, results, workers=0, budget=4.0)  # seconds: some pairs, however many are wanted
    assert again.pairs > 2 and again.looks == 1 and again.decision.error_spent == 0.1
    assert "Looked at" in page(again)


VOID = ("meta", "link", "br", "hr", "img")  # tags that are not closed


class Tags(HTMLParser):
    """Whether every tag is closed, and what the page would load."""

    def __init__(self):
        super().__init__()
        self.open, self.loads = [], []

    def handle_starttag(self, tag, attrs):
        wanted = ("src",) if tag == "a" else ("src", "href")  # a link loads nothing by itself
        self.loads += [value for name, value in attrs if name in wanted and not str(value).startswith("#")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_an_unfinished_claim_shows_what_its_rule_allows_and_no_more(texts, store):
    """The store has pairs of these arms, but this claim was not looked at yet."""
    fixed, anytime = (
        claim(texts, "slow", "plain", name=f"half-{rule}", rule=rule, pairs=50) for rule in ("fixed", "anytime")
    )
    for one in (fixed, anytime):
        store.fix(one)
        store.note_data(one, recorded(claim(texts, "slow", "plain"), store).study.fingerprints)
        store.note(one, "plan", pairs=50)

    hidden, seen = recorded(fixed, store), recorded(anytime, store)
    assert not hidden.finished and hidden.pairs == 0 and hidden.complete >= 4 and hidden.planned == 50
    assert not any(finding.differences for finding in hidden.decision.findings)
    shown = page(hidden)
    assert f"{hidden.complete} of 50 pairs" in shown and "one look" in shown and "<svg" not in shown
    result = hidden.to_dict()
    assert result["verdict"] is None and result["effect"] is None and result["planned_pairs"] == 50

    assert seen.pairs == seen.complete == hidden.complete
    assert seen.decision.findings[0].estimate.test == "anytime t" and "So far" in verdict_line(seen)
    front = write_front([hidden, seen], store.folder).read_text(encoding="utf-8")
    assert "Not finished" in front and "Supported" not in front
    for one in (fixed, anytime):
        shutil.rmtree(store.folder / one.name)


def test_the_pages_are_complete_and_self_contained(texts, store):
    run_claim(claim(texts, "plain", "slow", name="opposite"), store, workers=0)
    for one in claims_there(store):
        path = write_page(recorded(one, store))
        tags = Tags()
        tags.feed(path.read_text(encoding="utf-8"))
        assert not tags.open and not tags.loads
    text = (store.folder / "tiny" / "report.html").read_text(encoding="utf-8")
    assert "Small rates &lt;learn&gt; less." in text and "<svg" in text and "isoflop lab run tiny" in text
    front = write_front([recorded(one, store) for one in claims_there(store)], store.folder).read_text(encoding="utf-8")
    assert "the dot is the mean difference, the bar" in front
    ends = re.findall(r'text-anchor="(?:start|end)" font-size="11">([−0-9.]+)<', front)
    assert len(ends) >= 4 and all(f"−{high}" == low for low, high in zip(ends[::2], ends[1::2], strict=True))
    assert "tiny/report.html" in front and "Supported" in front and "Refuted" in front
    with pytest.raises(UserError, match="no verdict on 'absent'"):
        one_there("absent", store)


def test_a_claim_that_cannot_be_read_any_more_does_not_hide_the_others(texts, store):
    strange = claim(texts, "slow", "plain", name="strange")
    strange = replace(strange, setup=replace(strange.setup, set=(*strange.setup.set, "model.norm=gone:Away")))
    store.fix(strange)
    told = []
    names = {outcome.study.claim.name for outcome in all_recorded(store, told.append)}
    assert "tiny" in names and "strange" not in names
    assert len(told) == 1 and told[0].startswith("strange is left out: ")
    shutil.rmtree(store.folder / "strange")


def test_the_command_gives_a_verdict_to_a_program(texts, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "mine.toml"
    assert command(["lab", "new", "mine"]) == 0
    assert command(["lab", "new", "mine"]) == 2
    text = path.read_text(encoding="utf-8")
    fields = ", ".join(f'"{field}"' for field in TINY)
    text = re.sub(r"^set = .*heads.*", f"set = [{fields}]", text, count=1, flags=re.MULTILINE)
    text = text.replace("tokens = 6e5 ", "tokens = 3000").replace("rates = [0.5, 1, 2]", "rates = []")
    path.write_text(text.replace("pairs = 12 ", "pairs = 2"), encoding="utf-8")
    capsys.readouterr()

    code = command(["lab", "run", "mine.toml", str(texts), "--workers", "0", "--json"])
    said = json.loads(capsys.readouterr().out)
    assert code == said["exit_code"] and code in (10, 11, 12, 13)
    assert {"verdict", "effect", "interval", "error_spent", "pairs", "seeds", "seconds", "to_settle"} <= said.keys()
    assert said["seeds"] == [0, 1] and said["pairs"] == 2 and said["error_spent"] == 0.05 and said["seconds"] > 0
    assert said["interval"][0] <= said["effect"] <= said["interval"][1]
    assert (said["to_settle"] is None) == (said["verdict"] != "undecided")
    assert said["command"] == f"isoflop lab run mine.toml {texts}"
    assert (tmp_path / "lab" / "index.html").exists()
    assert command(["lab", "report"]) == 0 and "mine" in capsys.readouterr().out
    assert command(["lab", "report", "--json"]) == 0
    [again] = json.loads(capsys.readouterr().out)
    assert {**again, "seconds": 0} == {**said, "seconds": 0}  # from what is on record alone
    assert command(["lab", "list"]) == 0 and said["verdict"] in capsys.readouterr().out
    assert command(["lab", "run", "mine.toml", "--budget", "3e9"]) == 2
    assert "flops" in capsys.readouterr().err


def test_all_sizes_are_in_the_json_and_a_dry_run_prints_an_object(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text, larger = (CLAIMS / "leak.toml").read_text(encoding="utf-8"), '["model.d_model=32", "model.heads=1"]'
    (tmp_path / "mine.toml").write_text(f"{text}\n[full]\nset = {larger}\n", encoding="utf-8")
    code = command(["lab", "run", "mine.toml", "--full", "--workers", "0", "--json"])
    said = json.loads(capsys.readouterr().out)
    assert [one["claim"] for one in said["sizes"]] == ["mine", "mine-full"] and said["claim"] == "mine-full"
    assert code == said["exit_code"] and said["sizes"][0]["verdict"] == "supported"

    assert command(["lab", "run", "mine.toml", "--full", "--dry-run", "--workers", "0", "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert planned["dry_run"] and len(planned["sizes"]) == 2 and planned["pairs"] == 10
    assert command(["lab", "run", "mine.toml", "--dry-run", "--workers", "0", "--json"]) == 0
    assert "sizes" not in json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("name", ["normalise", "pretraining-share", "linear", "leak"])
def test_claims_without_training_take_seconds(tmp_path, name):
    found = run_claim(read_claim(name), Store(tmp_path / "lab"), workers=0)
    assert found.decision.verdict == "supported" and found.pairs == found.study.claim.setup.pairs


def test_runs_of_other_versions_are_named_with_a_warning(texts, store):
    claimed = claim(texts, "slow", "plain")
    [same] = recorded(claimed, store).to_dict()["versions"]
    assert same["source"] == store.code["source"] and same["runs"] >= 8
    shown = page(recorded(claimed, store))
    assert f"source {same['source']}" in shown and "Warning" not in shown

    for change in ({"code": {}}, {"code": {**store.code, "source": "edited"}}, {"machine": {"torch": "1.0"}}):
        mixed = Store(store.folder)
        key = recorded(claimed, mixed).study.job("plain", 0).key
        mixed.rows[key] = replace(mixed.rows[key], **change)
        found = recorded(claimed, mixed)
        versions, shown = found.to_dict()["versions"], page(found)
        assert sorted(one["runs"] for one in versions) == [1, same["runs"] - 1]
        assert "Warning: its runs were made with 2 versions" in shown
        assert ("isoflop not recorded" in shown) == ("code" in change and not change["code"])
    assert Row.read({"key": "old"}).made_by == dict.fromkeys(("isoflop", "source", "torch"), "not recorded")


def test_what_is_compared_with_a_number_is_shown_itself(tmp_path):
    found = run_claim(read_claim("linear"), Store(tmp_path / "lab"), workers=0)
    first = found.decision.findings[0]
    assert first.estimate.value == pytest.approx(first.measured.value + 10) and first.measured.value < -14
    said, shown = measured_words(first), page(found)
    assert said.startswith("−15.") and ", compared with −10, 10 pairs" in said
    assert first.to_dict()["measured"] == first.measured.value
    assert "compared with −10</dd>" in shown and ": difference from −10" in shown and "difference, log10" in shown
    between = found.decision.findings[2]
    assert "compared with" not in measured_words(between) and "measured" not in between.to_dict()


def test_a_difference_that_does_not_depend_on_the_seed_has_no_interval(tmp_path):
    found = run_claim(read_claim("normalise"), Store(tmp_path / "lab"), workers=0)
    constant = [finding for finding in found.decision.findings if finding.constant]
    assert constant and all("(the same in every pair)" in measured_words(finding) for finding in constant)
    shown = page(found)
    assert shown.count("the same in every pair<br>") >= len(constant)
    assert shown.count("bootstrap") == len(found.decision.findings) - len(constant)
    assert constant[0].to_dict()["constant"]


def test_reaching_a_target_later_counts_as_later(texts, store):
    ends = [store.find(recorded(claim(texts, "slow", "plain"), store).study.job(arm, 0)) for arm in ("plain", "slow")]
    between = sum(row.measures["bits_per_byte"] for row in ends) / 2
    sooner = Comparison(
        measure="tokens_to", arm="plain", against="slow", expect="lower", smallest=0.1, target=between, words="sooner"
    )
    wanted = replace(claim(texts, "plain", "slow", name="target", pairs=6), comparisons=(sooner,))
    found = run_claim(wanted, store, workers=0)
    assert found.decision.findings[0].estimate.test == "sign"
    shown = page(found)
    assert "the first run: a sign test, and no difference where the interval of the median" in shown
    assert "the median difference and its interval" in shown and "t-test" not in shown and "the mean diff" not in shown
    assert found.decision.verdict == "supported"


@pytest.mark.slow  # two worker processes that load torch
def test_a_kill_loses_only_the_running_jobs(texts, tmp_path):
    path = tmp_path / "killed.toml"
    fields = ", ".join(f'"{field}"' for field in TINY)
    path.write_text(
        'statement = "S."\nquestion = "Q?"\nprediction = "P."\n'
        f'[setup]\nset = [{fields}]\ntokens = 3000\npairs = 6\nequal = ["tokens"]\n'
        '[arms.a]\n[arms.b]\nset = ["optim.lr=1e-5", "optim.matrix_lr=1e-5"]\n[[comparisons]]\n'
        'measure = "bits_per_byte"\narm = "b"\nagainst = "a"\nexpect = "higher"\nsmallest = 0.05\n'
    )
    words = [sys.executable, "-m", "isoflop", "lab", "run", str(path), str(texts), "--out", str(tmp_path / "lab")]
    first = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    runs = 0
    for line in first.stdout:
        runs += " bits per byte  " in line
        if runs == 3:
            first.kill()
            break
    first.wait(timeout=60)
    kept = len(Store(tmp_path / "lab").rows)
    assert kept >= 3
    second = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert second.returncode == 10, second.stderr
    made = (tmp_path / "lab" / "runs.jsonl").read_text().splitlines()
    assert len({json.loads(line)["key"] for line in made}) == len(made) > kept


def test_a_study_knows_what_is_missing(texts, store):
    study = Study.of(claim(texts, "slow", "plain"), store)
    study.choose()
    assert not study.missing(study.pair(0)) and study.missing(study.pair(50))
