"""A job means the same on another machine: it goes there as text, its data where they are missing, and its result comes
back as if it had been run here. A machine that is lost costs its run, not the claim."""

import contextlib
import json
import os
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from isoflop.cli.app import run as command
from isoflop.config import override
from isoflop.data.config import DataConfig
from isoflop.errors import UserError
from isoflop.lab import cluster, remote
from isoflop.lab.arms import BASE, with_steps
from isoflop.lab.cluster import ATTEMPTS, Cluster
from isoflop.lab.procedures.job import Job
from isoflop.lab.workers import perform
from isoflop.trainer import RunConfig
from isoflop.trainer.task import make_task
from small import write_texts

TINY = ["model.layers=1", "model.d_model=32", "model.heads=1", "model.context=32", "batch.sequences=4"]
IDS = ["model.vocab_size=300", "data.vocab_size=300"]


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    return write_texts(tmp_path_factory.mktemp("remote") / "texts", files=12)


@pytest.fixture
def job(texts, tmp_path, monkeypatch):
    """A job whose data is prepared in this machine's home."""
    monkeypatch.setenv("ISOFLOP_HOME", str(tmp_path / "here"))
    begin = RunConfig(data=DataConfig(sources=(str(texts),)))
    config = with_steps(override(begin, [*BASE, *TINY, *IDS]), 3)
    data = make_task(config).prepare_data(config.data).fingerprint
    return Job("train", config, order=5, data=data, arm="a")


def elsewhere(monkeypatch, tmp_path):
    monkeypatch.setenv("ISOFLOP_HOME", str(tmp_path / "there"))


def never():
    raise AssertionError("the data was there already")


def test_a_run_elsewhere_is_the_same_run_and_its_data_is_sent_once(job, tmp_path, monkeypatch):
    here, text, files = perform(job), remote.to_text(job), remote.packed(job)
    elsewhere(monkeypatch, tmp_path)
    done = remote.read_result(remote.work(text, lambda: files))
    same = {name: value for name, value in done.measured.measures.items() if name != "seconds"}
    assert same == {name: value for name, value in here.measured.measures.items() if name != "seconds"}
    assert done.measured.lists["heldout"] == here.measured.lists["heldout"] and done.machine["torch"]

    words = replace(job, procedure="ngram", options={"order": 2})
    assert remote.read_result(remote.work(remote.to_text(words), never)).measured.measures["bits_per_byte"] > 0


def test_other_code_and_other_data_are_refused_with_the_machine_s_name(job, tmp_path, monkeypatch):
    asked, files = json.loads(remote.to_text(job)), remote.packed(job)
    with pytest.raises(UserError, match="install the same on all machines"):
        remote.read_result(remote.work(json.dumps({**asked, "code": "older"}), never))

    elsewhere(monkeypatch, tmp_path)
    with pytest.raises(UserError, match="was sent where fffff"):
        remote.read_result(remote.work(remote.to_text(replace(job, data="f" * 64)), lambda: files))
    with pytest.raises(UserError, match="plain names"):
        remote.read_result(remote.work(remote.to_text(replace(job, data="e" * 64)), lambda: {"../x": b""}))


def test_a_diverged_run_s_infinite_loss_comes_back(monkeypatch, job):
    lost = replace(job, procedure="train")
    monkeypatch.setattr(
        remote,
        "perform",
        lambda job, trusted: SimpleNamespace(measured=remote.Measured({"x": 1e999}, {}, True), seconds=1.0),
    )
    done = remote.read_result(remote.work(remote.to_text(lost), never))
    assert done.measured.diverged and done.measured.measures["x"] == float("inf")


class RayError(Exception):
    pass


class RayTaskError(RayError):
    pass


class WorkerCrashedError(RayError):
    pass


class Ray:
    """As much of Ray as the lab uses, in this process: tasks run when their result is fetched.

    Args:
        losses: how many of the first tasks lose their worker.
        gone: all machines leave while the first task runs.
    """

    exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)

    def __init__(self, losses=0, processors=2.0, there=True, gone=False):
        self.losses, self.processors, self.there, self.gone = losses, processors, there, gone
        self.stopped, self.most = False, 0

    def init(self, address, **options):
        if not self.there:
            raise ConnectionError("Could not find any running Ray instance.\nSee the manual.")

    def cluster_resources(self):
        return {"CPU": self.processors, "memory": 1e9}

    def remote(self, num_cpus, max_retries):
        assert (num_cpus, max_retries) == (1, 0)
        return lambda function: SimpleNamespace(remote=lambda *words: lambda: function(*words))

    def wait(self, references, num_returns, timeout):
        self.most = max(self.most, len(references))
        if self.gone:
            self.processors = 0.0
            return [], references
        return references[:num_returns], references[num_returns:]

    def put(self, value):
        return lambda: value

    def get(self, reference):
        if self.losses:
            self.losses -= 1
            raise WorkerCrashedError
        return reference()

    def shutdown(self):
        self.stopped = True


def with_ray(monkeypatch, **options):
    ray = Ray(**options)
    monkeypatch.setitem(sys.modules, "ray", ray)
    return ray


def test_a_lost_worker_s_run_is_run_again(job, monkeypatch):
    ray, told, found = with_ray(monkeypatch, losses=2), [], {}
    jobs = [replace(job, procedure="ngram", options={"order": order}, arm=f"a{order}") for order in (1, 2)]
    with Cluster("auto", say=told.append) as pool:
        assert pool.at_once == 2
        pool.run(iter(jobs), lambda job, performed: found.update({job.arm: performed}))
    assert found.keys() == {"a1", "a2"} and ray.stopped and ray.most == 2
    assert len(told) == 2 and all("run again" in line and "WorkerCrashedError" in line for line in told)

    with_ray(monkeypatch, losses=ATTEMPTS)
    with Cluster("auto", count=1, say=told.append) as pool, pytest.raises(UserError, match="lost 3 times"):
        pool.run(iter(jobs[:1]), lambda job, performed: None)
    with_ray(monkeypatch, gone=True)
    with Cluster("auto") as pool, pytest.raises(UserError, match="no processors left"):
        pool.run(iter(jobs[:1]), lambda job, performed: None)


def test_what_is_missing_for_ray_is_said_in_one_line(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "ray", None)  # not installed
    assert command(["lab", "run", "worked", "--ray", "auto"]) == 2  # what claim it is does not matter yet
    assert command(["lab", "run", "normalise", "--ray", "auto"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and cluster.INSTALL in said[1]

    with_ray(monkeypatch, there=False)
    assert command(["lab", "run", "normalise", "--ray", "10.0.0.1:6379"]) == 2
    [said] = capsys.readouterr().err.splitlines()
    assert "10.0.0.1:6379" in said and "ray start --head" in said
    with_ray(monkeypatch, processors=0.0)
    assert command(["lab", "run", "normalise", "--ray", "auto"]) == 2
    assert "no processors" in capsys.readouterr().err
    assert not (tmp_path / "lab").exists()


def test_a_claim_runs_on_a_cluster_as_it_does_here(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    ray = with_ray(monkeypatch)
    assert command(["lab", "run", "normalise", "--ray", "auto"]) == 10
    assert ray.stopped and "normalise" in capsys.readouterr().out
    [line] = (tmp_path / "lab" / "normalise" / "fixed.jsonl").read_text().splitlines()
    assert json.loads(line)["command"] == "isoflop lab run normalise"


def workers_below(pid):
    """Ray's workers that run a task, among the descendants of a process."""
    parents, names = {}, {}
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parents[int(path.name)] = int(path.joinpath("stat").read_text().rpartition(")")[2].split()[1])
            names[int(path.name)] = path.joinpath("cmdline").read_bytes().partition(b"\0")[0]

    def is_below(one):
        while one in parents and one != pid:
            one = parents[one]
        return one == pid

    return [one for one, name in names.items() if name.startswith(b"ray::task") and is_below(one)]


@pytest.mark.slow  # a real cluster of two processors takes half a minute to start
def test_ray_itself_runs_jobs_and_a_killed_worker_costs_its_run_only(job, monkeypatch):
    pytest.importorskip("ray")
    here = str(Path(__file__).parents[2])  # the workers' isoflop is this one
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([here, os.environ.get("PYTHONPATH", "")]))
    told, found, killed = [], [], []
    long = with_steps(job.config, 300)
    jobs = [replace(job, config=long, order=order) for order in range(3)]

    def kill_one():
        while not (running := workers_below(os.getpid())):
            time.sleep(0.2)
        os.kill(running[0], signal.SIGKILL)
        killed.append(running[0])

    with Cluster("local", count=2, say=told.append) as pool:
        killer = threading.Thread(target=kill_one, daemon=True)
        killer.start()
        pool.run(iter(jobs), lambda job, performed: found.append(performed))
    assert killed and len(told) == 1 and "run again" in told[0]
    assert [one.measured.measures["tokens"] for one in found] == [float(long.tokens)] * 3
