"""Fetch the corpora of the forecast study (bench/forecast.json): documentation, manual pages and sources that no fit
has seen, from Debian's packages and from npm, with their ordinary clients as configured on this machine.

    python bench/forecast_corpora.py FOLDER [NAME ...]     all of them, or some
    python bench/forecast_corpora.py FOLDER --check        whether the packages are available, without fetching any

Each corpus becomes FOLDER/NAME, with the files as they are in the package, and a line in FOLDER/fetched.jsonl with the
packages' versions and a digest of the files. An existing corpus is left alone. If a corpus has more than
`largest_bytes`, the files with the smallest digests are kept.
"""

import argparse
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from isoflop.files import new_folder

STUDY = Path(__file__).with_suffix("").parent / "forecast.json"


def run(*words: str, cwd: Path | None = None) -> str:
    """A client's output; its error messages are printed.

    Raises:
        SystemExit: if it fails.
    """
    done = subprocess.run(words, cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}: {(done.stderr or done.stdout).strip()[-400:]}")
    return done.stdout


def debian(package: str, into: Path) -> str:
    """Unpack the newest Debian package of a name. Returns its version."""
    with tempfile.TemporaryDirectory() as folder:
        run("apt-get", "download", "-q", package, cwd=Path(folder))
        (archive,) = Path(folder).glob("*.deb")
        run("dpkg-deb", "-x", str(archive), str(into))
        return run("dpkg-deb", "-f", str(archive), "Version").strip()


def npm(package: str, into: Path) -> str:
    with tempfile.TemporaryDirectory() as folder:
        name = json.loads(run("npm", "pack", "--silent", "--json", package, cwd=Path(folder)))[0]
        (archive,) = Path(folder).glob("*.tgz")
        with tarfile.open(archive) as packed:
            packed.extractall(into / re.sub(r"\W+", "-", package), filter="data")
        return str(name["version"])


SOURCES = {"debian": debian, "npm": npm}


def available(corpus: dict[str, Any]) -> Iterator[tuple[str, bool]]:
    """Whether all packages of a corpus are available."""
    for package in corpus["packages"]:
        if corpus["from"] == "debian":
            said = subprocess.run(["apt-cache", "policy", package], capture_output=True, text=True).stdout
            yield package, "Candidate:" in said and "Candidate: (none)" not in said
        else:
            done = subprocess.run(["npm", "view", package, "version"], capture_output=True, text=True)
            yield package, done.returncode == 0


def matching(folder: Path, patterns: list[str]) -> list[Path]:
    """The regular files that a pattern matches, below `folder` itself or below the folder of one of its packages."""
    tops = [folder, *(path for path in folder.iterdir() if path.is_dir())]
    found = {path for top in tops for pattern in patterns for path in top.glob(pattern)}
    return sorted(path for path in found if path.is_file() and not path.is_symlink())


def fetch(corpus: dict[str, Any], top: Path, most: int) -> None:
    """Fetch a corpus into top/NAME, completely or not at all."""
    with tempfile.TemporaryDirectory() as unpacked:
        packed = Path(unpacked)
        versions = {name: SOURCES[corpus["from"]](name, packed) for name in corpus["packages"]}
        found = matching(packed, corpus["files"])
        if not found:
            raise SystemExit(f"{corpus['name']}: no file of {', '.join(corpus['packages'])} matches {corpus['files']}")
        digests = {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in found}
        kept, size = [], 0
        for path in sorted(found, key=digests.__getitem__):
            size += path.stat().st_size
            if size > most and kept:
                break
            kept.append(path)
        with new_folder(top / corpus["name"]) as folder:
            for path in kept:
                target = folder / path.relative_to(packed)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
    whole = hashlib.sha256("".join(sorted(digests[path] for path in kept)).encode()).hexdigest()
    line = {"corpus": corpus["name"], "versions": versions, "files": len(kept), "sha256": whole}
    with (top / "fetched.jsonl").open("a", encoding="utf-8") as log:
        log.write(json.dumps(line) + "\n")
    print(json.dumps(line), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--check", action="store_true")
    given = parser.parse_args()
    study = json.loads(STUDY.read_text(encoding="utf-8"))
    wanted = [corpus for corpus in study["corpora"] if not given.names or corpus["name"] in given.names]
    if given.check:
        lacking = [name for corpus in wanted for name, there in available(corpus) if not there]
        print("\n".join(["not to be had:", *lacking]) if lacking else "all packages are to be had")
        sys.exit(1 if lacking else 0)
    given.folder.mkdir(parents=True, exist_ok=True)
    for corpus in wanted:
        if not (given.folder / corpus["name"]).exists():
            fetch(corpus, given.folder, study["largest_bytes"])


if __name__ == "__main__":
    main()
