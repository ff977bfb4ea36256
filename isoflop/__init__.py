"""isoflop: raw text and a compute budget in, the best GPT that the budget can buy out.

import isoflop

isoflop.pretrain(["books=books.jsonl.xz"], budget="3m", out="runs/books")
model, tokenizer = isoflop.load("runs/books")
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from isoflop.errors import UserError as UserError
    from isoflop.job import evaluate as evaluate
    from isoflop.job import load as load
    from isoflop.job import pretrain as pretrain
    from isoflop.job import resume as resume
    from isoflop.job import sample as sample
    from isoflop.job import train as train
    from isoflop.model.config import ModelConfig as ModelConfig
    from isoflop.trainer.config import RunConfig as RunConfig

__version__ = "0.1.0"

# name -> module; imported when first asked for, so that `import isoflop` and `isoflop --help` do not wait for torch
PUBLIC = {
    "ModelConfig": "isoflop.model.config",
    "RunConfig": "isoflop.trainer.config",
    "UserError": "isoflop.errors",
    "evaluate": "isoflop.job",
    "load": "isoflop.job",
    "pretrain": "isoflop.job",
    "resume": "isoflop.job",
    "sample": "isoflop.job",
    "train": "isoflop.job",
}

__all__ = [
    "ModelConfig",
    "RunConfig",
    "UserError",
    "evaluate",
    "load",
    "pretrain",
    "resume",
    "sample",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in PUBLIC:
        return getattr(import_module(PUBLIC[name]), name)
    raise AttributeError(f"module 'isoflop' has no attribute {name!r}")
