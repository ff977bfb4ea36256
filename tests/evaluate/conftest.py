import json
from pathlib import Path

import pytest
import torch

from isoflop.data.tokenizer import Tokenizer
from isoflop.model.config import ModelConfig
from isoflop.model.gpt import GPT
from isoflop.runtime import make_runtime

TEXT = ["The cat sat on the mat, and the dogs ran to it; a small brown fox said 12,345 things to nobody at all. "] * 30


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXT, 320)


@pytest.fixture(scope="session")
def model(tokenizer) -> GPT:
    """So small that whatever it says is by chance, and sure enough of it that no two likelihoods are nearly equal."""
    torch.manual_seed(1)
    small = GPT(ModelConfig(vocab_size=tokenizer.vocab_size, context=32, layers=2, d_model=32, heads=2))
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.normal_(std=0.3)
    return small.eval()


@pytest.fixture(scope="session")
def runtime():
    return make_runtime("cpu", "float32", 1)


@pytest.fixture
def write_suite(tmp_path):
    """Writes a suite file and its items next to it, and returns the suite's path."""

    def write(records, name="own", **fields) -> Path:
        asked = {"context": "{question}", "options": "choices", "answer": "{gold}"}
        suite = {"name": name, "method": "options", "files": [f"{name}.jsonl"]}
        suite |= {**(asked if fields.get("method", "options") == "options" else {}), **fields}
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        tables = {key: value for key, value in suite.items() if isinstance(value, dict)}
        lines = [f"{key} = {json.dumps(value)}" for key, value in suite.items() if key not in tables]
        for key, table in tables.items():
            lines += [f"[{key}]", *(f"{name} = {json.dumps(value)}" for name, value in table.items())]
        path = tmp_path / f"{name}.toml"
        path.write_text("\n".join(lines) + "\n")
        return path

    return write


@pytest.fixture
def questions():
    return [
        {"question": f"The {a} sat on", "choices": ["the mat", "it", "a small brown fox"], "gold": i % 3, "kind": a[0]}
        for i, a in enumerate(["cat", "dog", "fox", "dogs", "cats", "things"])
    ]
