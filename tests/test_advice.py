"""Every command and setting that a message advises is extracted from the message and tried.

Each test provokes a refusal (or a note), takes the advice from what was printed, and does what it says. At the end all
messages of the package that advise something are collected from its source: each has a test here, or a reason why not.
"""

import ast
import bz2
import gzip
import json
import lzma
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import zstandard

import isoflop
from isoflop.cli import run as cli
from isoflop.config import override
from isoflop.data.encodings import FREQUENT, WIDE, way_out
from isoflop.data.formats import UNPACKING
from isoflop.errors import UserError
from isoflop.export import outlook
from isoflop.parallel.mesh import Group
from isoflop.trainer import RunConfig
from isoflop.trainer.processes import check_world
from isoflop.trainer.trackers import TRACKERS
from small import TINY, copy_into, train_in, write_texts

SMALL = [word for text in TINY for word in ("--set", text)]
QUICK = ["--set", "batch.sequences=8", "runtime.threads=1", "runtime.dtype=float32"]
PLACES = {"a run", "NEW", "SOURCE", "PATH", "DIR"}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An own working directory, whose name a shell would take apart."""
    folder = tmp_path / "a folder"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    train_in(folder, files=30)
    return folder


@pytest.fixture
def run(trained, here, monkeypatch):
    """A finished run in the working directory, with its text in "texts"."""
    monkeypatch.setenv("ISOFLOP_HOME", str(here / "home"))
    return copy_into(here, trained).name


@pytest.fixture
def refused(capsys):
    def call(*arguments):
        capsys.readouterr()
        assert cli([str(argument) for argument in arguments]) == 2
        [line] = capsys.readouterr().err.strip().splitlines()
        return line

    return call


@pytest.fixture
def works(capsys):
    """Run a command, which has to work; returns what it printed."""

    def call(*arguments):
        capsys.readouterr()
        code, printed = cli([str(argument) for argument in arguments]), capsys.readouterr()
        assert code == 0, printed.err
        return printed.out

    return call


def settings(message):
    """What a message says to --set, as arguments."""
    assert "--set " in message, message
    words = []
    for word in shlex.split(message.partition("--set ")[2].replace("(the first", " (the first")):
        if "=" not in word:
            break
        words.append(word.rstrip(",;"))
        if word[-1] in ",;":
            break
    return [part for word in words for part in ("--set", word)]


def command(message, begins="isoflop "):
    """The words of the last command in a message that begins so, after `isoflop`."""
    end = r"(?=[;`)]|, or | \(the first|$)"
    [*_, found] = re.finditer(re.escape(begins) + r".*?" + end, message)
    return shlex.split(found[0])[1 if begins.startswith("isoflop") else 0 :]


def filled(words, **places):
    """A command with what its capital words stand for."""
    return [places.get(word, word) for word in words]


def shell(line, *tools, **places):
    """Run a command line, or skip where a program of it is not installed."""
    for tool in tools:
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    for place, path in places.items():
        line = re.sub(rf"\b{place}\b", lambda _, path=path: shlex.quote(str(path)), line)
    done = subprocess.run(["bash", "-o", "pipefail", "-c", line], capture_output=True, check=False)
    assert done.returncode == 0, (line, done.stderr)


# ---- text ----


def numbered(line, count):
    """So many lines, none like another."""
    return "".join(f"{number}. {line}\n" for number in range(count))


LATIN = numbered("Une façon élégante de récolter des idées à Paris, même après la leçon.", 400)
CYRILLIC = numbered("Это простой текст о том, как корабль плыл мимо острова, и капитан пел о доме.", 400)
JAPANESE = numbered("これは船が島を通りすぎた話です。船長は家のことを歌っていました。", 400)
ENGLISH = numbered("a line of some text or other", 2000)


@pytest.mark.parametrize("name", ["latin-1", "cp1252", *WIDE, *FREQUENT])
def test_iconv_knows_every_encoding_that_is_suggested(name, here):
    text = "plain text, and a line\n"
    (here / "FILE").write_bytes(text.encode(name))
    convert = way_out(name, "", inside=False).partition("convert it: ")[2]
    shell(convert, "iconv", FILE=here / "FILE", NEW=here / "NEW")
    assert (here / "NEW").read_text(encoding="utf-8") == text


@pytest.mark.parametrize(
    ("encoding", "text"),
    [("latin-1", LATIN), ("cp1251", CYRILLIC), ("shift_jis", JAPANESE), ("utf-16-le", CYRILLIC)],
)
def test_a_text_in_another_encoding(encoding, text, here, refused, works):
    (here / "a.txt").write_bytes(text.encode(encoding))
    message = refused("prepare", "a.txt", "--out", "p")
    works("prepare", "a.txt", "--out", "set", *settings(message))
    convert = message.partition("convert it: ")[2].partition(" > NEW")[0] + " > NEW"
    shell(convert, "iconv", FILE="a.txt", NEW="new.txt")
    assert (here / "new.txt").read_text(encoding="utf-8") == text
    works("prepare", "new.txt", "--out", "converted")


PACK = {"gzip": gzip.compress, "bzip2": bz2.compress, "xz": lzma.compress, "zstd": zstandard.compress}


@pytest.mark.parametrize("packed", UNPACKING)
def test_a_packed_text_in_another_encoding(packed, here, refused, works):
    (here / "a").write_bytes(PACK[packed](LATIN.encode("latin-1")))
    message = refused("prepare", "a", "--out", "p")
    convert = message.partition("convert it: ")[2].partition(" > NEW")[0] + " > NEW"
    shell(convert, "iconv", packed, FILE="a", NEW="new.txt")
    assert (here / "new.txt").read_text(encoding="utf-8") == LATIN


UNPACK = {"lz4": "lz4 -q -z -c", "lzip": "lzip -c", "compress": "compress -c", "xz": "xz --format=lzma -c"}


@pytest.mark.parametrize("tool", UNPACK)
def test_a_file_that_is_to_be_unpacked_first(tool, here, refused, works):
    """Whatever it is called: tools that write next to a file go by its ending."""
    (here / "plain").write_text(ENGLISH, encoding="utf-8")
    shell(f"{UNPACK[tool]} < plain > a.txt", tool)
    message = refused("prepare", "a.txt", "--out", "p")
    shell(message.partition("unpack it first: ")[2].partition(" > NEW")[0] + " > NEW", FILE="a.txt", NEW="b.txt")
    works("prepare", "b.txt", "--out", "p")


def test_a_text_that_is_compressed_twice(here, refused, works):
    (here / "a.txt").write_bytes(gzip.compress(gzip.compress(ENGLISH.encode())))
    said = refused("prepare", "a.txt", "--out", "p")
    shell(said.partition("unpack it once first: ")[2].partition(" > NEW")[0] + " > NEW", "gzip", FILE="a.txt", NEW="b")
    works("prepare", "b", "--out", "p")


def test_a_zstd_window_that_is_too_large(here, refused, works):
    """A frame whose header asks for 1 GiB, by the format's description (RFC 8878, 3.1.1)."""
    text = ENGLISH.encode()
    header = b"\x28\xb5\x2f\xfd" + bytes([0x00, (30 - 10) << 3])
    (here / "a file.zst").write_bytes(header + (len(text) << 3 | 1).to_bytes(3, "little") + text)
    message = refused("prepare", "a file.zst", "--out", "p")
    shell(message.partition("compress it again: ")[2].partition(" (the first")[0], "zstd")
    works("prepare", "NEW.zst", "--out", "p")


def test_documents_with_an_apparent_separator(here, works):
    stories = [f"story {number}: {'once upon a time ' * 40}{number}" for number in range(60)]
    (here / "a.txt").write_text("\n<|endoftext|>\n".join(stories), encoding="utf-8")
    message = works("prepare", "a.txt", "--out", "p")
    assert "60 documents" in works("prepare", "a.txt", "--out", "q", *settings(message))


def records(path, *names):
    lines = [json.dumps({name: f"{name} {number} {'words ' * 40}" for name in names}) for number in range(60)]
    path.write_text("\n".join(lines), encoding="utf-8")


def test_records_without_the_column(here, refused, works):
    records(here / "a file.jsonl", "body")
    message = refused("prepare", "a file.jsonl", "--out", "p")
    [source] = shlex.split(message.partition("as in ")[2].partition(", or ")[0])
    works("prepare", source, "--out", "p")
    works("prepare", "a file.jsonl", "--out", "q", *[word.replace("NAME", "body") for word in settings(message)])


def test_a_column_of_numbers(here, refused, works):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table({"text": list(range(50)), "body": [f"text {i} {'words ' * 50}" for i in range(50)]})
    parquet.write_table(table, here / "a.parquet")
    message = refused("prepare", "a.parquet", "--out", "p")
    assert "as in PATH@NAME" in message
    works("prepare", "a.parquet@body", "--out", "p")
    works("prepare", "a.parquet", "--out", "q", *[word.replace("NAME", "body") for word in settings(message)])


@pytest.mark.parametrize("split", [1, 2])
def test_a_text_too_small_for_held_out_text(split, here, refused, works):
    (here / "a.txt").write_text("a few words")
    (here / "b.txt").write_text("other words")
    rule = ["--set", f"data.split={split}", "--set", "data.vocab_size=257"]
    message = refused("prepare", "a.txt", "--out", "p", *rule)
    option, place = re.search(r"(--heldout) (PATH)", message).groups()
    assert place in PLACES
    works("prepare", "a.txt", "--out", "p", option, "b.txt", *rule)


def test_a_file_that_strict_refuses(here, refused, works):
    records(here / "a.jsonl", "text")
    with (here / "a.jsonl").open("a") as file:
        file.write('\n{"text": 3}')
    message = refused("prepare", "a.jsonl", "--out", "p", "--strict")
    assert "without --strict" in message
    works("prepare", "a.jsonl", "--out", "p")


def test_a_folder_that_is_not_prepared(here, corpus, refused, works):
    message = refused("train", "--budget", "20steps", "--set", f"data.path={here}", *SMALL)
    prepare = filled(command(message), SOURCE=str(corpus), DIR="p")
    works(*prepare, "--set", "data.vocab_size=320")
    works("train", "--budget", "20steps", "--dry-run", "--set", "data.path=p", *SMALL)


def test_a_home_that_cannot_be_written_to(here, corpus, refused, works, monkeypatch):
    (here / "file").write_text("")
    monkeypatch.setenv("ISOFLOP_HOME", str(here / "file"))
    message = refused("train", str(corpus), "--budget", "20steps", "--dry-run", *SMALL)
    assert "set ISOFLOP_HOME to a folder that can be written to" in message
    monkeypatch.setenv("ISOFLOP_HOME", str(here / "home"))
    works("train", str(corpus), "--budget", "20steps", "--dry-run", *SMALL)


def test_a_disk_that_is_too_full_to_unpack(here, corpus, refused, works, monkeypatch):
    parquet = pytest.importorskip("pyarrow.parquet")
    pyarrow = pytest.importorskip("pyarrow")
    parquet.write_table(pyarrow.table({"text": [f"{i} {'words ' * 50}" for i in range(50)]}), here / "a.parquet")
    (here / "a.parquet.gz").write_bytes(gzip.compress((here / "a.parquet").read_bytes()))
    full = here / "full"
    monkeypatch.setenv("ISOFLOP_HOME", str(full))
    found = shutil.disk_usage(here)

    def usage(path):
        return found._replace(free=1000) if Path(path).is_relative_to(full) else found._replace(free=10**12)

    monkeypatch.setattr("isoflop.data.columnar.shutil.disk_usage", usage)
    message = refused("prepare", "a.parquet.gz", "--out", "p")
    assert "set ISOFLOP_HOME to a folder on another disk" in message
    monkeypatch.setenv("ISOFLOP_HOME", str(here / "other"))
    works("prepare", "a.parquet.gz", "--out", "p")


# ---- configurations ----


def test_a_text_shorter_than_one_window(here, refused, works):
    (here / "a.txt").write_text("a few words to train on, not many", encoding="utf-8")
    (here / "b.txt").write_text("words that are held out of it", encoding="utf-8")
    small = ["a.txt", "--heldout", "b.txt", "--budget", "20steps", "--out", "r", *SMALL]
    message = refused("train", *small)
    works("train", *small, *settings(message))


def test_pairs_longer_than_the_context(here, refused, works):
    lines = [f"word{number}\t{' '.join(f'word{number}')}" for number in range(60)]
    (here / "a.tsv").write_text("\n".join(lines), encoding="utf-8")
    small = ["--set", "model.layers=1", "model.d_model=32", "model.heads=2", "batch.sequences=8", "model.context=4"]
    small += ["runtime.threads=1"]
    asked = ["a.tsv", "--task", "seq2seq", "--budget", "20steps", "--out", "r", *small]
    message = refused("train", *asked)
    works("train", *asked, *settings(message))


def test_fewer_rows_than_ids(here, corpus, refused, works):
    asked = [str(corpus), "--budget", "20steps", "--out", "r", *SMALL]
    message = refused("train", *asked, "--set", "model.vocab_size=100")
    works("train", *asked, *settings(message))


def test_an_unknown_field(refused, works, corpus):
    message = refused("train", str(corpus), "--budget", "20steps", "--set", "model.layer=3")
    assert "model.layers" in works(*command(message, "isoflop config"))


def test_more_processes_than_exist(here, corpus, refused, works):
    asked = [str(corpus), "--budget", "20steps", "--dry-run", *SMALL]
    message = refused("train", *asked, "--set", "parallel.mode=fsdp")
    works("train", *asked, *settings(message))


def test_a_missing_device(here, corpus, refused, works):
    asked = [str(corpus), "--budget", "20steps", "--dry-run", *SMALL]
    message = refused("train", *asked, "--set", "runtime.device=cuda:9")
    there = message.partition("this machine has ")[2].split(",")[0].strip()
    works("train", *asked, "--set", f"runtime.device={there}")


@pytest.mark.parametrize("asked", ["batch.sequences=7", "parallel.gather=bfloat16"])
def test_a_batch_that_cannot_be_divided(asked):
    group = Group(rank=0, size=2, local_rank=0, local_size=2)
    config = override(RunConfig(), ["runtime.device=cpu", "runtime.dtype=float32", "parallel.mode=fsdp", asked])
    with pytest.raises(UserError) as refused:
        check_world(config, group)
    check_world(override(config, settings(str(refused.value))[1::2]), group)


@pytest.mark.parametrize(
    "asked", ["model.wiring=parallel", "model.position=alibi", "model.norm=layer", "model.feed_forward=moe"]
)
@pytest.mark.parametrize("target", ["hf", "gguf"])
def test_a_model_that_a_format_cannot_hold(target, asked):
    model = override(RunConfig(), [asked]).model
    found = outlook(model)[target]
    if not found.possible:
        assert outlook(override(RunConfig(), [asked, *found.sets]).model)[target].possible


# ---- runs ----


def test_a_folder_that_holds_a_run(run, refused, works):
    message = refused("train", "texts", "--budget", "20steps", "--out", run, *SMALL)
    resume = command(message)
    assert resume == ["train", "--resume", run]
    message = refused(*resume)  # it is finished
    more = command(message)
    assert more == ["train", "--resume", run, "--budget", "+10m"]
    works(*filled(more, **{"+10m": "+5steps"}))
    message = refused("train", "--resume", run, "--budget", "5steps")
    works("train", "--resume", run, "--budget", re.search(r"write (\S+)", message)[1])


def test_a_checkpoint_in_place_of_its_run(run, refused, works):
    checkpoint = next((Path(run) / "checkpoints").iterdir())
    message = refused("train", "--resume", checkpoint)
    works(*filled(command(message), SOURCE="texts"), "--budget", "5steps", "--out", "new", *QUICK)
    works(*command(message.partition(", or start")[0]), "--budget", "+5steps")


def test_arguments_that_resume_does_not_take(run, refused, works):
    message = refused("train", "--resume", run, "--budget", "+5steps", "--set", "optim.lr=1")
    allowed = re.search(r"except for (\w+)\.\*", message)[1]
    works("train", "--resume", run, "--budget", "+5steps", "--set", f"{allowed}.mode=auto")
    message = refused("train", "--resume", run, "--out", "elsewhere")
    works(*filled(command(message), SOURCE="texts"), "--budget", "5steps", "--out", "new", *QUICK)


def test_text_that_is_missing_or_another(run, refused, works):
    Path("texts").rename("the texts")
    shutil.rmtree("home", ignore_errors=True)
    message = refused("eval", run)
    works(*filled(command(message), SOURCE="the texts"))
    write_texts(Path("others"), files=20)
    message = refused("train", "--resume", run, "others", "--budget", "+5steps")
    works(*command(message), "--budget", "5steps", "--out", "new", *QUICK)


def test_text_that_changed_under_a_run(run, refused, works):
    shutil.rmtree("home", ignore_errors=True)
    for path in Path("texts").iterdir():
        path.write_text(path.read_text().replace("a", "o"))
    message = refused("train", "--resume", run, "--budget", "+5steps")
    words = filled(command(message, "isoflop train"), SOURCE="texts", NEW="new")
    works(*words, "--budget", "5steps", *QUICK)


def test_a_run_that_has_no_checkpoint_yet(run, refused, works):
    for name in ("checkpoints", "metrics.jsonl", "samples.jsonl", "decisions.jsonl", "result.json"):
        path = Path(run) / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    events = (Path(run) / "events.jsonl").read_text().splitlines(keepends=True)
    (Path(run) / "events.jsonl").write_text(events[0])
    works(*command(refused("sample", run)))


def test_checkpoints_that_are_gone(run, refused, works):
    shutil.rmtree(Path(run) / "checkpoints")
    (Path(run) / "result.json").unlink()
    with (Path(run) / "events.jsonl").open() as file:
        lines = [line for line in file if '"finished"' not in line]
    (Path(run) / "events.jsonl").write_text("".join(lines))
    message = refused("train", "--resume", run)
    works(*filled(command(message), NEW="new"))


def test_an_imported_run(run, refused, works):
    works("export", run, "--to", "hf", "--out", "hf")
    works("import", "hf", "--out", "an import")
    message = refused("eval", "an import")
    works(*filled(command(message), SOURCE="texts/0.txt"))
    message = refused("train", "--resume", "an import")
    works(*filled(command(message), SOURCE="texts"), "--budget", "5steps", "--out", "new", *QUICK)


def test_arguments_that_eval_does_not_take(run, refused, works):
    message = refused("eval", run, "texts/0.txt", "--set", "data.seed=1")
    first = re.search(r"only (data\.\w+)", message)[1]
    works("eval", run, "texts/0.txt", "--set", f"{first}=text")
    message = refused("eval", run, "texts/0.txt", "--moved", "texts")
    works(*command(message))
    message = refused("eval", run, "--set", "data.strict=true")
    works(*filled(command(message), SOURCE="texts/0.txt", **{"...": "data.strict=true"}))


def test_a_run_in_place_of_text(run, refused, works):
    shutil.copytree(run, "another run")
    message = refused("eval", run, "another run")
    assert "isoflop eval 'a run' 'another run' --suite NAME" in message  # in tests/job/test_scoring.py
    assert Path(works(*command(message, "isoflop report ")).strip()).is_file()


@pytest.mark.parametrize("wrong", ["nowhere", "texts"])
def test_folders_that_are_not_runs(wrong, run, refused, works):
    for asked in (["sample", wrong], ["report", wrong]):
        message = refused(*asked)
        assert run in works(*command(message, "isoflop runs"), ".")
    assert command(refused("runs", "a run/config.json"), "isoflop runs") == ["runs", "runs"]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--temperature", "-1"),
        ("--top-k", "-1"),
        ("--top-p", "0"),
        ("--min-p", "2"),
        ("--repetition-penalty", "0"),
        ("--tokens", "0"),
    ],
)
def test_sampling_out_of_range(option, value, run, refused, works):
    message = refused("sample", run, option, value)
    works("sample", run, "--tokens", "3", option, re.search(r"; (?:ask for at least )?(\d+)", message)[1])


def test_an_unknown_export_format(run, refused, works):
    message = refused("export", run, "--to", "onnx", "--out", "e")
    works("export", run, "--to", message.partition("is not one of ")[2].split(",")[0], "--out", "e")
    (Path("e") / "tokenizer.json").rename("t.json")
    message = refused("import", "e", "--out", "i")
    assert "--tokenizer FILE" in message
    works("import", "e", "--out", "i", "--tokenizer", "t.json")
    message = refused("import", "e", "--out", "j", "--tokenizer", "t.json", "--context", "9999")
    works("import", "e", "--out", "j", "--tokenizer", "t.json", "--context", re.search(r"in 1 to (\d+)", message)[1])


# ---- laws ----


def test_a_law_that_was_not_stored(here, refused, works):
    (here / "x.json").write_text('{"format": "other"}')
    message = refused("plan", "predict", "x.json", "--budget", "1e21")
    words = filled(command(message, "isoflop plan fit POINTS"), **{"POINTS.csv": "p.csv", "FIT.json": "a fit.json"})
    sizes = [(n, d, 1.7 + 400 / n**0.34 + 400 / d**0.28) for n in (1e6, 3e6, 1e7, 3e7, 1e8) for d in (1e8, 1e9, 1e10)]
    (here / "p.csv").write_text("N,D,L\n" + "\n".join(f"{n},{d},{loss}" for n, d, loss in sizes))
    for name in ("N", "D", "L"):
        words[words.index("COL")] = name
    message = works(*words, "--samples", "20")
    works(*command(message, "isoflop plan predict"))


# ---- all of them ----

ADVICE = re.compile(
    r"--set |isoflop (?:train|eval|prepare|sample|export|import|report|runs|config|plan)\b|pip install|ISOFLOP_HOME to"
    r"|iconv|(?:zstd|lz4|lzip|gzip|xz|bzip2) -|unzip|unrar|7z x|torchrun"
    r"|--(?:heldout|tokenizer|end-of-text|trust-code|init|resume|moved|to|budget|beam) (?:[A-Z{']|gguf|4)"
)
TRIED = {  # what a message says -> the test that does it
    "iconv -f": test_iconv_knows_every_encoding_that_is_suggested,
    "read it with --set data.encoding=": test_a_text_in_another_encoding,
    "gzip -dc": test_a_packed_text_in_another_encoding,
    "bzip2 -dc": test_a_packed_text_in_another_encoding,
    "xz -dc": test_a_packed_text_in_another_encoding,
    "zstd -dc --long": test_a_zstd_window_that_is_too_large,
    "zstd -dc": test_a_packed_text_in_another_encoding,
    "unpack it first: lz4": test_a_file_that_is_to_be_unpacked_first,
    "unpack it first: lzip": test_a_file_that_is_to_be_unpacked_first,
    "unpack it first: gzip": test_a_file_that_is_to_be_unpacked_first,
    "unpack it first: xz": test_a_file_that_is_to_be_unpacked_first,
    "split there with --set": test_documents_with_an_apparent_separator,
    "name one with the source": test_records_without_the_column,
    "choose another, as in PATH@NAME": test_a_column_of_numbers,
    "name the held-out text with --heldout": test_a_text_too_small_for_held_out_text,
    "make it with `isoflop prepare": test_a_folder_that_is_not_prepared,
    "set ISOFLOP_HOME to a folder that can be": test_a_home_that_cannot_be_written_to,
    "to a folder on another disk": test_a_disk_that_is_too_full_to_unpack,
    "--set model.context={}": test_a_text_shorter_than_one_window,
    "positions of the longest pair": test_pairs_longer_than_the_context,
    "use --set model.vocab_size": test_fewer_rows_than_ids,
    "`isoflop config` lists all": test_an_unknown_field,
    "use --set parallel.mode=auto": test_more_processes_than_exist,
    "cannot be divided among": test_a_batch_that_cannot_be_divided,
    "would round the weights": test_a_batch_that_cannot_be_divided,
    "{} with --set {}": test_a_model_that_a_format_cannot_hold,
    "holds another run": test_a_folder_that_holds_a_run,
    "is finished; to continue": test_a_folder_that_holds_a_run,
    "is a checkpoint and no run": test_a_checkpoint_in_place_of_its_run,
    "does not go with --resume: a run resumes": test_arguments_that_resume_does_not_take,
    "isoflop train --resume RUN": test_text_that_is_missing_or_another,
    "isoflop eval RUN": test_text_that_is_missing_or_another,
    "--moved SOURCE": test_text_that_is_missing_or_another,
    "--heldout PATH": test_a_text_too_small_for_held_out_text,
    "has no checkpoint yet": test_a_run_that_has_no_checkpoint_yet,
    "isoflop train --resume {}": test_a_folder_that_holds_a_run,
    "--set {} does not go with --resume": test_arguments_that_resume_does_not_take,
    "is not the text that": test_text_that_is_missing_or_another,
    "the data of this run changed": test_text_that_changed_under_a_run,
    "start again: isoflop train": test_checkpoints_that_are_gone,
    "again: isoflop train --config": test_checkpoints_that_are_gone,
    "was imported and": test_an_imported_run,
    "eval takes no --set": test_arguments_that_eval_does_not_take,
    "itself; leave it out": test_arguments_that_eval_does_not_take,
    "determines how sources are read": test_arguments_that_eval_does_not_take,
    "is a run, not text": test_a_run_in_place_of_text,
    "`isoflop runs` lists": test_folders_that_are_not_runs,
    "as in `isoflop runs": test_folders_that_are_not_runs,
    "no vocab.json with merges.txt": test_an_unknown_export_format,
    "--to {} is not one of": test_an_unknown_export_format,
    "make one by `isoflop plan fit": test_a_law_that_was_not_stored,
    "predict with it: isoflop plan predict": test_a_law_that_was_not_stored,
}
TRIED_ELSEWHERE = {  # what a message says -> where the advice is done as it says
    "--beam {} needs more memory than is available": "tests/generate/test_transduce.py",
    "to train from its weights: isoflop train SOURCE --init": "tests/test_story.py",
    "to read it as plain text:": "tests/data/test_data_readers.py",
    "data.end_of_text=": "tests/data/test_data_end_of_text.py",
    "with --end-of-text": "tests/export/test_end_of_text.py",
    "data.max_train_bytes=": "tests/data/test_data_sides.py",
    "pass --trust-code": "tests/model/test_registry.py",
    "Resume with: isoflop train --resume": "tests/test_kill.py",
    "cannot be written as": "tests/export/test_fit.py",
    "--set model=portable": "tests/export/test_own_code.py",
    "--own-code does not go with": "tests/export/test_own_code.py",
    "use --set batch.micro_sequences": "tests/trainer/test_preflight.py",
    "use --set batch.sequences": "tests/trainer/test_batch.py",
}
FILES = {  # whose advice has tests of its own
    "job/like.py": "tests/job/test_like.py",
    "report/": "tests/report/test_report_page.py",
    "trainer/running_forecast.py": "tests/trainer/test_running_forecast.py",
    "lab/": "tests/lab",
    "cli/lab.py": "tests/lab",
    "job/workers.py": "tests/lab",
    "ladder/": "tests/ladder",
    "cli/ladder.py": "tests/ladder",
    "plan/fitted.py": "tests/ladder",
    "plan/here.py": "tests/plan/test_here.py",
}
NOT_TRIED = {  # what a message says -> why its advice is not done here
    "an encoding process was killed": "needs a killed process; most tests set data.workers=1",
    "a 7z archive": "needs 7z",
    "a rar archive": "needs unrar",
    "encrypted; unpack": "unzip asks for the password on a terminal",
    "name its encoding with --set data.encoding=NAME": "only the user knows it",
    "pip install": "the names of the extras are compared below",
    "is SentencePiece's own format": "needs sentencepiece",
    "train with one of that kind": "needs a tokenizer of SentencePiece's kind",
    "id 1 for the beginning of a text": "needs one with other ids",
    "the run folder {} disappeared": "the folder has to come back first",
    "the environment has": "needs torchrun",
    "processes on this host have": "needs several GPUs",
    "such as fewer --set model.layers": "a direction, not a value",
    "model, such as fewer": "a direction, not a value",
    "every.background=false": "needs a GPU with more memory than the host",
    "a pass of {} sequences:": "needs a device that runs out of memory",
    "no format of `isoflop export`": "no advice",
    "used instead of sources": "no advice",
    "none in one process, ddp under torchrun": "no advice",
    "is not of the form dotted": "a form",
    "is not positive; 1 is greedy": "a number",
    "is for runs of --task seq2seq": "no command",
    "by `isoflop export`": "a way, and no refusal",
    "published law": "no advice",
    "is damaged ({}): make it anew": "the same command as for a file of something else",
    "plan needs a command": "a list of commands",
    "a law takes only FLOPs": "a number as an example",
    "prepared data is kept in {}; set ISOFLOP_HOME": "a note; tests/test_home.py sets it",
    "--budget FLOPS or --loss": "placeholders",
    "talk to it:": "tests/test_docs.py",
    "samples are ended early": "tests/trainer/test_hooks.py",
    "adds to that of an existing run": "in tests/job/test_extend.py",
    "search wider with --beam 4": "in tests/test_seq2seq_story.py",
    "does not exist; name a run folder": "no command",
    "--set average.name=none": "for several processes; tests/trainer/test_average.py",
    "leave --task out": "an option to leave out",
    "leave one of the two out": "an option to leave out",
    "--set suite.items=": "a note on a run with a suite that takes long",
    "torchrun --nproc-per-node {} -m isoflop": "for machines that are not at hand",
    "--set does not go with --machine": "in tests/plan/test_here.py",
    "score a run:": "placeholders; in tests/job/test_scoring.py",
    "train there:": "for machines that are not at hand",
    "for FLOPs see `plan predict`": "a form",
}


def templates():
    """Every text of the package that advises something, values as {}, with its file."""
    package = Path(isoflop.__file__).parent
    for path in sorted(package.rglob("*.py")):
        tree, inside = ast.parse(path.read_text(encoding="utf-8")), set()
        for node in ast.walk(tree):
            documented = isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
            if documented and node.body and isinstance(node.body[0], ast.Expr):
                inside.add(node.body[0].value)
            if isinstance(node, ast.JoinedStr):
                inside.update(node.values)
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "tyro.conf.arg":
                inside.update(ast.walk(node))
        for node in ast.walk(tree):
            if node in inside:
                continue
            if isinstance(node, ast.JoinedStr):
                text = "".join(str(v.value) if isinstance(v, ast.Constant) else "{}" for v in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                text = node.value
            else:
                continue
            if ADVICE.search(text):
                yield str(path.relative_to(package)), text


def test_every_advice_is_tried_or_exempt_with_a_reason():
    root = Path(__file__).parent.parent
    assert all((root / place).exists() for place in (*TRIED_ELSEWHERE.values(), *FILES.values()))
    known = [*TRIED, *TRIED_ELSEWHERE, *NOT_TRIED]
    found = [one for one in templates() if not one[0].startswith(tuple(FILES))]
    assert len(found) > 80
    assert [one for one in found if not any(part in one[1] for part in known)] == []
    assert [part for part in known if not any(part in text for _, text in found)] == []


def test_the_extras_that_messages_name_exist():
    project = Path(__file__).parent.parent / "pyproject.toml"
    extras = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    named = {name for _, text in templates() for name in re.findall(r"isoflop\[([\w{}]+)\]", text)} - {"{}"}
    assert named and named <= set(extras)
    assert set(TRACKERS) <= set(extras)  # trackers name theirs
