"""Ways to corrupt a file: bytes, JSON, safetensors, GGUF and llama2.c headers, shards, compressed text, whole folders.

Each function takes a Case, changes the files in its folder and returns a few words about the change. All random numbers
come from the case's generator, so that (target, seed, number) determines the case.
"""

import gzip
import json
import lzma
import os
import random
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import zstandard

MARK = "RAW-{}-TOKEN"  # stands for text that json.dumps would not write
INTERESTING = (0, 1, 2, 255, 256, 2**15, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**33, 2**40, 2**62, 2**63 - 1, 2**63)


@dataclass
class Case:
    """One corrupted copy of a valid example.

    Attributes:
        folder: the folder of the copy.
        outside: a folder next to it with a valid example and a canary, which nothing may open.
        must_refuse: whether reading it would itself be a fault, as for a path that leads outside.
    """

    folder: Path
    outside: Path
    draw: random.Random
    must_refuse: bool = False

    def files(self, *endings: str) -> list[Path]:
        """Regular files of moderate size, in order of name, with one of the suffixes if any are given."""
        found = whole_files(self.folder)
        return [p for p in found if not endings or p.name.endswith(endings)]

    def pick(self, *endings: str) -> Path | None:
        found = self.files(*endings)
        return self.draw.choice(found) if found else None


Op = Callable[[Case], str]


# Bytes


def spoil_bytes(draw: random.Random, data: bytes) -> tuple[str, bytes]:
    """One change of any file: cut, flipped, overwritten, inserted, doubled, moved."""
    size = len(data)
    at, length = draw.randrange(size + 1), min(size, 2 ** draw.randrange(0, 13))
    kind = draw.choice(
        [
            "cut",
            "flip",
            "flip",
            "poke",
            "number",
            "number",
            "insert",
            "double",
            "zero",
            "delete",
            "swap",
            "append",
            "empty",
        ]
    )
    changed = bytearray(data)
    match kind:
        case "cut":
            del changed[at:]
        case "flip":
            for _ in range(2 ** draw.randrange(0, 6) if size else 0):
                changed[draw.randrange(size)] ^= 1 << draw.randrange(8)
        case "poke":
            for _ in range(draw.randrange(1, 5) if size else 0):
                changed[draw.randrange(size)] = draw.choice([0, 0x7F, 0x80, 0xFF, 0x0A, 0x22, 0x5B, 0x7B])
        case "number":
            near = draw.choice([at, draw.randrange(min(size, 64) + 1), max(0, size - draw.randrange(1, 65))])
            value, width = draw.choice([*INTERESTING, size, size + 1]), draw.choice([2, 4, 8])
            changed[near : near + width] = (value & (2 ** (8 * width) - 1)).to_bytes(width, "little")
        case "insert":
            changed[at:at] = draw.randbytes(min(length, 512))
        case "double":
            changed[at:at] = data[at : at + length] * draw.choice([1, 2, 64])
        case "zero":
            changed[at : at + length] = bytes(len(data[at : at + length]))
        case "delete":
            del changed[at : at + length]
        case "swap":
            changed = changed[at:] + changed[:at]
        case "append":
            changed += draw.choice([b"\0" * length, draw.randbytes(length), data])
        case _:
            changed.clear()
    return f"{kind} at {at} of {size}", bytes(changed)


def bytes_of_any(case: Case) -> str:
    if (path := case.pick()) is None:
        return "no file"
    change, data = spoil_bytes(case.draw, path.read_bytes())
    path.write_bytes(data)
    return f"{path.name}: {change}"


# JSON


def deep(depth: int, kind: str) -> str:
    return "[" * depth + "]" * depth if kind == "list" else '{"a":' * depth + "1" + "}" * depth


class Raw(str):
    """JSON text as it stands, which no value of Python's would be written as."""


def hostile(case: Case) -> Any:
    """A value that a reader may not expect."""
    draw = case.draw
    canary = str(case.outside / "canary")
    groups: list[list[Any]] = [
        [None, True, False, [], {}, "", [[]], [None], {"": ""}, {"name": None}],
        [0, -1, 1, 3, 7, 255, 2**16, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64, 10**30, -(10**18)],
        [10**6, 10**8, 10**9, 10**12],
        [0.5, -0.0, 1.5, 1e-320, 1e15, 1e308, -1e308, Raw("NaN"), Raw("Infinity"), Raw("-Infinity"), Raw("1e999")],
        [Raw("9" * 10_000), Raw("-" + "9" * 400), Raw("0." + "1" * 10_000), Raw("1" * 300)],
        ["../../outside/canary", canary, "/etc/passwd", "/dev/zero", "..", ".", "/", "a/../../b", "C:\\x", "~root/x"],
        [
            "os.system",
            "builtins.eval",
            "isoflop.__main__.main",
            "isoflop.cli.run",
            "isoflop.model.gpt.GPT",
            "torch.nn.Linear",
        ],
        [
            "isoflop..x",
            "isoflop.\0.x",
            ".isoflop.x",
            "isoflop.model.blocks.norm.RMSNorm",
            "evil.Block",
            "\u00e9.\u00e9",
        ],
        [
            f"!!python/object/apply:os.system ['touch {canary}']",
            f"__import__('os').system('touch {canary}')",
            "${HOME}",
        ],
        [
            "\0",
            "\ud800",
            "a\udfffb",
            "\u202e",
            "a\nb\x1b[31mred",
            "\ufeff",
            "é" * 300,
            "x" * 5000,
            "9" * 5000,
            "NaN",
            "1e5",
        ],
        [{"name": "rms", "self": 1}, {"name": "rms", "name ": 1}, {"name": "\ud800"}, {"name": ["rms"]}, {"self": 1}],
        [{"name": "alternating", "pattern": []}, {"name": "alternating", "pattern": [{"name": "alternating"}]}],
        [list(range(2000)), ["x"] * 2000, {str(n): n for n in range(2000)}],
        [Raw(deep(n, kind)) for n in (60, 300, 990, 20_000, 100_000) for kind in ("list", "object")],
        [Raw(json.dumps("x" * 10_000_000))] if draw.random() < 0.1 else [Raw(json.dumps("x\\" * 50_000))],
    ]
    return draw.choice(draw.choice(groups))


def places(value: Any) -> list[tuple[Any, Any]]:
    """(container, key or index) of every value below the top; at most about 5,000, since vocabularies are long."""
    found: list[tuple[Any, Any]] = []
    stack = [value]
    while stack and len(found) < 5000:
        here = stack.pop()
        keys = list(here) if isinstance(here, dict) else range(len(here)) if isinstance(here, list) else []
        for key in keys[:400] if isinstance(keys, (list, range)) else []:
            found.append((here, key))
            stack.append(here[key])
    return found


def spoil_json(case: Case, text: str) -> tuple[str, str]:
    """One change of a JSON document that leaves most of it as it was."""
    draw = case.draw
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return "was no JSON any more", text
    shallow = [(holder, key) for holder, key in places(value)]
    if not shallow:
        return "replaced", json.dumps(hostile(case))
    first = [place for place in shallow if place[0] is value or draw.random() < 0.3] or shallow
    holder, key = draw.choice(first)
    new = hostile(case)
    kind = draw.choice(["replace"] * 6 + ["delete", "rename", "insert", "twice", "swap", "wrap", "whole"])
    named = str(key)[:40]
    match kind:
        case "replace":
            holder[key] = new
        case "delete":
            del holder[key]
        case "rename" if isinstance(holder, dict):
            holder[draw.choice(["__class__", "self", "name", "", "\ud800", "x" * 1000, named + "s"])] = holder.pop(key)
        case "insert" if isinstance(holder, dict):
            holder[draw.choice(["__class__", "__reduce__", "self", "cls", "auto_map", "trust_remote_code", "x"])] = new
        case "insert" | "rename":
            holder.insert(key, new)
        case "twice" if isinstance(holder, dict):
            written = dump(value)
            quoted = json.dumps(key)
            return f"{named} twice", written.replace(f"{quoted}: ", f"{quoted}: {dump(new)}, {quoted}: ", 1)
        case "swap":
            other, index = draw.choice(shallow)
            holder[key], other[index] = other[index], json.loads(json.dumps(holder[key]))
            if circular(value):
                return "swap given up", text
        case "wrap" | "twice":
            holder[key] = draw.choice([[holder[key]], {"name": holder[key]}, str(holder[key])[:1000]])
        case _:
            return "the whole document replaced", dump(new)
    return f"{kind} {named}", dump(value)


def circular(value: Any) -> bool:
    try:
        json.dumps(value)
    except (ValueError, RecursionError):
        return True
    return False


def dump(value: Any) -> str:
    """json.dumps with Raw values as they stand."""
    raws: list[str] = []

    def marked(item: Any) -> Any:
        if isinstance(item, Raw):
            raws.append(str(item))
            return MARK.format(len(raws) - 1)
        if isinstance(item, dict):
            return {k: marked(v) for k, v in item.items()}
        return [marked(v) for v in item] if isinstance(item, list) else item

    text = json.dumps(marked(value))
    for number, raw in enumerate(raws):
        text = text.replace(f'"{MARK.format(number)}"', raw)
    return text


def json_of(*endings: str) -> Op:
    """Spoil a JSON file, or one line of a .jsonl."""

    def spoil(case: Case) -> str:
        path = case.pick(*(endings or (".json", ".jsonl")))
        if path is None:
            return "no JSON"
        text = path.read_bytes().decode(errors="replace")
        if path.suffix == ".jsonl":
            lines = text.split("\n")
            at = case.draw.randrange(len(lines))
            change, lines[at] = spoil_json(case, lines[at])
            new = "\n".join(lines)
        else:
            change, new = spoil_json(case, text)
        encoding = case.draw.choice(["utf-8"] * 12 + ["utf-16", "utf-8-sig", "utf-32"])
        path.write_bytes(new.encode(encoding, errors="surrogatepass"))
        return f"{path.name}: {change} {encoding if encoding != 'utf-8' else ''}"

    return spoil


# Headers


def safetensors_header(case: Case) -> str:
    """The header of a safetensors file: its length, or a value in it; the length made right again or not."""
    path = case.pick(".safetensors")
    if path is None or path.stat().st_size < 16:
        return "no safetensors"
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    if length > len(data) or case.draw.random() < 0.15:
        claimed = case.draw.choice([*INTERESTING, len(data), len(data) - 8, 100_000_000, length - 1, length + 1])
        path.write_bytes(struct.pack("<Q", claimed % 2**64) + data[8:])
        return f"{path.name}: header of {claimed}"
    header, body = data[8 : 8 + length].decode(errors="replace"), data[8 + length :]
    try:
        entries = json.loads(header)
    except ValueError:
        return "was no header any more"
    names = [name for name in entries if name != "__metadata__" and isinstance(entries[name], dict)]
    kind = case.draw.choice(["dtype", "shape", "offsets", "json", "json", "metadata", "cast"])
    if not names or kind == "json":
        change, header = spoil_json(case, header)
    else:
        entry = entries[case.draw.choice(names)]
        change = kind
        match kind:
            case "dtype":
                entry["dtype"] = case.draw.choice(["F64", "F16", "BF16", "I64", "U8", "BOOL", "F8_E4M3", "C64", "X", 5])
            case "shape":
                entry["shape"] = case.draw.choice(
                    [[], [0], [-1], [2**62, 4], [2**32, 2**32], [0, 2**63], [1] * 70, "x"]
                )
            case "offsets":
                entry["data_offsets"] = case.draw.choice([[0, 0], [8, 0], [0, 2**63], [-8, 8], [0, len(body)], [1]])
            case "cast":  # another dtype of the same size: the file itself is right
                entry["dtype"] = {"F32": "I32", "I32": "F32", "U8": "BOOL", "I64": "F64", "F64": "I64"}.get(
                    entry.get("dtype", ""), "I8"
                )
            case _:
                sharding = {name: {"saved_offsets": hostile(case)} for name in names}
                entries["__metadata__"] = {"DCP_SHARDING_INFO": dump(sharding), "format": "pt"}
        header = dump(entries)
    encoded = header.encode("utf-8", errors="surrogatepass")
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + body)
    return f"{path.name}: header {change}"


def gguf_header(case: Case) -> str:
    """A number somewhere in the first part of a GGUF file: counts, lengths, types, dimensions, alignment."""
    path = case.pick(".gguf")
    if path is None or path.stat().st_size < 64:
        return "no gguf"
    data = bytearray(path.read_bytes())
    draw = case.draw
    lengths = [m for m in range(8, min(len(data), 40_000) - 8) if data[m + 4 : m + 8] == b"\0\0\0\0" and data[m]]
    at = draw.choice(
        [draw.choice([4, 8, 16]), draw.choice(lengths or [8]), draw.randrange(8, min(len(data), 40_000) - 8)]
    )
    width = draw.choice([4, 8])
    value = draw.choice([*INTERESTING, *range(14), len(data)])
    data[at : at + width] = (value & (2 ** (8 * width) - 1)).to_bytes(width, "little")
    path.write_bytes(data)
    return f"{path.name}: {width} bytes at {at} = {value}"


def llama2c_header(case: Case) -> str:
    path = case.folder / "model.bin"
    if not path.is_file() or path.stat().st_size < 28:
        return "no model.bin"
    data = bytearray(path.read_bytes())
    value = case.draw.choice([0, 1, -1, 2, 3, 7, 2**24 - 1, 2**24, 2**31 - 1, -(2**31), 65536])
    at = 4 * case.draw.randrange(7)
    data[at : at + 4] = struct.pack("<i", value)
    path.write_bytes(data)
    return f"model.bin: number {at // 4} = {value}"


def shard_header(case: Case) -> str:
    """Token files: magic, version, width, count; or ids that no vocabulary has."""
    path = case.pick(".bin")
    if path is None or path.stat().st_size < 66:
        return "no shard"
    data = bytearray(path.read_bytes())
    at, width = case.draw.choice([(0, 8), (8, 4), (12, 4), (16, 8), (24, 8), (64, 2), (len(data) - 2, 2)])
    data[at : at + width] = (case.draw.choice([*INTERESTING, 65535]) % 2 ** (8 * width)).to_bytes(width, "little")
    path.write_bytes(data)
    return f"{path.name}: {width} bytes at {at}"


# Text and archives


def bomb(case: Case) -> str:
    """A small file that unpacks to a very large one, or declares to."""
    draw = case.draw
    kind = draw.choice(["gz", "xz", "zst", "xz dictionary", "zst window", "parquet", "parquet pages", "gz of a bomb"])
    size = draw.choice([8, 16, 100]) * 2**20
    block = draw.choice([b"a", b" ", b"\n", b"a\n", b"[", b'{"text": "', b"\\", b"ab ", b"\xc3"])
    name = draw.choice(["x.txt", "x.jsonl", "x.csv"])
    if b"\n" in block:
        size = 2**20 * 8  # lines cost time, each: a bomb of them is no surprise but a long text
    content = (block * (2**20 // len(block)))[: 2**20]
    match kind:
        case "gz" | "gz of a bomb":
            packed = gzip.compress(content * (size >> 20), 6)
            if kind != "gz":
                packed = gzip.compress(packed)
            (case.folder / f"{name}.gz").write_bytes(packed)
        case "xz":
            (case.folder / f"{name}.xz").write_bytes(lzma.compress(content * (size >> 21), preset=0))
        case "zst":
            (case.folder / f"{name}.zst").write_bytes(zstandard.compress(content * (size >> 20)))
        case "xz dictionary":
            filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 2**20}]
            data = bytearray(lzma.compress(content[: 2**16], filters=filters))
            at = data.find(b"\x21\x01", 12)  # the filter, one byte of properties: the dictionary's size
            data[at + 2] = 40  # 4 GiB
            data[12 + 4 * data[12] : 16 + 4 * data[12]] = struct.pack(
                "<I", zlib.crc32(bytes(data[12 : 12 + 4 * data[12]]))
            )
            (case.folder / f"{name}.xz").write_bytes(data)
        case "zst window":
            frame = b"\x28\xb5\x2f\xfd" + bytes(
                [0x00, draw.choice([0xA8, 0xB0, 0xA0, 0xFF])]
            )  # 2 GiB, 4 GiB, 1 GiB, ..
            raw = struct.pack("<I", (1) | (5 << 3))[:3] + b"hello"
            (case.folder / f"{name}.zst").write_bytes(frame + raw)
        case _:
            value = "x" * draw.choice([10**6, 10**7])
            if kind == "parquet":  # one value in its dictionary, so that the bomb is small while it is made, too
                rows = pa.DictionaryArray.from_arrays(pa.array([0] * 256, pa.int32()), [value])
            else:
                rows = pa.array([value] * 4)
            path = case.folder / "x.parquet"
            with pa.parquet.ParquetWriter(
                path,
                pa.schema([("text", rows.type)]),
                compression="zstd",
                use_dictionary=kind == "parquet",
                store_schema=False,
            ) as writer:
                writer.write_table(pa.table({"text": rows}))
    return f"bomb {kind} {size >> 20} MiB of {block!r}"


def wrong_parquet(case: Case) -> str:
    """A sound parquet file whose text column is something else."""
    draw = case.draw
    columns: list[Any] = [
        pa.array([1, 2, None]),
        pa.array([b"\xff\xfe", b"ok", None]),
        pa.array([["a"], None, ["b"]]),
        pa.array([{"a": "x"}, None, {"a": "y"}]),
        pa.array(["a", None, "b"]).dictionary_encode(),
        pa.array([None, None, None]),
        pa.array(["x", "\0", "\ufeff"], pa.large_string()),
        pa.array([1.5, float("nan"), None]),
        pa.array([True, None, False]),
    ]
    name = draw.choice(["text", "text", "body", "", "te\nxt", "\u202e"])
    table = pa.table({name: draw.choice(columns)})
    pa.parquet.write_table(table, case.folder / "a.parquet", compression=draw.choice(["none", "zstd", "gzip"]))
    return f"parquet column {name!r} of {table.schema.types[0]}"


def disguise(case: Case) -> str:
    """A file under another ending, or another file's content under this name."""
    a, b = case.pick(), case.pick()
    if a is None or b is None:
        return "no file"
    if a != b:
        a.write_bytes(b.read_bytes())
        return f"{a.name} holds {b.name}"
    ending = case.draw.choice([".gz", ".xz", ".zst", ".zip", ".parquet", ".jsonl", ".txt", ".json", ".bin", ".gguf"])
    a.rename(a.with_name(a.name + ending))
    return f"{a.name} called {ending}"


# Folders


def evil_pickle(canary: Path) -> bytes:
    """What unpickles into a touched file: protocol 0 for os.system."""
    return f"cos\nsystem\n(S'touch {canary}'\ntR.".encode()


PLANTED = (
    *("evil.pkl", ".metadata", "pytorch_model.bin", "evil.pt", "tokenizer.model", "config.yaml"),
    *("sitecustomize.py", "conftest.py", "modeling_evil.py", "__init__.py", "tokenizer.py", "torch.py", "json.py"),
)


def planted(case: Case) -> str:
    """A file that executes code if it is loaded in an unsafe way, next to the others or in place of one."""
    canary = case.outside / "canary"
    source = f"import os\nos.system('touch {canary}')\nopen({str(canary)!r}, 'w')\n".encode()
    name = case.draw.choice(PLANTED)
    path = case.folder / name
    if case.draw.random() < 0.4 and (some := case.pick()) is not None:
        path = some
    folder = case.draw.choice([path.parent, path.parent / "tensors"])
    path = (folder if folder.is_dir() else path.parent) / path.name
    path.write_bytes(source if path.suffix == ".py" else evil_pickle(canary))
    return f"planted {path.name}"


def spoil_folder(case: Case) -> str:
    """A file that is missing, a folder, a link, a pipe, a device, or has an unusual name."""
    path = case.pick()
    if path is None:
        return "no file"
    draw = case.draw
    kind = draw.choice(["gone", "folder", "pipe", "link out", "loop", "dangling", "device", "name", "extra"])
    match kind:
        case "gone":
            path.unlink()
        case "folder":
            path.unlink()
            path.mkdir()
        case "pipe":
            path.unlink()
            os.mkfifo(path)
        case "link out":
            twin = case.outside / "valid" / path.relative_to(case.folder)
            path.unlink()
            path.symlink_to(twin)
        case "loop":
            path.unlink()
            path.symlink_to(path.name)
        case "dangling":
            path.unlink()
            path.symlink_to(case.outside / "nothing here")
        case "device":
            path.unlink()
            path.symlink_to(draw.choice(["/dev/zero", "/dev/null", "/proc/self/mem"]))
        case "name":
            new = draw.choice(["a\nb", "\x1b[31mred", "-rf", " ", "é" * 100, "\udcff\udcfe", "x" * 200]) + path.suffix
            path.rename(path.with_name(new))
        case _:
            extra = path.parent / draw.choice(["extra", "a\nb.json", ".hidden", "extra.safetensors", "x.bin"])
            shutil.copy(path, extra)
    return f"{path.name}: {kind}"


def sparse(case: Case) -> str:
    """A sparse file of up to a terabyte, which uses no disk space."""
    if (path := case.pick()) is None:
        return "no file"
    size = 2 ** case.draw.choice([33, 36, 40])
    os.truncate(path, size)
    return f"{path.name}: {size:,} bytes"


def lead_outside(case: Case) -> str:
    """Names in manifests and indices that lead out of the folder, to files that would be valid."""
    outside = case.outside / "valid"
    for path in case.files(".json"):
        try:
            value = json.loads(path.read_bytes())
        except (ValueError, RecursionError):
            continue
        named = [
            (holder, key)
            for holder, key in places(value)
            if isinstance(holder[key], str) and 0 < len(holder[key]) < 100 and (outside / holder[key]).is_file()
        ]
        if not named:
            continue
        holder, key = case.draw.choice(named)
        target = outside / holder[key]
        holder[key] = case.draw.choice([str(target), os.path.relpath(target, case.folder), f"./../{target}"])
        path.write_text(json.dumps(value))
        case.must_refuse = True
        return f"{path.name}: {key} = {holder[key]}"
    return "no name of a file"


# Strings


def spoil_string(case: Case) -> str:
    """One line of text that is given on the command line: numbers grown, signs repeated, pieces from elsewhere."""
    path = case.files(".txt")[0]
    lines = path.read_text(encoding="utf-8", errors="surrogatepass").split("\n")
    draw = case.draw
    at = draw.randrange(len(lines))
    line = lines[at]
    kind = draw.choice(["piece", "piece", "repeat", "cut", "delete", "mix", "value", "long"])
    where = draw.randrange(len(line) + 1)
    pieces = [
        ".",
        ":",
        "=",
        "@",
        "/",
        "$",
        "+",
        "-",
        "e",
        "9",
        "1e999",
        "nan",
        "inf",
        "\u0663",
        "\0",
        "\n",
        "~",
        "*",
        "[",
        "]",
    ]
    match kind:
        case "piece":
            line = line[:where] + draw.choice(pieces) + line[where:]
        case "repeat":
            line = line[:where] + draw.choice(pieces) * draw.choice([2, 100, 5000]) + line[where:]
        case "cut":
            line = line[:where]
        case "delete":
            line = line[:where] + line[where + 1 :]
        case "mix":
            line = line[:where] + draw.choice(lines)
        case "value":
            left, sign, _ = line.partition("=")
            line = f"{left}{sign}{dump(hostile(case))}"
        case _:
            line = line[:where] + draw.choice("9a.~* ") * draw.choice([10**5, 10**6, 10**7]) + line[where:]
    lines[at] = line
    path.write_text("\n".join(lines), encoding="utf-8", errors="surrogatepass")
    return f"{kind} in line {at}: {line[:60]!r}"


def whole_files(folder: Path) -> Iterator[Path]:
    """Regular files of moderate size, which can be read to be corrupted or signed."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink() and path.stat().st_size < 2**28:
            yield path
