"""Data preparation as a whole: documents kept, counted and refused; nothing is left half-written."""

import gzip
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from isoflop.data import encode as encode_module
from isoflop.data.clean import digest_of
from isoflop.data.config import DataConfig
from isoflop.data.corpus import parse_sources
from isoflop.data.encode import Encoders, batches
from isoflop.data.prepare import documents, open_prepared, prepare, survey
from isoflop.data.sample import Sample
from isoflop.data.tokenizer import Tokenizer
from isoflop.errors import UserError
from isoflop.files import locked


def config_of(*sources, **fields):
    return DataConfig(**{"sources": tuple(map(str, sources)), "vocab_size": 300, "workers": 1, **fields})


def whole_documents(*sources, **fields):
    """The first rule of splitting, of whole documents; the second one is in test_data_stretches.py."""
    return config_of(*sources, split=1, **fields)


def texts_of(prepared, stream):
    """The documents of a stream, as they were before end-of-text ended them."""
    tokens = stream[:].astype(np.int64)
    ends = np.flatnonzero(tokens == prepared.tokenizer.eot)
    assert len(tokens) == 0 or ends[-1] == len(tokens) - 1
    return [prepared.tokenizer.decode(part[part != prepared.tokenizer.eot]) for part in np.split(tokens, ends + 1)[:-1]]


def sides(prepared):
    train = [text for name in prepared.sources for text in texts_of(prepared, prepared.train(name))]
    return train, texts_of(prepared, prepared.heldout())


def test_every_document_ends_up_on_one_side_exactly_as_it_was(folder_of):
    folder = folder_of("text", 60)
    (folder / "hard.txt").write_bytes("\ufeffCR LF\r\n<|endoftext|> NUL \x00 e\u0301\u0378".encode())
    config = whole_documents(folder, heldout_fraction=0.2)
    prepared = prepare(config)
    train, heldout = sides(prepared)
    assert sorted(train + heldout) == sorted(documents(config)) and len(heldout) > 3
    account = prepared.account()
    assert account.train.documents == len(train) and account.heldout.documents == len(heldout)
    assert account.train.bytes == sum(len(t.encode()) for t in train)
    assert prepared.heldout_bytes == sum(len(t.encode()) for t in heldout)
    assert account.train.tokens == len(prepared.train("text")) == prepared.train_tokens("text")
    assert prepared.tokenizer.token_bytes()[prepared.heldout()[:]].sum() == prepared.heldout_bytes


def test_the_split_survives_reordering_and_growth(folder_of, tmp_path, story):
    folder = folder_of("text", 80)
    before = set(sides(prepare(whole_documents(folder, heldout_fraction=0.1)))[1])
    for i in range(80):
        (folder / f"{i:03d}.txt").rename(folder / f"{(i * 37) % 80:03d}-moved.txt")
    (folder / "grown.jsonl").write_text("".join(json.dumps({"text": story(1000 + i)}) + "\n" for i in range(40)))
    train, after = sides(prepare(whole_documents(folder, heldout_fraction=0.1)))
    assert before <= set(after) and not before & set(train) and len(train) + len(after) == 120


def test_exact_duplicates_within_and_across_sources_are_dropped_and_counted(folder_of, story):
    one, two = folder_of("one", 20), folder_of("two", 20, first=15)
    (one / "again.txt").write_text(story(3))
    prepared = prepare(whole_documents(f"one={one}", f"two={two}"))
    train, heldout = sides(prepared)
    account = prepared.account()
    assert len(set(train + heldout)) == len(train + heldout) == 35
    assert account.duplicates == 6 and account.sources["two"].duplicates == 5
    assert account.duplicate_bytes == sum(len(story(i)) for i in [3, *range(15, 20)])


def test_named_heldout_text_is_never_trained_on(folder_of):
    text, held = folder_of("text", 20), folder_of("held", 8, first=15)
    prepared = prepare(config_of(text, heldout=(str(held),)))
    train, heldout = sides(prepared)
    assert len(train) == 15 and len(heldout) == 8 and not set(train) & set(heldout)
    assert prepared.account().in_heldout == 5 and prepared.account().heldout.how == "named"
    assert prepared.sources == ("text",)


def test_a_corpus_of_two_pieces_has_one_on_each_side(folder_of):
    for seed in range(4):
        train, heldout = sides(prepare(whole_documents(folder_of(f"text{seed}", 2, paragraphs=9), seed=seed)))
        assert len(train) == len(heldout) == 1


def test_weights_are_kept_and_shares_without_weights_are_those_of_the_tokens(folder_of):
    a, b = folder_of("a", 10), folder_of("b", 30, first=50)
    assert prepare(config_of(f"a={a}:3", f"b={b}:1")).weights() == {"a": 0.75, "b": 0.25}
    free = prepare(config_of(a, b))
    tokens = {name: free.train_tokens(name) for name in ("a", "b")}
    assert free.weights() == pytest.approx({name: n / sum(tokens.values()) for name, n in tokens.items()})


def test_skipped_files_are_counted_reported_and_refused_when_strict(folder_of):
    folder = folder_of("text", 5)
    (folder / "picture.png").write_bytes(b"\x89PNG" + bytes(500))
    (folder / "latin.txt").write_bytes(b"caf\xe9" * 100)
    account = prepare(config_of(folder)).account()
    assert account.skipped_files == 2 and account.skipped_bytes == 504 + 400
    assert {s.path for s in account.skipped} == {str(folder / "picture.png"), str(folder / "latin.txt")}
    with pytest.raises(UserError, match=r"latin\.txt"):
        prepare(config_of(folder, strict=True))


@pytest.mark.parametrize("workers", [2, 3])
def test_the_result_does_not_depend_on_the_workers(folder_of, tmp_path, workers, monkeypatch):
    monkeypatch.setattr("isoflop.data.prepare.BYTES_PER_WORKER", 1000)
    monkeypatch.setattr(encode_module, "MESSAGE_BYTES", 5000)
    folder = folder_of("text", 40)
    alone = prepare(config_of(folder), tmp_path / "alone")
    together = prepare(config_of(folder, workers=workers), tmp_path / "together")
    assert alone.fingerprint == together.fingerprint
    assert np.array_equal(alone.train("text")[:], together.train("text")[:])


@pytest.mark.parametrize("sources", ["text", "two weighted"])
def test_prepared_once_and_reused_until_something_changes(folder_of, sources):
    folder = folder_of("text", 20)
    config = config_of(folder) if sources == "text" else config_of(f"a={folder}:1", f"b={folder_of('more', 9, 40)}:1")
    first = prepare(config)
    again = prepare(replace(config, workers=2))
    assert not first.reused and first.seconds > 0 and again.reused and again.seconds == 0
    assert again.folder == first.folder and again.fingerprint == first.fingerprint
    (folder / "000.txt").write_text("something else entirely\n")
    changed = prepare(config)
    assert not changed.reused and changed.fingerprint != first.fingerprint
    assert prepare(replace(config, seed=1)).folder != changed.folder


def test_an_out_folder_is_used_as_it_is_and_by_path(folder_of, tmp_path):
    config = config_of(folder_of("text", 20))
    prepared = prepare(config, tmp_path / "out")
    assert prepared.folder == tmp_path / "out" and prepare(config, tmp_path / "out").reused
    by_path = prepare(DataConfig(path=str(tmp_path / "out")))
    assert by_path.fingerprint == prepared.fingerprint
    assert survey(DataConfig(path=str(tmp_path / "out"))).bytes == prepared.account().train.bytes
    with pytest.raises(UserError, match="other text or settings"):
        prepare(replace(config, seed=5), tmp_path / "out")


def test_a_folder_that_holds_something_else_is_left_alone(folder_of, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("keep")
    with pytest.raises(UserError, match="holds no prepared data"):
        prepare(config_of(folder_of("text", 20)), tmp_path / "mine")
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("name", ["manifest.json", "tokenizer.json", "heldout.0000.bin", "train.0.0000.bin"])
@pytest.mark.parametrize("harm", ["flip", "remove"])
def test_damage_anywhere_is_refused_with_the_way_out(folder_of, tmp_path, name, harm):
    config = config_of(folder_of("text", 20))
    path = prepare(config, tmp_path / "out").folder / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()
    if harm == "flip":
        path.write_bytes(content)
    for attempt in (lambda: open_prepared(tmp_path / "out"), lambda: prepare(config, tmp_path / "out")):
        with pytest.raises(UserError, match=str(tmp_path / "out")) as refused:
            attempt()
        assert "\n" not in str(refused.value)


def test_another_format_version_is_refused(folder_of, tmp_path):
    prepare(config_of(folder_of("text", 20)), tmp_path / "out")
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    (tmp_path / "out/manifest.json").write_text(json.dumps({**manifest, "version": 999}))
    with pytest.raises(UserError, match="999"):
        open_prepared(tmp_path / "out")


def refusals(tmp_path):
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "blank.txt").write_text(" \n\n ")
    pyarrow.parquet.write_table(pyarrow.table({"text": pyarrow.array([], pyarrow.string())}), tmp_path / "none.parquet")
    (tmp_path / "single.txt").write_text("one short document")
    (tmp_path / "pictures").mkdir()
    for i in range(3):
        (tmp_path / f"pictures/{i}.jpg").write_bytes(b"\xff\xd8\xff\xe0" + bytes(100))
    (tmp_path / "broken.jsonl").write_text("not json\nat all\n")
    (tmp_path / "cut.txt.gz").write_bytes(gzip.compress(os.urandom(5000))[:-50])
    return {
        "missing.txt": "does not exist",
        "empty.txt": "is empty",
        "blank.txt": "nothing but white space",
        "none.parquet": "holds no records",
        "single.txt": "--heldout",
        "pictures": "3 of its 3 files were skipped",
        "broken.jsonl": "all 2 records were skipped",
        "cut.txt.gz": "truncated",
    }


def test_unusable_sources_get_one_line_and_leave_nothing_behind(tmp_path, own_home):
    for name, message in refusals(tmp_path).items():
        with pytest.raises(UserError, match=message) as refused:
            prepare(config_of(tmp_path / name), tmp_path / "out")
        assert "\n" not in str(refused.value)
        assert (
            not (tmp_path / "out").exists() and not list(own_home.glob("data/*")) and not list(own_home.glob("spool/*"))
        )


def test_heldout_text_that_covers_everything_is_refused(folder_of):
    folder = folder_of("text", 5)
    with pytest.raises(UserError, match="no document is left to train on"):
        prepare(config_of(folder, heldout=(str(folder),)))
    with pytest.raises(UserError, match="has a weight"):
        prepare(config_of(folder, heldout=(f"h={folder}:1",)))


@pytest.mark.parametrize(
    "fields",
    [
        {"vocab_size": 256},
        {"heldout_fraction": 0.0},
        {"heldout_fraction": 0.9},
        {"max_train_bytes": -1},
        {"workers": -1},
        {"text_column": ""},
        {"path": "somewhere"},
        {"tokenizer": "nowhere.json"},
    ],
)
def test_invalid_settings_are_named(folder_of, fields):
    with pytest.raises(UserError, match=next(iter(fields))):
        prepare(config_of(folder_of("text", 5), **fields))


def test_a_full_disk_is_one_line_and_leaves_nothing_behind(folder_of, tmp_path):
    config = config_of(folder_of("text", 300))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, hard))
    try:
        with pytest.raises(UserError, match="could not be written"):
            prepare(config, tmp_path / "out/data")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert list((tmp_path / "out").iterdir()) == []


def test_two_preparations_at_once_agree(folder_of):
    config = config_of(folder_of("text", 40))
    found = []
    threads = [threading.Thread(target=lambda: found.append(prepare(config))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3 and len({(p.folder, p.fingerprint) for p in found}) == 1
    assert [p.name for p in found[0].folder.parent.iterdir()] == [found[0].folder.name]


def test_a_file_that_changes_between_the_readings_is_noticed(folder_of, tmp_path):
    folder = folder_of("text", 10)

    def progress(stage, done, total, note=""):
        if stage == "tokenizer":
            with (folder / "005.txt").open("a") as file:
                file.write("more\n")

    with pytest.raises(UserError, match="changed while it was being read"):
        prepare(config_of(folder), tmp_path / "out", progress)
    assert not (tmp_path / "out").exists()


def test_progress_ends_at_the_total(folder_of):
    seen = []
    prepare(config_of(folder_of("text", 10)), progress=lambda *report: seen.append(report))
    for stage in ("reading", "encoding"):
        reports = [(done, total) for name, done, total, *_ in seen if name == stage]
        assert reports[0][0] == 0 and reports[-1][0] == reports[-1][1] > 0 and reports == sorted(reports)


def test_a_killed_worker_is_an_error_and_not_a_hang(story):
    tokenizer = Tokenizer.train([story(1)], 300)
    with pytest.raises(UserError, match="signal 9"), Encoders(tokenizer, 2) as encoders:
        for process in encoders.processes:
            process.kill()
        list(encoders.encode(batches((i, story(i).encode()) for i in range(10))))
    assert all(process.returncode is not None for process in encoders.processes)


def test_a_given_tokenizer_is_used(folder_of, tmp_path, story):
    (tmp_path / "given.json").write_text(Tokenizer.train([story(99, 30)], 290).to_json())
    folder = folder_of("text", 10)
    prepared = prepare(whole_documents(folder, tokenizer=str(tmp_path / "given.json")))
    assert prepared.tokenizer.to_json() == (tmp_path / "given.json").read_text()
    assert sorted(text for side in sides(prepared) for text in side) == sorted(documents(whole_documents(folder)))


# The sampled share


def test_a_share_of_about_the_bytes_asked_for_is_prepared_by_content(folder_of):
    folder = folder_of("text", 400, paragraphs=8)
    whole = survey(config_of(folder)).bytes
    part = prepare(config_of(folder, max_train_bytes=whole // 4))
    train, heldout = sides(part)
    everything, all_heldout = sides(prepare(config_of(folder)))
    account = part.account()
    assert set(train) < set(everything) and set(heldout) == set(all_heldout)
    assert account.train.bytes == pytest.approx(whole / 4, rel=0.25)
    assert account.sampled_share == pytest.approx(sum(map(len, train)) / sum(map(len, everything)), rel=0.01)
    assert account.sources["text"].unsampled_bytes > 0


def test_a_small_source_with_a_large_weight_is_kept_whole(folder_of):
    small, large = folder_of("small", 20), folder_of("large", 300, first=100)
    size = survey(config_of(large)).bytes
    sources = (
        prepare(config_of(f"small={small}:0.5", f"large={large}:0.5", max_train_bytes=size // 4)).account().sources
    )
    assert sources["small"].unsampled_bytes == 0 < sources["large"].unsampled_bytes


def test_the_tokenizers_sample_is_bounded_and_independent_of_order(monkeypatch, story):
    monkeypatch.setattr("isoflop.data.sample.SAMPLE_BYTES", 20_000)
    texts = [story(i).encode() for i in range(100)]
    found = []
    for order in (texts, texts[::-1]):
        sample = Sample(1.0)
        for i, text in enumerate(order):
            sample.offer(text, digest_of(text), i, seed=0)
        found.append(sorted(sample.texts()))
        assert 20_000 <= sum(map(len, sample.texts())) < 20_000 + max(map(len, texts))
    assert found[0] == found[1]


# The survey


def test_the_survey_estimates_the_text_of_every_kind_of_file(folder_of, tmp_path, story):
    folder = folder_of("text", 100)
    records = "".join(json.dumps({"text": story(i, 40), "id": i}) + "\n" for i in range(800))
    with gzip.open(tmp_path / "records.jsonl.gz", "wt") as file:
        file.write(records)
    for source in (folder, tmp_path / "records.jsonl.gz"):
        found = survey(config_of(source))
        assert found.bytes == pytest.approx(sum(len(d.encode()) for d in documents(config_of(source))), rel=0.1)
        assert 1000 < len(found.sample) <= 1_000_000 and found.sample.decode(errors="ignore")
    both = survey(config_of(folder, tmp_path / "records.jsonl.gz"))
    assert [one.name for one in both.sources] == [
        s.name for s in parse_sources(config_of(folder, tmp_path / "records.jsonl.gz").sources)
    ]


def test_a_script_without_a_main_guard_may_prepare_in_parallel(folder_of, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from isoflop.data import prepare\n"
        "prepare.BYTES_PER_WORKER = 1000\n"
        f"config = prepare.DataConfig(sources=({str(folder_of('text', 30))!r},), vocab_size=300, workers=2)\n"
        "print(len(prepare.prepare(config).heldout()))\n"
    )
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": root},
    )
    assert done.stderr == "" and int(done.stdout) > 0


def test_files_of_killed_preparations_are_removed_and_files_being_written_are_kept(tmp_path, folder_of):
    """They are as large as the prepared text, and would fill the disk of a machine that is often preempted."""
    home = Path(os.environ["ISOFLOP_HOME"]) / "data"
    lefts = {name: home / f".{name}.0123abcd.tmp" for name in ("left", "held", "young")}
    beside = tmp_path / ".out.0123abcd.tmp"  # of `isoflop prepare --out`
    for folder in (*lefts.values(), beside):
        folder.mkdir(parents=True)
        (folder / "train.0000.bin").write_bytes(b"x")
    for path in [p for folder in (lefts["left"], lefts["held"], beside) for p in (*folder.iterdir(), folder)]:
        os.utime(path, (time.time() - 1000,) * 2)
    (tmp_path / ".other.tmp").mkdir()
    with locked(lefts["held"]):
        prepare(config_of(folder_of("text", 20)), tmp_path / "out")
    assert [name for name, folder in lefts.items() if folder.exists()] == ["held", "young"]
    assert not beside.exists() and (tmp_path / ".other.tmp").exists()
