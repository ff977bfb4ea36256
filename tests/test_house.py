"""The map in docs/ is the tree on disk, and the public names are those listed."""

import re
from pathlib import Path

import isoflop

ROOT = Path(__file__).parents[1]


def mapped() -> set[str]:
    """The modules and folders that docs/map.md names, as paths below isoflop/."""
    page = (ROOT / "docs" / "map.md").read_text(encoding="utf-8")
    block = re.search(r"```\nisoflop/\n(.*?)```", page, re.DOTALL)
    assert block, "docs/map.md has no map that begins with isoflop/"
    named: set[str] = set()
    folders = [""]
    for line in block[1].splitlines():
        entry = re.match(r"(?P<indent> *)(?P<names>\S.*?)(?:  +.*)?$", line)
        if not entry:
            continue
        depth = len(entry["indent"]) // 2
        del folders[depth:]
        for name in entry["names"].split(" · "):
            path = (folders[-1] if folders else "") + name
            named.add(path)
            if name.endswith("/"):
                folders.append(path)
    return named


def test_the_map_is_the_tree():
    package = ROOT / "isoflop"
    there = set()
    for path in package.rglob("*"):
        relative = path.relative_to(package).as_posix()
        if path.is_dir() and path.name != "__pycache__":
            there.add(relative + "/")
        elif path.suffix == ".py" and path.name != "__init__.py":
            there.add(relative)
    assert mapped() == there | {"__init__.py"}


def test_the_readme_fits_in_a_few_screens_and_names_every_package():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(readme.splitlines()) <= 150
    for folder in (path for path in (ROOT / "isoflop").iterdir() if (path / "__init__.py").is_file()):
        assert f"`{folder.name}/`" in readme


def test_public_names_are_listed_and_exist():
    assert sorted(isoflop.__all__) == isoflop.__all__ and set(isoflop.CLASSES) < set(isoflop.__all__)
    for name in isoflop.__all__:
        assert getattr(isoflop, name).__doc__


def test_there_is_no_utils_module():
    assert not [p for p in (ROOT / "isoflop").rglob("*") if "util" in p.stem or p.stem in ("helpers", "misc", "common")]
