"""A weighted source without training text: the message names the real reason, and its advice works."""

import json
import re

import pytest

from isoflop.config import override
from isoflop.data.config import DataConfig
from isoflop.data.prepare import prepare
from isoflop.errors import UserError
from isoflop.trainer import RunConfig


def weighted(tmp_path, **settings):
    sources = (f"{tmp_path / 'a'}:0.5", f"b={tmp_path / 'b.jsonl'}:0.5")
    return DataConfig(sources=sources, vocab_size=300, workers=1, **settings)


def write_records(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def test_documents_left_out_by_a_small_budget_are_named(tmp_path, folder_of):
    """It begins with many short similar texts, so that the survey underestimates the length of texts."""
    folder_of("a", 30)
    long = [f"{number} " * 4000 for number in range(20)]
    write_records(tmp_path / "b.jsonl", ["x"] * 3000 + long)
    config = weighted(tmp_path, max_train_bytes=2000)
    with pytest.raises(UserError, match="none of its 3,020 texts is in the share") as refused:
        prepare(config)
    advice = re.search(r"--set (data\.max_train_bytes=\d+)$", str(refused.value))
    assert advice
    prepared = prepare(override(RunConfig(data=config), [advice[1]]).data)
    assert prepared.account().sources["b"].bytes > 0.9 * sum(map(len, long))


def test_duplicates_between_sources_are_named(tmp_path, folder_of, story):
    folder_of("a", 30)
    write_records(tmp_path / "b.jsonl", [story(number) for number in range(30)])
    with pytest.raises(UserError, match=r"no text of its own to train on \(duplicates: 30\); remove it or add text"):
        prepare(weighted(tmp_path))
