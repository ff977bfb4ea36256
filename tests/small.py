"""What several tests share: a run so small that it takes seconds."""

import random
from pathlib import Path

from isoflop.trainer.hooks import Hook

TINY = [
    "model.layers=2",
    "model.d_model=32",
    "model.heads=2",
    "model.context=64",
    "data.vocab_size=320",
    "batch.sequences=8",
    "runtime.dtype=float32",
    "runtime.threads=1",
    "every.checkpoint=5",
    "every.evaluate=10",
    "every.sample=10",
    "sample.tokens=20",
    "evaluate_tokens=2048",
]


def write_texts(folder: Path, files: int = 60) -> Path:
    """Made-up texts of 5 kB from a few hundred words, the same every time."""
    generator = random.Random(0)
    words = ["".join(generator.choices("abcdefghilmnoprstu", k=generator.randint(2, 8))) for _ in range(300)]
    folder.mkdir()
    for number in range(files):
        lines = [" ".join(generator.choices(words, k=12)) + "." for _ in range(70)]
        (folder / f"{number}.txt").write_text("\n".join(lines), encoding="utf-8")
    return folder


def tree_of(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its bytes, locks left out."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


class PowerCut(Exception):
    """The end of a process, as far as its run can tell."""


class CutAt(Hook):
    """Lets it come after a step."""

    def __init__(self, step):
        self.step = step

    def stepped(self, state):
        if state.step == self.step:
            raise PowerCut
