"""What several tests share: a run so small that it takes seconds."""

import random
import shutil
from pathlib import Path

import pytest
import torch

import isoflop
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


def train_in(folder: Path, files: int = 60) -> None:
    """A finished run in "a run", its text in "texts", its prepared data in "home": for `copy_into`."""
    write_texts(folder / "texts", files)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("ISOFLOP_HOME", str(folder / "home"))
        isoflop.pretrain(["texts"], "20steps", "a run", assignments=TINY, quiet=True)


def copy_into(here: Path, trained: Path, name: str = "a run") -> Path:
    """A copy of what `train_in` made, with its run under this name, as if it had been trained here; ISOFLOP_HOME has to
    be here / "home"."""
    for part, own in (("a run", name), ("texts", "texts"), ("home", "home")):
        shutil.copytree(trained / part, here / own)
    data = here / name / "data.json"
    data.write_text(data.read_text(encoding="utf-8").replace(str(trained), str(here)), encoding="utf-8")
    return here / name


def tree_of(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its bytes, locks left out."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


class GradientNorms(Hook):
    """The gradient's norm in each layer, and in all that is in none, step by step: in one process or several, divided
    or not."""

    def __init__(self):
        self.lines = []

    def gradients_ready(self, state):
        layers = [list(unit.parameters()) for unit in state.model.units()]
        within = {id(parameter) for layer in layers for parameter in layer}
        layers.append([parameter for parameter in state.model.parameters() if id(parameter) not in within])
        norms = [torch.nn.utils.get_total_norm([p.grad for p in layer if p.grad is not None]) for layer in layers]
        self.lines.append((state.step + 1, [float(state.layout.global_norm(norm)) for norm in norms]))


class PowerCut(Exception):
    """The end of a process, as far as its run can tell."""


class CutAt(Hook):
    """Lets it come after a step."""

    def __init__(self, step):
        self.step = step

    def stepped(self, state):
        if state.step == self.step:
            raise PowerCut
