import os

import pytest

from isoflop.config import override, to_dict
from isoflop.errors import UserError
from isoflop.files import write_json
from isoflop.job.distributed import was_restarted
from isoflop.parallel.config import ParallelConfig
from isoflop.parallel.launch import joined, read_environment
from isoflop.parallel.mesh import ALONE, Group
from isoflop.records import RunFolder
from isoflop.trainer.config import RunConfig
from isoflop.trainer.processes import agree, check_world


@pytest.mark.parametrize(
    ("mode", "size", "hosts", "replicas", "expected"),
    [
        ("auto", 1, 1, 0, ("none", 1)),
        ("none", 1, 1, 0, ("none", 1)),
        ("auto", 8, 1, 0, ("ddp", 8)),
        ("fsdp", 8, 2, 0, ("fsdp", 1)),
        ("hsdp", 8, 2, 0, ("hsdp", 2)),
        ("hsdp", 8, 1, 4, ("hsdp", 4)),
    ],
)
def test_the_mode_follows_from_the_processes(mode, size, hosts, replicas, expected):
    assert ParallelConfig(mode=mode, replicas=replicas).resolve(size, hosts) == expected


@pytest.mark.parametrize(
    ("set_", "size", "says"),
    [
        (["parallel.mode=fsdp"], 1, "torchrun"),
        (["parallel.mode=none"], 2, "there are 2"),
        (["parallel.mode=hsdp", "parallel.replicas=3"], 4, "does not divide the 4"),
        (["parallel.mode=hsdp", "parallel.replicas=4"], 4, "parallel.mode = ddp"),
        (["parallel.mode=hsdp"], 4, "parallel.mode = fsdp"),  # one host
        (["parallel.replicas=2"], 4, "is for parallel.mode = hsdp"),
        (["batch.sequences=6"], 4, "--set batch.sequences=8"),
        (["batch.sequences=8", "batch.ramp_from=2", "batch.ramp_sequences=20"], 4, "batch.ramp_from = 2"),
        (["batch.sequences=12", "batch.micro_sequences=4"], 2, "does not divide the 6"),
        (["model.norm=batch"], 2, "'batch' takes statistics"),
    ],
)
def test_invalid_settings_are_refused_in_one_line(set_, size, says):
    with pytest.raises(UserError) as error:
        check_world(override(RunConfig(), set_), Group(0, size, 0, size))
    assert says in str(error.value) and "\n" not in str(error.value)


def test_values_out_of_range_are_refused():
    for set_ in ("parallel.timeout=0", "parallel.timeout=nan", "parallel.replicas=-1", "parallel.mode=tensor"):
        with pytest.raises(UserError, match=set_.partition("=")[0]):
            override(RunConfig(), [set_])


def test_one_process_needs_no_communication(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    with joined() as group:
        assert group.alone and group.first
        assert group.broadcast({"a": 1}) == {"a": 1} and group.gather(3) == [3] and group.all_max([4, 0]) == [4, 0]
        assert group.order([1]) == [1] and group.device("cuda") == "cuda" and group.threads(8) == 8
        assert agree(group, 15, None) == (15, None)


def test_the_environment_gives_rank_and_host():
    assert read_environment({}) == {}
    variables = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "GROUP_RANK": "1"}
    group = Group(**read_environment({**variables, "TORCHELASTIC_RUN_ID": "job", "TORCHELASTIC_RESTART_COUNT": "2"}))
    assert (group.rank, group.size, group.local_rank, group.hosts, group.node) == (5, 8, 1, 2, 1)
    assert (group.launch, group.restarts) == ("job", 2)
    assert not group.first and group.threads(16) == 4 and group.device("cuda") == "cuda:1"
    for wrong in ({"RANK": "x"}, {"RANK": "8"}):
        with pytest.raises(UserError, match="torchrun"):
            read_environment({**variables, **wrong})


def test_without_torchrun_there_is_one_process():
    assert ALONE.alone and "RANK" not in os.environ


@pytest.mark.parametrize("started", [False, True], ids=["killed before its first event", "killed later"])
def test_a_run_restarted_by_torchrun_is_recognised(tmp_path, started):
    folder = RunFolder(tmp_path)
    write_json(folder.environment, {"launch": "job"})
    write_json(folder.config, to_dict(RunConfig()))
    if started:
        folder.event("started", step=0, launch="job")
    assert was_restarted(Group(0, 2, launch="job", restarts=1), folder)
    assert not was_restarted(Group(0, 2, launch="another", restarts=1), folder)
    assert not was_restarted(Group(0, 2), folder)  # no torchrun: somebody named a folder that is in use
