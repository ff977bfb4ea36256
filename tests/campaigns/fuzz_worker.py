"""A process that reads corrupted files, one after another, and reports the outcome of each.

A case may end in two ways: the file is read, or it is refused with a UserError of one line that names a file or a
value. Everything else is a finding: another exception, memory beyond the bound, an unexpected write or program, an
opened file outside the folder. The process that started this one finds crashes and hangs.
"""

import json
import os
import random
import resource
import shutil
import sys
import sysconfig
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

from fuzz_cases import Case
from fuzz_targets import TARGETS, Target
from isoflop.errors import UserError

LONGEST_MESSAGE = 2000
ADDRESS_SPACE = (
    6 * 2**30
)  # bytes beyond what a fresh worker has; a stop for what the measured bound would come too late for
RUNS_CODE = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "subprocess.Popen", "pickle.find_class")
REACHES_OUT = ("socket.connect", "socket.bind", "socket.getaddrinfo", "urllib.Request", "webbrowser.open")
CHANGES = (
    "os.remove",
    "os.rename",
    "os.mkdir",
    "os.rmdir",
    "os.link",
    "os.symlink",
    "os.chmod",
    "os.truncate",
    "shutil.rmtree",
)
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Watch:
    """An audit hook that records forbidden operations of a reader while `armed`."""

    def __init__(self, home: Path) -> None:
        self.armed, self.seen = False, list[str]()
        self.home, self.folder, self.traps = str(home), "", ("/etc/passwd", "/etc/shadow", "/dev/zero")
        places = {sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")}
        self.code = (*places, str(Path(__file__).parents[2]), "<frozen", sys.base_prefix)

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.armed:
            return
        if event in RUNS_CODE or event in REACHES_OUT:
            self.seen.append(f"{event} {str(arguments)[:200]}")
        elif event == "exec":
            origin = getattr(arguments[0], "co_filename", "?")
            if not str(origin).startswith(self.code) and not self.is_recipe(str(origin)):
                self.seen.append(f"exec of code from {origin}")
        elif event == "open" and isinstance(arguments[0], (str, bytes)):
            path = os.fsdecode(arguments[0])
            full = os.path.normpath(path if os.path.isabs(path) else os.path.join(os.getcwd(), path))  # noqa: PTH117, PTH118, PTH109
            if full.startswith(self.traps):
                self.seen.append(f"open of {full}, which lies outside")
            elif (int(arguments[2] or 0) & WRITES) and not self.is_ours(full):
                self.seen.append(f"open of {full} for writing")
        elif event in CHANGES and not self.is_ours(os.path.abspath(os.fsdecode(arguments[0]))):  # noqa: PTH100
            self.seen.append(f"{event} {str(arguments)[:200]}")

    def is_ours(self, path: str) -> bool:
        return path.startswith((self.folder, self.home, "/dev/null", "/proc/self/"))

    def is_recipe(self, origin: str) -> bool:
        """Whether a file is the recipe that the user named, which is meant to run."""
        return os.path.abspath(origin) == f"{self.folder}/mine.py"  # noqa: PTH100


def status(name: str) -> int:
    """A line of /proc/self/status, in bytes; 0 on systems without it."""
    try:
        text = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith(f"{name}:")), 0)


def forget_peak() -> None:
    """Reset the system's record of peak memory."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def weigh(folder: Path) -> int:
    """Bytes that a folder takes on the disk: a sparse file counts with what it holds."""
    return sum(min(p.lstat().st_size, 512 * p.lstat().st_blocks + 4096) for p in folder.rglob("*") if not p.is_dir())


def judge(target: Target, case: Case, watch: Watch) -> dict[str, Any]:
    """Read one corrupted example. Returns the outcome: "read", "refused", or a finding."""
    bound = target.room * 2**20 + 16 * weigh(case.folder)
    names = {p.name for p in case.folder.rglob("*")} | {case.folder.name}
    watch.seen.clear()
    forget_peak()
    before = status("VmRSS")
    outcome, message = "read", ""
    watch.armed = True
    began = time.monotonic()
    try:
        target.read(case.folder)
    except UserError as error:
        outcome, message = "refused", str(error)
    except MemoryError:
        outcome, message = "MemoryError", traceback.format_exc()[-1500:]
    except BaseException as error:  # a native library's panic is no Exception
        outcome, message = type(error).__name__, traceback.format_exc()[-3000:]
    watch.armed = False
    seconds, grown = time.monotonic() - began, max(0, status("VmHWM") - before)
    if outcome == "refused":
        if len(message.splitlines()) != 1 or len(message) > LONGEST_MESSAGE:
            outcome = "not one line"
        elif not any(
            word in message
            for word in ("/", "=", "'", "unknown field", "decision.", "model.", "a source is empty", *names)
        ):
            outcome = "names nothing"
    elif outcome == "read" and case.must_refuse:
        outcome = "read from outside"
    if watch.seen:
        outcome, message = "forbidden", "; ".join(watch.seen[:3])
    if (case.outside / "canary").exists():
        (case.outside / "canary").unlink()
        outcome, message = "code was run", message
    if grown > bound:
        outcome, message = "memory", f"{grown >> 20} MiB for {weigh(case.folder):,} bytes; {message[:300]}"
    return {"outcome": outcome, "message": message, "seconds": seconds, "grown": grown}


class Worker:
    """Valid examples, each made once, and what is needed to spoil copies of them."""

    def __init__(self, top: Path) -> None:
        self.top, self.valid = top, dict[str, Path]()
        self.watch = Watch(top / "home")
        sys.addaudithook(self.watch)

    def example(self, name: str) -> Path:
        """The valid example of a target, made and read once: it must read, and the second time cost little."""
        if name not in self.valid:
            folder = self.top / "examples" / name.replace(" ", "-")
            folder.mkdir(parents=True)
            TARGETS[name].make(folder)
            copy = self.top / "warm"
            shutil.copytree(folder, copy)
            TARGETS[name].read(copy)
            shutil.rmtree(copy)
            self.valid[name] = folder
        return self.valid[name]

    def run(self, name: str, seed: int, number: int) -> dict[str, Any]:
        """One case, from nothing but (target, seed, number)."""
        target, valid = TARGETS[name], self.example(name)
        draw = random.Random(f"{seed}/{name}/{number}")
        with tempfile.TemporaryDirectory(dir=self.top) as here:
            case = Case(Path(here) / "given", Path(here) / "outside", draw)
            shutil.copytree(valid, case.folder)
            shutil.copytree(valid, case.outside / "valid")
            for path in case.files(".txt"):  # names of files in strings
                if str(valid) in (text := path.read_text()):
                    path.write_text(text.replace(str(valid), str(case.folder)))
            self.watch.folder = str(case.folder)
            self.watch.traps = ("/etc/passwd", "/etc/shadow", "/dev/zero", str(case.outside))
            done = [draw.choice(target.ops)(case) for _ in range(draw.choice([1, 1, 1, 2, 3]))]
            if target.resign and draw.random() < 0.6:
                target.resign(case.folder)
                done.append("signed anew")
            result = judge(target, case, self.watch)
        return {"what": "; ".join(done)[:500], **result}


def main() -> None:
    """Answers each line {"target", "seed", "number"} on standard input with a line on the file descriptor given."""
    answers = os.fdopen(int(sys.argv[1]), "w")
    with tempfile.TemporaryDirectory() as top:
        os.environ["ISOFLOP_HOME"] = str(Path(top) / "home")
        os.chdir(top)
        worker = Worker(Path(top))
        limit = status("VmSize") + ADDRESS_SPACE
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        for line in sys.stdin:
            asked = json.loads(line)
            if asked["number"] < 0:  # make the example now, outside any time limit
                worker.example(asked["target"])
                result = {"outcome": "ready"}
            else:
                result = worker.run(asked["target"], asked["seed"], asked["number"])
            answers.write(json.dumps(result) + "\n")
            answers.flush()


if __name__ == "__main__":
    main()
