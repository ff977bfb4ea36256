"""Check that two commits train the same bits, by short runs and plans of both, in turns, on this machine.

    python tests/campaigns/same_bits.py OLD                        in full: commit OLD and the working tree
    python tests/campaigns/same_bits.py OLD NEW --quick            the quick cases of two commits, in under a minute
    python tests/campaigns/same_bits.py OLD --cases adamw moe      some cases; --list names them all
    python tests/campaigns/same_bits.py OLD --text BOOKS           on real text instead of generated words
    python tests/campaigns/same_bits.py OLD --poison loss          adds a difference, which has to be found

The bits of a run depend on the processor, so that golden values cannot be stored; a commit serves instead. Each version
is checked out into a temporary git worktree and runs in its own processes. Everything is run through the command line,
whose options are a format, since Python names change between commits. Only the two functions that read the clock
(REPLACED) are replaced by fixed numbers, so that plans do not depend on timings.

What is compared: loss, gradient norm and rate of every step and the held-out losses (metrics.jsonl); every tensor of
the last checkpoint, weights and optimiser state, bit for bit; the plan with its candidates and expected values
(plan.json); configuration (the fields that both have), samples, events, account of the data and result; and what
`sample` and `eval` print. Keys that hold times, speeds or paths are left out (VOLATILE), and so are keys and events
that earlier versions did not write (BESIDE). One line per case says `same`, or `DIFFERS` and where. Exit code 0 if all
are the same, 1 if any differs or fails.
"""

import argparse
import contextlib
import importlib
import json
import math
import os
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 600  # seconds for one command

# The functions that read the clock, each with the dotted names it has had, newest first. If one moves, add its name.
REPLACED = {
    "measure_peak": ("isoflop.runtime.measure_peak",),
    "time_in_turns": ("isoflop.trainer.throughput.time_in_turns",),
}
# Imported before the forks, where they exist: it takes seconds once instead of in every run.
PRELOADED = (
    "isoflop.cli",
    "isoflop.job",
    "isoflop.report.page",
    "torch.distributed.checkpoint",
    "torch.distributed.fsdp",
    "torch.distributed.tensor",
)

# Keys of the records that hold times, speeds, memory or places, by file.
VOLATILE = {
    "metrics.jsonl": {
        "seconds",
        "tokens_per_second",
        "wide_loss",
        "wide_bits_per_byte",
        "wide_tokens",
        "averaged_loss",
    },
    "plan.json": {"phases", "forecast", "exports"},
    "config.json": {"diagnose", "kernels"},
    "samples.jsonl": set(),
    "events.jsonl": {"time", "seconds", "launch"},
    "data.json": {"folder", "seconds", "reused"},
    "result.json": {
        "seconds",
        "aside_seconds",
        "tokens_per_second",
        "peak_share",
        "mfu",
        "peak_memory_bytes",
        "phases",
    },
}

# Keys of lines, and events, that earlier versions did not write and that do not affect a run.
BESIDE = ("forecast_bits_per_byte",)
BESIDE_EVENTS = ("off course",)

TINY = [
    "model.layers=2",
    "model.d_model=32",
    "model.heads=2",
    "model.context=64",
    "data.vocab_size=320",
    "data.workers=1",
    "batch.sequences=8",
    "runtime.dtype=float32",
    "runtime.threads=1",
    "every.checkpoint=5",
    "every.evaluate=4",
    "every.sample=8",
    "sample.tokens=20",
    "evaluate_tokens=2048",
]
TINY_PAIRS = [
    "model.layers=1",
    "model.d_model=32",
    "model.heads=2",
    "batch.sequences=32",
    "data.workers=1",
    "runtime.dtype=float32",
    "runtime.threads=1",
    "every.checkpoint=5",
    "every.evaluate=4",
    "every.sample=8",
]


@dataclass(frozen=True)
class Case:
    """Some commands of `isoflop`, one after another, in which RUN stands for the run folder.

    Attributes:
        processes: the number of processes, with the environment of torchrun.
        planned: stop the last command as soon as plan.json and config.json are written.
        quick: one of those that --quick runs.
    """

    name: str
    commands: tuple[tuple[str, ...], ...]
    processes: int = 1
    planned: bool = False
    quick: bool = False


def run(*settings: str, steps: int = 8) -> tuple[str, ...]:
    """A tiny causal language model on the texts."""
    return ("train", "texts", "--budget", f"{steps}steps", "--out", "RUN", "--set", *TINY, *settings)


def run_pairs(*settings: str) -> tuple[str, ...]:
    """A tiny encoder-decoder on the pairs."""
    tiny = (*TINY_PAIRS, *settings)
    return ("train", "pairs.tsv", "--task", "seq2seq", "--budget", "8steps", "--out", "RUN", "--set", *tiny)


def plan(budget: str, *words: str) -> tuple[tuple[str, ...], ...]:
    return (("train", "--budget", budget, "--out", "RUN", *words, "--set", "data.workers=1", "runtime.threads=1"),)


PAIRS = ("pairs.tsv", "--task", "seq2seq")
MOE = 'model.feed_forward={"name":"moe","experts":4}'
LOCAL = '["full",{"name":"banded","window":16}]'

CASES = [
    Case("muon", (run(),), quick=True),
    Case("adamw", (run("optim.name=adamw"),), quick=True),
    Case("gpt2", (run("model=gpt2", *TINY, "optim.name=adamw", "model.dropout=0.1"),), quick=True),
    Case("moe", (run(MOE),), quick=True),
    Case("accumulation", (run("batch.micro_sequences=2"),), quick=True),
    Case("bfloat16", (run("runtime.dtype=bfloat16"),), quick=True),
    Case("two-processes", (run("parallel.mode=ddp"),), processes=2, quick=True),
    Case("two-processes-fsdp", (run("parallel.mode=fsdp"),), processes=2),
    Case("seq2seq", (run_pairs(),), quick=True),
    Case("seq2seq-adamw", (run_pairs("optim.name=adamw", "batch.micro_sequences=8", "model.norm=layer"),)),
    Case("ramp-cosine", (run("batch.ramp_from=4", "batch.ramp_sequences=16", "schedule.name=cosine"),)),
    Case("smoothing", (run("loss=label_smoothing", "model.tied_head=true", "optim.name=adamw"),)),
    Case("multi-token", (run("loss=multi_token"),)),
    Case(
        "extras",
        (run("model.value_embedding=1", "model.embedding_shortcut=true", "model.logit_cap=15"),),
    ),
    Case(
        "windows",
        (run('model.attention={"name":"alternating","pattern":' + LOCAL + "}", "model.position=alibi"),),
    ),
    Case("latent", (run("model.attention=latent", "model.feed_forward=swiglu", "model.wiring=sandwich"),)),
    Case("relative", (run("model.position=relative", "model.feed_forward=geglu", "model.wiring=parallel"),)),
    Case("given", (("train", "--config", "given.json", "--out", "RUN"),)),
    Case(
        "afterwards",
        (
            run(),
            ("train", "--resume", "RUN", "--budget", "+4steps"),
            ("sample", "RUN", "--prompt", "an", "--tokens", "30"),
            ("sample", "RUN", "--temperature", "0", "--tokens", "30", "--dtype", "bfloat16"),
            ("eval", "RUN", "--json"),
            ("eval", "RUN", "texts/1.txt", "--json"),
            ("train", "texts", "--init", "RUN", "--budget", "6steps", "--out", "RUN-again", "--set", *TINY),
        ),
    ),
    Case(
        "seq2seq-afterwards",
        (
            run_pairs(),
            ("sample", "RUN", "--prompt", "bade"),
            ("sample", "RUN", "--prompt", "bade", "--beam", "3"),
            ("eval", "RUN", "--json"),
        ),
    ),
    Case("plan-flops", plan("3e11", "texts"), planned=True, quick=True),
    Case("plan-tokens", plan("3e5tok", "texts"), planned=True, quick=True),
    Case("plan-seconds", plan("20s", "texts"), planned=True, quick=True),
    Case("plan-seconds-long", plan("30m", "texts"), planned=True),
    Case("plan-flops-large", plan("1e15", "texts", "--set", "optim.name=adamw"), planned=True),
    Case("plan-steps", plan("300steps", "texts", "--set", "model.norm=layer", "batch.sequences=6"), planned=True),
    Case("plan-pairs-flops", plan("1e11", *PAIRS), planned=True),
    Case("plan-pairs-tokens", plan("1e5tok", *PAIRS), planned=True),
    Case("plan-pairs-seconds", plan("20s", *PAIRS), planned=True, quick=True),
]


class Version:
    """One commit in processes of its own: a server that has imported it, timings replaced, and forks for each command.

    Attributes:
        root: the checked-out tree.
        folder: where it runs, with texts, prepared data and run folders.
    """

    def __init__(self, root: Path, folder: Path) -> None:
        self.root, self.folder = root, folder
        environment = {
            **os.environ,
            "PYTHONPATH": str(root),
            "OMP_NUM_THREADS": "1",
            "ISOFLOP_KERNELS": "0",  # a plan would use them where earlier versions had none
            "ISOFLOP_HOME": str(folder / "home"),
            "PYTHONHASHSEED": "0",
        }
        self.server = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve()), "--serve", str(root)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=folder,
        )

    def ready(self) -> None:
        if self.reply() != "ready":
            raise SystemExit(f"same_bits.py: the version in {self.root} cannot be imported")

    def reply(self) -> Any:
        assert self.server.stdout is not None
        line = self.server.stdout.readline()
        return json.loads(line) if line else None

    def carry_out(self, case: Case) -> str:
        """Run a case. Returns what it failed with, or nothing."""
        for number, command in enumerate(case.commands):
            words = [word.replace("RUN", case.name) for word in command]
            last = number == len(case.commands) - 1
            until = [f"{case.name}/{name}" for name in ("plan.json", "config.json")] if case.planned and last else []
            job = {"words": words, "processes": case.processes, "out": f"{case.name}.{number}", "until": until}
            assert self.server.stdin is not None
            self.server.stdin.write(json.dumps(job) + "\n")
            self.server.stdin.flush()
            if failed := self.reply():
                return f"isoflop {' '.join(words)[:100]}: {failed}"
        return ""

    def close(self) -> None:
        if self.server.stdin is not None:
            self.server.stdin.close()
        self.server.wait()


def serve(root: Path) -> None:
    """Import the version in `root` and run the commands that arrive on standard input, each in a fork."""
    sys.path = [str(root), *(path for path in sys.path if path != str(Path(__file__).parent))]
    # a command's own output goes to a file; the replies keep the pipe that standard output was
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    isoflop = importlib.import_module("isoflop")
    if not Path(str(isoflop.__file__)).is_relative_to(root):
        raise SystemExit(f"same_bits.py: imported {isoflop.__file__} instead of what is in {root}")
    for name in PRELOADED:
        with contextlib.suppress(ModuleNotFoundError):
            importlib.import_module(name)
    replace_timings()
    replies.write(json.dumps("ready") + "\n")

    for line in sys.stdin:
        job = json.loads(line)
        replies.write(json.dumps(fork_all(**job)) + "\n")


def replace_timings() -> None:
    """Put fixed numbers in place of what measures this machine, wherever it was imported to."""
    given = {"measure_peak": given_peak, "time_in_turns": given_throughput}
    for what, places in REPLACED.items():
        found = [original for place in places if (original := look_up(place)) is not None]
        if not found:
            raise SystemExit(
                f"same_bits.py: this version has none of {', '.join(places)}; add its new name to REPLACED"
            )
        for original in found:
            for module in [module for name, module in sys.modules.items() if name.startswith("isoflop")]:
                for name in [name for name, value in vars(module).items() if value is original]:
                    setattr(module, name, given[what])


def look_up(place: str) -> Any:
    module, _, name = place.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError:
        return None


def given_peak(device: str, seconds: float = 1.0) -> dict[str, float]:
    return {"float32": 1e11, "bfloat16": 0.8e11}


def given_throughput(configs: Any, *rest: Any, **named: Any) -> list[Any]:
    """Tokens per second that fall with the model's size, as they do, and depend on nothing else but the dtype."""
    timed = []
    for config in configs:
        config = getattr(config, "config", config)
        model = config.model
        weights = 12 * model.layers * model.d_model**2 + model.vocab_size * model.d_model
        rate = (1.3 if config.runtime.dtype == "bfloat16" else 1.0) * 6e9 / (weights + 1e5)
        timed.append(
            types.SimpleNamespace(
                seconds_per_step=config.tokens_per_step / rate, tokens_per_second=rate, steps=10, trouble=""
            )
        )
    return timed


def fork_all(words: list[str], processes: int, out: str, until: list[str]) -> str:
    """Run `isoflop WORDS` in a group of processes. Returns what it failed with, or nothing.

    Args:
        out: the start of the names of the files that output goes to.
        until: files; once all of them are there, the processes are killed and nothing has failed.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    children = []
    for rank in range(processes):
        child = os.fork()
        if not child:
            become(words, rank, processes, port, f"{out}.{rank}")
        children.append(child)
    codes: dict[int, int] = {}
    deadline = time.monotonic() + LIMIT
    while len(codes) < len(children):
        if until and all(Path(name).is_file() for name in until):
            break
        if time.monotonic() > deadline:
            codes[0] = signal.SIGALRM
            break
        for child in children:
            if child not in codes and (ended := os.waitpid(child, os.WNOHANG))[0]:
                codes[child] = os.waitstatus_to_exitcode(ended[1])
        time.sleep(0.01)
    for child in children:
        if child not in codes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
    if not any(codes.values()):
        return ""
    errors = "".join(Path(f"{out}.{rank}.err").read_text(errors="replace") for rank in range(processes))
    return f"exit codes {sorted(codes.values())}: {' | '.join(errors.split(chr(10))[-12:])}"


def become(words: list[str], rank: int, processes: int, port: str, out: str) -> None:
    """In a fork: run the command `isoflop`."""
    code = 1
    try:
        os.setsid()
        if processes > 1:
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
            os.environ.update({name: str(value) for name, value in place.items()})
            os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port})
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, kind in ((1, "out"), (2, "err")):
            os.dup2(os.open(f"{out}.{kind}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), number)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", buffering=1, closefd=False)
        sys.argv = ["isoflop", *words]
        try:
            importlib.import_module("isoflop.__main__").main()
            code = 0
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def differences(case: Case, old: Path, new: Path) -> Iterator[str]:
    """The differences between the runs of a case in two folders, the most informative one of each file."""
    names = sorted({path.name for folder in (old, new) for path in folder.glob(f"{case.name}*") if path.is_dir()})
    for name in names:
        for file, volatile in VOLATILE.items():
            if case.planned and file not in ("plan.json", "config.json"):
                continue
            yield from compare_records(old, new, f"{name}/{file}", volatile)
        if not case.planned:
            yield from compare_tensors(last_checkpoint(old / name), last_checkpoint(new / name), name)
    for number, command in enumerate(case.commands):
        if command[0] in ("sample", "eval"):
            texts = [(folder / f"{case.name}.{number}.0.out").read_text() for folder in (old, new)]
            if texts[0] != texts[1]:
                yield f"{command[0]} prints {texts[0][:60]!r} and {texts[1][:60]!r}"


def compare_records(old: Path, new: Path, file: str, volatile: set[str]) -> Iterator[str]:
    one, other = (list(read_records(folder, file, volatile)) for folder in (old, new))
    if not one and not other:
        yield f"{file} is in neither"
    if file.endswith("config.json") and len(one) == len(other):
        other = [only_known(b, a) for a, b in zip(one, other, strict=True)]
    if len(one) != len(other):
        yield f"{file}: {len(one)} and {len(other)} records"
    for number, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            line = f"line {number + 1}, " if file.endswith(".jsonl") else ""
            yield f"{file}: {line}{first_difference(a, b)}"
            return


def read_records(folder: Path, file: str, volatile: set[str]) -> Iterator[Any]:
    """The JSON values of a file, without the volatile keys and the version's own paths."""
    path = folder / file
    if not path.is_file():
        return
    text = path.read_text(encoding="utf-8").replace(str(folder), ".")
    for line in text.splitlines() if file.endswith(".jsonl") else [text]:
        record = json.loads(line)
        if not any(key in record for key in BESIDE) and record.get("event") not in BESIDE_EVENTS:
            yield without(record, volatile)


def without(value: Any, keys: set[str]) -> Any:
    if isinstance(value, dict):
        return {key: without(item, keys) for key, item in value.items() if key not in keys}
    return [without(item, keys) for item in value if not is_reworded(item)] if isinstance(value, list) else value


def is_reworded(item: Any) -> bool:
    """Whether it is the plan's line on exports, which was the last one with other words in earlier versions."""
    return isinstance(item, dict) and item.get("name") == "export"


def only_known(new: Any, old: Any) -> Any:
    """A configuration without the fields that earlier versions did not have."""
    if isinstance(new, dict) and isinstance(old, dict):
        return {key: only_known(item, old[key]) for key, item in new.items() if key in old}
    return new


def first_difference(a: Any, b: Any, where: str = "") -> str:
    if isinstance(a, dict) and isinstance(b, dict):
        for key in [*a, *(key for key in b if key not in a)]:
            if key not in a or key not in b:
                return f"{where}{key} is only in {'NEW' if key not in a else 'OLD'}"
            if a[key] != b[key]:
                return first_difference(a[key], b[key], f"{where}{key}.")
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        number = next(number for number in range(len(a)) if a[number] != b[number])
        return first_difference(a[number], b[number], f"{where}{number}.")
    return f"{where.rstrip('.')} {str(a)[:80]} and {str(b)[:80]}"


def last_checkpoint(folder: Path) -> Path | None:
    return max((folder / "checkpoints").glob("step-*"), default=None)


def compare_tensors(old: Path | None, new: Path | None, name: str) -> Iterator[str]:
    one, other = read_tensors(old), read_tensors(new)
    if one.keys() != other.keys():
        yield f"{name}: tensors {sorted(one.keys() ^ other.keys())[:4]} are in one of them only"
        return
    wrong = [tensor for tensor in one if one[tensor] != other[tensor]]
    if wrong:
        yield f"{name}: {len(wrong)} of {len(one)} tensors, {wrong[0]} for one"


def read_tensors(checkpoint: Path | None) -> dict[str, tuple[str, str, bytes]]:
    """Name -> dtype, shape, bytes of everything that a checkpoint holds."""
    found = {}
    for path in sorted(checkpoint.rglob("*.safetensors")) if checkpoint else []:
        content = path.read_bytes()
        start = 8 + struct.unpack("<Q", content[:8])[0]
        for name, entry in json.loads(content[8:start]).items():
            if name != "__metadata__":
                first, end = entry["data_offsets"]
                key = f"{path.relative_to(checkpoint)} {name}"
                found[key] = (entry["dtype"], str(entry["shape"]), content[start + first : start + end])
    return found


def poison(what: str, case: Case, folder: Path) -> bool:
    """Change the last bit of one number of a finished case. Returns whether there was such a number."""
    run = folder / case.name
    if what == "plan":
        plan = json.loads((run / "plan.json").read_text())
        plan["tokens"] += 1
        (run / "plan.json").write_text(json.dumps(plan))
        return True
    if case.planned:
        return False
    if what == "loss":
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        last = [line for line in lines if "loss" in line][-1]
        last["loss"] = math.nextafter(last["loss"], math.inf)
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return True
    checkpoint = last_checkpoint(run)
    assert checkpoint is not None
    path = sorted(checkpoint.rglob("*.safetensors"))[0]
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    return True


def write_data(folder: Path, text: str) -> None:
    """Texts of made-up words (or a link to real ones), pairs of words and their letters backwards, a configuration."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghilmnoprstu", k=draw.randint(2, 8))) for _ in range(300)]
    texts = folder / "texts"
    if text:
        texts.symlink_to(Path(text).resolve())
    else:
        texts.mkdir()
        for number in range(40):
            lines = [" ".join(draw.choices(words, k=12)) + "." for _ in range(70)]
            (texts / f"{number}.txt").write_text("\n".join(lines), encoding="utf-8")
    short = sorted({"".join(draw.choices("abcdefgh", k=draw.randint(2, 5))) for _ in range(2000)})
    lines = [f"{word}\t{' '.join(word[::-1].upper())}\n" for word in short]
    (folder / "pairs.tsv").write_text("".join(lines), encoding="utf-8")
    given = {
        "model": {"layers": 2, "d_model": 32, "heads": 2, "context": 64, "vocab_size": 320},
        "data": {"sources": ["texts"], "vocab_size": 320, "workers": 1},
        "batch": {"sequences": 8},
        "runtime": {"dtype": "float32", "threads": 1},
        "every": {"checkpoint": 5, "evaluate": 4, "sample": 8},
        "evaluate_tokens": 2048,
        "steps": 8,
    }
    (folder / "given.json").write_text(json.dumps(given), encoding="utf-8")


@contextlib.contextmanager
def checked_out(commit: str | None, folder: Path) -> Iterator[Path]:
    """The tree of a commit, in a temporary worktree; the working tree for None."""
    if commit is None:
        yield ROOT
        return
    git = ["git", "-C", str(ROOT), "worktree"]
    added = subprocess.run([*git, "add", "--detach", str(folder), commit], capture_output=True, text=True)
    if added.returncode:
        raise SystemExit(f"same_bits.py: {added.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run([*git, "remove", "--force", str(folder)], capture_output=True)


def compare(old: str, new: str | None, cases: list[Case], text: str = "", poisoned: str = "") -> bool:
    """Run the cases by both versions in turns, print a line for each. Returns whether all are the same."""
    alike, started = True, time.monotonic()
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="same-bits-"))).resolve()
        roots = [stack.enter_context(checked_out(commit, scratch / f"tree-{i}")) for i, commit in enumerate((old, new))]
        versions = []
        for name, root in zip(("old", "new"), roots, strict=True):
            folder = scratch / name
            folder.mkdir()
            write_data(folder, text)
            versions.append(Version(root, folder))
            stack.callback(versions[-1].close)
        for version in versions:
            version.ready()

        for case in cases:
            failed = [
                f"{name}: {failure}"
                for name, version in zip(("OLD", "NEW"), versions, strict=True)
                if (failure := version.carry_out(case))
            ]
            if poisoned and not failed and not poison(poisoned, case, versions[1].folder):
                failed = [f"it has no {poisoned} to poison"]
            found = failed or list(differences(case, versions[0].folder, versions[1].folder))
            print(f"{case.name:20} {'FAILED: ' if failed else 'DIFFERS: ' if found else 'same'}{'; '.join(found)}")
            sys.stdout.flush()
            alike = alike and not found
            for version in versions:
                shutil.rmtree(version.folder / case.name, ignore_errors=True)
    print(f"{'all the same' if alike else 'NOT THE SAME'}: {len(cases)} cases, {time.monotonic() - started:.0f} s")
    return alike


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", nargs="?", help="a commit")
    parser.add_argument("new", nargs="?", help="another; by default the working tree as it is")
    parser.add_argument("--cases", nargs="+", metavar="NAME", choices=[case.name for case in CASES])
    parser.add_argument("--quick", action="store_true", help="only the quick cases")
    parser.add_argument("--text", default="", metavar="SOURCE", help="a folder of real text instead of made-up words")
    parser.add_argument("--poison", default="", choices=["loss", "weights", "plan"], help="plant a difference")
    parser.add_argument("--list", action="store_true", help="name the cases")
    parser.add_argument("--serve", type=Path, metavar="ROOT", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.serve:
        serve(asked.serve)
        return 0
    if asked.list:
        for case in CASES:
            print(f"{case.name:20} {'quick' if case.quick else '     '}  {' '.join(case.commands[0])}")
        return 0
    if not asked.old:
        parser.error("name the commit to compare with")
    cases = [case for case in CASES if (case.name in asked.cases if asked.cases else case.quick or not asked.quick)]
    return 0 if compare(asked.old, asked.new, cases, asked.text, asked.poison) else 1


if __name__ == "__main__":
    sys.exit(main())
