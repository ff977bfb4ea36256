"""bench/race.py --peer nanochat: what it does with nanochat's text, windows, recipe and figures; nanochat itself is not
needed. The last test drives a folder that behaves as nanochat's scripts do."""

import dataclasses
import json
import math
import random
from itertools import accumulate, pairwise
from pathlib import Path

import pytest

import peer_nanochat
import race
import record
import tables
from inside_nanochat import SLACK, begun, cut_into_pieces, running
from isoflop.errors import UserError
from isoflop.runtime import describe_machine
from peer_nanochat import PRINTED, SCALES, Nanochat, Recipe, finalists, neighbour, tune


def tokens_of(text: str, generator: random.Random) -> list[bytes]:
    """Tokens as byte-level BPE has them: a word with the blank before it in pieces of 1 to 3 bytes, also inside
    characters."""
    tokens: list[bytes] = []
    for word in text.replace(" ", "\0 ").split("\0"):
        left = word.encode()
        while left:
            size = generator.randint(1, 3)
            tokens.append(left[:size])
            left = left[size:]
    return tokens


@pytest.mark.parametrize("alphabet", ["ab  ", "añ☃ \n", "漢字假名"])
def test_pieces_are_the_document_and_each_fills_a_row(alphabet):
    generator = random.Random(0)
    for least in (1, 5, 40):
        text = "".join(generator.choices(alphabet, k=400))
        tokens = tokens_of(text, generator)
        pieces = list(cut_into_pieces(text, tokens, least))
        assert "".join(pieces) == text and all(pieces)
        ends = list(accumulate(map(len, tokens)))
        between = set(accumulate(len(character.encode()) for character in text))
        place = 0
        for piece in pieces[:-1]:
            first, place = place, place + len(piece.encode())
            inside = [end for end in ends if first < end <= place]
            assert inside[-1] == place and place in between and len(inside) >= least
            late = inside[least + SLACK - 1 : -1]  # where it could have ended at the latest, but for characters
            assert not between & set(late)


def test_a_short_document_stays_whole():
    assert list(cut_into_pieces("a few words", [b"a", b" few", b" words"], 50)) == ["a few words"]
    assert list(cut_into_pieces("a few words", [b"a", b" few", b" words"], 2)) == ["a few", " words"]
    assert list(cut_into_pieces("", [], 50)) == []


def test_windows_of_either_kind_predict_every_id_once():
    generator = random.Random(1)
    for context in (2, 5, 16):
        documents = [[generator.randint(1, 9) for _ in range(generator.randint(0, 40))] for _ in range(20)]
        windows = list(begun(documents, 0, context))
        assert all(window[0] == 0 and 2 <= len(window) <= context + 1 for window in windows)
        assert [one for window in windows for one in window[1:]] == [one for ids in documents for one in ids]
        windows = list(running(documents, 0, context))
        assert all(2 <= len(window) <= context + 1 for window in windows)
        assert [one for window in windows for one in window[1:]] == [one for ids in documents for one in [*ids, 0]]
        assert all(before[-1] == after[0] for before, after in pairwise(windows))


def test_its_command_makes_the_width_that_a_recipe_names():
    for width in SCALES["width"]:
        for depth in SCALES["depth"]:
            words = dict(word[2:].split("=") for word in Recipe(depth=depth, width=width).command(70))
            head = int(words["head-dim"])
            made = -(-depth * int(words["aspect-ratio"]) // head) * head  # base_train's rule
            assert made == width and words["num-iterations"] == "70"
    for batch in SCALES["batch"]:
        for context in SCALES["context"]:
            words = dict(word[2:].split("=") for word in Recipe(batch=batch, context=context).command(1))
            rows = int(words["device-batch-size"]) * context
            assert batch % rows == 0 and rows <= peer_nanochat.MOST_AT_ONCE and words["total-batch-size"] == str(batch)
    assert "--matrix-lr=0.06" in Recipe(rates=3.0).command(1)


def test_a_recipe_is_read_as_it_is_told():
    recipe = Recipe(depth=3, width=192, rates=0.33, dtype="float32", compile=True)
    assert Recipe.parse(recipe.words()) == recipe and Recipe.parse([]) == Recipe()
    for word in ("depht=2", "depth=two", "compile=1", "depth"):
        with pytest.raises(UserError, match=f"--recipe {word} is none of depth=... width=..."):
            Recipe.parse([word])
    for words in (["width=100"], ["batch=1000"], ["context=512", "batch=256"]):
        with pytest.raises(UserError, match="multiple"):
            Recipe.parse(words)


def distance(recipe: Recipe, best: Recipe) -> float:
    """A loss that grows with the places on each scale by which a recipe is off."""
    names = [name for name in SCALES if getattr(recipe, name) != getattr(best, name)]
    return 2.0 + sum(abs(SCALES[n].index(getattr(recipe, n)) - SCALES[n].index(getattr(best, n))) for n in names)


def test_tuning_finds_the_best_recipe_and_keeps_to_its_tries():
    best = Recipe(depth=4, width=256, vocabulary=2048, rates=1.0, dtype="float32", compile=True, batch=8192)
    asked: list[Recipe] = []

    def loss_of(recipe: Recipe) -> float:
        asked.append(recipe)
        return math.inf if recipe.context == 512 else distance(recipe, best)  # what does not run is passed over

    found = tune(Recipe(), loss_of, 100)
    assert min(found, key=found.__getitem__) == best and len(asked) == len(set(asked)) == len(found)
    assert len(tune(Recipe(), loss_of, 7)) == 7
    assert tune(best, lambda recipe: math.inf, 100)[best] == math.inf


def test_the_last_round_has_the_best_and_larger_ones():
    best = Recipe()
    found = tune(best, lambda recipe: distance(recipe, best), 100)
    last = finalists(found, 2)
    assert last[0] == best and len(last) in (3, 4)
    assert {neighbour(best, "width", 1), neighbour(best, "depth", 1)} <= set(last)
    assert finalists({best: math.inf}, 2) == []


def test_the_best_of_the_last_round_is_taken_whatever_the_short_tries_said(monkeypatch):
    peer = Nanochat.__new__(Nanochat)
    start, larger = Recipe(), Recipe(width=192)

    def run(recipe: Recipe, seconds: float, seed: int) -> dict:
        if recipe.compile:
            raise RuntimeError("no compiler")
        loss = distance(recipe, start if seconds < 10 else larger)  # with more seconds the larger model is better
        return {"seconds": seconds, "begun": loss, "running": loss + 0.1}

    monkeypatch.setattr(peer, "run", run)
    best, tried = peer.tuned(start, 60.0, 0.1, 100, 0.3, 1)
    assert best == larger and not any(one["recipe"]["compile"] for one in tried)
    assert tried[0] == {"recipe": dataclasses.asdict(start), "share": 0.1, "seconds": 6.0, "bits_per_byte": 2.0}
    assert [one["recipe"]["width"] for one in tried if one["share"] == 0.3] == [128, 192, 128]  # best, wider, deeper


def test_a_step_is_read_from_its_line():
    line = (
        "step 00012/00400 (3.00%) | loss: 6.123456 | lrm: 0.33 | dt: 81.25ms | tok/sec: 50,412 | bf16_mfu: 0.00 | "
        "epoch: 1 pq: 0 rg: 0 | total time: 0.01m"
    )
    found = PRINTED.match(line)
    assert found and (found[1], found[2]) == ("00012", "81.25")
    assert not PRINTED.match("Step 00250 | Validation bpb: 2.345678")


def row(seconds: float | None = 250.0) -> dict:
    ours = [{"budget": 300.0, "seconds": 300.0, "bits_per_byte": 1.7, "begun": 1.72, "shape": "2 x 128"}]
    seeds = [
        {
            "seed": seed,
            "nanochat": {"seconds": 600.0, "begun": 1.71 + seed / 100, "running": 1.75},
            "isoflop": ours,
            "seconds": {"begun": seconds, "running": 200.0},
        }
        for seed in (0, 1, 2)
    ]
    about = {"text": "books.jsonl", "budget": 600.0, "bytes": {"train": 64_000_000, "heldout": 1_300_000}}
    return {**about, "recipe": dataclasses.asdict(Recipe()), "tries": [], "seeds": seeds}


def test_the_table_has_a_line_per_text_and_budget(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    monkeypatch.setattr(record, "ROOT", tmp_path)
    keys = ("text", "budget")
    record.keep_row("race-nanochat", row(), keys, {"nanochat": "92d63d4"})
    record.keep_row("race-nanochat", {**row(), "budget": 150.0}, keys, {"nanochat": "92d63d4"})
    record.keep_row("race-nanochat", row(seconds=None), keys, {"nanochat": "92d63d4"})  # in place of the first
    result = record.read("race-nanochat")
    assert [one["budget"] for one in result["rows"]] == [150.0, 600.0]
    page = tables.race_nanochat(result)
    first, second = [line for line in page.splitlines() if line.startswith("| books.jsonl, 64 MB")]
    assert (
        "1.720 (1.710 to 1.730)" in first
        and "at most 250 (250 to 250)" in first
        and "at most 0.42 (0.42 to 0.42)" in first
    )
    assert "not reached by 3 of 3 seeds" in second and second.endswith("| not reached |")
    assert page.count("nanochat 92d63d4") == 1 and result["machine"] == describe_machine("cpu")
    assert "in at most 0.42 of its seconds" in race.summary(row()) and "not by every seed" in race.summary(row(None))


def test_the_words_of_a_race_are_checked(capsys):
    given = race.arguments(["x", "--nanogpt", "folder"])
    assert given.peer == ("nanogpt", Path("folder")) and given.shares == [0.125, 0.25, 0.5, 1.0]
    assert race.arguments(["x", "--peer", "nanochat", "folder"]).shares == [0.5, 1.0]
    for words, said in (
        (["x"], "required"),
        (["x", "--peer", "litgpt", "folder"], "none of nanogpt, nanochat"),
        (["x", "--peer", "nanogpt", "folder", "--seeds", "1"], "are for --peer nanochat"),
        (["x", "--peer", "nanochat", "folder", "--device", "cuda"], "for CPUs"),
    ):
        with pytest.raises(SystemExit):
            race.arguments(words)
        assert said in capsys.readouterr().err


def test_another_folder_is_refused_before_anything_is_made(tmp_path):
    with pytest.raises(UserError, match=r"no scripts/base_train\.py; name a clone"):
        Nanochat(tmp_path, "python", tmp_path, tmp_path / "scratch")
    assert not (tmp_path / "scratch").exists()


# What the bench needs of nanochat: its names, its folders, its words, its lines.
FOLDER = {
    "rustbpe.py": "",
    "tiktoken.py": "",
    "wandb.py": "",
    "nanochat/__init__.py": "",
    "nanochat/tokenizer.py": """
import os, torch
class Bytes:
    def encode(self, text): return list(text.encode())
    def decode_single_token_bytes(self, one): return bytes([one])
    def get_bos_token_id(self): return 256
def get_tokenizer():
    assert open(os.environ["NANOCHAT_BASE_DIR"] + "/tokenizer/size").read() == "512"
    return Bytes()
def get_token_bytes(device): return torch.tensor([1] * 256 + [0])
""",
    "nanochat/checkpoint_manager.py": """
import math, torch
from pathlib import Path
def build_model(folder, step, device, phase):
    assert (Path(folder) / f"model_{step:06d}.pt").exists() and phase == "eval"
    def uniform(inputs, targets, loss_reduction):
        assert loss_reduction == "none" and inputs.shape == targets.shape and inputs.min() >= 0
        return math.log(257) * (targets >= 0)
    return uniform, __import__("nanochat.tokenizer").tokenizer.get_tokenizer(), {}
""",
    "scripts/tok_train.py": """
import os, sys
from pathlib import Path
base = Path(os.environ["NANOCHAT_BASE_DIR"])
assert len(list((base / "base_data_climbmix").glob("*.parquet"))) == 2
(base / "tokenizer").mkdir()
(base / "tokenizer" / "size").write_text(sys.argv[-1].removeprefix("--vocab-size="))
""",
    "scripts/base_train.py": """
import os, sys, torch
from pathlib import Path
import pyarrow.parquet as parquet
words = dict(word[2:].split("=") for word in sys.argv[1:])
base, steps = Path(os.environ["NANOCHAT_BASE_DIR"]), int(words["num-iterations"])
torch.manual_seed(42)
rows = parquet.read_table(base / "base_data_climbmix" / "shard_00000.parquet").column("text").to_pylist()
assert all(len(row.encode()) <= 2 * 16 + 8 for row in rows), rows
print("\\u2588 banner")
for step in range(steps):
    milliseconds = 100 if step < 10 else 2
    print(f"step {step:05d}/{steps:05d} (0.00%) | loss: 1.0 | lrm: 1.00 | dt: {milliseconds:.2f}ms | tok/sec: 1")
folder = base / "base_checkpoints" / words["model-tag"]
folder.mkdir(parents=True)
(folder / f"model_{steps:06d}.pt").touch()
(base.parent / "seed").write_text(f"{torch.initial_seed()} {rows[0]}")
""",
}


@pytest.mark.slow  # processes that load torch
def test_a_race_from_end_to_end(tmp_path, monkeypatch, capsys):
    """A folder that behaves as nanochat: text, tokenizer, pieces, its seconds, the seed, both figures, ours in turn."""
    folder = tmp_path / "nanochat"
    for name, text in FOLDER.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    lines = [json.dumps({"text": f"document {number} and some words"}) for number in range(400)]
    (tmp_path / "texts.jsonl").write_text("\n".join(lines), encoding="utf-8")
    scratch: list[Path] = []

    def ours(seconds: float, folder: Path, device: str, seed: int) -> dict:
        scratch.append(folder)
        assert (folder / "train.jsonl").exists() and device == "cpu"
        loss = 9.0 - seconds
        return {"seconds": seconds, "before_seconds": 0.0, "shape": "2 x 32", "steps": 1, "bits_per_byte": loss}

    def begun(run: Path, heldout: list[str]) -> float:
        said = (scratch[-1] / "nanochat" / "seed").read_text()
        assert said.startswith("49 ") and run.name.endswith("-7")  # 42, its own, and 7
        return 1.0

    monkeypatch.setattr(race, "ours", ours)
    monkeypatch.setattr(race, "bits_begun", begun)
    monkeypatch.setattr(peer_nanochat, "TIMED_SECONDS", 0.01)
    words = ["--budget", "2s", "--seeds", "7", "--text-mb", "0.01", "--shares", "0.25", "0.5"]
    recipe = ["--recipe", "context=16", "batch=32", "vocabulary=512"]
    given = race.arguments([str(tmp_path / "texts.jsonl"), "--peer", "nanochat", str(folder), *words, *recipe])
    kept: list[dict] = []
    [found] = race.race_nanochat(given, kept.append)

    [seed] = found["seeds"]
    theirs = seed["nanochat"]
    assert theirs["steps"] == 1000 and theirs["seconds"] == pytest.approx(2.0)  # the first ten as the others
    assert theirs["tokens"] == 32_000 and theirs["begun"] == pytest.approx(math.log2(257))
    assert theirs["begun"] < theirs["running"] < 1.1 * theirs["begun"]  # ends of documents
    assert [run["budget"] for run in seed["isoflop"]] == [0.5, 1.0] and seed["isoflop"][0]["begun"] == 1.0
    expected = 0.5 * 2 ** ((8.5 - theirs["begun"]) / 0.5)  # from 8.5 after half a second to 8.0 after one
    assert seed["seconds"]["begun"] == pytest.approx(expected)
    assert kept == [found] and found["text"] == "texts.jsonl" and found["recipe"]["vocabulary"] == 512
    assert "in begun windows" in capsys.readouterr().out
    assert not scratch[-1].exists()
