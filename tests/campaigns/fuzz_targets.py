"""The targets of fuzzing: for each kind of file a small valid example, the public function that reads it, and the ways
to corrupt it."""

import bz2
import contextlib
import gzip
import json
import lzma
import shutil
import struct
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import torch
import zstandard
from safetensors.torch import load_file, save_file

from fuzz_cases import (
    Case,
    Op,
    bomb,
    bytes_of_any,
    disguise,
    evil_pickle,
    gguf_header,
    json_of,
    lead_outside,
    llama2c_header,
    planted,
    safetensors_header,
    shard_header,
    sparse,
    spoil_folder,
    spoil_string,
    whole_files,
    wrong_parquet,
)
from isoflop import checkpoint, export, job
from isoflop.budget import parse_budget
from isoflop.config import from_dict, override, to_dict
from isoflop.data.config import DataConfig
from isoflop.data.corpus import find_files, parse_sources
from isoflop.data.gaps import Gaps
from isoflop.data.manifest import checksum
from isoflop.data.pairs import prepare_pairs, read_all
from isoflop.data.prepare import prepare
from isoflop.data.prepared import open_prepared
from isoflop.data.prepared_pairs import open_pairs
from isoflop.data.readers import read_documents
from isoflop.data.tally import Tally
from isoflop.data.tokenizer import Tokenizer
from isoflop.errors import UserError
from isoflop.export.bundle import Bundle, weights_of
from isoflop.export.llama2c import read_pieces
from isoflop.export.vocabulary import SPACE
from isoflop.files import sha256, to_json, write_json
from isoflop.model.build import build_model
from isoflop.model.config import ModelConfig, Spec
from isoflop.model.gpt import GPT
from isoflop.optim.build import build
from isoflop.optim.config import OptimConfig
from isoflop.optim.timetable import Decision, Timetable
from isoflop.recipe import load_recipe
from isoflop.records import RunFolder, SkipLine, find_runs, read_lines, read_run
from isoflop.report.page import write_report
from isoflop.trainer.begin import changed_machine, check_logs, saved_up_to
from isoflop.trainer.config import RunConfig
from isoflop.trainer.guard import count_bad_steps, gaps, in_a_row

TEXTS = [
    f"Once upon a time there was a small brown fox, number {n}, and it said {n * 7} things. " * 8 for n in range(40)
]
MODEL = ModelConfig(vocab_size=320, context=32, layers=2, d_model=16, heads=2)
LLAMA = replace(
    MODEL,
    norm=Spec("rms"),
    attention=Spec("full", bias=False),
    feed_forward=Spec("gated", d_ff=32),
    init=Spec("gpt2"),
)


@dataclass(frozen=True)
class Target:
    """One kind of input.

    Attributes:
        make: fills an empty folder with a valid example.
        read: reads all of it through public functions.
        ops: ways to corrupt it; one that is listed twice is used twice as often.
        resign: recomputes checksums after a change, so that the checks behind them are reached; done for most cases.
        weight: its share of the cases, relative to the others'.
        room: MiB of memory that a case may use in addition to 16 times the size of its files.
    """

    make: Callable[[Path], None]
    read: Callable[[Path], None]
    ops: tuple[Op, ...]
    resign: Callable[[Path], None] | None = None
    weight: float = 1.0
    room: int = 128


def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS, 320)


# Prepared data


def make_prepared(folder: Path) -> None:
    text = folder.with_name("corpus of prepared")
    text.mkdir()
    for n, words in enumerate(TEXTS):
        (text / f"{n}.txt").write_text(words)
    prepare(DataConfig(sources=(str(text),), vocab_size=300, workers=1, heldout_fraction=0.1), folder)
    shutil.rmtree(text)


def read_prepared(folder: Path) -> None:
    data = open_prepared(folder)
    data.weights(), data.account(), data.tokenizer.token_bytes()
    for stream in (data.heldout(), *(data.train(name) for name in data.sources)):
        ids = stream.read(0, min(len(stream), 1 << 20)) if len(stream) else stream[:]
        assert not len(ids) or int(ids.max()) < data.vocab_size, "an id beyond the vocabulary was let through"


def resign_prepared(folder: Path) -> None:
    try:
        here = {path.name: path for path in whole_files(folder)}
        manifest = json.loads(here["manifest.json"].read_bytes())
        manifest["tokenizer_sha256"] = sha256(here["tokenizer.json"])
        streams = manifest.get("streams")
        listed = [*streams.values()] if streams else [manifest["heldout"], *(s["train"] for s in manifest["sources"])]
        for shard in (shard for stream in listed for shard in stream["shards"]):
            shard["sha256"] = sha256(here[shard["file"]])
    except (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError):
        pass
    try:
        manifest["checksum"] = checksum(manifest)
        (folder / "manifest.json").write_text(json.dumps(manifest))
    except (NameError, ValueError, TypeError, AttributeError, OSError, RecursionError):
        return


def make_prepared_pairs(folder: Path) -> None:
    source = folder.with_name("pairs.txt")
    source.write_text("".join(f"word{n}\tW ER{n % 7} D{n % 3}\n" for n in range(200)))
    made = prepare_pairs(DataConfig(sources=(str(source),)))
    shutil.copytree(made.folder, folder, dirs_exist_ok=True)
    source.unlink()


def read_prepared_pairs(folder: Path) -> None:
    data = open_pairs(folder)
    data.mean_lengths(), data.longest(), data.account()
    for pairs in (data.train(), data.heldout()):
        assert pairs.tokens >= 0
        for items in (pairs.source, pairs.target):
            for n in range(len(items)):
                assert not len(items[n]) or int(items[n].max()) < data.vocab_size, "an id beyond the vocabulary"


# Text


def make_text(folder: Path) -> None:
    words = "".join(TEXTS[:6])
    records = "".join(json.dumps({"text": text, "id": n}) + "\n" for n, text in enumerate(TEXTS[:6]))
    (folder / "a.txt").write_text(words)
    (folder / "b.csv").write_text("id,text\n" + "".join(f'{n},"{text}"\n' for n, text in enumerate(TEXTS[:6])))
    (folder / "c.jsonl").write_text(records)
    (folder / "d.jsonl.gz").write_bytes(gzip.compress(records.encode()))
    (folder / "e.txt.xz").write_bytes(lzma.compress(words.encode()))
    (folder / "f.txt.zst").write_bytes(zstandard.compress(words.encode()))
    with zipfile.ZipFile(folder / "g.zip", "w") as archive:
        archive.writestr("../../outside/canary", words)
    table = pa.table({"text": TEXTS[:20], "id": range(20)})
    pa.parquet.write_table(table, folder / "h.parquet", compression="zstd", row_group_size=8)
    pa.parquet.write_table(table, folder / "i.parquet", compression="none", use_dictionary=False)
    with pa.ipc.new_stream(folder / "j.arrow", table.schema) as stream:
        stream.write_table(table, max_chunksize=8)
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_file(folder / "k.arrow", table.schema, options=options) as file:
        file.write_table(table)
    with tarfile.open(folder / "l.tar", "w") as tar:
        for name in ("c.jsonl", "d.jsonl.gz", "h.parquet"):
            tar.add(folder / name, arcname=f"../{name}")
    with zipfile.ZipFile(folder / "m.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("c.jsonl", "j.arrow", "b.csv"):
            archive.write(folder / name, name)
    (folder / "n.txt.bz2").write_bytes(bz2.compress(words.encode()))
    (folder / "o").write_bytes(words.encode("utf-16"))
    (folder / "p.json").write_text(json.dumps([{"text": text} for text in TEXTS[:6]], indent=1))
    (folder / "q").write_text("".join(json.dumps({"text": text}, indent=1) + "\n" for text in TEXTS[:6]))
    (folder / "r.txt").write_text("\n<|endoftext|>\n".join(TEXTS[:6]))


def read_text(folder: Path) -> None:
    """Read every file by itself, so that a damaged one does not prevent reading the others; then all as a source."""
    first = None
    for file in find_files(parse_sources([str(folder)])[0]):
        try:
            for _ in read_documents(file, "text", Tally()):
                pass
        except UserError as error:
            first = first or error
    if first:
        raise first


def make_pairs(folder: Path) -> None:
    (folder / "tabs.txt").write_text("".join(f"word{n}\tW ER{n % 7} D\n" for n in range(100)))
    (folder / "blanks.txt").write_text("".join(f"word{n} W ER{n % 7} D\n" for n in range(100)))


def read_pairs(folder: Path) -> None:
    for _ in read_all(find_files(parse_sources([str(folder)])[0]), Tally()):
        pass


# Checkpoints and runs


def make_checkpoint(folder: Path) -> None:
    config = to_dict(RunConfig(model=MODEL))
    model = build_model("causal_lm", MODEL)
    optimizers = build(model, OptimConfig())
    made = checkpoint.write(
        checkpoint.take(
            folder.with_name("saved"),
            step=3,
            model=model,
            optimizers=optimizers,
            config=config,
            tokenizer=tokenizer().to_json(),
            fingerprint="f" * 64,
            progress={"seconds": 1.0, "aside": 0.0, "tokens": 96},
        )
    )
    shutil.copytree(made, folder, dirs_exist_ok=True)
    shutil.rmtree(folder.with_name("saved"))


def read_checkpoint(folder: Path) -> None:
    """Read it as for loading a model, then as for resuming a run."""
    model, tokenizer, snapshot = checkpoint.load_model(folder)
    with torch.no_grad():
        model(torch.zeros(1, min(4, model.config.context), dtype=torch.long))
    tokenizer.encode("once")
    from_dict(RunConfig, snapshot.config)
    again = build_model("causal_lm", MODEL)
    progress = checkpoint.load(folder, again, build(again, OptimConfig()))
    checkpoint.require_same_data(folder, snapshot.fingerprint)
    assert progress["step"] + progress.get("seconds", 0.0) + progress.get("aside", 0.0) >= 0


def resign_checkpoint(folder: Path) -> None:
    try:
        here = {path.relative_to(folder).as_posix(): path for path in whole_files(folder)}
        manifest = json.loads(here.pop("manifest.json").read_bytes())
        manifest["files"] = {
            name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for name, path in here.items()
        }
        (folder / "manifest.json").write_text(json.dumps(manifest))
    except (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError):
        return


def make_run(folder: Path) -> None:
    run = RunFolder(folder)
    common = {"tokens": 2_000_000.0, "flops": 1e12, "seconds": 30.0, "steps": 40}
    expected = {"bits_per_byte": 1.35, "low": 1.2, "high": 1.5, "level": 0.9, "source": "a table"}
    shapes = [
        {"layers": n, "d_model": 32 * n, "parameters": 1e5 * n, "tokens_per_second": 1e4 / n, "tokens": 1e6}
        for n in (1, 2)
    ]
    plan = {
        "budget": "30s", "kind": "prior", **common, "parameters": 430_000, "total_parameters": 561_072,
        "expected": expected, "choices": [{"name": "steps", "value": "40", "reason": "the budget"}],
        "candidates": [{**shape, "expected_bits_per_byte": 1.9, "chosen": shape["layers"] == 1} for shape in shapes],
        "calibration": {"seconds": 2.0, "dtype": "float32"},
    }  # fmt: skip
    part = {"documents": 10, "bytes": 5000, "tokens": 2000}
    data = {
        "vocab_size": 320, "tokenizer": "bpe", "bytes_per_token": 2.5, "documents": 11, "pieces": 11, "duplicates": 1,
        "duplicate_bytes": 30, "skipped": [{"path": "x.png", "reason": "binary", "bytes": 9}], "skipped_files": 1,
        "skipped_bytes": 9, "sampled_share": 1.0, "train": part, "heldout": {**part, "how": "by hash"},
        "sources": {"stdlib": {**part, "weight": None}}, "fingerprint": "f" * 64, "folder": "/nowhere",
    }  # fmt: skip
    held = {"nats_per_token": 2.3, "bits_per_byte": 1.32, "perplexity": 10.0, "tokens": 2000, "bytes": 5000}
    result = {
        "step": 40, "loss": 2.2, "heldout": held, "seconds": 30.0, "tokens": 2_000_000, "flops": 1e12,
        "verdict": "inside",
        "tokens_per_second": 66_000.0, "peak_share": 0.3, "peak_memory_bytes": 10**9,
        "data": {"sources": {"stdlib": {"tokens": 2_000_000, "share": 1.0, "asked": 1.0, "epochs": 3.0}}},
        "phases": {"prepare": 1.0, "calibrate": 2.0, "train": 30.0, "evaluate": 1.0, "report": 0.5},
    }  # fmt: skip
    about = {"python": "3.12", "processor": "a CPU", "threads": 2, "peak": {"float32": 3.2e11}}
    files = {
        "plan": plan,
        "data": data,
        "result": result,
        "environment": about,
        "config": to_dict(RunConfig(model=MODEL, steps=40)),
    }
    for name, value in files.items():
        write_json(folder / f"{name}.json", value)
    for step in range(1, 41):
        line = {"step": step, "loss": 5.0 - step / 20, "lr": 1e-3, "grad_norm": 1.0, "tokens": step * 50_000}
        run.append("metrics", {**line, "seconds": 0.75 * step, "tokens_per_second": 66_000.0, "flops": 2.5e10 * step})
        if step % 10 == 0:
            at = {"step": step, "tokens": step * 50_000, "seconds": 0.75 * step}
            run.append("metrics", {**at, "heldout_loss": 4.0, "heldout_bits_per_byte": 1.5})
            run.append("samples", {"step": step, "prompt": "Once", "text": "Once upon"})
    run.append(
        "decisions", {"at_step": 30, "steps": 42, "progress": None, "reason": "slow", "seconds": 30.0, "time": 1.7e9}
    )
    for step, action in ((5, "skip"), (7, "rollback")):
        line = {"step": step, "kind": "spike", "action": action, "reason": "x", "loss": 9.0, "tokens": 50_000}
        run.append("skips", {**line, "first": 8 * step, "sequences": 8, "time": 1.7e9})
    run.append("events", {"event": "started", "time": 1.7e9, "step": 0})
    run.append("events", {"event": "finished", "time": 1.7e9, "step": 40})
    (folder / "tokenizer.json").write_text(tokenizer().to_json())


def read_folder(folder: Path) -> None:
    """What `isoflop runs` and a resumed run read."""
    run = read_run(folder)
    find_runs(folder)
    job.list_runs(folder)
    resumed(RunFolder(folder), from_dict(RunConfig, run.config))


def resumed(folder: RunFolder, config: RunConfig) -> None:
    """The logs, replayed as trainer/begin.py replays them."""
    check_logs(folder)
    skips = [SkipLine.read(line) for line in read_lines(folder.log("skips"))]
    assert Gaps.of(gaps(skips)).unbroken(10**6) >= 10**6 and in_a_row(skips) <= len(skips) and count_bad_steps(skips)
    assert saved_up_to(folder, config, 40) >= 0
    changed_machine(folder, config)
    decisions = tuple(Decision.from_dict(line) for line in read_lines(folder.log("decisions")))
    timetable = Timetable(config.schedule, config.steps, decisions, read=config.sizes.before)
    assert timetable.warmup_steps and timetable.total_steps and timetable.scale(0) >= 0
    _ = timetable.decay_step
    folder.drop_lines_after(20)


def read_report(folder: Path) -> None:
    write_report([folder])


# Tokenizers, configurations, recipes, strings


def make_tokenizer(folder: Path) -> None:
    made = tokenizer()
    (folder / "tokenizer.json").write_text(made.to_json())
    merges = [
        pair if isinstance(pair, str) else " ".join(pair) for pair in json.loads(made.to_json())["model"]["merges"]
    ]
    (folder / "vocab.bpe").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), SPACE, "a", "b", "ab", f"{SPACE}a"]
    (folder / "llama.json").write_text(read_pieces(write_pieces(folder / "pieces.bin", pieces)))
    (folder / "pieces.bin").unlink()


def write_pieces(path: Path, pieces: list[str]) -> Path:
    lines = (struct.pack("<fi", -float(n), len(piece.encode())) + piece.encode() for n, piece in enumerate(pieces))
    path.write_bytes(struct.pack("<i", 10) + b"".join(lines))
    return path


def read_tokenizers(folder: Path) -> None:
    first = None
    for path in sorted(folder.iterdir()):
        try:
            made = Tokenizer.from_file(path)
            made.decode(made.encode("Once upon a time \u4e2d"))
            assert made.token_bytes().sum() >= 0 and 0 <= made.start < made.vocab_size
            made.stretches("ab " * 300, 100)
            Tokenizer.from_json(made.to_json())
        except UserError as error:
            first = first or error
    if first:
        raise first


def make_config(folder: Path) -> None:
    write_json(folder / "config.json", to_dict(RunConfig(model=replace(MODEL, norm=Spec("rms", eps=1e-5)))))


def read_config(folder: Path) -> None:
    made = load_recipe("", folder / "config.json", ())
    assert made is not None
    to_json(to_dict(made))
    _ = made.tokens, made.flops_per_token


def make_overrides(folder: Path) -> None:
    lines = ["model.layers=3", "model.norm=layer", "model=gpt2", "model.norm.eps=1e-5", "optim.betas=[0.9, 0.99]"]
    (folder / "set.txt").write_text("\n".join([*lines, "data.sources=[]", "schedule.name=cosine", "seed=3"]))


def read_overrides(folder: Path) -> None:
    lines = (folder / "set.txt").read_text(encoding="utf-8", errors="surrogatepass").split("\n")
    for_each(lines, lambda line: override(RunConfig(model=MODEL), [line]))


def make_recipe(folder: Path) -> None:
    (folder / "mine.py").write_text(
        "from isoflop.trainer.config import RunConfig\n\n\ndef mine():\n    return RunConfig(steps=3)\n"
    )
    (folder / "names.txt").write_text("mine.py:mine\n./mine.py:mine")


def read_recipe(folder: Path) -> None:
    """Names of recipes. The file is the user's program and is not corrupted; its name is."""
    names = (folder / "names.txt").read_text(encoding="utf-8", errors="surrogatepass").split("\n")
    with contextlib.chdir(folder):
        for_each(names, lambda name: load_recipe(name, None, ()))


def other_recipe(case: Case) -> str:
    """A name that stands for no recipe of the user's: modules, compiled files, things that a recipe imports."""
    (case.folder / "mine.so").write_bytes(b"\x7fELF" + bytes(60))
    (case.folder / "mine.pyc").write_bytes(evil_pickle(case.outside / "canary"))
    names = ["os:system", "isoflop.recipe:call", "mine.so:mine", "mine.pyc:mine", "mine:mine", "names.txt:x"]
    others = ["mine.py:__builtins__", "mine.py:exec", "mine.py:RunConfig", "/etc/passwd:x", "-:x", "mine.py:mine()"]
    name, also = case.draw.choice(names), case.draw.choice(others)
    (case.folder / "names.txt").write_text(f"{name}\n{also}")
    return f"{name} {also}"


def for_each(lines: list[str], read: Callable[[str], Any]) -> None:
    """Reads every line; raises the first refusal at the end."""
    first = None
    for line in lines:
        try:
            read(line)
        except UserError as error:
            first = first or error
    if first:
        raise first


def make_budgets(folder: Path) -> None:
    (folder / "budgets.txt").write_text("90s\n3m\n1e15\n5e6tok\n20Mtok\n2000steps\n$20@2.5/h\n+1h\n1e15flop\n.5h")


def read_budgets(folder: Path) -> None:
    lines = (folder / "budgets.txt").read_text(encoding="utf-8", errors="surrogatepass").split("\n")
    for_each(lines, lambda line: str(parse_budget(line)))


def make_sources(folder: Path) -> None:
    (folder / "sources.txt").write_text("books=a/b:0.6\nb.txt\n~/x\nname=*.txt\nx?.gz:2\nstdlib\n~nobody/x\n[a-z]*")


def read_sources(folder: Path) -> None:
    lines = (folder / "sources.txt").read_text(encoding="utf-8", errors="surrogatepass").split("\n")
    for_each(lines, lambda line: parse_sources([line]))


# Models from elsewhere


def bundle() -> Bundle:
    torch.manual_seed(0)
    return Bundle(LLAMA, {n: p.detach() for n, p in weights_of(GPT(LLAMA)).items()}, tokenizer().to_json())


def make_hugging_face(folder: Path) -> None:
    export.write(bundle(), "hf", folder, "x")


def make_sharded(folder: Path) -> None:
    """The same in two files with an index."""
    make_hugging_face(folder)
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, some in parts.items():
        save_file({name: tensors[name] for name in some}, folder / file)
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {name: file for file, some in parts.items() for name in some}}
    write_json(folder / "model.safetensors.index.json", index)


def make_gguf(folder: Path) -> None:
    export.write(bundle(), "gguf", folder, "x")


def make_llama2c(folder: Path) -> None:
    dim, hidden, layers, heads, vocabulary, length = 16, 32, 2, 2, 320, 32
    weights = vocabulary * dim + layers * (4 * dim * dim + 3 * dim * hidden + 2 * dim) + dim + length * dim // heads
    values = np.random.default_rng(0).normal(0, 0.02, weights).astype("<f4")
    header = struct.pack("<7i", dim, hidden, layers, heads, heads, vocabulary, length)
    (folder / "model.bin").write_bytes(header + values.tobytes())
    pieces = ["<unk>", "\n<s>\n", "\n</s>\n", *(f"<0x{b:02X}>" for b in range(256)), " ", "a", "b", "ab", " a"]
    write_pieces(folder / "tokenizer.bin", pieces)


def read_model(folder: Path) -> None:
    path = folder / "model.bin" if (folder / "model.bin").exists() and not (folder / "config.json").exists() else folder
    made = export.read(path)
    model = made.model()
    with torch.no_grad():
        model(torch.zeros(1, min(4, made.config.context), dtype=torch.long))


LOGS = ("decisions.jsonl", "skips.jsonl", "events.jsonl")
FOLDER = (bytes_of_any, spoil_folder, spoil_folder, planted, sparse)
TARGETS: dict[str, Target] = {
    "prepared": Target(
        make_prepared,
        read_prepared,
        (*FOLDER, json_of(), json_of("manifest.json"), shard_header, lead_outside),
        resign_prepared,
    ),
    "prepared pairs": Target(
        make_prepared_pairs,
        read_prepared_pairs,
        (*FOLDER, json_of(), json_of("manifest.json"), shard_header, lead_outside),
        resign_prepared,
    ),
    "text": Target(
        make_text,
        read_text,
        (bytes_of_any, bytes_of_any, bytes_of_any, json_of(".jsonl"), wrong_parquet, disguise, spoil_folder),
        weight=2,
    ),
    "bombs": Target(make_text, read_text, (bomb,), weight=0.15, room=512),
    "pairs": Target(make_pairs, read_pairs, (bytes_of_any, disguise, spoil_folder), weight=0.5),
    "checkpoint": Target(
        make_checkpoint,
        read_checkpoint,
        (
            *FOLDER,
            safetensors_header,
            safetensors_header,
            json_of("config.json"),
            json_of("state.json"),
            json_of(),
            lead_outside,
        ),
        resign_checkpoint,
        weight=2,
    ),
    "run folder": Target(make_run, read_folder, (*FOLDER, json_of(), json_of(".jsonl"), *map(json_of, LOGS))),
    "report": Target(make_run, read_report, (*FOLDER, json_of(), json_of(".jsonl")), weight=0.25),
    "tokenizers": Target(
        make_tokenizer, read_tokenizers, (*FOLDER, json_of(), json_of(), json_of(), disguise), weight=1.5
    ),
    "config": Target(make_config, read_config, (*FOLDER, json_of(), json_of(), json_of(), json_of()), weight=1.5),
    "overrides": Target(make_overrides, read_overrides, (spoil_string,), weight=0.5),
    "recipe names": Target(make_recipe, read_recipe, (spoil_string, other_recipe), weight=0.25),
    "budgets": Target(make_budgets, read_budgets, (spoil_string,), weight=0.5),
    "sources": Target(make_sources, read_sources, (spoil_string,), weight=0.5),
    "hugging face": Target(
        make_hugging_face,
        read_model,
        (*FOLDER, safetensors_header, json_of("config.json"), json_of("tokenizer.json"), disguise),
    ),
    "hugging face shards": Target(
        make_sharded,
        read_model,
        (*FOLDER, safetensors_header, json_of("index.json"), lead_outside, lead_outside),
        weight=0.5,
    ),
    "gguf": Target(make_gguf, read_model, (bytes_of_any, gguf_header, gguf_header, gguf_header, spoil_folder)),
    "llama2.c": Target(make_llama2c, read_model, (bytes_of_any, llama2c_header, spoil_folder, disguise)),
}
