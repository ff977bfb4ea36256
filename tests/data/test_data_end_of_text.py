"""A given tokenizer with an unusual name for its end-of-text token."""

import pytest
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Library

from isoflop.data.config import DataConfig
from isoflop.data.prepare import open_prepared, prepare
from isoflop.data.tokenizer import Tokenizer
from isoflop.errors import UserError


@pytest.fixture
def given(tmp_path):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Library(models.BPE({character: n for n, character in enumerate(alphabet)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken("<|eos|>", special=True, normalized=False)])
    path = tmp_path / "t.json"
    inner.save(str(path))
    return path


def test_the_refusal_names_the_setting_and_the_setting_works(given, folder_of):
    config = DataConfig(sources=(str(folder_of("text", 20)),), tokenizer=str(given), workers=1)
    with pytest.raises(UserError, match=r"--set 'data\.end_of_text=<\|eos\|>'"):
        prepare(config)
    with pytest.raises(UserError, match="no token '<end>'"):
        prepare(DataConfig(sources=config.sources, tokenizer=str(given), end_of_text="<end>"))
    with pytest.raises(UserError, match="is trained; leave it out"):
        prepare(DataConfig(sources=config.sources, end_of_text="<|eos|>"))
    prepared = prepare(DataConfig(sources=config.sources, tokenizer=str(given), end_of_text="<|eos|>", workers=1))
    assert open_prepared(prepared.folder).tokenizer.eot == 256  # it is known without the setting from here on


def test_the_mark_survives_and_the_library_ignores_it(given):
    text = Tokenizer.from_file(given, "<|eos|>").to_json()
    again = Tokenizer.from_json(text)
    assert again.eot == 256 and again.to_json() == text and 256 not in again.encode("<|eos|>")
    assert Library.from_str(text).token_to_id("<|eos|>") == 256
