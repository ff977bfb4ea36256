"""The sample represents the whole text: its measures are those of the text, in any order of the text."""

import gzip
import io
import json
import random
import tarfile
from pathlib import Path

import pytest

from isoflop.data.config import DataConfig
from isoflop.data.excerpt import CHUNK, chunk_starts, excerpt
from isoflop.data.prepare import prepare, survey
from isoflop.plan.predictability import predictability

WANTED = 200_000  # bytes of a sample, of texts of 600 kB


def language(seed: int, words: int = 400, letters: str = "abcdefghiklmnoprstu") -> list[str]:
    generator = random.Random(seed)
    return ["".join(generator.choices(letters, k=generator.randint(2, 8))) for _ in range(words)]


def prose(words: list[str], size: int, seed: int = 0, line: int = 12, end: str = ".\n") -> str:
    generator = random.Random(seed)
    lines, held = [], 0
    while held < size:
        lines.append(" ".join(generator.choices(words, k=line)) + end)
        held += len(lines[-1])
    return "".join(lines)


def records(texts: list[str]) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


PLAIN, OTHER = language(1), language(2, 60, "vwxyz")
TOPICS = [language(seed, 80) for seed in range(6)]
TEXTS: dict[str, dict[str, bytes]] = {
    "a beginning unlike the rest": {"a.txt": (prose(OTHER, 150_000) + prose(PLAIN, 450_000)).encode()},
    "files ordered by topic": {f"{i}.txt": prose(words, 100_000, i).encode() for i, words in enumerate(TOPICS)},
    "few long documents": {
        "a.jsonl": records([prose(OTHER, 200_000), prose(PLAIN, 200_000), prose(TOPICS[0], 200_000)])
    },
    "short lines in two languages": {
        "a.tsv": (prose(PLAIN, 300_000, line=4, end="\t1\n") + prose(OTHER, 300_000, line=4, end="\t2\n")).encode()
    },
    "a small corpus": {"a.txt": (prose(OTHER, 20_000) + prose(PLAIN, 60_000)).encode()},
}


def write(folder: Path, files: dict[str, bytes]) -> str:
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return str(folder)


def prepared(source: str, **settings):
    return prepare(DataConfig(sources=(source,), vocab_size=300, workers=1, **settings))


def shuffled(content: bytes, seed: int) -> bytes:
    """Pieces of 2 kB in random order: what a sample of that many bytes measures, were it taken at random."""
    pieces = [content[i : i + 2048] for i in range(0, len(content), 2048)]
    random.Random(seed).shuffle(pieces)
    return b"".join(pieces)[:WANTED]


@pytest.mark.parametrize("name", TEXTS)
def test_the_measure_of_the_sample_is_that_of_the_whole(tmp_path, name):
    folder = write(tmp_path / "text", TEXTS[name])
    sample = excerpt(prepared(folder, format="text" if "a.tsv" in TEXTS[name] else "auto"), WANTED)
    if name.endswith("long documents"):
        whole = "".join(json.loads(line)["text"] for line in TEXTS[name]["a.jsonl"].splitlines()).encode()
    else:
        whole = b"".join(TEXTS[name].values())
    assert min(WANTED, 0.9 * len(whole)) * 0.98 <= len(sample) <= WANTED
    of_whole = [predictability(shuffled(whole, seed)) for seed in range(3)]
    found = predictability(sample)
    for measure in ("ngram", "lzma"):
        usual = sum(getattr(one, measure) for one in of_whole) / 3
        assert getattr(found, measure) == pytest.approx(usual, rel=0.08), measure  # of 200 chunks; 1 MB has 600


def test_the_sample_does_not_depend_on_order_compression_archives_or_processes(tmp_path):
    files = TEXTS["files ordered by topic"]
    first = excerpt(prepared(write(tmp_path / "one", files), tokenizer=bytes_only(tmp_path)), WANTED)

    renamed = {f"{9 - int(name[0])}.txt.gz": gzip.compress(content) for name, content in files.items()}
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, content in reversed(files.items()):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    for other in (renamed, {"all.tar": packed.getvalue()}):
        folder = write(tmp_path / str(len(other)), other)
        assert excerpt(prepared(folder, tokenizer=bytes_only(tmp_path)), WANTED) == first


def bytes_only(tmp_path: Path) -> str:
    """A tokenizer that no text had a part in: one id for each byte."""
    path = tmp_path / "bytes.json"
    if not path.exists():
        source = write(tmp_path / "seed", {"a.txt": prose(PLAIN, 20_000).encode()})
        path.write_text(prepare(DataConfig(sources=(source,), vocab_size=257, workers=1)).tokenizer.to_json())
    return str(path)


def test_weighted_sources_count_with_their_weights(tmp_path):
    plain = write(tmp_path / "plain", {"a.txt": prose(PLAIN, 500_000).encode()})
    other = write(tmp_path / "other", {"a.txt": prose(OTHER, 150_000).encode()})
    data = DataConfig(sources=(f"{plain}:0.75", f"{other}:0.25"), vocab_size=300, workers=1)
    sample = excerpt(prepare(data), WANTED).decode(errors="ignore")
    of_other = sum(set(word) <= set("vwxyz.") for word in sample.split()) / len(sample.split())
    whole = prose(OTHER, 50_000), prose(PLAIN, 150_000)
    expected = len(whole[0].split()) / (len(whole[0].split()) + len(whole[1].split()))
    assert of_other == pytest.approx(expected, abs=0.03)


def test_prepared_data_named_by_folder_have_the_same_sample(tmp_path):
    data = prepared(write(tmp_path / "text", {"a.txt": prose(PLAIN, 100_000).encode()}))
    assert survey(DataConfig(path=str(data.folder))).sample == excerpt(data, 1_000_000)


def test_the_survey_samples_more_than_the_first_files_beginning(tmp_path):
    content = (prose(OTHER, 1_200_000) + prose(PLAIN, 1_200_000)).encode()
    sample = survey(DataConfig(sources=(write(tmp_path / "text", {"a.txt": content}),))).sample
    of_other = sample.decode(errors="ignore").split()
    assert 0.3 < sum(set(word) <= set("vwxyz.") for word in of_other) / len(of_other) < 0.7


def test_chunks_begin_where_documents_do():
    import numpy as np

    tokens = np.array([5] * (CHUNK + 2) + [0] + [6, 7, 0] + [0] + [8])
    assert chunk_starts(tokens, 0).tolist() == [0, CHUNK, CHUNK + 3, CHUNK + 6, CHUNK + 7]
