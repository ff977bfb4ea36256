"""Differences from a baseline, and what chance does to them."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from isoflop.records import HeldOutPieces, read_run
from isoflop.report import paired
from isoflop.report.facts import read_facts
from isoflop.report.page import write_report


def pieces(seed, shift=0.0, noise=0.02, count=200, fingerprint="5b1f0c"):
    """Stretches of one text under a model: how hard each is, is common to all models."""
    text, own = np.random.default_rng(0), np.random.default_rng(seed)
    sizes = text.integers(600, 900, count)
    bits = sizes * (1.6 + 0.4 * text.normal(size=count) + shift + noise * own.normal(size=count))
    return HeldOutPieces(
        fingerprint=fingerprint,
        nats=tuple((bits * math.log(2)).tolist()),
        tokens=tuple((sizes // 3).tolist()),
        bytes=tuple(sizes.tolist()),
    )


def test_the_texts_noise_is_that_of_differences_and_not_of_losses(make_run):
    base = read_run(make_run("base"))
    held = []
    for seed in range(1, 200, 2):
        one, other = (replace(base, pieces=pieces(s, shift)) for s, shift in ((seed, 0.01), (seed + 1, 0.0)))
        found = paired.by_text(one, other)
        apart = (sum(one.pieces.nats) - sum(other.pieces.nats)) / math.log(2) / sum(one.pieces.bytes)
        held.append(abs(apart - 0.01) <= 1.96 * found.bits)
        assert found.bits < 0.01  # unpaired it would be 0.4 / sqrt(200) = 0.03
    assert 0.88 <= np.mean(held) <= 1.0


def test_stretches_that_are_not_the_same_are_not_paired(make_run):
    base = read_run(make_run("base"))
    one = replace(base, pieces=pieces(1))
    assert paired.by_text(one, base).bits is None
    assert paired.by_text(one, replace(base, pieces=pieces(2, fingerprint="other"))).bits is None
    assert paired.by_text(one, replace(base, pieces=pieces(2, count=199))).bits is None
    few = replace(base, pieces=pieces(1, count=3))
    assert "too few" in paired.by_text(few, few).source


def test_the_seeds_noise_is_taken_from_the_runs_if_they_show_it(make_run):
    runs = [make_run("a"), make_run("b")]
    facts = [read_facts(read_run(run)) for run in runs]
    known = paired.by_seed(facts)
    assert known.bits == pytest.approx(paired.SEED_SHARE * facts[0].reached.bits_per_byte)
    unplanned = [replace(fact, parameters=None) for fact in facts]  # N from FLOPs and tokens
    assert paired.by_seed(unplanned) == known
    large = [replace(fact, parameters=1e9) for fact in facts]
    assert paired.by_seed(large).bits is None and "--set seed=1" in paired.by_seed(large).source

    other = replace(facts[1].run, config={**facts[1].run.config, "seed": 1})
    reached = replace(facts[1].reached, bits_per_byte=facts[0].reached.bits_per_byte + 0.02)
    found = paired.by_seed([facts[0], replace(facts[1], run=other, reached=reached)])
    assert found.bits == pytest.approx(0.02) and "1 pair of these runs differs in the seed alone" in found.source


def test_a_difference_is_shown_with_the_noise():
    seeds = paired.Chance(0.01, "")
    text = paired.Chance(0.0, "")
    assert paired.Difference(0.015, text, seeds).reading == "no difference shown"
    assert paired.Difference(0.03, text, seeds).reading == "higher"
    assert paired.Difference(-0.03, text, seeds).reading == "lower"
    assert paired.Difference(-0.03, paired.Chance(0.02, ""), seeds).reading == "no difference shown"
    assert "not known" in paired.Difference(-0.03, text, paired.Chance(None, "")).reading


def page(runs: list[Path], tmp_path: Path) -> str:
    return write_report(runs, tmp_path / "page.html").read_text(encoding="utf-8")


def test_the_page_warns_where_runs_are_not_alike(make_run, tmp_path):
    base = make_run("base", config={"model": {"layers": 4, "norm": "rms"}, "runtime": {"dtype": "float32"}})
    assert "Unequal conditions" not in page([base, make_run("same")], tmp_path)
    changed = {
        "config": {"model": {"layers": 4, "norm": {"name": "layer", "eps": 1e-5}}, "runtime": {"dtype": "bfloat16"}},
        "data": {"fingerprint": "other"},
        "plan": {"budget": "10m", "parameters": 430_000},
    }
    shown = page([base, make_run("other", steps=700, **changed)], tmp_path)
    for words in (
        "trained and measured on other text",
        "tokens read 5.73 M, not 9.01 M",
        "computed in bfloat16, not float32",
        "planned for 10m, not 3m",
        "isoflop train --like RUN --set FIELD=VALUE",
        "layer (eps 1e-05)",
    ):
        assert words in shown
    assert "it is stopped" in page([base, make_run("stopped", finished=False)], tmp_path)


def test_samples_are_next_to_each_other(make_run, tmp_path):
    shown = page([make_run("a"), make_run("b", steps=300)], tmp_path)
    assert shown.count('<div class="side">') == 2  # two prompts
    assert shown.count('<pre class="box">') == 4
