"""From runs on record to a law that later plans find."""

import json
import math
from dataclasses import replace

import pytest

from isoflop.cli.app import run as command
from isoflop.data.config import DataConfig
from isoflop.files import home
from isoflop.ladder import fit
from isoflop.ladder.fit import climbed, points_of, seed_noise, usable
from isoflop.ladder.page import figures
from isoflop.plan import fitted
from isoflop.plan.asked import NOTHING, Asked
from isoflop.plan.settings import with_rates
from isoflop.records.ladder import LadderRun
from isoflop.trainer import RunConfig
from isoflop.trainer.causal_lm import TextWorkload
from isoflop.trainer.workload import Text
from ladders import LAW, NOISE, UNIQUE, law_runs

SAMPLES = 200


@pytest.fixture(scope="module")
def known():
    return climbed(law_runs(), SAMPLES)


def config(**changes) -> RunConfig:
    return with_rates(RunConfig(data=DataConfig(vocab_size=2048), **changes))


def kept(found, fingerprint: str = "f" * 64, text: str = "t" * 16, of: RunConfig | None = None):
    made = of or config()
    about = fit.about(found, made, text=text, fingerprint=fingerprint, corpus="books", unique_tokens=UNIQUE)
    return fit.keep(found, about, made)


def test_a_known_law_is_found_again_and_predicts_ten_times_the_compute(known):
    law = known.study.fitted.law
    assert law.alpha == pytest.approx(LAW.alpha, abs=0.1) and pytest.approx(LAW.E, abs=0.4) == law.E
    assert known.noise == pytest.approx(NOISE, rel=0.8) and known.transfer.holds
    stored = kept(known)
    flops = 10 * stored.largest
    n = float(LAW.n_star(flops))
    d = flops / 6 / n
    one = stored.expect(n, d, math.inf)
    truth = float(LAW.loss(n, d))
    assert one.bits_per_byte == pytest.approx(truth, rel=0.02) and one.low < truth < one.high
    assert [interval.level for interval in one.intervals] == [0.5, 0.8, 0.9]
    widths = [interval.high - interval.low for interval in one.intervals]
    assert widths == sorted(widths) and "10 times the compute" in one.source
    best = float(LAW.n_star(stored.largest))
    near = stored.expect(best, stored.largest / 6 / best, math.inf)
    assert near.high - near.low < one.high - one.low


def test_other_rates_and_runs_that_diverged_are_observations_and_not_points(known):
    lost = LadderRun(key="x", role="rate", parameters=10, tokens=10, flops=600.0, factor=2.0, diverged=True)
    assert len(usable([*law_runs(), lost])) == len(usable(law_runs())) < len(law_runs())
    assert len(known.used) == len(usable(law_runs()))
    again = climbed([*law_runs(), replace(lost, parameters=known.used[0].parameters, seed=9)], 50)
    assert len(again.diverged) == 1 and len(again.used) == len(known.used)


def test_text_that_is_repeated_counts_for_what_it_is_worth():
    few = 3 * 10**6
    made = law_runs(noise=1e-4, unique=few)
    points = points_of(usable(made))
    assert points.d.max() < max(run.tokens for run in made)
    found = climbed(made, 50)
    assert found.study.fitted.law.alpha == pytest.approx(LAW.alpha, abs=0.05)
    assert fit.about(found, config()).repeated


def test_seeds_without_repeats_say_nothing():
    assert math.isnan(seed_noise([run for run in law_runs() if run.role == "rung"]))


def test_a_law_is_found_by_its_text_its_data_and_its_recipe_alone(known):
    workload = TextWorkload(Text(1e6, b"a sample"))
    text = fitted.text_key(workload)
    stored = kept(known, text=text)
    assert stored.path.parent == home() / fitted.FOLDER

    laws = fitted.known(workload, config())
    assert [one.key for one in laws] == [stored.key]
    assert fitted.holding(laws, "f" * 64, config()).key == stored.key
    assert fitted.holding(laws, "0" * 64, config()) is None
    assert fitted.known(TextWorkload(Text(1e6, b"another")), config()) == ()
    other = replace(config(), optim=replace(config().optim, name="adamw"))
    assert fitted.known(workload, other) == ()
    fast = with_rates(replace(config(), optim=replace(config().optim, lr=0.05)), Asked.of(["optim.lr=0.05"]))
    assert fitted.holding(laws, "f" * 64, fast) is None
    wide = replace(config(), model=replace(config().model, d_model=256, heads=4))
    rates = replace(RunConfig(), model=wide.model, data=wide.data)
    assert fitted.holding(laws, "f" * 64, with_rates(rates)).key == stored.key

    # a plan takes its tokenizer, unless that is far from what it would choose or one is asked for
    assert fitted.nearest(laws, 4096, NOTHING) is laws[0] and fitted.nearest(laws, 8192, NOTHING) is None
    assert fitted.nearest(laws, 4096, Asked.of(["data.vocab_size=4096"])) is None


def test_a_damaged_law_is_said_and_passed_over(known):
    workload = TextWorkload(Text(1e6, b"a sample"))
    stored = kept(known, text=fitted.text_key(workload))
    stored.path.write_text(stored.path.read_text(encoding="utf-8")[:-400], encoding="utf-8")
    told: list[str] = []
    assert fitted.known(workload, config(), told.append) == () and fitted.of_key(stored.key) is None
    assert len(told) == 1 and "damaged" in told[0] and "isoflop ladder" in told[0]


def test_plan_predict_reads_it(known, capsys):
    stored = kept(known)
    assert command(["plan", "predict", str(stored.path), "--budget", "1e16", "--json"]) == 0
    one = json.loads(capsys.readouterr().out)["budgets"][0]
    assert one["loss"]["value"] == pytest.approx(float(LAW.loss_star(1e16)), rel=0.03)


def test_its_figures_are_drawn(known):
    drawn = figures(known, kept(known), ())
    assert set(drawn) == {"isoflop", "frontier", "size"}
    assert all(svg.startswith("<svg") and "nan" not in svg for svg in drawn.values())
