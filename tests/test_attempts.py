"""A run that is planned again: when it is, and that a kill at any moment leaves one attempt to resume."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from isoflop import files
from isoflop.budget import parse_budget
from isoflop.config import override
from isoflop.errors import UserError
from isoflop.job import attempts, start
from isoflop.parallel.mesh import ALONE
from isoflop.plan import replan
from isoflop.plan.advice import Facts
from isoflop.plan.asked import Asked
from isoflop.plan.planner import finalize, propose
from isoflop.plan.predictability import Predictability
from isoflop.processors import Load
from isoflop.records import RunFolder, read_run
from isoflop.trainer import RunConfig, throughput
from isoflop.trainer.causal_lm import TextWorkload
from isoflop.trainer.throughput import Throughput
from isoflop.trainer.workload import Text

WORKLOAD = TextWorkload(Text(2e7, b""))
PEAK = {"float32": 5e10, "bfloat16": 1e9}
SMALL = ["model.context=32", "runtime.threads=1", "runtime.dtype=float32", "data.vocab_size=300", "batch.sequences=4"]


@pytest.fixture
def timed(monkeypatch):
    """Fake timings next to another program: a thirtieth of the speed."""

    def answer(configs, *_, **__):
        rates = [PEAK["float32"] / 75 / WORKLOAD.flops_per_token(config) for config in configs]
        return [Throughput(c.tokens_per_step / r, r, 10, "busy") for c, r in zip(configs, rates, strict=True)]

    monkeypatch.setattr(throughput, "time_in_turns", answer)
    monkeypatch.setattr("isoflop.plan.ceiling.measure_peak", lambda device: dict(PEAK))


def advice(budget="120s"):
    proposal = propose(parse_budget(budget), RunConfig(), WORKLOAD, Asked(()))
    found = finalize(proposal, Facts(2_000_000, proposal.vocabulary, 2.5))
    return replace(found, text=Predictability(2.4, 2.4))


def planned_speed(plan):
    return next(one.tokens_per_second for one in plan.candidates if one.chosen)


def test_a_run_at_the_planned_speed_continues(timed):
    plan = advice()
    for factor in (0.8, 1.0, 1.25):
        assert replan.outlook(plan, factor * planned_speed(plan), 1e4, 55.0) is None


@pytest.mark.parametrize("factor", [30.0, 100.0])
def test_a_run_far_faster_than_planned_is_planned_again(timed, factor):
    plan = advice()
    found = replan.outlook(plan, factor * planned_speed(plan), 1e4, 55.0)
    assert found is not None and found.replanned < found.continued


def test_unused_threads_are_a_reason_to_plan_again(timed):
    plan = advice()
    assert replan.outlook(plan, planned_speed(plan), 1e4, 55.0, 1.2) is None
    found = replan.outlook(plan, planned_speed(plan), 1e4, 55.0, 2.0)
    assert found is not None and found.replanned < found.continued


def few_threads(doubt="other programs used 1.5 processors", threads=1, device="cpu"):
    plan = advice()
    config = replace(plan.config, runtime=replace(plan.config.runtime, threads=threads, device=device))
    return replace(plan, config=config, calibration=plan.calibration.updated(doubt=doubt))


def test_threads_are_timed_again_only_if_few_were_chosen_on_a_busy_machine(timed, monkeypatch):
    monkeypatch.setattr(replan.processors, "cores", lambda: 4)
    assert replan.may_have_too_few_threads(few_threads())
    assert not replan.may_have_too_few_threads(few_threads(doubt=None))
    assert not replan.may_have_too_few_threads(few_threads(threads=4))
    assert not replan.may_have_too_few_threads(few_threads(device="cuda:0"))


def test_timing_threads_keeps_the_runs_threads_and_random_state(monkeypatch):
    config = override(RunConfig(), [*SMALL, "runtime.device=cpu", "model.layers=1", "model.d_model=32"])
    monkeypatch.setattr(replan.processors, "cores", lambda: 2)
    torch.manual_seed(5)
    expected = torch.rand(3).tolist()
    torch.manual_seed(5)
    threads = torch.get_num_threads()
    assert 0 < replan.speedup_of_all_threads(config, 0.1) < 100
    assert torch.rand(3).tolist() == expected and torch.get_num_threads() == threads


@pytest.mark.parametrize(
    "others, ours, calls",
    [(0.0, True, 1), (1.0, True, 0), (0.0, False, 0)],
    ids=["left alone", "a program next to it", "threads set by the user"],
)
def test_the_threads_are_timed_once_when_the_machine_is_left_alone(timed, monkeypatch, others, ours, calls):
    timings = []
    monkeypatch.setattr(replan.processors, "cores", lambda: 4)
    monkeypatch.setattr(attempts, "speedup_of_all_threads", lambda config, seconds: timings.append(seconds) or 1.7)
    load = Load(1.0, own=1.0, others=others, idle=3.0 - others, stolen=0.0)
    alone = SimpleNamespace(layout=SimpleNamespace(group=ALONE), config=RunConfig(seconds=60.0))
    check = attempts.SpeedCheck(few_threads(), lambda line: None, planned_threads=ours)
    for _ in range(3):
        check.time_threads(alone, load)
    assert timings == [attempts.TRIAL_SHARE * 60.0] * calls and check.gain == (1.7 if calls else 1.0)


def test_with_little_time_left_the_run_continues(timed):
    plan = advice()
    found = replan.outlook(plan, 30 * planned_speed(plan), 55 * 30 * planned_speed(plan), 0.5)
    assert found is not None and found.replanned > found.continued


@pytest.mark.parametrize("budget", ["1e12", "1e6tok", "300steps"])
def test_only_a_budget_in_seconds_may_be_planned_again(timed, budget):
    assert not replan.may_replan(advice(budget))
    assert replan.may_replan(advice())


# ---- the switch ----


class Killed(BaseException):
    pass


def first_attempt(path: Path) -> RunFolder:
    folder = RunFolder(path)
    for name, text in {
        "plan.json": '{"steps": 1}',
        "environment.json": '{"peak": {"float32": 1.0}}',
        "data.json": "{}",
        "tokenizer.json": "old",
        "metrics.jsonl": '{"step": 1}\n',
        "events.jsonl": '{"event": "started"}\n{"event": "abandoned"}\n',
        "checkpoints/step-00000001/model.safetensors": "weights",
        ".lock": "",
        "config.json": '{"attempt": 1}',
    }.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(text)
    return folder


def next_attempt(folder: RunFolder) -> None:
    with files.new_folder(folder.attempts / "next") as path:
        for name in ("plan.json", "environment.json", "data.json", "tokenizer.json", "events.jsonl"):
            (path / name).write_text(f"new {name}")
        (path / "config.json").write_text('{"attempt": 2}')


def kill_after(monkeypatch, operations: int) -> None:
    """From now on the process dies before it changes the disk for the (operations + 1)-th time."""
    left = [operations]

    def counted(name, original):
        def operation(*args, **kwargs):
            if left[0] == 0:
                raise Killed(name)
            left[0] -= 1
            return original(*args, **kwargs)

        return operation

    for owner, name in ((Path, "replace"), (Path, "mkdir"), (attempts, "write_text"), (attempts.shutil, "rmtree")):
        monkeypatch.setattr(owner, name, counted(name, getattr(owner, name)))


def test_a_kill_at_any_write_leaves_one_attempt(tmp_path):
    for operations in range(60):
        path = tmp_path / str(operations)
        folder = first_attempt(path)
        next_attempt(folder)
        with pytest.MonkeyPatch.context() as patch:
            kill_after(patch, operations)
            try:
                attempts.switch_to_next_attempt(folder)
                finished = True
            except Killed:
                finished = False
        assert (path / "config.json").is_file()  # at every moment it is a run
        attempts.switch_to_next_attempt(folder)  # what resuming does first
        assert json.loads((path / "config.json").read_text()) == {"attempt": 2}
        assert not (folder.attempts / "next").exists()
        kept = folder.attempts / "1"
        assert json.loads((kept / "config.json").read_text()) == {"attempt": 1}
        assert (kept / "tokenizer.json").read_text() == "old" and (kept / "metrics.jsonl").is_file()
        assert (kept / "checkpoints" / "step-00000001" / "model.safetensors").read_text() == "weights"
        assert (path / "tokenizer.json").read_text() == "new tokenizer.json"
        assert (path / "events.jsonl").read_text() == "new events.jsonl"
        assert not (path / "metrics.jsonl").exists() and not (path / "checkpoints").exists()
        if finished:
            assert operations > 10
            return
    raise AssertionError("it never came to an end")


def test_until_the_next_attempt_is_complete_the_first_one_is_resumed(tmp_path):
    folder = first_attempt(tmp_path)
    (folder.attempts / ".next.0123abcd.tmp").mkdir(parents=True)  # what a kill leaves of it
    attempts.switch_to_next_attempt(folder)
    assert json.loads(folder.config.read_text()) == {"attempt": 1} and (tmp_path / "metrics.jsonl").is_file()


# ---- whole runs ----


@pytest.fixture
def words(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("\n\n".join(f"{n} the lamp near the river holds {n * n} letters of {n % 7}" for n in range(4000)))
    return path


@pytest.fixture
def restless(timed, monkeypatch):
    """Checks after every step, and always decides to plan again."""
    monkeypatch.setattr(attempts, "CHECK_INTERVAL", 0.0)
    monkeypatch.setattr(attempts, "STEADY_RATIO", math.inf)
    monkeypatch.setattr(attempts, "FROM", 0.0)
    monkeypatch.setattr(attempts, "UNTIL", 1.0)
    monkeypatch.setattr(attempts, "outlook", lambda *_: replan.Outlook(continued=2.0, replanned=1.0))


def test_a_run_is_planned_again_once_and_keeps_its_first_attempt(words, tmp_path, restless):
    messages = []
    listener = start.Listener(say=messages.append)
    result = start.pretrain([str(words)], "3s", tmp_path / "run", assignments=SMALL, listener=listener)
    run = read_run(tmp_path / "run")
    assert run.status == "finished" and result.step == run.result.step
    assert sum("starts again" in line for line in messages) == 1
    kept = read_run(tmp_path / "run" / "attempts" / "1")
    assert [event.event for event in kept.events][-1] == "abandoned"
    assert [event.event for event in run.events][:1] == ["restarted"]
    assert "starts again" in run.events[0].reason
    assert run.config["seconds"] < kept.config["seconds"] == 3.0
    assert run.result.phases["abandoned"] == pytest.approx(3.0 - run.config["seconds"], abs=0.01)
    assert "restarted" in (tmp_path / "run" / "report.html").read_text()


def test_a_kill_while_replanning_leaves_one_attempt_to_resume(words, tmp_path, restless, monkeypatch):
    monkeypatch.setattr(start, "switch_to_next_attempt", lambda folder: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        start.pretrain([str(words)], "3s", tmp_path / "run", assignments=SMALL)
    assert (tmp_path / "run" / "attempts" / "next" / "config.json").is_file()
    start.resume(tmp_path / "run")
    run = read_run(tmp_path / "run")
    assert run.status == "finished" and (tmp_path / "run" / "attempts" / "1" / "config.json").is_file()
    assert run.config["seconds"] < 3.0


def test_with_too_little_left_for_another_plan_the_run_continues(words, tmp_path, restless, monkeypatch):
    plans = iter([start.plan])

    def planned(*args):
        for plan in plans:
            return plan(*args)
        raise UserError("budget '2s' is too small")

    monkeypatch.setattr(start, "plan", planned)
    messages = []
    listener = start.Listener(say=messages.append)
    start.pretrain([str(words)], "2s", tmp_path / "run", assignments=SMALL, listener=listener)
    run = read_run(tmp_path / "run")
    assert run.status == "finished" and not (tmp_path / "run" / "attempts").exists()
    assert any("continues with its first plan" in line for line in messages)
    assert run.config["seconds"] == 2.0 and "abandoned" not in run.result.phases


@pytest.mark.parametrize("asked", ["model.layers=1"])
def test_a_shape_set_by_the_user_is_kept(words, tmp_path, restless, asked):
    start.pretrain([str(words)], "1s", tmp_path / "run", assignments=[*SMALL, asked])
    assert not (tmp_path / "run" / "attempts").exists()


TOGETHER = """
import math, sys
from isoflop.job import attempts, start
from isoflop.plan import replan
from isoflop.trainer import throughput

def answer(configs, *_, **__):
    rates = [2e4 * 32 / config.model.d_model for config in configs]
    return [throughput.Throughput(c.tokens_per_step / r, r, 10, "busy") for c, r in zip(configs, rates)]

throughput.time_in_turns = answer
attempts.CHECK_INTERVAL, attempts.FROM, attempts.UNTIL, attempts.STEADY_RATIO = 0.0, 0.0, 1.0, math.inf
attempts.outlook = lambda *_: replan.Outlook(continued=2.0, replanned=1.0)
small = ["model.context=32", "runtime.threads=2", "runtime.dtype=float32", "data.vocab_size=300", "batch.sequences=4"]
start.pretrain([sys.argv[1]], "4s", sys.argv[2], assignments=small)
"""


def test_all_processes_leave_together_and_get_the_new_plan(words, tmp_path):
    (tmp_path / "together.py").write_text(TOGETHER)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command = [*torchrun, str(tmp_path / "together.py"), str(words), str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    run, kept = read_run(tmp_path / "run"), read_run(tmp_path / "run" / "attempts" / "1")
    assert run.status == "finished" and run.config["seconds"] < kept.config["seconds"] == 4.0
    began = [event.processes for event in [*kept.events, *run.events] if event.processes is not None]
    assert began == [2, 2]
