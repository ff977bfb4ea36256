"""Token files are read as written, and a flipped bit is noticed."""

import numpy as np
import pytest

from isoflop.data.shards import HEADER, ShardWriter, TokenStream, dtype_for, verify
from isoflop.errors import UserError


def written(folder, tokens, dtype, shard_bytes=1 << 20):
    writer = ShardWriter(folder, "train.0", dtype, shard_bytes)
    for start in range(0, len(tokens), 37):
        writer.write(tokens[start : start + 37])
    return writer.close()


@pytest.mark.parametrize(("vocabulary", "size"), [(1 << 16, 2), ((1 << 16) + 1, 4)])
def test_tokens_take_two_bytes_where_they_fit(tmp_path, vocabulary, size):
    dtype = dtype_for(vocabulary)
    tokens = np.array([0, 1, vocabulary - 1])
    described = written(tmp_path, tokens, dtype)
    assert dtype.itemsize == size and (tmp_path / "train.0.0000.bin").stat().st_size == HEADER.size + 3 * size
    assert TokenStream.open(tmp_path, described, dtype)[:].tolist() == tokens.tolist()


def test_a_stream_reads_the_same_from_one_file_or_many(tmp_path):
    tokens, dtype = np.arange(1000) * 7 % 997, dtype_for(1000)
    streams = []
    for name, shard_bytes in (("one", 1 << 20), ("many", 100)):
        (tmp_path / name).mkdir()
        described = written(tmp_path / name, tokens, dtype, shard_bytes)
        streams.append((TokenStream.open(tmp_path / name, described, dtype), described))
    (one, about_one), (many, about_many) = streams
    assert len(about_many["shards"]) == 20 and about_one["sha256"] == about_many["sha256"]
    for start, stop in [(0, 1000), (49, 51), (50, 100), (999, 1000), (5, 5), (900, 5000), (-3, None)]:
        assert one[start:stop].tolist() == many[start:stop].tolist() == tokens[start:stop].tolist()
    assert many.read(990, 30).tolist() == [*tokens[990:], *tokens[:20]] == one.read(1990, 30).tolist()
    assert many.read(10, 2500).tolist() == np.resize(np.roll(tokens, -10), 2500).tolist()


@pytest.mark.parametrize("place", [0, 20, HEADER.size, -1])
def test_one_flipped_bit_is_named_with_the_way_out(tmp_path, place):
    described = written(tmp_path, np.arange(100), dtype_for(300))
    (shard,) = described["shards"]
    path = tmp_path / shard["file"]
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"delete the folder {tmp_path}"):
        verify(tmp_path, {shard["file"]: (shard["sha256"], len(content))})


@pytest.mark.parametrize("harm", ["missing", "shorter", "longer", "header"])
def test_a_file_that_does_not_fit_the_manifest_is_not_mapped(tmp_path, harm):
    described = written(tmp_path, np.arange(100), dtype_for(300))
    path = tmp_path / described["shards"][0]["file"]
    content = path.read_bytes()
    path.write_bytes(
        {"shorter": content[:-2], "longer": content + b"xx", "header": b"X" + content[1:], "missing": b""}[harm]
    )
    if harm == "missing":
        path.unlink()
    with pytest.raises(UserError, match=path.name):
        TokenStream.open(tmp_path, described, dtype_for(300))
