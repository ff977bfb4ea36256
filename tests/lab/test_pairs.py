"""Pairs in the lab: the generated ones, both kinds of model on the same tokens, and their measures."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from isoflop.data.pair_loader import IGNORED
from isoflop.lab import arms as making
from isoflop.lab import spelling
from isoflop.lab.claim import read_claim
from isoflop.lab.procedures import pairs
from isoflop.lab.procedures.job import Job
from isoflop.lab.store import Store
from isoflop.lab.study import Study
from isoflop.model.gpt import GPT
from isoflop.runtime import make_runtime

SOUNDS = {
    "chadube": "CH AX D UW1 B",  # a silent e, which lengthens; the stress on the last long vowel
    "mazpip": "M AE1 S P IH P",  # z before p is voiceless; no long vowel: the first is stressed
    "cisako": "S IH Z AX K OW1",  # c before i; s between vowels; a vowel at the end is long
    "gont": "G AA1 N T",
    "genk": "JH EH1 NG K",  # g before e; n before k
    "phoaquix": "F OW1 K W IH K S",
}


@pytest.mark.parametrize("word", SOUNDS)
def test_words_are_pronounced_by_the_rules(word):
    assert spelling.pronounce(word) == SOUNDS[word]


def test_generated_words_are_reproducible_and_distinct():
    words = spelling.words()
    assert words == spelling.words() and len(set(words)) == spelling.WORDS
    assert all(word.isascii() and word.islower() for word in words)
    assert spelling.pronounce(words[0]) == "F AX S K R AX T F L AX NG K S AY1"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def made(tmp_path, home, monkeypatch):
    """The arms of the claim, small, on some of the pairs; prepared once."""
    monkeypatch.setenv("ISOFLOP_HOME", str(home))
    path = home / "some.tsv"
    if not path.exists():
        path.write_text("".join(f"{w}\t{spelling.pronounce(w)}\n" for w in spelling.words()[:600]), encoding="utf-8")
    claim = read_claim("cross-attention").with_sources((str(path),))
    small = (*claim.setup.set, "model.layers=1", "model.d_model=32", "model.heads=2", "batch.sequences=16")
    claim = replace(claim, setup=replace(claim.setup, set=small, tokens=6000.0, rates=()))
    return claim, {arm.name: arm for arm in making.ready(claim, {})}


def data_of(arm):
    task = pairs.task_of(arm.config)
    return task, task.prepare_data(arm.config.data)


def test_both_kinds_of_model_read_the_same_tokens_of_the_same_pairs(made):
    _, arms = made
    both = [arms["encoder-decoder"], arms["decoder"]]
    (task, data), (other, same) = map(data_of, both)
    assert data.fingerprint == same.fingerprint
    source_BS, visible_BS, _, targets_BT = task.batches(both[0].config, data).batch(3)
    texts_BU, wanted_BU = other.batches(both[1].config, data).batch(3)
    assert int((targets_BT != IGNORED).sum()) == int((wanted_BU != IGNORED).sum())

    for row in range(len(texts_BU)):
        source, target = source_BS[row][visible_BS[row]], targets_BT[row][targets_BT[row] != IGNORED]
        length = len(source) + len(target)
        eot = torch.tensor([data.tokenizer.eot])
        assert torch.equal(texts_BU[row, :length], torch.cat([source, eot, target[:-1]]))
        assert torch.equal(wanted_BU[row, len(source) : length], target)
        assert (wanted_BU[row, : len(source)] == IGNORED).all() and (wanted_BU[row, length:] == IGNORED).all()
    assert task.batches(both[0].config, data).tokens(7) == other.batches(both[1].config, data).tokens(7)


def test_all_arms_have_equal_flops(made):
    claim, _ = made
    arms = {arm.name: arm for arm in making.ready(replace(claim, setup=replace(claim.setup, tokens=2e5)), {})}
    assert max(arm.flops for arm in arms.values()) < 1.02 * min(arm.flops for arm in arms.values())
    task, data = data_of(arms["decoder"])
    source, target = data.mean_lengths()
    model = GPT(arms["decoder"].config.model)
    head = model.head_weight.numel()
    blocks = sum(p.numel() for block in model.blocks for p in block.parameters() if p.ndim == 2)
    per_pair = 6 * (blocks * (source + target) + head * target)
    assert task.flops_per_token(arms["decoder"].config, data) == pytest.approx(per_pair / (source + target))
    with pytest.raises(Exception, match="context"):
        pairs.OneTextLoader(data, data.longest(), 16, 0)


def test_the_loss_is_of_the_output_only_and_padding_has_no_effect(made):
    _, arms = made
    task, data = data_of(arms["decoder"])
    torch.manual_seed(0)
    model = GPT(arms["decoder"].config.model)
    texts_BU, wanted_BU = task.batches(arms["decoder"].config, data).batch(0)
    logits = model(texts_BU)[..., : data.vocab_size]
    whole = torch.nn.functional.cross_entropy(model(texts_BU).flatten(0, 1), wanted_BU.flatten(), ignore_index=IGNORED)
    assert task.loss(model, texts_BU, wanted_BU).item() == pytest.approx(whole.item(), rel=1e-5)

    row = int((wanted_BU != IGNORED).sum(1).argmin())
    length = int(torch.nonzero(wanted_BU[row] != IGNORED).max()) + 1
    alone = model(texts_BU[row : row + 1, :length])[..., : data.vocab_size]
    assert torch.allclose(alone, logits[row : row + 1, :length], atol=1e-4)

    found = task.measure(model, data, make_runtime("cpu", "float32", 1))
    heldout = data.heldout()
    assert found.tokens == int((heldout.target.lengths + 1).sum())
    references = [data.tokenizer.decode(heldout.target[i]) for i in range(len(heldout))]
    assert found.bytes == sum(len(text.encode()) for text in references)


def test_greedy_decoding_takes_the_likeliest_token(made):
    _, arms = made
    task, data = data_of(arms["decoder"])
    torch.manual_seed(1)
    model, eot = GPT(arms["decoder"].config.model).eval(), data.tokenizer.eot
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    prompts = [np.append(data.heldout().source[i].astype(np.int64), eot) for i in range(4)]
    written = pairs.greedy(model, prompts, 6, eot)
    for prompt, ids in zip(prompts, written, strict=True):
        expected, text = [], torch.from_numpy(prompt)[None]
        while len(expected) < 6:
            with torch.no_grad():
                token = int(model(text)[0, -1, : data.vocab_size].argmax())
            if token == eot:
                break
            expected.append(token)
            text = torch.cat([text, torch.tensor([[token]])], 1)
        assert ids == expected
    judged = task.judge(model, data)
    assert judged["inputs"] == len({tuple(data.heldout().source[i]) for i in range(len(data.heldout()))})


def test_both_kinds_of_model_train_and_have_the_same_measures(made, tmp_path):
    claim, _ = made
    study = Study.of(claim, Store(tmp_path / "lab"))
    found = {}
    for name in ("encoder-decoder", "decoder"):
        job = study.job(name, 0)
        found[name] = pairs.pairs(Job(job.procedure, job.config, order=0, data=job.data))
        measures = found[name].measures
        assert set(measures) == set(pairs.PAIR_MEASURES) and not found[name].diverged
        assert 0 < measures["bits_per_byte"] < 8 and 0 <= measures["exact_match"] <= 1
        assert found[name].lists["heldout"][-1] < found[name].lists["heldout"][0]
        assert measures["flops"] == pytest.approx(study.arm(name).flops, rel=0.02)
        assert measures["tokens"] == study.arm(name).tokens
    assert study.fingerprints["decoder"] == study.fingerprints["encoder-decoder"]


def test_pairs_need_their_procedure_and_cannot_hold_seconds_equal(made):
    claim, _ = made
    wrong = replace(claim, setup=replace(claim.setup, procedure="train"))
    with pytest.raises(Exception, match='set procedure = "pairs"'):
        making.ready(replace(wrong, comparisons=claim.comparisons[:1]), {})
    timed = replace(claim, setup=replace(claim.setup, equal=("seconds",)))
    with pytest.raises(Exception, match=r'equal = \["flops"\]'):
        making.speeds_of(timed)
