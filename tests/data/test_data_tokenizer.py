"""The round trip is exact, and text never becomes the end-of-text id."""

import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, normalizers, pre_tokenizers

from isoflop.data.pieces import PLAIN, SETTLED
from isoflop.data.tokenizer import EOT, Tokenizer, byte_characters
from isoflop.errors import UserError

HARD = [
    "CR LF\r\n and lone \r",
    "NUL \x00 \x00",
    "unassigned \u0378 \U000e0fff \U0010ffff",
    "\ufeffBOM",
    "e\u0301\u0301 lone mark \u0301",
    f"literal {EOT} stays text{EOT}",
    "   leading,  inner \t and trailing   \n\n\n",
    "中文 \U0001f600",
    "",
]


@pytest.fixture(scope="module")
def trained():
    return Tokenizer.train([f"the cat sat on the mat, {EOT} and then the dog sat too\n" * 3] * 5, 320)


@pytest.mark.parametrize("text", HARD)
def test_hard_texts_come_back_exactly(trained, text):
    for ids in (trained.encode(text), trained.encode_batch([text, "x"])[0]):
        assert trained.decode(ids) == text and trained.decode_bytes(ids) == text.encode()
        assert trained.eot not in list(ids)


@settings(max_examples=300, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"])) | st.text(f"{EOT} \r\n\x00a"))
def test_every_text_comes_back_exactly_and_holds_no_end(trained, text):
    ids = trained.encode(text)
    assert trained.decode_bytes(ids) == text.encode() and trained.eot not in ids
    assert trained.token_bytes()[ids].sum() == len(text.encode())


SETTLED_CHARACTERS = [chr(c) for block in SETTLED for c in block]
PLAIN_TEXT = st.text(SETTLED_CHARACTERS) | st.text("ab 1\n\t'sltrve.\xa0é—½ª") | st.text(f"{EOT} \u3000中\x1c")


@settings(max_examples=300, deadline=None)
@given(text=PLAIN_TEXT)
def test_cached_pieces_have_the_librarys_ids(trained, text):
    for _ in range(2):  # unseen, and seen
        assert trained.encode_batch([text, f" {text}", f"{text}\n{text}"])[1].tolist() == trained.encode(f" {text}")


def test_every_known_character_is_split_like_the_librarys(trained):
    """Beside a letter, a number, a sign and white space, on both sides."""
    texts = [
        "".join(
            f"{before}{c}{after}|"
            for before in ("a", "1", ".", " ", "\n ", "'")
            for after in ("b", "2", "!", "  ", "s")
        )
        for c in SETTLED_CHARACTERS
    ]
    assert all(PLAIN.fullmatch(text) for text in texts)
    for text, ids in zip(texts, trained.encode_batch(texts), strict=True):
        assert ids.tolist() == trained.encode(text)


def test_emptying_a_full_cache_changes_nothing(trained, monkeypatch):
    monkeypatch.setattr("isoflop.data.pieces.REMEMBERED", 50)
    texts = [" ".join(f"w{i}" for i in range(start, start + 40)) for start in range(0, 400, 20)]
    tokenizer = Tokenizer.from_json(trained.to_json())
    for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
        assert ids.tolist() == trained.encode(text)


def test_the_end_of_text_is_the_last_id_and_decodes_to_nothing(trained):
    assert trained.eot == trained.vocab_size - 1 < 320
    assert trained.token_bytes()[trained.eot] == 0 and (trained.token_bytes()[:-1] > 0).all()
    assert trained.decode([*trained.encode("a"), trained.eot, *trained.encode("b")]) == "ab"


def test_vocabulary_is_as_large_as_asked_where_the_text_suffices(story):
    tokenizer = Tokenizer.train([story(i) for i in range(50)], 300)
    assert tokenizer.vocab_size == 300


def test_training_twice_gives_the_same_tokenizer(story):
    texts = [story(i) for i in range(20)]
    assert Tokenizer.train(texts, 290).to_json() == Tokenizer.train(texts[::-1], 290).to_json()


def test_bytes_may_stop_within_a_character(trained):
    ids = trained.encode("\U0001f600")
    assert trained.decode_bytes(ids[:-1]) == "\U0001f600".encode()[:-1]
    assert "\ufffd" in trained.decode(ids[:-1])


def test_json_keeps_everything(trained):
    again = Tokenizer.from_json(trained.to_json())
    assert (again.eot, again.vocab_size) == (trained.eot, trained.vocab_size)
    assert [again.encode(text) for text in HARD] == [trained.encode(text) for text in HARD]


def test_the_byte_table_is_a_bijection_onto_visible_characters():
    table = byte_characters()
    assert len(set(table)) == 256 and all(character.isprintable() and character != " " for character in table)
    assert table[ord("a")] == "a" and table[ord(" ")] == "Ġ" and table[ord("\n")] == "Ċ"


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory):
    packed = Path(os.environ.get("ISOFLOP_TEST_DATA", "")) / "data/tokenizers.tar.xz"
    if not packed.is_file():
        pytest.skip("GPT-2's vocab.bpe is not there: ISOFLOP_TEST_DATA/data/tokenizers.tar.xz")
    folder = tmp_path_factory.mktemp("gpt2")
    with tarfile.open(packed) as tar:
        for member in tar.getmembers():
            name = Path(member.name).name
            if name in ("vocab.bpe", "encoder.json"):
                (folder / name).write_bytes(tar.extractfile(member).read())
    return folder


def test_gpt2s_merges_alone_give_its_50257_ids(gpt2):
    tokenizer = Tokenizer.from_file(gpt2 / "vocab.bpe")
    assert tokenizer.vocab_size == 50257 and tokenizer.eot == 50256
    assert tokenizer.vocabulary == json.loads((gpt2 / "encoder.json").read_text("utf-8"))
    assert tokenizer.encode("Hello world") == [15496, 995]
    assert all(tokenizer.decode(tokenizer.encode(text)) == text for text in HARD)


def test_a_small_list_of_merges(tmp_path):
    path = tmp_path / "merges.txt"
    path.write_text("#version: 0.2\nĠ t\n# #\nĠt h\n", encoding="utf-8")
    tokenizer = Tokenizer.from_file(path)
    assert tokenizer.vocab_size == 260 and tokenizer.encode(" th##") == [258, 257]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"#version: 0.2\na b c\n", "line 2"),
        (b"#version: 0.2\nab c\n", "line 2"),
        (b"#version: 0.2\n", "no merges"),
        (b'{"version": "1.0"', "not a tokenizer.json"),
        (b'{"version": "1.0", "model": {}}', "not a tokenizer.json"),
        (b"{}", "not a tokenizer.json"),
        (b"\xff\xfe", "is not text"),
        (None, "does not exist"),
    ],
)
def test_a_file_that_is_not_a_tokenizer_is_one_line(tmp_path, content, message):
    path = tmp_path / "given"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message) as refused:
        Tokenizer.from_file(path)
    assert str(path) in str(refused.value) and "\n" not in str(refused.value)


def foreign(trained, change):
    inner = tokenizers.Tokenizer.from_str(trained.to_json())
    change(inner)
    return inner.to_str()


def test_a_foreign_tokenizer_with_other_special_tokens_truncation_and_padding(trained):
    def change(inner):
        inner.add_special_tokens(["<|im_start|>", "[MASK]"])
        inner.enable_truncation(4)
        inner.enable_padding(length=50)

    tokenizer = Tokenizer.from_json(foreign(trained, change))
    text = f"[MASK] is <|im_start|> text, {EOT} too"
    assert tokenizer.decode(tokenizer.encode(text)) == text and tokenizer.eot == trained.eot
    assert np.array_equal(tokenizer.encode_batch([text, "a"])[0], tokenizer.encode(text))


def test_an_end_of_text_that_is_not_marked_as_special_is_not_read_from_text(trained):
    described = json.loads(trained.to_json())
    described["added_tokens"][0]["special"] = False
    tokenizer = Tokenizer.from_json(json.dumps(described))
    assert tokenizer.eot not in tokenizer.encode(EOT)


def test_a_lossy_tokenizer_is_refused(trained):
    def lower(inner):
        inner.normalizer = normalizers.Lowercase()

    def prefix(inner):
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)

    for change in (lower, prefix):
        with pytest.raises(UserError, match="does not give text back exactly"):
            Tokenizer.from_json(foreign(trained, change))


def test_a_tokenizer_without_an_end_of_text_is_refused_with_the_names_tried():
    bare = tokenizers.Tokenizer(models.BPE({"a": 0}, []))
    with pytest.raises(UserError, match=r"<\|endoftext\|>, </s>"):
        Tokenizer.from_json(bare.to_str())


def test_a_sentencepiece_like_tokenizer_with_byte_fallback():
    from tokenizers import decoders

    pieces = [*(f"<0x{b:02X}>" for b in range(256)), "</s>", "▁", "a", "b", "▁a"]
    inner = tokenizers.Tokenizer(
        models.BPE({p: i for i, p in enumerate(pieces)}, [("▁", "a")], byte_fallback=True, fuse_unk=True)
    )
    inner.add_special_tokens(["</s>"])
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer = Tokenizer.from_json(inner.to_str())
    for text in ("a b  a é", " a", "中\r\n\x00"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.token_bytes()[pieces.index("▁a")] == 2 and tokenizer.token_bytes()[0xC3] == 1


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.sampled_from("ab \n\r\t'.,1é\u00a0\u3000s"), max_size=200), length=st.integers(1, 20))
def test_stretches_join_to_the_text_and_have_its_ids(trained, text, length):
    stretches = trained.stretches(text, length)
    assert "".join(stretches) == text
    assert [i for stretch in stretches for i in trained.encode(stretch)] == trained.encode(text)


def test_a_long_text_is_cut_into_stretches(trained):
    assert max(map(len, trained.stretches("the cat sat " * 1000, 100))) < 110
