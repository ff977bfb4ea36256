"""The recipes that start processes on other machines. Tests that need submitit are skipped without it."""

import importlib.util
from pathlib import Path

import pytest

from isoflop.parallel.launch import read_environment

RECIPES = Path(__file__).parents[1] / "recipes"


def recipe(name):
    spec = importlib.util.spec_from_file_location(name, RECIPES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_sweep_has_every_combination():
    found = recipe("sweep").settings(["optim.lr=1e-3,3e-3", "seed=0", "model.norm=rms,layer"])
    assert found == [
        ["optim.lr=1e-3", "seed=0", "model.norm=rms"],
        ["optim.lr=1e-3", "seed=0", "model.norm=layer"],
        ["optim.lr=3e-3", "seed=0", "model.norm=rms"],
        ["optim.lr=3e-3", "seed=0", "model.norm=layer"],
    ]


def test_a_slurm_task_has_torchruns_environment(monkeypatch):
    """The fourth of four tasks on two nodes, in a job that Slurm has put back once and submitit once."""
    submitit = pytest.importorskip("submitit")
    environment = {
        "SLURM_JOB_ID": "4711",
        "SLURM_NTASKS": "4",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_NODEID": "1",
        "SLURM_PROCID": "3",
        "SLURM_LOCALID": "1",
        "SLURM_JOB_NODELIST": "a[01-02]",
        "SLURM_RESTART_COUNT": "1",
        "SUBMITIT_EXECUTOR": "slurm",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    place = recipe("slurm").place(1)
    assert submitit.JobEnvironment().hostnames == ["a01", "a02"]
    assert place["MASTER_ADDR"] == "a01" and 1024 < int(place["MASTER_PORT"]) < 65536
    assert read_environment(place) == {
        "rank": 3,
        "size": 4,
        "local_rank": 1,
        "local_size": 2,
        "node": 1,
        "launch": "slurm-4711",
        "restarts": 2,
    }
