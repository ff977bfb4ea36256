"""Pack what bench/card.py needs on a bare GPU machine: wheels, nanoGPT's folder and a part of a text.

    python bench/card_pack.py books.jsonl.xz --nanogpt FOLDER [--out .card] [--text-mb 40]

Such a machine has Python 3.12, torch with CUDA and the usual scientific packages, and no network. The pack holds

    wheels/          WHEELS, for Python 3.12 on x86-64 Linux (pip downloads them; pure Python ones fit any version)
    nanogpt/         the Python files and configurations of a clone of karpathy/nanoGPT
    text.jsonl.xz    the first --text-mb megabytes of the source's documents, one {"text": ...} per line

and must stay below LIMIT, the most that some machines accept. Git ignores the folder: name it when you copy the
repository (docs/on-a-gpu.md has the whole command line).
"""

import argparse
import json
import lzma
import shutil
import subprocess
import sys
from pathlib import Path

from isoflop.data.corpus import find_files, parse_sources
from isoflop.data.readers import read_documents
from isoflop.data.tally import Tally
from isoflop.errors import UserError

# isoflop's run-time dependencies, with what they need in turn, that a machine with torch and transformers lacks
WHEELS = ("tyro", "docstring-parser", "typeguard", "platformdirs", "zstandard")
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
LIMIT = 60 * 2**20  # bytes
KEPT = ("*.py", "config/*.py", "LICENSE", "README.md")  # of nanoGPT's folder


def download_wheels(folder: Path, python: str = "3.12", constraints: Path | None = None) -> list[str]:
    """Download WHEELS for another machine's Python.

    Returns:
        The wheels' file names.

    Raises:
        UserError: if pip finds no wheel, with the last line that it printed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--python-version", python, "--implementation", "cp", "--dest", str(folder)]
    command += [word for platform in PLATFORMS for word in ("--platform", platform)]
    if constraints is not None:
        command += ["--constraint", str(constraints)]
    done = subprocess.run([*command, *WHEELS], capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"pip could not download {', '.join(WHEELS)}: {done.stderr.strip().splitlines()[-1:]}")
    return sorted(path.name for path in folder.glob("*.whl"))


def copy_nanogpt(source: Path, folder: Path) -> int:
    """Copy the files of a clone of nanoGPT that training needs.

    Returns:
        The number of files.

    Raises:
        UserError: if `source` has no train.py.
    """
    if not (source / "train.py").is_file():
        raise UserError(f"--nanogpt {source} has no train.py; name a clone of karpathy/nanoGPT")
    paths = [path for pattern in KEPT for path in sorted(source.glob(pattern))]
    for path in paths:
        target = folder / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    return len(paths)


def cut_text(source: str, path: Path, most: float) -> tuple[int, int]:
    """Write the first documents of a source: at least `most` bytes of text, and at most one document more.

    Returns:
        (documents, bytes of text) written.
    """
    documents = size = 0
    with lzma.open(path, "wt", encoding="utf-8", preset=6) as file:
        for one in parse_sources([source]):
            for found in find_files(one):
                for document in read_documents(found, "text", Tally()):
                    file.write(json.dumps({"text": document.decode()}, ensure_ascii=False) + "\n")
                    documents, size = documents + 1, size + len(document)
                    if size >= most:
                        return documents, size
    return documents, size


def size_of(folder: Path) -> int:
    """The size of all files below a folder, in bytes."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def pack(given: argparse.Namespace) -> dict[str, int]:
    """Make the pack, replacing an existing one.

    Returns:
        Bytes by part.

    Raises:
        UserError: if a part cannot be made or all of it is larger than LIMIT.
    """
    out: Path = given.out
    if out.exists() and not (out / "text.jsonl.xz").exists() and any(out.iterdir()):
        raise UserError(f"--out {out} holds something that is no pack; name another folder")
    if out.exists():
        shutil.rmtree(out)
    out.mkdir(parents=True)

    constraints = Path(__file__).parents[1] / "constraints.txt"
    wheels = download_wheels(out / "wheels", given.python, constraints)
    print(f"{len(wheels)} wheels: {', '.join(wheels)}")
    if given.nanogpt:
        print(f"nanoGPT: {copy_nanogpt(given.nanogpt, out / 'nanogpt')} files")
    documents, size = cut_text(given.source, out / "text.jsonl.xz", given.text_mb * 1e6)
    print(f"text: {documents:,} documents, {size / 1e6:.1f} MB")

    sizes = {name: size_of(out / name) for name in ("wheels", "nanogpt") if (out / name).exists()}
    sizes["text"] = (out / "text.jsonl.xz").stat().st_size
    if sum(sizes.values()) > LIMIT:
        raise UserError(
            f"the pack has {sum(sizes.values()) / 2**20:.1f} MiB and must stay under {LIMIT / 2**20:.0f}; "
            "use a smaller --text-mb"
        )
    return sizes


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="SOURCE", help="the text, as `isoflop train` takes it")
    parser.add_argument("--out", type=Path, default=Path(".card"), metavar="FOLDER")
    parser.add_argument("--nanogpt", type=Path, metavar="FOLDER", help="a clone of karpathy/nanoGPT")
    parser.add_argument("--text-mb", type=float, default=40.0, help="megabytes of text")
    parser.add_argument("--python", default="3.12", help="the machine's Python")
    return parser.parse_args(words)


def main() -> None:
    try:
        given = arguments()
        sizes = pack(given)
    except UserError as error:
        print(f"bench/card_pack.py: {error}", file=sys.stderr)
        sys.exit(2)
    parts = ", ".join(f"{name} {size / 2**20:.1f}" for name, size in sizes.items())
    print(f"{given.out}: {sum(sizes.values()) / 2**20:.1f} MiB ({parts}), limit {LIMIT / 2**20:.0f}")


if __name__ == "__main__":
    main()
