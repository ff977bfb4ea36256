"""A new task, registered only here: it plans, trains, resumes, evaluates, samples and is reported, and no other file
knows it.

`recall`: each line of the sources is a word, which the model reads and has to repeat: "abc=abc". Only what follows the
sign is learned, padding is not.
"""

import json
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch

import isoflop
from isoflop.cli import run as cli
from isoflop.config import to_dict
from isoflop.data.corpus import find_files, parse_sources
from isoflop.data.manifest import Format, PreparedFolder, read_manifest, sha256_of, write_manifest, write_tokenizer
from isoflop.data.tokenizer import Tokenizer
from isoflop.errors import UserError
from isoflop.files import home, new_folder
from isoflop.generate.engine import generate
from isoflop.job import Listener
from isoflop.measure import HeldOut
from isoflop.model.build import MODELS, Trained
from isoflop.model.gpt import GPT
from isoflop.parallel.mesh import ALONE
from isoflop.records import DataAccount, DataRead, PreparedSource, SampleLine, Side, SourceRead, read_run
from isoflop.trainer.hooks import Hook
from isoflop.trainer.task import TASKS
from isoflop.trainer.throughput import Throughput
from isoflop.trainer.workload import Notes, Workload, matmul_weights

FORMAT = Format("toy-words", 1, "words", "holds no words")
IGNORED = -100
SIGN = "="
SMALL = ["data.workers=1", "runtime.threads=1", "runtime.dtype=float32", "every.checkpoint=5", "optim.name=adamw"]


class Words(PreparedFolder):
    """Words to recall, every tenth held out."""

    def __init__(self, folder, manifest, seconds=0.0, reused=True):
        super().__init__(folder, manifest, seconds, reused)
        self.sources = (manifest["name"],)
        self.train, self.heldout = manifest["train"], manifest["heldout"]
        self.longest = max(map(len, self.train + self.heldout))

    def train_tokens(self, source):
        return sum(len(word) + 1 for word in self.train)

    def tensors(self, words):
        """(inputs_BT, targets_BT): word, sign and the word again, ended by end-of-text."""
        width, end = 2 * self.longest + 1, self.tokenizer.eot
        inputs, targets = np.full((len(words), width), end), np.full((len(words), width), IGNORED)
        for row, word in enumerate(words):
            ids = self.tokenizer.encode(f"{word}{SIGN}{word}")
            inputs[row, : len(ids)] = ids
            targets[row, len(word) : len(ids)] = [*ids[len(word) + 1 :], end]
        return torch.from_numpy(inputs.astype(np.int64)), torch.from_numpy(targets.astype(np.int64))


class Draws:
    """Which words step k sees: a pure function of k."""

    def __init__(self, data, sequences, seed):
        self.data, self.sequences, self.seed = data, sequences, seed

    def words(self, step):
        drawn = np.random.default_rng([self.seed, step]).integers(len(self.data.train), size=self.sequences)
        return [self.data.train[i] for i in drawn]

    def batch(self, step, rank=0, world=1):
        return self.data.tensors(self.words(step))

    def tokens(self, steps):
        return sum(len(word) + 1 for step in range(steps) for word in self.words(step))

    def account(self, steps):
        read = SourceRead(tokens=self.tokens(steps), share=1.0, asked=1.0, passed_over=0)
        return DataRead(tokens=read.tokens, passed_over=0, sources={self.data.sources[0]: read})

    def span(self, step, steps):
        return step * self.sequences, steps * self.sequences

    def largest(self, sequences):
        return self.data.tensors([self.data.longest * "a"] * sequences)


class WordWorkload(Workload):
    ladder = ((1, 32), (2, 32), (2, 64))
    sequences = "words"
    notes = Notes(tokens="of the words that are repeated")

    def __init__(self, data):
        self.data, self.vocab_size, self.context = data, data.vocab_size, 2 * data.longest + 1

    def heads(self, d_model):
        return d_model // 16

    def tokens_per_sequence(self, config):
        return self.data.train_tokens("") / len(self.data.train)

    def flops_per_token(self, config):
        return 6.0 * matmul_weights(config)

    def batches(self, config):
        return Draws(self.data, config.batch.sequences, config.seed)

    def tokens(self, config):
        return self.batches(config).tokens(config.steps)


class Recall:
    static_shapes = False

    def __init__(self, criterion):
        self.criterion = criterion

    def prepare(self, model):
        pass

    def compile(self):
        pass

    def loss(self, model, inputs_BT, targets_BT):
        return self.criterion(model, inputs_BT, targets_BT)

    def workload(self, config, progress=None):
        return WordWorkload(self.prepare_data(config.data, progress))

    def prepare_data(self, config, progress=None):
        [source] = parse_sources(config.sources)
        words = [word for file in find_files(source) for word in file.path.read_text().split()]
        if not words:
            raise UserError(f"{source.pattern} holds no words")
        folder = home() / "data" / sha256_of(words)[:16]
        if folder.exists():
            return self.open_data(folder)
        train, heldout = [w for i, w in enumerate(words) if i % 10], words[::10]
        tokenizer = Tokenizer.of_units([])
        sides = [
            Side(documents=len(w), bytes=sum(map(len, w)), tokens=sum(len(x) + 1 for x in w)) for w in (train, heldout)
        ]
        account = DataAccount(
            vocab_size=tokenizer.vocab_size,
            tokenizer="bytes",
            bytes_per_token=sides[0].bytes / sides[0].tokens,
            documents=len(words),
            train=sides[0],
            heldout=sides[1],
            sources={source.name: PreparedSource(documents=len(train), bytes=sides[0].bytes, tokens=sides[0].tokens)},
        )
        folder.parent.mkdir(parents=True, exist_ok=True)
        with new_folder(folder) as temporary:
            manifest = {
                "format": FORMAT.name,
                "version": FORMAT.version,
                "name": source.name,
                "fingerprint": sha256_of(words),
                "vocab_size": tokenizer.vocab_size,
                "tokenizer_sha256": write_tokenizer(temporary, tokenizer),
                "train": train,
                "heldout": heldout,
                "account": account.to_dict(),
            }
            write_manifest(temporary, manifest)
        return self.open_data(folder)

    def open_data(self, folder, verify_checksums=True):
        return Words(folder, read_manifest(folder, FORMAT, lambda manifest, path: {}, verify_checksums=False))

    def batches(self, config, data, skipped=()):
        return Draws(data, config.batch.sequences, config.seed)

    def flops_per_token(self, config, data):
        return 6.0 * matmul_weights(config)

    def palm_flops_per_token(self, config):
        return None

    def measure(self, model, data, runtime, max_tokens=0, group=ALONE, pieces=False):
        model.eval()
        inputs_BT, targets_BT = (part.to(runtime.device) for part in data.tensors(data.heldout))
        with torch.no_grad():
            mean = float(self.criterion(model, inputs_BT, targets_BT))
        model.train()
        tokens = int((targets_BT != IGNORED).sum())
        return HeldOut(mean * tokens, tokens, sum(map(len, data.heldout)))

    def judge(self, model, data, beam=1):
        right = [self.answer(model, data.tokenizer, word) == word for word in data.heldout[:20]]
        return {"exact_match": sum(right) / len(right), "inputs": len(right)}

    def measure_sources(self, model, tokenizer, config, runtime, beam=1):
        data = self.prepare_data(config)
        data.heldout = data.train + data.heldout
        return replace(self.measure(model, data, runtime), task_metrics=self.judge(model, data))

    def samples(self, model, data, config, until=None):
        for word in data.heldout[:2]:
            yield SampleLine(prompt=word, text=self.answer(model, data.tokenizer, word), reference=word)

    def write(self, model, tokenizer, prompts, request):
        texts = [self.answer(model, tokenizer, prompt) for prompt in prompts]
        for text in texts:
            request.show(text)
        return texts

    def answer(self, model, tokenizer, word):
        return generate(model, tokenizer, f"{word}{SIGN}", len(word) + 1, temperature=0.0)


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    """The two lines that a task takes."""
    monkeypatch.setitem(TASKS, "recall", Recall)
    monkeypatch.setitem(MODELS, "recall", Trained(GPT, "GPT", "a word that was read"))


@pytest.fixture
def words(tmp_path):
    generator = np.random.default_rng(0)
    made = ["".join(generator.choice(list("abcd"), size=generator.integers(2, 5))) for _ in range(400)]
    path = tmp_path / "words.txt"
    path.write_text("\n".join(made))
    return path


@pytest.mark.parametrize("budget", ["2e10", "90000tok", "9s"])
def test_it_is_planned_for_any_budget(words, tmp_path, budget, monkeypatch):
    timed = []

    def given_times(configs, seconds, data=(), **_):
        timed.extend(data)
        return [Throughput(0.01, 2e9 / matmul_weights(config), 10) for config in configs]

    monkeypatch.setattr("isoflop.trainer.throughput.time_in_turns", given_times)
    advice = isoflop.pretrain([str(words)], budget, tmp_path / "run", task="recall", assignments=SMALL, dry_run=True)
    shapes = {(line.layers, line.d_model) for line in advice.candidates}
    assert shapes <= set(WordWorkload.ladder) and sum(line.chosen for line in advice.candidates) == 1
    assert advice.config.task == "recall" and advice.config.optim.name == "adamw"
    assert advice.expected is None and not (tmp_path / "run").exists()
    lines = {choice.name: choice for choice in advice.choices}
    assert "of the words that are repeated; " in lines["tokens D"].reason
    assert lines["batch"].value.split()[1] == "words"
    assert [type(data) for data in timed] == (len(shapes) * [Draws] if budget == "9s" else [])  # on their own words
    if budget == "2e10":
        assert 0.8 * 2e10 < advice.flops < 1.1 * 2e10
    if budget == "90000tok":
        assert 0.8 * 90000 < advice.tokens < 1.1 * 90000


class InterruptAt(Hook):
    def __init__(self, step):
        self.step = step

    def stepped(self, state):
        if state.step == self.step:
            signal.raise_signal(signal.SIGINT)


def losses(folder):
    return [line.loss for line in read_run(folder).training]


def test_a_task_from_outside_isoflop_works_end_to_end(words, tmp_path, capsys):
    whole, broken, asked = tmp_path / "whole", tmp_path / "broken", [*SMALL, "batch.sequences=32"]
    train = ["train", str(words), "--task", "recall", "--budget", "60steps", "--set", *asked, "--out"]
    assert cli([*train, str(whole)]) == 0
    shown = capsys.readouterr().out
    assert "exact" in shown or "held-out" in shown

    # resumed from where a signal stopped it: the same losses and weights
    with pytest.raises(Exception, match="stopped"):
        isoflop.pretrain(
            [str(words)],
            "60steps",
            broken,
            task="recall",
            assignments=asked,
            listener=Listener(hooks=[InterruptAt(23)]),
        )
    assert len(losses(broken)) == 23
    assert cli(["train", "--resume", str(broken)]) == 0
    assert losses(broken) == losses(whole) and losses(whole)[-1] < losses(whole)[0]
    one, other = (isoflop.load(folder)[0].state_dict() for folder in (whole, broken))
    assert all(torch.equal(one[name], other[name]) for name in one)
    more = isoflop.resume(whole, "+20steps")
    assert more.step == 80

    # evaluated, asked, listed and reported
    capsys.readouterr()
    assert cli(["eval", str(whole), "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)
    result = read_run(whole).result
    assert measured["exact_match"] == result.heldout.exact_match
    assert measured["bits_per_byte"] == pytest.approx(result.heldout.bits_per_byte)
    assert cli(["eval", str(whole), str(words), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tokens"] > measured["tokens"]
    assert cli(["sample", str(whole), "--prompt", "abc"]) == 0 and capsys.readouterr().out.strip()
    assert cli(["runs", str(tmp_path)]) == 0 and str(whole) in capsys.readouterr().out
    page = (whole / "report.html").read_text(encoding="utf-8")
    assert "parameter model" in page and "words = " in page and "what the data need" in page and "<svg" in page

    # and its configuration runs again
    again = tmp_path / "again"
    assert cli(["train", "--config", str(broken / "config.json"), "--out", str(again)]) == 0
    assert losses(again) == losses(broken)
    assert to_dict(read_run(again).config)["task"] == "recall"


def test_unusable_input_is_one_line(tmp_path, words, capsys):
    (tmp_path / "none.txt").write_text(" ")
    assert cli(["train", str(tmp_path / "none.txt"), "--task", "recall", "--out", str(tmp_path / "run")]) == 2
    assert "holds no words" in capsys.readouterr().err
    assert cli(["train", str(words), "--task", "recal", "--out", str(tmp_path / "run")]) == 2
    assert "'recal' is not one of causal_lm, seq2seq, recall" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
