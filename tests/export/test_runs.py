"""An imported model is a run like any other; an export is written completely or not at all."""

import gzip
import json
import tarfile
from dataclasses import replace

import pytest
import torch

import isoflop
from isoflop import export, job
from isoflop.cli import run
from isoflop.data.tokenizer import Tokenizer
from isoflop.errors import UserError
from isoflop.export import bundle as bundles
from isoflop.export.anatomy import FAMILIES
from isoflop.export.architectures import HUGGING_FACE
from isoflop.export.bundle import Bundle, weights_of
from isoflop.export.gguf import GGUF
from isoflop.export.vocabulary import BYTE, CONTROL, NORMAL, SPACE, UNKNOWN, sentencepiece
from isoflop.generate.engine import generate, stream
from isoflop.model.config import Spec
from isoflop.model.gpt import GPT
from isoflop.model.presets import modern

CONFIG = modern(vocab_size=330, context=32, layers=2, d_model=32, heads=2)  # more rows than ids


@pytest.fixture
def hf(tmp_path, tokenizer):
    torch.manual_seed(0)
    model = GPT(CONFIG)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    folder = tmp_path / "hf"
    folder.mkdir()
    weights = {n: p.detach() for n, p in weights_of(model).items()}
    export.write(Bundle(CONFIG, weights, tokenizer.to_json()), "hf", folder, "x")
    return folder


@pytest.fixture
def imported(hf, tmp_path):
    job.import_model(hf, tmp_path / "run")
    return tmp_path / "run"


def test_an_imported_run_works_like_any_other(imported, corpus, capsys, tmp_path):
    assert run(["sample", str(imported), "--prompt", "Once", "--tokens", "5"]) == 0
    assert run(["eval", str(imported), str(corpus / "1.txt"), "--json"]) == 0
    assert run(["runs", str(tmp_path)]) == 0
    assert run(["report", str(imported)]) == 0
    assert "imported" in capsys.readouterr().out
    assert "it was not trained here" in (imported / "report.html").read_text()


def test_what_an_imported_run_lacks_is_reported_in_one_line(imported, capsys):
    assert run(["eval", str(imported)]) == 2
    assert "has no text of its own" in capsys.readouterr().err
    assert run(["train", "--resume", str(imported)]) == 2
    assert "--init" in capsys.readouterr().err
    assert run(["import", str(imported.parent / "hf"), "--out", str(imported)]) == 2
    assert "holds another run" in capsys.readouterr().err


def test_training_starts_from_an_imported_run(imported, corpus, tmp_path):
    small = ["batch.sequences=2", "runtime.dtype=float32", "runtime.threads=1", "data.workers=1"]
    result = job.pretrain([str(corpus)], "2steps", tmp_path / "on", init=imported, assignments=small)
    model, tokenizer = isoflop.load(result.folder)
    assert model.config.vocab_size == 330
    assert tokenizer.vocab_size == 320


def test_an_exported_run_is_imported_unchanged(imported, tmp_path):
    assert job.export_model(imported, "hf", tmp_path / "out").difference == 0
    job.import_model(tmp_path / "out", tmp_path / "again")
    one, other = isoflop.load(imported)[0], isoflop.load(tmp_path / "again")[0]
    assert one.config == other.config
    for (name, p), (_, q) in zip(one.named_parameters(), other.named_parameters(), strict=True):
        assert torch.equal(p, q), name


def test_an_export_that_does_not_read_back_leaves_nothing(imported, tmp_path, monkeypatch):
    honest = bundles.to_theirs

    def wrong(*arguments):
        return {name: tensor * 1.01 for name, tensor in honest(*arguments).items()}

    monkeypatch.setattr(bundles, "to_theirs", wrong)
    with pytest.raises(UserError, match="not read back as the same model"):
        job.export_model(imported, "hf", tmp_path / "out")
    assert not [p for p in tmp_path.iterdir() if "out" in p.name]


@pytest.mark.parametrize("lost", ["embed_tokens.weight", "0.self_attn.q_proj.weight"])
def test_the_check_of_an_export_compares_every_tensor(lost, tokenizer, tmp_path, monkeypatch):
    """The head of a new model is zero, and so are its logits, whatever lies before it."""
    honest, model = bundles.to_theirs, GPT(CONFIG)

    def wrong(*arguments):
        return {name: tensor * 2 if name.endswith(lost) else tensor for name, tensor in honest(*arguments).items()}

    bundle = Bundle(CONFIG, {n: p.detach() for n, p in weights_of(model).items()}, tokenizer.to_json())
    monkeypatch.setattr(bundles, "to_theirs", wrong)
    with pytest.raises(UserError, match="is another tensor"):
        export.write(bundle, "hf", tmp_path, "x")


def test_a_shorter_context_keeps_the_model(hf, tmp_path):
    whole, short = export.read(hf), export.read(hf, context=8)
    tokens = torch.randint(330, (1, 8))
    assert torch.equal(whole.model()(tokens), short.model()(tokens))
    with pytest.raises(UserError, match="--context 33"):
        export.read(hf, context=33)


def test_stories260k_writes_its_published_text_token_for_token(test_data, tmp_path):
    with tarfile.open(test_data / "stories260K.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    folder = tmp_path / "stories260K"
    job.import_model(folder / "stories260K.bin", tmp_path / "run", tokenizer=str(folder / "tok512.bin"))
    published = (folder / "stories260K.md").read_text().partition("-t 0.0\n")[2].partition("\n```")[0]
    model, tokenizer = isoflop.load(tmp_path / "run")
    ids = list(stream(model, [tokenizer.start], 256, temperature=0.0))
    assert ids == tokenizer.encode(published)
    assert tokenizer.decode(ids) == published
    assert generate(model, tokenizer, "", 20, temperature=0.0) == tokenizer.decode(ids[:20])
    assert generate(model, tokenizer, "Once upon", 3, temperature=0.0) == " a time,"
    for target in ("hf", "gguf"):
        if target == "gguf":
            pytest.importorskip("gguf", reason="needs the gguf package: pip install 'isoflop[gguf]'")
        job.export_model(tmp_path / "run", target, tmp_path / target)
        job.import_model(tmp_path / target, tmp_path / f"{target}-again")
        again, its = isoflop.load(tmp_path / f"{target}-again")
        assert list(stream(again, [its.start], 32, temperature=0.0)) == ids[:32]
        assert its.encode(published) == ids
        assert its.eot == tokenizer.eot == 1


@pytest.fixture
def smollm(smollm_gguf, tmp_path):
    job.import_model(smollm_gguf, tmp_path / "smollm", context=512)
    return tmp_path / "smollm"


@pytest.mark.slow
def test_smollm2_is_read_as_transformers_reads_it(smollm_gguf, smollm, test_data):
    model, tokenizer = isoflop.load(smollm)
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    assert generate(model, tokenizer, "The capital of France is", 1, temperature=0.0) == " Paris"
    with gzip.open(test_data / "childrens_books.txt.gz") as books:
        text = books.read(22_000)[20_000:].decode()
    tokens = torch.tensor([[tokenizer.start, *tokenizer.encode(text)]])[:, :256]

    def nats(logits):
        return float(torch.nn.functional.cross_entropy(logits[0, :-1], tokens[0, 1:]))

    crossed = GPT(replace(model.config, position=Spec("rotary", base=100_000.0, interleaved=True))).eval()
    crossed.load_state_dict(model.state_dict())
    with torch.no_grad():
        logits = model(tokens)
        assert nats(logits) < nats(crossed(tokens)) - 0.5  # the file's order of rows is not the rotary order here
        transformers = pytest.importorskip("transformers", reason="the comparison needs transformers")
        pytest.importorskip("accelerate", reason="transformers reads GGUF with accelerate")
        theirs = transformers.AutoModelForCausalLM.from_pretrained(
            smollm_gguf.parent, gguf_file=smollm_gguf.name, dtype=torch.float32
        ).eval()
        their_logits = theirs(tokens).logits
    assert abs(nats(logits) - nats(their_logits)) < 1e-5
    assert (logits - their_logits).abs().max() < 1e-4 * their_logits.abs().max()


def test_a_sentencepiece_tokenizer_keeps_what_it_reads():
    pieces = ["<unk>", "<s>", "</s>", *[f"<0x{b:02X}>" for b in range(256)]]
    pieces += [SPACE + "t", "he", SPACE + "the", SPACE, "t", "h", "e", "a"]
    kinds = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * 8]
    scores = [0.0] * 259 + [-0.0, -1.0, -2.0, -3.0, -4.0, -5.0, -6.0, -7.0]
    read = Tokenizer.from_json(sentencepiece(pieces, scores, kinds, start=1, origin="here"))
    assert [pieces[i] for i in read.encode("the a")] == [SPACE + "the", SPACE, "a"]
    assert (read.start, read.eot) == (1, 2)
    for text in ("the", " the", "  the\n", "\n", "naïve 中 <s> the", ""):
        assert read.decode(read.encode(text)) == text
    assert read.decode_bytes(read.encode("the"), begins=False) == b" the"


def test_a_byte_level_tokenizer_that_composes_characters_is_read_without_that(hf, tokenizer):
    """Qwen's tokenizer.json has NFC ahead of its bytes, and text would not come back as it was."""
    described = json.loads((hf / "tokenizer.json").read_text(encoding="utf-8"))
    (hf / "tokenizer.json").write_text(json.dumps({**described, "normalizer": {"type": "NFC"}}), encoding="utf-8")
    read = Tokenizer.from_json(export.read(hf).tokenizer)
    for text in ("na\u00efve fox", "nai\u0308ve fox"):
        assert read.encode(text) == tokenizer.encode(text)
        assert read.decode(read.encode(text)) == text


def test_sentencepieces_own_format_is_refused_by_name(hf):
    (hf / "tokenizer.json").unlink()
    (hf / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>")
    with pytest.raises(UserError, match=r"tokenizer\.model is SentencePiece's own format"):
        export.read(hf)


def test_every_architecture_of_a_format_has_a_description():
    assert {*HUGGING_FACE, *GGUF} == set(FAMILIES)
    for name, row in HUGGING_FACE.items():
        assert row.activation[1] in row.activations, name
