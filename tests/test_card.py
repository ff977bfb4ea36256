"""bench/card.py: after any failure of a stage the next one runs and all results are on disk; the pack; the table."""

import argparse
import json
import time

import pytest

import card
import card_pack
import tables

GOOD = """
import json, sys
spec = json.loads(sys.argv[2])
open(spec["rows"], "a").write(json.dumps({"what": "speed", "value": 2.5, "unit": "tokens/s"}) + "\\n")
"""
# what a crash, a hang and a hang with a child in a session of its own look like from outside
CRASHES = GOOD + "print('on the way'); raise ValueError('the card is gone')"
HANGS = GOOD + "import time; print('waiting', flush=True); time.sleep(600)"
DEAF = (
    GOOD
    + """
import signal, subprocess, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
open(spec["scratch"] + "/child", "w").write(str(child.pid))
time.sleep(600)
"""
)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run stages by name, each with the source of its process."""

    def call(sources: dict[str, str], limit: float = 30.0, minutes: float = 1.0) -> dict:
        script = "import json, sys\n" + "".join(
            f"if sys.argv[1] == {name!r}: exec({source!r})\n" for name, source in sources.items()
        )
        (tmp_path / "stages.py").write_text(script, encoding="utf-8")
        monkeypatch.setattr(card, "STAGES_FILE", tmp_path / "stages.py")
        monkeypatch.setattr(card, "GRACE", 0.5)
        monkeypatch.setattr(card, "STAGES", {name: card.Stage(limit, 1, "a test") for name in sources})
        given = argparse.Namespace(
            out=tmp_path / "out", pack=None, minutes=minutes, stages=list(sources), device="cpu", record=None, commit=""
        )
        card.run(given)
        return json.loads((tmp_path / "out" / "card.json").read_text(encoding="utf-8"))["stages"]

    return call


def test_a_stage_that_crashes_is_recorded_and_the_next_one_runs(run, tmp_path):
    stages = run({"first": CRASHES, "second": GOOD})
    assert stages["first"]["status"] == "failed"
    assert stages["first"]["rows"] == [{"what": "speed", "value": 2.5, "unit": "tokens/s"}], (
        "rows before the crash stay"
    )
    assert "the card is gone" in stages["first"]["last_lines"][-1]
    assert (stages["second"]["status"], len(stages["second"]["rows"])) == ("done", 1)
    assert "on the way" in (tmp_path / "out" / "logs.txt").read_text()
    table = (tmp_path / "out" / "card.txt").read_text()
    assert "the card is gone" in table and "2.5 tokens/s" in table


def test_a_stage_that_hangs_is_stopped_at_its_limit_and_the_next_one_runs(run):
    started = time.monotonic()
    stages = run({"first": HANGS, "second": GOOD}, limit=2.0)
    assert stages["first"]["status"] == "stopped after 2 s" and len(stages["first"]["rows"]) == 1
    assert stages["first"]["last_lines"] == ["waiting"]
    assert stages["second"]["status"] == "done"
    assert time.monotonic() - started < 30


def test_a_stage_that_ignores_sigterm_is_killed_with_its_descendants(run, tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr(
        card, "end", lambda process, real=card.end: (kept.extend(card.descendants(process.pid)), real(process))
    )
    stages = run({"first": DEAF}, limit=2.0)
    assert stages["first"]["status"].startswith("stopped")
    assert kept and not any(card.alive(pid) for pid in kept)


def test_a_stage_without_time_left_is_skipped_and_recorded(run):
    stages = run({"first": HANGS, "second": GOOD}, limit=4.0, minutes=8 / 60)
    assert stages["first"]["status"].startswith("stopped")
    assert stages["second"]["status"].startswith("left out") and stages["second"]["rows"] == []


def test_every_stage_has_a_function_and_a_time_that_it_can_end_in():
    import card_stages

    assert list(card.STAGES) == list(card_stages.STAGES)
    assert all(stage.least < stage.limit for stage in card.STAGES.values())


def test_results_of_several_calls_are_merged(tmp_path):
    for name, stages in (
        ("one", {"about": "done", "main": "failed", "fits": "done"}),
        ("two", {"main": "done", "fits": "failed"}),
    ):
        (tmp_path / name).mkdir()
        content = {"commit": name, "stages": {s: {"status": status, "commit": name} for s, status in stages.items()}}
        (tmp_path / name / "card.json").write_text(json.dumps(content))
    found = card.put_together([tmp_path / "one", tmp_path / "two"])["stages"]
    assert {name: stage["commit"] for name, stage in found.items()} == {"about": "one", "main": "two", "fits": "one"}


def test_the_table_shows_rows_targets_and_failures():
    row = {"what": "124M isoflop", "value": 400_000, "unit": "tokens/s", "target": "MFU 48%", "note": "MFU 30%"}
    stage = {"about": "speed", "status": "failed", "seconds": 3.2, "rows": [row], "last_lines": ["KeyError: 'x'"]}
    result = {"command": "python bench/card.py", "stages": {"124M": {**stage, "commit": "abc", "date": "2026-01-01"}}}
    page = tables.card(result)
    assert "| 124M isoflop | 400,000 tokens/s | MFU 48% | MFU 30% |" in page
    assert "commit abc" in page and "`KeyError: 'x'`" in page


@pytest.mark.parametrize("words", [[], ["--out", "x", "--pack", "nowhere"], ["--record", "nowhere"]])
def test_wrong_arguments_get_one_line(words, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["card.py", *words])
    with pytest.raises(SystemExit) as stopped:
        card.main()
    assert stopped.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.fixture
def packed(tmp_path, monkeypatch, corpus):
    """A pack made of the corpus and a made-up clone, without the network."""

    def download(folder, *_):
        folder.mkdir(parents=True)
        (folder / "tyro-1.0-py3-none-any.whl").write_bytes(b"x" * 1000)
        return ["tyro-1.0-py3-none-any.whl"]

    monkeypatch.setattr(card_pack, "download_wheels", download)
    clone = tmp_path / "clone"
    (clone / "config").mkdir(parents=True)
    for name in ("train.py", "model.py", "config/train_gpt2.py", "notes.ipynb"):
        (clone / name).write_text("x")
    words = [str(corpus), "--out", str(tmp_path / "pack"), "--nanogpt", str(clone), "--text-mb", "0.1"]
    return lambda: card_pack.pack(card_pack.arguments(words))


def test_a_pack_has_what_a_bare_machine_lacks_and_says_its_size(packed, tmp_path):
    sizes = packed()
    pack = tmp_path / "pack"
    assert sum(sizes.values()) == card_pack.size_of(pack) < card_pack.LIMIT
    assert (pack / "nanogpt" / "config" / "train_gpt2.py").exists() and not (pack / "nanogpt" / "notes.ipynb").exists()
    from isoflop.data.corpus import find_files, parse_sources
    from isoflop.data.readers import read_documents
    from isoflop.data.tally import Tally

    [source] = parse_sources([str(pack / "text.jsonl.xz")])
    texts = [text for file in find_files(source) for text in read_documents(file, "text", Tally())]
    assert 100_000 <= sum(map(len, texts)) < 110_000
    packed()  # made anew over an old pack


def test_a_pack_that_is_too_large_or_in_the_way_is_refused(packed, tmp_path, monkeypatch):
    monkeypatch.setattr(card_pack, "LIMIT", 1000)
    with pytest.raises(card_pack.UserError, match="--text-mb"):
        packed()
    for path in (tmp_path / "pack").iterdir():
        if path.name == "text.jsonl.xz":
            path.unlink()
    with pytest.raises(card_pack.UserError, match="no pack"):
        packed()


def test_only_wheels_that_are_missing_are_installed(tmp_path):
    folder = tmp_path / "wheels"
    folder.mkdir()
    for name in ("pytest-1.0-py3-none-any.whl", "nonesuch_of_ours-1.0-py3-none-any.whl"):
        (folder / name).write_bytes(b"no zip file")
    failures = card.install(tmp_path, tmp_path / "site")
    assert len(failures) == 1 and failures[0].startswith("nonesuch_of_ours 1.0: "), "one that pip refuses ends nothing"


def test_a_rehearsal_of_the_first_stage_needs_no_card(tmp_path):
    given = argparse.Namespace(
        out=tmp_path / "out", pack=None, minutes=2.0, stages=["about"], device="cpu", record=None, commit=""
    )
    stage = card.run(given)["stages"]["about"]
    assert stage["status"] == "done", stage
    assert any(row["what"].startswith("copy") and row["value"] > 0 for row in stage["rows"])
