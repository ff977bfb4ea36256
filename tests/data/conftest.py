import random
from pathlib import Path

import pytest

WORDS = "the ship sailed past island storm while old captain sang of home bread rain light under seven green hills"


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    """Prepared data of a test lies in its own folder."""
    monkeypatch.setenv("ISOFLOP_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def story():
    """story(seed, paragraphs) -> distinct English-like text, the same for the same seed."""

    def make(seed: int, paragraphs: int = 3) -> str:
        draw = random.Random(seed)
        lines = [
            " ".join(draw.choices(WORDS.split(), k=draw.randint(20, 60))).capitalize() + "." for _ in range(paragraphs)
        ]
        return f"Chapter {seed}\n\n" + "\n\n".join(lines) + "\n"

    return make


@pytest.fixture
def folder_of(tmp_path, story):
    """folder_of(name, n) -> a folder of n short plain-text files with different contents."""

    def make(name: str, n: int, first: int = 0, paragraphs: int = 3) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        for i in range(n):
            (folder / f"{i:03d}.txt").write_text(story(first + i, paragraphs), encoding="utf-8")
        return folder

    return make
