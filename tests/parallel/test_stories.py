"""Whole runs of two processes next to those of one: bad steps, and a signal during evaluation (stories.py)."""

import math
from pathlib import Path

import numpy as np
import pytest

from isoflop.config import from_dict, to_dict
from isoflop.data.prepare import open_prepared
from isoflop.job.job import Job
from isoflop.measure import HeldOut
from isoflop.parallel.mesh import ALONE
from isoflop.records import Plan, RunFolder, read_run
from isoflop.report.page import write_report
from isoflop.trainer import RunConfig
from isoflop.trainer.loop import RunResult
from stories import PARTS, STEPS

both = pytest.mark.parametrize("mode", ["ddp", "fsdp"])


def assert_near(one: list, other: list) -> None:
    """The same steps, and the same numbers but for the order of sums (see test_equality.py)."""
    assert [step for step, _ in one] == [step for step, _ in other]
    np.testing.assert_allclose([x for _, x in one], [x for _, x in other], rtol=1e-5)


@both
def test_a_bad_step_in_one_process_is_handled_by_all(one, two, mode):
    """Row 5 of a step, which the second process has, makes the loss no number at step 3 (left out) and a spike at step
    8 (back to step 4, that data passed over). Told in both, with the same words; the weights are the same bits."""
    alone, found = one["trouble none"], two[f"trouble {mode}"]
    assert found["skips"] == alone["skips"]
    assert [line[:3] for line in found["skips"]] == [[3, "non-finite", "skip"], [8, "spike", "rollback"]]
    assert found["passed"] == alone["passed"] == [[7 * 8, 8]] and found["back"] == [[7, 4]]
    assert found["account"] == alone["account"] and found["account"]["rollbacks"] == 1
    assert_near(found["losses"], alone["losses"])
    assert [step for step, _ in found["losses"]] == [step for step in range(1, STEPS + 1) if step != 3]
    for name, weight in alone["weights"].items():
        np.testing.assert_allclose(found["weights"][name], weight, atol=1e-5, err_msg=name)
    lines = found["reported"]
    assert lines[0] == lines[1] and len(lines[0]) == 2
    if mode == "ddp":
        assert found["bits"][0] == found["bits"][1]


@both
def test_all_processes_stop_after_the_stated_number_with_one_message(one, two, mode):
    alone, found = one["trouble none"], two[f"trouble {mode}"]
    assert found["last"] == alone["last"] == [0, 4]
    for why in (*alone["why"], *found["why"]):
        assert why.startswith("step 6: loss nan") and "2 bad steps in a row" in why and "step-00000004" in why
    assert len(set(found["why"])) == 1


@both
def test_the_report_of_several_processes_lists_discarded_steps_and_skipped_data(two, groups, mode):
    folder = RunFolder(groups / f"trouble-{mode}-2" / "run")
    config = from_dict(RunConfig, read_run(folder.path).config)
    prepared = open_prepared(Path(read_run(folder.path).data.folder))
    result = RunResult(folder.path, STEPS, 1.0, None, 1.0, 0.0, STEPS * config.tokens_per_step, 1.0)
    job = Job(ALONE, folder, config, prepared, Plan(peak={"float32": 1e10}))
    job.write_result(result, HeldOut(1.0, 1, 1))
    page = write_report([folder.path]).read_text(encoding="utf-8")
    assert "discarded" in page and "skipped after a rollback" in page and "loss nan" in page and "2 processes" in page
    assert to_dict(config)["parallel"]["mode"] == mode


@both
def test_a_signal_to_one_process_cuts_the_evaluation_of_all_short(one, two, mode):
    """It has PARTS parts; what was measured of it is nowhere, and it is made when the run goes on."""
    alone, found = one["signals none"], two[f"signals {mode}"]
    [first, second] = found["ended"]
    assert first == second and first[:2] == [143, 6]  # the same exit code, step and number of parts in both
    assert first[2] < PARTS / 4
    cut = found["cut"]
    assert [step for step, _ in cut["losses"]] == list(range(1, 7)) and not cut["heldout"] and not cut["samples"]
    assert_near(found["losses"], alone["losses"])
    assert_near(found["heldout"], alone["heldout"])
    assert [step for step, _ in found["heldout"]] == [6, 12] and found["samples"] == alone["samples"]


@both
def test_a_hook_sees_the_gradients_of_all_processes_and_changes_no_bit(one, two, mode):
    alone, found = one["observed none"], two[f"observed {mode}"]
    for run in (alone, found):
        assert run["bits"][0] == run["bits"][1] and run["losses"][0] == run["losses"][1]
        for (_, by_layer), whole in zip(run["norms"][0], run["whole"], strict=True):
            assert math.hypot(*by_layer) == pytest.approx(whole, rel=1e-5)
    [first, second] = found["norms"]
    assert first == second and [step for step, _ in first] == [1, 2, 3, 4]
    for (_, by_layer), (_, by_layer_alone) in zip(first, alone["norms"][0], strict=True):
        np.testing.assert_allclose(by_layer, by_layer_alone, rtol=1e-4)


def test_a_run_that_does_not_fit_is_refused_by_all_with_a_setting_that_fits(two):
    """By the least that is free on any of them, before anything is written; and that setting is no empty promise."""
    found = two["memory ddp"]
    [message, likewise] = found["why"]
    assert message == likewise and "\n" not in message and not found["there"]
    assert "for each of the 2 processes of a host (parallel.mode = ddp)" in message
    assert message.endswith("use --set parallel.mode=fsdp batch.micro_sequences=1")
    assert found["step"] == 1
