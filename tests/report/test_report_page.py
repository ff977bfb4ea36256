"""The page: well formed, self-contained, untrusted text escaped, for every state of a run."""

import html
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from isoflop.errors import UserError
from isoflop.files import write_json
from isoflop.records import RunFolder, read_run
from isoflop.report.facts import read_facts
from isoflop.report.page import write_report
from isoflop.report.verdict import tiles

HOSTILE = '</script><script>alert(1)</script><img src=http://evil.example/x.png onerror=x>\x00\x1b[31m\u202e & "q"'
VOID = {"meta", "br", "img", "link", "input", "hr"}
MakeRun = Callable[..., Path]


class Page(HTMLParser):
    """Checks nesting and ids while reading; keeps what is asked about."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.ids: list[str] = []
        self.text: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.ids += [value for name, value in attrs if name == "id" and value]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.ids += [value for name, value in attrs if name == "id" and value]

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())

    @property
    def figures(self) -> list[str]:
        return [attrs.get("aria-label") or "" for tag, attrs in self.tags if tag == "svg"]


def page_of(run: Path) -> Page:
    return Page(write_report([run]).read_text(encoding="utf-8"))


def test_the_report_of_a_finished_run_is_complete_and_self_contained(make_run: MakeRun) -> None:
    run = make_run()
    html = write_report([run]).read_text(encoding="utf-8")
    page = Page(html)
    assert (run / "report.html").is_file()
    headings = ["Learning", "Plan and outcome", "Samples", "Data", "Cost and machine", "History"]
    assert [found for found in re.findall(r"<h2>(.*?)</h2>", html) if found in headings] == headings
    assert len(page.figures) == 6  # verdict, learning twice (wide and narrow), gradient, speed, candidates
    assert all(page.figures)
    assert len(page.ids) == len(set(page.ids))
    assert not {tag for tag, _ in page.tags} & {"script", "img", "link", "iframe", "object", "embed", "base"}
    for _, attrs in page.tags:
        for name in ("src", "href", "xlink:href", "action"):
            assert (attrs.get(name) or "#").startswith("#")
    assert "@import" not in html
    assert set(re.findall(r"url\((.)", html)) <= {"#"}
    # Every reference inside a figure finds its target.
    referred = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', html))
    assert referred and referred <= set(page.ids)


def test_suites_are_drawn_by_subset_and_listed(make_run: MakeRun, blimp: dict[str, Any]) -> None:
    run = make_run()
    folder = RunFolder(run)
    for step in (100, 500, 1000):
        scores = {"binding": 0.5 + step / 4000, HOSTILE: 0.4}
        line = {
            "step": step,
            "tokens": step * 8192,
            "suite": HOSTILE,
            "metric": "likelihood",
            "score": 0.6,
            "chance": 0.5,
        }
        folder.append(
            "suites", {**line, "items": 40, "subset_scores": scores, "subset_items": dict.fromkeys(scores, 20)}
        )
    folder.append("suites", {"step": 1000, "tokens": 8192000, "suite": "words", "metric": "perplexity", "score": 40.25})
    folder.suites.mkdir()
    published = [{"model": HOSTILE, "metric": "likelihood", "score": 0.815, "source": "x"}]
    (folder.suites / "blimp.json").write_text(json.dumps({**blimp, "references": published}))
    page = page_of(run)
    assert sum("against tokens read" in figure and "Scores on" in figure for figure in page.figures) == 2
    for phrase in (
        "Scores on suites",
        "71.0 %",
        "70.0 % to 72.0 %",
        "67,000",
        "81.5 %",
        "by perplexity: 40.25 (at step 1,000 of 1,100), after 8.19 M tokens",
        "60.0 % of 40 items",
    ):
        assert phrase in page.words
    assert not {tag for tag, _ in page.tags} & {"script", "img"} and len(page.ids) == len(set(page.ids))


def test_the_tiles_agree_with_the_run(make_run: MakeRun) -> None:
    run = make_run()
    result = read_run(run).result
    wanted = {
        "Held-out bits per byte": f"{result.heldout.bits_per_byte:.3f}",
        "Perplexity per token": f"{result.heldout.perplexity:.1f}",
        "Parameters": "0.561 M",
        "Tokens read": "9.01 M",
        "Training time": "3 min 1 s",
        "FLOPs": "2.32 × 10¹³",
        "Tokens per second": f"{result.tokens_per_second:,.0f}",
        "Share of measured peak": f"{100 * result.peak_share:.1f} %",
    }
    shown = tiles(read_facts(read_run(run)))
    assert dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", shown)) == wanted
    changed = {
        **result.to_dict(),
        "tokens": 2_000_000,
        "seconds": 90.0,
        "heldout": {"nats_per_token": 3.0, "bits_per_byte": 1.7},
    }
    (run / "result.json").write_text(json.dumps(changed), encoding="utf-8")
    shown = dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", tiles(read_facts(read_run(run)))))
    assert shown["Tokens read"] == "2 M"
    assert shown["Training time"] == "1 min 30 s"
    assert shown["Perplexity per token"] == "20.1"  # e^3, where the file does not say it


def test_the_verdict_and_the_story_are_at_the_top(make_run: MakeRun) -> None:
    words = page_of(make_run()).words
    assert words.index("Inside the expected interval") < words.index("Learning")
    assert "A 0.561 M-parameter GPT, trained from scratch on 12.8 MB of text (stdlib, notes) for 3 min 1 s" in words
    assert "reached 1.23 bits per byte; the plan expected 1.35 (1.20 to 1.50): inside the interval." in words
    assert words.count("a prior, not a fit") == 1


@pytest.mark.parametrize(
    ("low", "high", "judgement"), [(1.3, 1.5, "Better than expected"), (1.0, 1.1, "Worse than expected")]
)
def test_the_verdict_is_computed_if_the_record_lacks_it(
    make_run: MakeRun, low: float, high: float, judgement: str
) -> None:
    run = make_run(steps=1100)
    plan, result = (json.loads((run / f"{name}.json").read_text(encoding="utf-8")) for name in ("plan", "result"))
    plan["expected"] |= {"low": low, "high": high}
    (run / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
    (run / "result.json").write_text(json.dumps({**result, "verdict": None}), encoding="utf-8")
    assert judgement in page_of(run).words


def test_decisions_are_drawn_and_listed(make_run: MakeRun) -> None:
    run = make_run()
    html = write_report([run]).read_text(encoding="utf-8")
    page = Page(html)
    assert "decision 1: at step 820 the end was set to step 1,100: the clock is 5.4 % behind the plan" in page.words
    in_figures = " ".join(re.findall(r"<text[^>]*>([^<]*)</text>", html))
    for label in ("decision 1", "resumed", "decay starts"):
        assert label in in_figures
    history = page.words[page.words.index("History") :]
    for word in ("started", "stopped", "SIGINT", "resumed", "decision", "finished", "2025-10-09 08:53:20"):
        assert word in history


def test_the_history_says_how_each_part_of_a_run_ended(make_run: MakeRun) -> None:
    run = make_run(steps=300, finished=False)
    folder = RunFolder(run)
    more = [
        {"event": "resumed", "step": 200, "processes": 1, "taken_again": 100},
        {"event": "stopped", "step": 250, "signal": 15},
        {"event": "resumed", "step": 250, "processes": 4, "hosts": 2, "mode": "hsdp", "copies": 2},
        {"event": "failed", "step": 260, "reason": "the disk is full"},
        {"event": "resumed", "step": 260, "processes": 1, "changed": ["note: torch 9 (was 8)"]},
    ]
    for number, event in enumerate(more):
        folder.append("events", {**event, "time": 1_760_002_000 + number})
    for step in range(1, 41):
        action = "skip" if step > 20 else "keep"
        line = {"step": step, "action": action, "reason": f"bad {step}", "tokens": 10, "time": 1_760_001_000 + step}
        folder.append("skips", line)
    words = page_of(run).words
    history = words[words.index("History") :]
    phrases = [
        "bad 10: kept", "20 more bad steps", "10 kept; 10 discarded",
        "bad 31: discarded, 10 tokens",
        "after an end that was not logged (killed, or a power failure); 1 process, 100 steps since the checkpoint "
        "repeated", "by SIGTERM", "4 processes on 2 hosts, hsdp, 2 copies of the model", "the disk is full",
        "1 process, note: torch 9 (was 8)",
    ]  # fmt: skip
    places = [history.find(phrase) for phrase in phrases]
    assert min(places) >= 0 and places == sorted(places), list(zip(phrases, places, strict=True))
    assert history.count("was not logged") == 1 and "bad 11:" not in history


def test_hostile_text_stays_text(make_run: MakeRun) -> None:
    source = {HOSTILE: {"documents": 1, "bytes": 1, "tokens": 1}}
    run = make_run(
        name="a<b>&'",
        config={"model": {"note": HOSTILE}, HOSTILE: HOSTILE},
        environment={"processor": HOSTILE, HOSTILE: {"x": HOSTILE}},
        plan={
            "budget": HOSTILE,
            "choices": [{"name": HOSTILE, "value": [HOSTILE], "reason": HOSTILE}],
            "expected": HOSTILE,
        },
        data={"sources": source, "tokenizer": HOSTILE, "skipped": [{"path": HOSTILE, "reason": HOSTILE}]},
    )
    folder = RunFolder(run)
    # Written as a damaged or foreign writer would: escapes that JSON allows and UTF-8 does not.
    with folder.log("samples").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"step": 1100, "prompt": HOSTILE, "text": HOSTILE + "\ud800"}) + "\n")
    with folder.log("events").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"event": HOSTILE, "why": HOSTILE, "time": "never"}) + "\n")
    with folder.log("decisions").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"at_step": 10, "reason": HOSTILE}) + "\n")
    html = write_report([run]).read_text(encoding="utf-8")
    page = Page(html)
    assert "</script>" not in html
    assert not {"script", "img"} & {tag for tag, _ in page.tags}
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", html)
    assert page.words.count("alert(1)") >= 10
    assert "␀␛[31m" in html
    both = Page(write_report([run, make_run("other")]).read_text(encoding="utf-8"))
    assert not {"script", "img"} & {tag for tag, _ in both.tags}
    assert "alert(1)" in both.words


def test_a_run_that_is_training_says_so_far(make_run: MakeRun) -> None:
    run = make_run(steps=520, finished=False)
    with RunFolder(run).locked():
        words = page_of(run).words
    assert "running" in words
    assert "So far" in words
    assert "is at step 520 of 1,160" in words
    assert "the plan expects 1.35 (1.20 to 1.50) at the end" in words
    assert "47 % used" in words
    assert "Inside the expected interval" not in words


def test_a_stopped_run_says_how_to_resume(make_run: MakeRun) -> None:
    run = make_run(steps=520, finished=False)
    words = page_of(run).words
    assert "was stopped at step 520 of 1,160" in words
    assert f"isoflop train --resume {run}" in words


def test_a_resumed_run_is_not_finished_by_an_old_result(make_run: MakeRun) -> None:
    run = make_run()
    with RunFolder(run).locked():
        words = page_of(run).words
    assert "So far" in words
    assert "Inside the expected interval" not in words


def test_a_run_that_has_just_started(tmp_path: Path) -> None:
    run = tmp_path / "bare"
    run.mkdir()
    (run / "config.json").write_text("{}", encoding="utf-8")
    with RunFolder(run).locked():
        page = page_of(run)
    assert "has not made its first step" in page.words
    assert "No step has been logged yet" in page.words
    assert page.figures == []


@pytest.mark.parametrize("key", ["tokens", "lr", "loss", "grad_norm", "tokens_per_second", "seconds", "flops", "step"])
def test_a_log_without_one_of_its_keys_still_gives_a_page(make_run: MakeRun, key: str) -> None:
    run = make_run(steps=120, finished=False)
    path = RunFolder(run).log("metrics")
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    kept = [{name: value for name, value in line.items() if name != key} for line in lines]
    path.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
    assert page_of(run).words


@pytest.mark.parametrize("name", ["plan", "data", "result", "environment", "config"])
@pytest.mark.parametrize("value", [None, "text", {}, -1, 1e999])
def test_files_with_wrong_content_still_give_a_page(make_run: MakeRun, name: str, value: object) -> None:
    run = make_run(steps=3)
    path = run / f"{name}.json"
    whole = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(dict.fromkeys(whole, value)), encoding="utf-8")
    assert page_of(run).words


def test_a_diverged_run_gives_a_page(make_run: MakeRun) -> None:
    run = make_run(steps=60, finished=False)
    folder = RunFolder(run)
    for step in range(61, 90):
        folder.append("metrics", {"step": step, "tokens": step * 8192, "loss": float("nan"), "lr": 1e-3})
    assert "NaN" not in page_of(run).words


def test_the_same_run_gives_the_same_bytes(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run()
    first = write_report([run], tmp_path / "first.html").read_bytes()
    # Another process has other hash seeds, and perhaps another matplotlibrc.
    rc = tmp_path / "matplotlibrc"
    rc.write_text("font.size: 30\naxes.facecolor: red\nsvg.fonttype: path\n", encoding="utf-8")
    code = f"from isoflop.report.page import write_report; from pathlib import Path; write_report([Path({str(run)!r})])"
    environment = os.environ | {"MATPLOTLIBRC": str(rc), "PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo"}
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root, env=environment)
    assert (run / "report.html").read_bytes() == first


def test_no_torch_is_imported() -> None:
    code = "import sys, isoflop.report.page; sys.exit('torch' in sys.modules or 'matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 0


def test_runs_are_compared(make_run: MakeRun) -> None:
    runs = [make_run("first"), make_run("second", steps=700, seed=1, config={"model": {"layers": 8}, "seed": 0})]
    out = write_report(runs)
    assert out == runs[0].parent / "comparison.html"
    page = Page(out.read_text(encoding="utf-8"))
    assert page.figures == [
        "Held-out bits per byte against tokens read",
        "Held-out bits per byte against seconds of training",
        "Held-out bits per byte against FLOPs (6 N D)",
    ]
    assert len(page.ids) == len(set(page.ids))
    for word in ("first is lowest", "model.layers", "optim.lr", "1.228", "5.73 M"):
        assert word in page.words
    fields = page.words[page.words.index("Configuration") :]
    assert "The 11 fields in which the runs differ" in fields
    assert "seed" not in fields.split()  # the same in both


def test_runs_of_the_same_name_are_distinguished(make_run: MakeRun) -> None:
    page = Page(write_report([make_run("a/run"), make_run("b/run")]).read_text(encoding="utf-8"))
    assert "a/run" in page.words
    assert "b/run" in page.words
    assert "the same in every field" in page.words


def test_many_and_unfinished_runs_are_compared(make_run: MakeRun) -> None:
    runs = [make_run(f"run-{index}", steps=0 if index == 3 else 100, finished=False, plan={}) for index in range(10)]
    assert len(page_of_many(runs).figures) == 3


def page_of_many(runs: list[Path]) -> Page:
    return Page(write_report(runs).read_text(encoding="utf-8"))


def test_bad_input_is_one_line(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(steps=3)
    with pytest.raises(UserError, match="holds no run"):
        write_report([tmp_path / "nothing"])
    with pytest.raises(UserError, match="no run was named"):
        write_report([])
    with pytest.raises(UserError, match="is a folder; name the HTML file"):
        write_report([run], tmp_path)
    assert not (run / "report.html").exists()


def test_a_run_that_was_planned_again_shows_its_first_attempt(make_run):
    run = make_run()
    first = make_run("attempt", steps=200, finished=False)
    (run / "attempts").mkdir()
    first.rename(run / "attempts" / "1")
    plan = json.loads((run / "attempts" / "1" / "plan.json").read_text(encoding="utf-8"))
    changed = [
        {**choice, "value": "512 ids"} if choice["name"] == "vocabulary" else choice for choice in plan["choices"]
    ]
    write_json(run / "attempts" / "1" / "plan.json", {**plan, "choices": changed})
    before = write_report([run]).read_text(encoding="utf-8")
    assert "Restarted" not in before
    RunFolder(run).append("events", {"event": "restarted", "reason": "steps run at 9 tokens/s", "seconds": 12.0})
    page = write_report([run]).read_text(encoding="utf-8")
    section = page[page.index("Restarted") : page.index("Plan and outcome")]
    assert "was restarted after 12" in section and "steps run at 9 tokens/s" in section
    assert "first attempt" in section and "<svg" in section and "512 ids" in section and ">200<" in section


def test_notes_about_the_text_are_in_the_report(make_run):
    note = "a.txt and 2 more: <|endoftext|> stands between its documents & is read as text"
    run = make_run()
    data = json.loads((run / "data.json").read_text(encoding="utf-8"))
    write_json(run / "data.json", {**data, "notes": [note]})
    assert f"<li>note: {html.escape(note)}</li>" in write_report([run]).read_text(encoding="utf-8")
