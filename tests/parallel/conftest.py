"""Groups of processes that several test files use. Each group is started once and does everything the tests need."""

import json

import pytest
from safetensors.numpy import load_file

import forks
from members import CASES
from small import write_texts

LIMIT = 600  # seconds for all that a group does


def run_group(folder, size, asked, code=0):
    """Start a group; returns the output of its first process."""
    words = [word for case, modes in asked.items() for word in (case, modes)]
    home = {"ISOFLOP_HOME": str(folder.parent / "home")}
    processes = forks.start_group("members.main", str(folder.parent), *words, size=size, folder=folder, **home)
    for process in processes:
        process.join(LIMIT)
        if process.is_alive():
            process.kill()
    errors = [(folder / f"rank-{rank}.err").read_text() for rank in range(size)]
    assert [process.exitcode for process in processes] == [code] * size, "".join(text[-3000:] for text in errors)
    printed = [(folder / f"rank-{rank}.out").read_text() for rank in range(size)]
    assert printed[0] and not any(printed[1:]), "".join(text[-3000:] for text in errors)  # the first one alone talks
    found = json.loads(printed[0])
    for name, arrays in found.items():
        file = folder.parent / f"{name} {size}.safetensors"
        for kind in ("gradients", "weights") if file.exists() else ():
            tensors = load_file(file).items()
            arrays[kind] = {key.partition(" ")[2]: tensor for key, tensor in tensors if key.startswith(kind)}
    return found


@pytest.fixture(scope="session")
def groups(tmp_path_factory):
    folder = tmp_path_factory.mktemp("groups")
    write_texts(folder / "texts")
    return folder


@pytest.fixture(scope="session")
def one(groups):
    alone = [*(case for case in CASES if case != "experts"), "trouble", "signals", "observed"]
    return run_group(groups / "one", 1, dict.fromkeys(alone, "none"))


@pytest.fixture(scope="session")
def two(groups):
    """Its last act is that its second process hangs, and both end with 1."""
    alike = dict.fromkeys([*CASES, "trouble", "signals", "observed"], "ddp,fsdp")
    return run_group(groups / "two", 2, {**alike, "memory": "ddp", "state": "fsdp", "hang": "ddp"}, code=1)


@pytest.fixture(scope="session")
def four(groups):
    return run_group(groups / "four", 4, {"muon": "ddp,fsdp,hsdp"})
