"""Untrusted files: a few hundred corrupted ones of every kind are read or refused in one line; nothing is executed.

The fuzzer (tests/campaigns/fuzz.py, which runs many more cases) watches each by an audit hook, see fuzz_worker.py.
"""

import gzip
import hashlib
import json
import lzma
import mmap
import os
from pathlib import Path

import pytest
import zstandard

from fuzz import run
from isoflop.config import from_dict, override
from isoflop.data.corpus import find_files, parse_sources
from isoflop.data.readers import read_documents
from isoflop.data.tally import Tally
from isoflop.data.tokenizer import Tokenizer
from isoflop.errors import UserError, one_line
from isoflop.model.config import Spec
from isoflop.model.registry import NORMS, make
from isoflop.recipe import load_recipe
from isoflop.records import RunFolder, read_lines
from isoflop.trainer.config import RunConfig
from isoflop.untrusted import DEEPEST, parse_json, read_bytes

# cases of each target; the slow ones have few
CASES = {
    **dict.fromkeys(["prepared", "prepared pairs", "text", "pairs", "run folder", "tokenizers", "config"], 20),
    **dict.fromkeys(["overrides", "recipe names", "budgets", "sources", "gguf", "llama2.c", "hugging face"], 15),
    "hugging face shards": 15,
    "checkpoint": 10,
    "report": 2,
    "bombs": 1,
}


def test_corrupted_files_are_read_or_refused_in_one_line():
    pytest.importorskip("gguf", reason="needs the gguf package: pip install 'isoflop[gguf]'")
    cases = [{"target": name, "seed": 7, "number": n} for name, count in CASES.items() for n in range(count)]
    found = run(cases, limit=60.0)
    assert sum(of.outcomes.total() for of in found.values()) == len(cases)
    assert [finding for of in found.values() for finding in of.findings] == []


def test_the_audit_hook_sees_code_that_runs(tmp_path):
    """The fuzzer's own alarm works: a reader that unpickles, or opens what lies outside, is caught."""
    from fuzz_cases import Case, evil_pickle
    from fuzz_targets import Target
    from fuzz_worker import Watch, judge

    given, outside = tmp_path / "given", tmp_path / "outside"
    given.mkdir()
    outside.mkdir()
    (given / "evil").write_bytes(evil_pickle(outside / "canary"))
    (outside / "secret").write_text("x")
    watch = Watch(tmp_path / "home")
    watch.folder, watch.traps = str(given), (str(outside),)
    import random
    import sys

    sys.addaudithook(watch)

    def unpickle(folder: Path) -> None:
        import pickle

        pickle.loads((folder / "evil").read_bytes())

    readers = {
        unpickle: "code was run",
        (lambda folder: (outside / "secret").read_text()): "forbidden",
        (lambda folder: (tmp_path / "new").write_text("x")): "forbidden",
        (lambda folder: exec(compile("1", "somewhere", "exec"))): "forbidden",
        (lambda folder: 1 / 0): "ZeroDivisionError",
        (lambda folder: mmap.mmap(-1, 200 << 20).write(bytes(200 << 20))): "memory",
    }
    for reader, outcome in readers.items():
        case = Case(given, outside, random.Random(0))
        result = judge(Target(lambda folder: None, reader, ()), case, watch)
        assert result["outcome"] == outcome, result


def refused(call, *arguments) -> str:
    with pytest.raises(UserError) as error:
        call(*arguments)
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


def test_a_message_is_one_line_whatever_its_content():
    assert one_line("a\nb\x1b[31m\ud800\u202e") == "a\\nb\\x1b[31m\\ud800\\u202e"
    assert len(str(UserError("x" * 10**7))) < 2000


def test_pipes_devices_and_sparse_files_are_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "huge").touch()
    os.truncate(tmp_path / "huge", 2**40)
    for name in ("pipe", "zero", "huge", "absent", "a\0b", "x" * 300):
        assert name[:3].replace("\0", "\\x00") in refused(read_bytes, tmp_path / name).replace("\0", "\\x00")


@pytest.mark.parametrize(
    "text", ["[" * 10**5, "[" * (DEEPEST + 2) + "]" * (DEEPEST + 2), '"\\ud800"', "9" * 10**4, "{", b"\xff"]
)
def test_json_that_cannot_be_serialised_again_is_refused(text):
    assert "given" in refused(parse_json, text, "given")
    assert parse_json('["\\ud83d\\ude00", NaN]', "given")[0] == "\U0001f600"


@pytest.mark.parametrize(
    "data",
    [
        {"steps": float("nan")},
        {"steps": 1e400},
        {"seconds": float("nan")},
        {"seconds": 10**400},
        {"steps": 10**30},
        {"model": {"layers": 10**9}},
        {"model": {"d_model": 10**30}},
        {"batch": {"sequences": 10**18, "ramp_from": 1, "ramp_sequences": 10**19}},
        {"x" * 10**6: 1},
        {"task": "x" * 10**6},
    ],
)
def test_a_configuration_with_impossible_numbers(data):
    refused(from_dict, RunConfig, data)


def test_an_option_may_have_any_name_and_is_refused_by_it():
    spec = Spec.from_plain({"name": "rms", "self": 1})
    assert "self" in refused(make, NORMS, spec, "model.norm")
    for name in ("os.system", "isoflop.\0.x", "isoflop..x", "isoflop.__main__.main"):
        refused(make, NORMS, Spec(name), "model.norm")
    assert "nested" in refused(override, RunConfig(), ["model.norm=" + "[" * 200 + "]" * 200])


def test_only_source_that_the_user_names_is_run_as_a_recipe(tmp_path):
    canary = tmp_path / "canary"
    path = tmp_path / "mine.py"
    evil = f"open({str(canary)!r}, 'w')\n"
    path.write_text(evil)
    import importlib.util
    import py_compile

    compiled = Path(py_compile.compile(str(path)))
    assert compiled == Path(importlib.util.cache_from_source(str(path)))
    honest = "from isoflop.trainer.config import RunConfig\n\n\ndef mine():\n    return RunConfig(steps=3)\n"
    stat = path.stat()
    path.write_text(honest.ljust(stat.st_size))
    head, body = compiled.read_bytes()[:8], compiled.read_bytes()[16:]
    fits = int(stat.st_mtime).to_bytes(4, "little") + path.stat().st_size.to_bytes(4, "little")
    compiled.write_bytes(head + fits + body)  # so that Python would take it for the compiled form of what mine.py says
    os.utime(path, (stat.st_atime, stat.st_mtime))
    assert load_recipe(f"{path}:mine", None, ()).steps == 3
    (tmp_path / "mine.so").write_bytes(b"\x7fELF")
    for name in (
        f"{compiled}:mine",
        f"{tmp_path / 'mine.so'}:mine",
        "os:system",
        f"{path}:exec",
        "isoflop.recipe:call",
    ):
        refused(load_recipe, name, None, ())
    assert not canary.exists()


def test_a_tokenizers_false_sizes_cost_no_memory():
    made = json.loads(Tokenizer.train(["once upon a time"] * 20, 270).to_json())
    sparse = json.loads(json.dumps(made))
    sparse["model"]["vocab"]["z"] = 2**32 - 1
    doubling = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
    growing = {**made, "normalizer": {"type": "Sequence", "normalizers": [doubling] * 30}}
    for described in (sparse, growing, {**made, "decoder": {"type": "Sequence", "decoders": [doubling] * 30}}):
        assert "given" in refused(Tokenizer.from_json, json.dumps(described), "given")


def test_lines_of_a_log_that_are_not_objects(tmp_path):
    run = RunFolder(tmp_path)
    run.log("metrics").write_text('{"step": 1}\n5\n{"step": 2}\n')
    assert "line 2" in refused(read_lines, run.log("metrics"))
    run.log("metrics").write_text('{"step": "x"}\n{"step": 3}\n')
    run.drop_lines_after(2)
    assert read_lines(run.log("metrics")) == [{"step": "x"}]


def test_compressed_text_cannot_use_gigabytes(tmp_path):
    frame = b"\x28\xb5\x2f\xfd\x00\xa8" + b"\x29\x00\x00hello"  # a window of 2 GiB for five letters
    (tmp_path / "a.zst").write_bytes(frame)
    (tmp_path / "b.gz").write_bytes(gzip.compress(b" " * 10**7))
    (tmp_path / "c.xz").write_bytes(lzma.compress(b"one ") + b"\0" * 8 + lzma.compress(b"two"))
    (tmp_path / "d.xz").write_bytes(lzma.compress(b"one ")[:-4])
    (tmp_path / "e.zst").write_bytes(zstandard.compress(b"three"))
    files = {file.path.name: file for file in find_files(parse_sources([str(tmp_path)])[0])}
    read = {name: lambda f=file: b"".join(read_documents(f, "text", Tally())) for name, file in files.items()}
    assert (read["b.gz"](), read["c.xz"](), read["e.zst"]()) == (b"", b"one two", b"three")
    assert "a.zst" in refused(read["a.zst"])
    assert "d.xz" in refused(read["d.xz"])


def test_malicious_prepared_data_with_a_valid_checksum(tmp_path):
    """A manifest is signed by whoever wrote it: its checksum says that nothing was damaged, not that it is honest."""
    from fuzz_targets import TARGETS
    from isoflop.data.manifest import checksum
    from isoflop.data.prepared import open_prepared

    folder = tmp_path / "data"
    folder.mkdir()
    TARGETS["prepared"].make(folder)
    path = folder / "manifest.json"
    good = json.loads(path.read_text())
    shard = good["heldout"]["shards"][0]

    def sign(change) -> str:
        manifest = json.loads(json.dumps(good))
        change(manifest)
        path.write_text(json.dumps({**manifest, "checksum": checksum(manifest)}))
        return refused(open_prepared, folder)

    assert "name" in sign(lambda m: m["heldout"]["shards"][0].update(file=f"../data/{shard['file']}"))
    assert "tokens" in sign(lambda m: m["heldout"].update(tokens=-1))
    assert "vocab_size" in sign(lambda m: m.pop("vocab_size"))
    assert "sources" in sign(lambda m: m.update(sources={}))
    token_file = folder / shard["file"]
    token_file.write_bytes(token_file.read_bytes()[:-2] + b"\xff\xff")
    digest = hashlib.sha256(token_file.read_bytes()).hexdigest()
    assert "65535" in sign(lambda m: m["heldout"]["shards"][0].update(sha256=digest))
    os.truncate(token_file, 2**40)
    assert "1099511627776 bytes" in sign(lambda m: None)
