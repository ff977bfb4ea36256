"""From several sizes of a claim to a larger one, with one irreducible loss or two."""

import json
from dataclasses import replace

import numpy as np
import pytest

from isoflop.cli.app import run as command
from isoflop.lab import arms as making
from isoflop.lab import trend
from isoflop.lab.procedures.job import Measured
from isoflop.lab.procedures.table import PROCEDURES
from isoflop.lab.trend import EXPONENTS, ahead, fit
from small import write_texts

FLOPS = np.array([[1e11, 6e11, 4e12]] * 2)


def losses(levels, scales, exponent, flops=FLOPS):
    return np.array([e + a * (c / 4e12) ** -exponent for e, a, c in zip(levels, scales, flops, strict=True)])


def pairs_of(means, noise, count=8, seed=0):
    generator = np.random.default_rng(seed)
    return [mean + generator.normal(0.0, noise, count) for mean in means]


@pytest.mark.parametrize("exponent", [0.1, 0.25, 0.6])
def test_a_fit_recovers_the_constants(exponent):
    tied = fit(FLOPS, losses((1.0, 1.0), (0.5, 0.6), exponent), tied=True)
    assert tied.exponent == pytest.approx(exponent, rel=0.02) and tied.error < 1e-4
    assert tied.irreducible == pytest.approx((1.0, 1.0), abs=0.03)
    untied = fit(FLOPS, losses((1.0, 1.2), (0.5, 0.4), exponent), tied=False)
    assert untied.irreducible == pytest.approx((1.0, 1.2), abs=0.03) and untied.at(0, 4e12) == pytest.approx(1.5)


def test_fitted_constants_are_within_their_bounds():
    generator = np.random.default_rng(1)
    for _ in range(10):
        law = fit(FLOPS, generator.uniform(1.0, 3.0, (2, 3)), tied=bool(generator.integers(2)))
        assert min(*law.irreducible, *law.scale) >= 0.0
        assert EXPONENTS[0] <= law.exponent * 1.0001 and law.exponent <= EXPONENTS[1] * 1.0001


def test_tied_and_untied_laws_may_disagree_at_a_larger_size(monkeypatch):
    """The arm is worse at all sizes that were run, and better in the limit: only two irreducible losses see that."""
    monkeypatch.setattr(trend, "SAMPLES", 60)
    means = losses((0.9, 1.0), (0.65, 0.5), 0.3)
    arm, against = pairs_of(means[0], 1e-3, seed=1), pairs_of(means[1], 1e-3, seed=2)
    tied, untied = (ahead(FLOPS, arm, against, one) for one in (True, False))
    assert tied.sign == 1 and untied.sign == -1
    assert untied.low < untied.value < untied.high
    with pytest.raises(ValueError, match="3 sizes"):
        ahead(FLOPS[:, :2], arm[:2], against[:2], True)


CLAIM = """
statement = "RMS norm is better."
question = "Is it?"
prediction = "Yes."

[setup]
set = [
    "model.layers=1", "model.d_model=32", "model.heads=1", "model.context=32", "model.vocab_size=300",
    "data.vocab_size=300", "batch.sequences=4",
]
tokens = 2e4
equal = ["flops"]
pairs = 5

[arms.layer]
set = ["model.norm=layer"]

[arms.rms]
set = ["model.norm=rms"]

[[comparisons]]
measure = "bits_per_byte"
arm = "rms"
against = "layer"
expect = "lower"
smallest = 0.01
words = "RMS norm is <better>"

[sizes.middle]
tokens = 1e5
minutes = 30

[full]
tokens = 8e5
"""


@pytest.fixture
def laws(monkeypatch):
    """Runs whose losses follow a law, without training: RMS norm is worse at first and better in the end."""

    def invented(job):
        flops = job.config.flops_per_token * job.config.tokens
        rms = job.config.model.norm.name == "rms"
        e, a = (0.87, 0.65) if rms else (1.0, 0.5)
        noise = np.random.default_rng([job.config.seed, job.order, rms]).normal(0, 1e-3)
        bits = e + a * (flops / 2e11) ** -0.3 + noise
        return Measured({"bits_per_byte": bits, "flops": flops, "tokens": float(job.config.tokens), "seconds": 0.0})

    monkeypatch.setitem(PROCEDURES, "train", replace(PROCEDURES["train"], run=invented))
    monkeypatch.setattr(making, "GLANCE", 0.02)
    monkeypatch.setattr(trend, "SAMPLES", 60)


def test_full_runs_all_sizes_and_reports_the_trend(tmp_path, monkeypatch, capsys, laws):
    monkeypatch.chdir(tmp_path)
    texts = write_texts(tmp_path / "texts", files=12)
    (tmp_path / "grows.toml").write_text(CLAIM, encoding="utf-8")
    words = ["lab", "run", "grows.toml", str(texts), "--workers", "0"]
    code = command([*words, "--full", "--json"])
    told = capsys.readouterr()
    said = json.loads(told.out)
    assert code == said["exit_code"] == 11 and said["claim"] == "grows-full"
    assert "3 sizes, the smallest first, up to 1.5 h in all" in told.err and "size 2 of 3: grows-middle" in told.err

    page = (tmp_path / "lab" / "grows-full" / "report.html").read_text(encoding="utf-8")
    assert "From size to size" in page and "shrinks" in page
    assert "RMS norm is &lt;better&gt; at 10 times the compute depends on" in page
    assert command(["lab", "report", "grows"]) == 0
    small = (tmp_path / "lab" / "grows" / "report.html").read_text(encoding="utf-8")
    assert "From size to size" in small and "--full" in page
