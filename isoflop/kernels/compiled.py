"""Compiles kernels.c, decode.c and sample.c once per machine, keeps it in $ISOFLOP_HOME/kernels, and loads it.

Compiling takes seconds and needs a C compiler with OpenMP: $CC, or cc. The library uses the thread pool that torch has
loaded, since both need `libgomp.so.1`; with a compiler whose OpenMP is another one it is not used. Nothing is compiled
if ISOFLOP_KERNELS is 0 in the environment.
"""

import contextlib
import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

from isoflop.files import home

SOURCES = tuple(Path(__file__).with_name(name) for name in ("kernels.c", "decode.c", "sample.c"))
HEADER = Path(__file__).with_name("shared.h")
FLAGS = ("-O3", "-march=native", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
FLAGS_OF = {"x86_64": ("-mprefer-vector-width=512",)}  # compilers prefer 256 bits even where 512 are faster
LINKED = ("-lm",)
POOL = b"libgomp.so.1"  # torch's OpenMP: another one would start threads of its own next to torch's
SWITCH, OFF = "ISOFLOP_KERNELS", ("0", "none", "off", "false")
LONGEST = 120  # seconds for the compiler


class NoKernels(Exception):
    """Why there are no kernels on this machine, in words."""


def available() -> bool:
    """Whether the kernels can be used here. Compiles them if they have not been."""
    return why_not() == ""


def why_not() -> str:
    """Why the kernels cannot be used here; "" if they can."""
    off = os.environ.get(SWITCH, "").strip().lower() in OFF
    return f"{SWITCH}={os.environ[SWITCH]} turns them off" if off else trouble()


@cache
def trouble() -> str:
    """What prevents compiling or loading them; "" if nothing does."""
    try:
        library()
    except NoKernels as error:
        return str(error)
    return ""


@cache
def library() -> ctypes.CDLL:
    """The loaded library.

    Raises:
        NoKernels: if there is no compiler for it, or it cannot be compiled, written or loaded.
    """
    if sys.platform != "linux":
        raise NoKernels(f"they are for Linux, and this is {platform.system()}")
    path = home() / "kernels" / f"{fingerprint()}.so"
    try:
        if not path.is_file():
            compile_to(path)
        require_own(path)
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise NoKernels(f"they cannot be written to or loaded from {path}: {error.strerror or error}") from None


def compile_to(path: Path) -> None:
    """Compile the sources into `path`, which appears whole or not at all.

    Raises:
        NoKernels: with the compiler's first error.
    """
    compiler = shlex.split(os.environ.get("CC") or "cc")
    if not compiler or shutil.which(compiler[0]) is None:
        raise NoKernels(f"they need a C compiler, and there is no {compiler[0] if compiler else 'CC'}")

    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        made = Path(scratch) / "kernels.so"
        flags = (*FLAGS, *FLAGS_OF.get(platform.machine(), ()))
        command = [*compiler, *flags, "-o", str(made), *map(str, SOURCES), *LINKED]
        try:
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=LONGEST)
        except subprocess.TimeoutExpired:
            raise NoKernels(f"{compiler[0]} took longer than {LONGEST} s") from None
        if done.returncode or not made.is_file():
            lines = [line for line in done.stderr.splitlines() if "error" in line] or [f"exit code {done.returncode}"]
            raise NoKernels(f"{compiler[0]}: {lines[0][:200]}")
        if POOL not in made.read_bytes():
            raise NoKernels(f"{compiler[0]} uses another OpenMP than torch's {POOL.decode()}")
        made.chmod(0o700)
        made.replace(path)


def require_own(path: Path) -> None:
    """Loading a library runs it, and a home folder may be shared.

    Raises:
        NoKernels: if another user owns the file or could have changed it.
    """
    status = path.stat()
    if status.st_uid not in (os.getuid(), 0) or status.st_mode & 0o022:
        raise NoKernels(f"other users can write to {path} or own it; remove it")


def fingerprint() -> str:
    """What a compiled library depends on, as a hash: the sources, the flags, the compiler, the processor's instructions
    and the user, since machines and users may share a home folder."""
    instructions = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        instructions = next((line for line in lines if line.startswith(("flags", "Features"))), instructions)
    sources, user = [source.read_text(encoding="utf-8") for source in (*SOURCES, HEADER)], str(os.getuid())
    parts = [*sources, *FLAGS, platform.machine(), os.environ.get("CC", ""), instructions, user]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
