"""The modules that a reader enters who follows a command, call by call, to a run's first step.

    python tests/campaigns/call_path.py                  the working tree
    python tests/campaigns/call_path.py d4dffcd          a commit next to the working tree
    python tests/campaigns/call_path.py --show           and the modules themselves, in the order of their first call

Two walks: `isoflop train TEXT --budget 20s` from the command line to the first step, and `isoflop train --resume RUN`
likewise. Each version runs in its own processes under sys.setprofile, which sees every call. Two numbers are printed
per walk, for the layers that decide something (command line, jobs, planner, trainer) and, in brackets, for the whole
package:

    modules   the number of modules entered, which is the number of files that a reader opens
    returns   how often the next module is entered from a higher layer (of pyproject.toml) than that of the module read
              last, so that the reader has to go back up
"""

import argparse
import importlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
DECIDING = ("__main__", "cli", "screen", "recipe", "job", "plan", "trainer", "report")
TEXT = "Of the making of many books there is no end, and much study is a weariness of the flesh. "
SMALL = ["model.layers=1", "model.d_model=32", "model.heads=1", "batch.sequences=8", "runtime.threads=1"]
QUIET = ["every.evaluate=0", "every.sample=0", "every.checkpoint=4", "data.workers=1"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit", nargs="*", help="commits to compare with the working tree")
    parser.add_argument("--show", action="store_true", help="list the modules")
    parser.add_argument("--walk", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.walk:
        print(json.dumps(walk(given.walk)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        for commit in given.commit:
            tree = Path(scratch) / commit
            tree.mkdir()
            archive = subprocess.run(["git", "archive", commit], cwd=ROOT, check=True, capture_output=True).stdout
            subprocess.run(["tar", "-x", "-C", str(tree)], input=archive, check=True)
            report(commit, tree, Path(scratch) / f"{commit}-runs", given.show)
        report("working tree", ROOT, Path(scratch) / "runs", given.show)


def report(name: str, tree: Path, folder: Path, show: bool) -> None:
    folder.mkdir()
    (folder / "text.txt").write_text("\n".join(f"{number}: {TEXT}" for number in range(3000)), encoding="utf-8")
    run = ["train", "text.txt", "--budget", "8steps", "--out", "run", "--set", *SMALL, *QUIET]
    walks = {
        "budget": ["train", "text.txt", "--budget", "20s", "--out", "planned", "--set", *SMALL, *QUIET],
        "resume": ["train", "--resume", "run"],
    }
    isoflop(tree, folder, [sys.executable, "-m", "isoflop", *run], stop_after="checkpoints/step-00000004")
    for walked, command in walks.items():
        calls = isoflop(tree, folder, [sys.executable, __file__, "--walk", *command])
        print(f"{name}, {walked}: {counted(json.loads(calls), tree, show)}")


def isoflop(tree: Path, folder: Path, command: list[str], stop_after: str = "") -> str:
    """What a command prints that has the isoflop of `tree`; or its end as soon as it has written `stop_after`."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "ISOFLOP_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)
    if stop_after:
        while process.poll() is None and not (folder / "run" / stop_after).exists():
            os.sched_yield()
        process.kill()
    return process.communicate()[0].strip().rpartition("\n")[2]


def walk(command: list[str]) -> list[tuple[str, str]]:
    """(calling module, called module) of each module's first call, up to the first step of the run."""
    import isoflop as package

    for name in ("cli", "job", "screen", "recipe", "trainer.profile", "report.page"):
        importlib.import_module(f"isoflop.{name}")
    home, entered = str(Path(str(package.__file__)).parent), {}
    loop = {"running": False}

    class Arrived(BaseException):
        pass

    def on_event(frame: Any, event: str, argument: Any) -> None:
        if event != "call" or not (called := module_of(frame, home)):
            return
        calling, outer = "", frame.f_back
        while outer is not None and not (calling := module_of(outer, home)):
            outer = outer.f_back
        entered.setdefault(called, calling or called)
        loop["running"] |= called == "trainer.loop" and frame.f_code.co_name == "run_steps"
        if called == "trainer.step" and loop["running"]:
            sys.setprofile(None)
            raise Arrived

    sys.stdout = sys.stderr
    sys.setprofile(on_event)
    try:
        sys.modules["isoflop.cli"].run(command)
    except Arrived:
        pass
    finally:
        sys.setprofile(None)
        sys.stdout = sys.__stdout__
    return [(calling, called) for called, calling in entered.items()]


def module_of(frame: Any, home: str) -> str:
    """The module of isoflop whose function a frame is of, as `job.start`; empty for others and for imports."""
    path = frame.f_code.co_filename
    if not path.startswith(home) or frame.f_code.co_name == "<module>":
        return ""
    return ".".join(Path(path).relative_to(home).with_suffix("").parts).removesuffix(".__init__")


def counted(pairs: list[list[str]], tree: Path, show: bool) -> str:
    layers = tomllib.loads((tree / "pyproject.toml").read_text(encoding="utf-8"))
    floors = layers["tool"]["importlinter"]["contracts"][0]["layers"]
    floor = {name.strip(): number for number, names in enumerate(floors) for name in names.split("|")}

    def top(module: str) -> str:
        return module.partition(".")[0]

    def returns(walked: list[list[str]]) -> int:
        calls = itertools.pairwise(walked)
        return sum(floor.get(top(calling), 99) < floor.get(top(last), 99) for (_, last), (calling, _) in calls)

    deciding = [pair for pair in pairs if top(pair[1]) in DECIDING]
    modules = [called for _, called in deciding]
    text = f"{len(deciding)} modules, {returns(deciding)} returns"
    text += f" ({len(pairs)} modules, {returns(pairs)} returns in all of isoflop)"
    return text + ("\n  " + "\n  ".join(modules) if show else "")


if __name__ == "__main__":
    main()
