"""Install a wheel or an sdist into a bare environment outside the checkout, and use it as somebody without the source.

    python tests/campaigns/bare.py dist/isoflop-0.1.0-py3-none-any.whl [--torch-index URL] [--system-site-packages]

creates a virtual environment in a temporary folder, installs the file with its dependencies, and runs the main job, a
plan, an evaluation with a custom suite, an export to a Hugging Face folder and the report, from another folder, without
PYTHONPATH. Prints a line for each, and stops at the first failure.

    --system-site-packages   uses the dependencies of this interpreter, so that only the build requirements of an sdist
                             are downloaded; isoflop itself comes from the file
"""

import argparse
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

SMALL = ["model.layers=1", "model.d_model=32", "model.heads=1", "model.context=32", "data.vocab_size=300"]
SMALL += ["batch.sequences=4", "runtime.threads=1"]
SUITE = """
name = "own"
method = "options"
files = ["own.jsonl"]
context = "{question}"
options = "choices"
answer = "{gold}"
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--torch-index", default="")
    parser.add_argument("--system-site-packages", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        python = environment(place / "env", arguments.file.resolve(), arguments)
        use(python, place)
    print("all of it works")


def environment(folder: Path, file: Path, arguments: argparse.Namespace) -> Path:
    """A virtual environment with the package in it. Returns its interpreter."""
    call([sys.executable, "-m", "venv", str(folder)], "an environment")
    python = folder / "bin" / "python"
    if arguments.system_site_packages:  # this interpreter may itself be a virtual environment's, which venv passes over
        site = next((folder / "lib").glob("python*/site-packages"))
        (site / "beside.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
        alone = ["--quiet", "--no-deps", "--ignore-installed"]
        call([str(python), "-m", "pip", "install", *alone, str(file)], "installed")
        return python
    if arguments.torch_index:
        call([str(python), "-m", "pip", "install", "--quiet", "--index-url", arguments.torch_index, "torch"], "torch")
    call([str(python), "-m", "pip", "install", "--quiet", str(file)], "installed")
    return python


def use(python: Path, place: Path) -> None:
    """Run the main job and the other commands."""
    lines = [f"{number}. The cat sat on the mat, and the dog ran to it.\n\n" for number in range(4000)]
    (place / "text.txt").write_text("".join(lines))
    (place / "own.toml").write_text(SUITE)
    items = [{"question": "The cat sat on", "choices": ["the mat", "it"], "gold": 0}] * 3
    (place / "own.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))

    def isoflop(*words: str) -> str:
        return call([str(python), "-m", "isoflop", *words], " ".join(words[:3]), place)

    where = call([str(python), "-c", "import isoflop; print(isoflop.__file__)"], "imported", place)
    assert str(place) in where, f"isoflop is imported from {where.strip()}, not from the environment"
    version = isoflop("--version").split()[-1]
    built = call(
        [str(python), "-c", "from importlib.metadata import version; print(version('isoflop'))"], "version", place
    )
    assert built.strip() == version, f"--version says {version}, the package's metadata {built.strip()}"
    isoflop("--help")
    isoflop("train", "text.txt", "--budget", "20steps", "--dry-run", "--set", *SMALL)
    isoflop("train", "text.txt", "--budget", "20steps", "--out", "run", "--set", *SMALL)
    isoflop("eval", "run")
    scored = json.loads(isoflop("eval", "run", "--suite", "own.toml", "--json"))
    assert scored["runs"]["run"][0]["items"] == 3
    output = call(
        [str(python), "-m", "isoflop", "eval", "run", "--suite", "blimp"], "a suite without items", place, code=2
    )
    assert "--items" in output, output
    isoflop("report", "run")
    isoflop("report", "run", "--card")
    isoflop("export", "run", "--to", "hf", "--out", "hf")
    assert (place / "hf" / "README.md").is_file()
    isoflop("plan", "--help")
    isoflop("sample", "run", "--prompt", "The", "--tokens", "4")


def call(command: list[str], what: str, folder: Path | None = None, code: int = 0) -> str:
    """Run a command, and print that it worked. Returns its output."""
    around = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "ISOFLOP_HOME")}
    if folder is not None:
        around["ISOFLOP_HOME"] = str(folder / "home")
    done = subprocess.run(command, cwd=folder, env=around, capture_output=True, text=True)
    if done.returncode != code:
        sys.exit(f"{what}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    print(f"ok: {what}")
    return done.stdout + done.stderr


if __name__ == "__main__":
    main()
