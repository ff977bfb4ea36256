import pytest

from isoflop.data.tokenizer import Tokenizer

TEXT = ["Once upon a time there was a small brown fox, and it said 12,345 things to nobody in particular. "] * 30


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXT, 320)
