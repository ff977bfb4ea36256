"""Suites: shipped ones, users' own, and error messages."""

import io
import json
import tarfile

import numpy as np
import pytest

from isoflop.errors import UserError
from isoflop.evaluate.items import Item, read_items
from isoflop.evaluate.likelihood import Likelihood, Request, likelihoods
from isoflop.evaluate.methods import METHODS, METRICS, method_of, metrics_of
from isoflop.evaluate.scores import ask, score
from isoflop.evaluate.suite import BUILT_IN, find_suite, names, read_suite
from isoflop.evaluate.templates import check_template, fill

FOUND_IN_THE_ARCHIVE = {  # items of each suite in the archive of real ones
    "arc_challenge": 1172,
    "arc_easy": 2376,
    "blimp": 67000,
    "boolq": 3270,
    "commonsenseqa": 1221,
    "copa": 100,
    "gsm8k": 1319,
    "hellaswag": 10042,
    "lambada": 5153,
    "mmlu": 14042,
    "openbookqa": 500,
    "piqa": 1838,
    "sciq": 1000,
    "siqa": 1954,
    "winograd": 273,
    "winogrande": 1267,
}


@pytest.mark.parametrize("name", names())
def test_a_shipped_suite_names_its_source(name):
    suite = find_suite(name)
    assert suite.name == name and suite.about and suite.source and suite.licence and suite.built_in
    assert suite.items == FOUND_IN_THE_ARCHIVE[name]
    assert metrics_of(suite)[0] in method_of(suite).metrics
    assert all(one.source and one.score > 0 for one in suite.reference)
    with pytest.raises(UserError, match="--items"):
        ask(name)


def test_every_method_and_metric_is_used_or_offered():
    assert {metric for method in METHODS.values() for metric in method.metrics} == set(METRICS)
    assert {find_suite(name).method for name in names()} == set(METHODS)


def test_real_items_are_found_in_the_archive(test_data):
    archive = test_data / "evals.tar.xz"
    if not archive.is_file():
        pytest.skip("ISOFLOP_TEST_DATA has no evals.tar.xz")
    asked = ask("arc_easy", archive)
    assert asked.is_whole and not ask("arc_easy", archive, limit=7).is_whole
    assert len(asked.items) == FOUND_IN_THE_ARCHIVE["arc_easy"] and asked.chance == pytest.approx(0.25, abs=0.01)


SMALL = ("arc_easy", "copa", "lambada", "winograd")  # one suite of each method that has few items or is read at once


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in SMALL else [pytest.mark.slow]) for name in names()]
)
def test_every_real_item_is_scored(name, test_data):
    archive = test_data / "evals.tar.xz"
    if not archive.is_file():
        pytest.skip("ISOFLOP_TEST_DATA has no evals.tar.xz")
    asked = ask(name, archive)
    assert len(asked.items) == FOUND_IN_THE_ARCHIVE[name]
    assert all(option.strip() for item in asked.items for option in item.continuations)


def test_a_users_suite_is_one_file(write_suite, questions, model, tokenizer, runtime):
    path = write_suite(questions, subset="{kind}", also=["unconditional"])
    asked = ask(str(path))
    assert (
        len(asked.items) == 6 and asked.chance == pytest.approx(1 / 3) and list(asked.subsets) == ["c", "d", "f", "t"]
    )
    found = score(model, tokenizer, asked, runtime)
    values = found.to_dict()
    assert values["items"] == 6 and values["low"] <= values["score"] <= values["high"]
    assert set(values["metrics"]) == set(METHODS["options"].metrics) and list(values["subsets"]) == ["c", "d", "f", "t"]
    assert sum(one["items"] for one in values["subsets"].values()) == 6
    assert [item.number for item in ask(str(path), limit=1).items] == [1, 2, 3, 6]  # one of each subset
    plain = str(write_suite(questions, name="plain"))
    assert [item.number for item in ask(plain, limit=3).items] == [1, 3, 5]  # evenly spaced
    assert ask(plain, limit=6).items == ask(plain, limit=9).items == ask(plain).items


def judged(name, suite, items, nats, tokens=None):
    """What a method makes of likelihoods that are given, in the order in which it asks."""
    given = iter(
        [Likelihood(value, count, value > -1) for value, count in zip(nats, tokens or [1] * len(nats), strict=True)]
    )
    return METHODS[name].judge(suite, items, lambda requests: [next(given) for _ in requests], None)


def test_options_are_chosen_by_each_length(write_suite):
    options = ("a", "bbbb", "cc")
    suite = read_suite(write_suite([{"question": "Q", "choices": list(options), "gold": 1}], also=["unconditional"]))
    one = Item(1, "", ("Q",) * 3, options, tuple(f" {option}" for option in options), answer=1)
    found = judged("options", suite, [one], [-2.0, -6.0, -3.1, -1.0, -9.0, -2.0], [1, 3, 1, 1, 3, 1]).values
    chosen = {name: bool(values[0]) for name, values in found.items()}
    # per token -2, -2, -3.1: the first of equals; per character -2, -1.5, -1.55; less what each is alone -1, 3, -1.1
    assert chosen == {
        "likelihood": False,
        "per_token": False,
        "per_character": True,
        "per_byte": True,
        "unconditional": True,
    }
    wide = Item(1, "", ("Q",) * 2, ("éé", "abc"), (" éé", " abc"), answer=0)
    two = read_suite(write_suite([], name="two", metric="per_byte"))
    found = judged("options", two, [wide], [-3.0, -4.0]).values
    assert found["per_byte"][0] == 1 and found["per_character"][0] == 0  # 4 bytes, 2 characters


def test_pairs_contexts_last_words_and_answers_are_scored(write_suite):
    pairs = read_suite(write_suite([], name="p", method="pairs", good="{a}", bad="{b}"))
    item = METHODS["pairs"].make(pairs, {"a": "It is.", "b": "It are."}, "p item 1", 1)
    assert item.continuations == ("It is.", "It are.") and item.contexts == ("", "")
    assert judged("pairs", pairs, [item, item], [-3.0, -4.0, -4.0, -3.0]).values["likelihood"].tolist() == [1, 0]

    fields = {"contexts": ["{a} he", "{b} he"], "continuation": "{rest}", "answer": "{gold}"}
    contexts = read_suite(write_suite([], name="c", method="contexts", **fields))
    item = METHODS["contexts"].make(contexts, {"a": "Al", "b": "Bo", "rest": "won.", "gold": "1"}, "c item 1", 1)
    assert item.contexts == ("Al he", "Bo he") and item.continuations == (" won.", " won.") and item.answer == 1

    words = read_suite(write_suite([], name="w", method="last_word", context="{c}", continuation="{w}"))
    item = METHODS["last_word"].make(words, {"c": "I care about", "w": "signs"}, "w item 1", 1)
    found = judged("last_word", words, [item, item], [-0.5, -2.5]).values
    assert found["first_choice"].tolist() == [1, 0] and found["perplexity"].tolist() == [0.5, 2.5]

    fields = {"context": "Q: {q}", "answer": "{a}", "extract": "#### (-?[0-9.,]+)", "ignore": [",", "\\.$"]}
    answers = read_suite(write_suite([], name="g", method="exact_match", stops=["Q:"], tokens=9, **fields))
    items = [
        METHODS["exact_match"].make(answers, {"q": "?", "a": "so #### 1,234"}, f"g item {i}", i) for i in (1, 2, 3)
    ]
    request = {}

    def write(prompts, tokens, stops):
        request.update(prompts=prompts, tokens=tokens, stops=stops)
        return ["first #### 3, then #### 1234.", " 1,234 ", "#### 12"], 2

    found = METHODS["exact_match"].judge(answers, items, None, write)
    assert found.cut == 2
    assert found.values["exact_match"].tolist() == [1, 1, 0]
    assert request == {"prompts": ["Q: ?"] * 3, "tokens": 9, "stops": ("Q:",)}


def test_answers_are_written_by_the_engine(write_suite, model, tokenizer, runtime):
    fields = {"context": "{q}", "answer": "{a}", "tokens": 4}
    records = [{"q": "The cat sat on", "a": "x"}, {"q": "The dogs", "a": "y"}]
    asked = ask(str(write_suite(records, method="exact_match", **fields)))
    found = score(model, tokenizer, asked, runtime)
    assert found.values["exact_match"].shape == (2,) and found.score().low == 0


def test_examples_come_before_the_item_and_are_never_the_item(write_suite, questions):
    shots = {"count": 1, "same": "{kind}", "between": "\n\n"}
    path = write_suite([q for q in questions if q["kind"] in "cd"], before="Answer.\n", shots=shots)
    suite = read_suite(path)
    items = read_items(suite, method_of(suite).make)
    assert [item.shots for item in items] == [
        "Answer.\nThe cats sat on it\n\n",
        "Answer.\nThe dogs sat on the mat\n\n",
        "Answer.\nThe dog sat on it\n\n",
        "Answer.\nThe cat sat on the mat\n\n",
    ]
    path = write_suite(questions, shots={"count": 1, "files": ["own.jsonl"]})  # read from the file again
    items = read_items(read_suite(path), method_of(suite).make)
    assert [item.shots.split(" sat")[0] for item in items] == ["The dog", *["The cat"] * 5]
    with pytest.raises(UserError, match=r"shots.count = 3, and there is 1 example with the same \{kind\}"):
        read_items(read_suite(write_suite(questions, shots={**shots, "count": 3})), method_of(suite).make)


def test_items_are_found_by_the_end_of_their_path_in_folders_and_archives(write_suite, questions, tmp_path):
    path = write_suite(questions, name="deep", files=["set/*.jsonl"])
    folder = tmp_path / "data" / "somewhere" / "set"
    folder.mkdir(parents=True)
    lines = [json.dumps(question) + "\n" for question in questions]
    (folder / "b.jsonl").write_text("".join(lines[3:]))
    (folder / "a.jsonl").write_text("".join(lines[:3]))
    with tarfile.open(tmp_path / "data.tar.xz", "w:xz") as archive:
        archive.add(tmp_path / "data", "data")
    of_folder, of_archive = (ask(str(path), place).items for place in (tmp_path / "data", tmp_path / "data.tar.xz"))
    assert [item.contexts[0] for item in of_folder] == [question["question"] for question in questions]
    assert of_folder == of_archive

    other = tmp_path / "data" / "copy" / "set"
    other.mkdir(parents=True)
    (other / "a.jsonl").write_text(lines[0])
    with pytest.raises(UserError, match=r"copy/set and in somewhere/set"):
        ask(str(path), tmp_path / "data")


def test_tables_are_items_too(write_suite, tmp_path):
    path = write_suite(
        [], name="t", files=["t.csv"], options=["{a}", "{b}"], context="{q}", answer="{gold}", answer_is="letter"
    )
    (tmp_path / "t.csv").write_text('q,a,b,gold\n"Is it, then?",yes,no,B\n')
    (item,) = ask(str(path)).items
    assert item.contexts[0] == "Is it, then?" and item.options == ("yes", "no") and item.answer == 1
    (tmp_path / "t.csv").write_text("q,a,b,gold\nIs it?,yes\n")
    with pytest.raises(UserError, match=r"t\.csv line 2 has more or fewer values"):
        ask(str(path))


GOOD = {"question": "Is it?", "choices": ["yes", "no"], "gold": 0}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (
            {"choices": ["yes", "no"], "gold": 0},
            r"own item 2 \(own\.jsonl line 2\) has no field 'question'; its fields: choices, gold",
        ),
        ({**GOOD, "choices": ["yes"]}, "item 2 .* has 1 option; it needs two or more"),
        ({**GOOD, "choices": "yes or no"}, "item 2 .*'choices', is not a list of texts"),
        ({**GOOD, "gold": 2}, "item 2 .* its answer '2' is not the number of one of its 2 options"),
        ({**GOOD, "gold": "-1"}, "item 2 .* its answer '-1' is not the number"),
        ({**GOOD, "question": None}, r"item 2 .*\{question\} is nothing \(null\) and no text"),
        ({**GOOD, "question": ["a"]}, r"item 2 .*\{question\} is a list and no text"),
        (
            ["no", "object"],
            r"own\.jsonl line 2 is not a JSON object; items are JSON lines \(an object per line\), CSV or TSV",
        ),
        ({**GOOD, "gold": "9" * 5000}, "item 2 .* its answer '9{60}' is not the number"),
        ({**GOOD, "gold": 1.0}, "item 2 .* its answer '1.0' is not the number .*; numbers begin at 0, and answer_is"),
        ({**GOOD, "choices": {"text": ["yes", "no"]}}, "item 2 .*'choices', is not a list of texts"),
    ],
)
def test_a_malformed_item_is_named_by_its_number(write_suite, record, message):
    with pytest.raises(UserError, match=message) as raised:
        ask(str(write_suite([GOOD, record, GOOD])))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "guess"}, "method = 'guess' is not one of options"),
        ({"method": "pairs", "good": "{a}"}, "method pairs needs the field 'bad'"),
        ({"stops": ["x"]}, "method options has no use for the field 'stops'"),
        ({"metric": "first_choice"}, "metric 'first_choice' is not one of those of method options: likelihood"),
        ({"metrics": "likelihood"}, r"unknown field metrics: did you mean metric\?$"),
        ({"context": "{question"}, "context = '{question': a brace that belongs to no field"),
        ({"context": "{question:upper}", "options": "choices", "answer": "{gold}"}, "'upper' is not one of capitalize"),
        ({"context": "{question.x}", "options": "choices", "answer": "{gold}"}, "item 1 .* has no field 'question.x'"),
        ({"context": "", "options": "{choices}", "answer": "{gold}"}, "options = '{choices}' is a template; write the"),
        ({"files": [""]}, "files = '' is not the end of a file's path"),
        ({"files": ["../own.jsonl"]}, r"files = '\.\./own\.jsonl' is not the end"),
        ({"files": ["/own.jsonl"]}, "files = '/own.jsonl' is not the end"),
        ({"shots": {"count": 1, "files": ["."]}}, r"shots\.files = '\.' is not the end"),
        ({"replace": [["a", "\\9"]]}, r"replace = \['a', .* is not a regular expression and its replacement"),
        ({"method": "exact_match", "context": "{question}", "answer": "{gold}", "stops": [""]}, "has an empty string"),
        ({"files": []}, "names no file"),
        ({"files": ["absent.jsonl"]}, r"no file absent\.jsonl in .*--items"),
        ({"where": {"question": "?"}}, r"none of the 2 items in .* is wanted: where = \{'question': '\?'\}"),
        ({"replace": [["(", ""]]}, r"replace = '\(' is not a regular expression"),
        ({"answer_is": "word"}, "answer_is = 'word' is not one of number, letter, text"),
        ({"name": "../x"}, "is not made of letters"),
        ({"name": "BLiMP"}, "name = 'BLiMP' is a suite that comes with isoflop, .*; give it another name"),
        ({"items": -1}, "items = -1 is negative"),
        ({"built_in": True}, "unknown field built_in"),
        ({"shots": {"count": 9}}, "shots.count = 9, and there are 2 examples"),
        ({"shots": {"count": 2}}, "item 1 .* shots.count = 2, and there is 1 example; an item is not its own example"),
    ],
)
def test_a_malformed_suite_is_one_line(write_suite, fields, message):
    with pytest.raises(UserError, match=message) as raised:
        ask(str(write_suite([GOOD, GOOD], **{"name": "own", "files": ["own.jsonl"], **fields})))
    assert "\n" not in str(raised.value)


def test_a_file_that_is_no_suite_is_refused(tmp_path):
    (tmp_path / "broken.toml").write_text("name = \n")
    with pytest.raises(UserError, match=r"broken\.toml is not TOML .*line 1"):
        ask(str(tmp_path / "broken.toml"))
    with pytest.raises(UserError, match="did you mean blimp"):
        ask("blimb")
    with pytest.raises(UserError, match="does not exist"):
        ask(str(tmp_path / "absent.toml"))
    with pytest.raises(UserError, match=r"--items .* does not exist"):
        ask("blimp", tmp_path / "absent")
    (tmp_path / "no.tar").write_text("this is no archive")
    with pytest.raises(UserError, match="neither a folder nor a tar archive"):
        ask("blimp", tmp_path / "no.tar")


def test_a_shipped_suite_is_found_by_its_path_too():
    assert find_suite(str(BUILT_IN / "copa.toml")) == find_suite("copa")


def test_templates_fill_fields_and_nothing_else():
    record = {
        "a": "big_dog",
        "list": ["x", "y"],
        "n": 3,
        "deep": {"a": "in", "l": ["z"]},
        "Best-1 Answer": "b",
        "x.y": 1,
    }
    for template, text in {
        "{a}": "big_dog",
        "{a:words} {list[1]} {n}": "big dog y 3",
        "{a:capitalize}": "Big_dog",
        "{{a}}": "{a}",
        "{Best-1 Answer} {x.y}": "b 1",
        "{deep.a} {deep.l[0]}": "in z",
        "no field": "no field",
    }.items():
        check_template(template, "context")
        assert fill(template, record, "item 1") == text
    for template in ("{a!r}", "{", "}", "{0}", "{a[b]}"):
        with pytest.raises(UserError, match="brace"):
            check_template(template, "context")
    for template, message in {
        "{b}": "no field 'b'",
        "{a.__class__}": "no field 'a.__class__'",
        "{deep.b}": "no field 'deep.b'",
        "{list[2]}": r"list\[2\] is not there",
        "{a[0]}": "is no list",
    }.items():
        with pytest.raises(UserError, match=message):
            fill(template, record, "item 1")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("own.jsonl", b"\n", r"own\.jsonl in .* has no items"),
        ("own.csv", b"question,gold\n", r"own\.csv in .* has no items"),
        ("own.csv", b"question,gold,gold\na,0,1\n", "own.csv has the column 'gold' twice; rename one"),
        ("own.jsonl.gz", b"\x1f\x8b\x08", "own.jsonl.gz is not UTF-8 at byte 1; .* and not compressed"),
        ("own.json", b"[\n {}\n]", "own.json is an array of items; items are JSON lines"),
    ],
)
def test_a_file_without_items_is_refused(write_suite, tmp_path, name, content, message):
    path = write_suite([], files=[name])
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        ask(str(path))


def test_broken_json_is_named_by_the_line_of_its_file(write_suite, tmp_path):
    path = write_suite([GOOD, GOOD])
    (tmp_path / "own.jsonl").write_text(json.dumps(GOOD) + "\n{,}\n")
    with pytest.raises(UserError, match=r"own\.jsonl line 2 is not valid JSON: Expecting property .* at column 2$"):
        ask(str(path))


def test_where_the_pattern_says_comes_first(write_suite, questions, tmp_path):
    """Only a choice between other places is the user's, who can make it as the message says."""
    path = write_suite(questions)
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "own.jsonl").write_text((tmp_path / "own.jsonl").read_text())
    assert len(ask(str(path)).items) == len(questions)
    (tmp_path / "own.jsonl").unlink()
    with pytest.raises(UserError, match=r"own\.jsonl is in one and in two of .*; name one of them: --items .*/one$"):
        ask(str(path))
    assert len(ask(str(path), tmp_path / "one").items) == len(questions)


def test_items_as_others_publish_them(write_suite, tmp_path):
    """Lists inside objects, answers as text, a byte order mark, a long field of a table."""
    nested = [{"stem": "Is it?", "choices": {"text": ["a_b", "c"], "label": ["A", "B"]}, "key": "a_b"}]
    how = {"context": "{stem}", "answer": "{key}", "answer_is": "text", "replace": [["_", " "]]}
    path = write_suite(nested, options="choices.text", **how)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    (item,) = ask(str(path)).items
    assert item.options == ("a b", "c") and item.answer == 0

    path = write_suite([], name="t", files=["t.csv"], options=["{a}", "{b}"], context="{q}", answer="{gold}")
    (tmp_path / "t.csv").write_text("q,a,b,gold\n" + "word " * 40000 + ",yes,no,1\n")
    assert len(ask(str(path)).items[0].contexts[0]) == 200000


def test_there_is_something_to_score_or_the_item_is_named(write_suite, model, tokenizer, runtime):
    empty = write_suite([GOOD, {**GOOD, "choices": ["yes", ""]}], delimiter="")
    with pytest.raises(UserError, match=r"item 2 .*: its option 2 of 2 is empty"):
        ask(str(empty))
    fields = {"contexts": ["{a}", "{a}!"], "continuation": "{b}", "answer": "0", "delimiter": ""}
    with pytest.raises(UserError, match=r"item 1 .*: its continuation is empty"):
        ask(str(write_suite([{"a": "x", "b": ""}], name="c", method="contexts", **fields)))
    nothing = likelihoods(model, tokenizer, [Request("The cat", ""), Request("", "")], runtime)
    assert [(one.nats, one.tokens) for one in nothing] == [(0.0, 0)] * 2  # as lm-eval


def test_a_word_without_any_chance_has_a_finite_perplexity(write_suite, model, tokenizer, runtime):
    items = [{"c": "The", "w": "12345 " * 300}]
    path = write_suite(items, method="last_word", context="{c}", continuation="{w}", metric="perplexity")
    found = score(model, tokenizer, ask(str(path)), runtime).score()
    assert found.low == found.value == found.high == pytest.approx(np.exp(700.0))


def test_a_published_share_is_a_share(write_suite):
    path = write_suite([GOOD])
    for metric, value, refused in (("", 81.5, True), ("", 0.815, False), ("", -0.1, True)):
        text = f'[[reference]]\nmodel = "GPT-2"\nmetric = "{metric}"\nscore = {value}\nsource = "x"\n'
        (path.parent / "with.toml").write_text(path.read_text() + text)
        if refused:
            with pytest.raises(UserError, match=f"score = {value} is not a share from 0 to 1; write 81.5 % as 0.815"):
                ask(str(path.parent / "with.toml"))
        else:
            ask(str(path.parent / "with.toml"))


def test_an_answers_pattern_may_match_without_its_group(write_suite):
    fields = {"context": "{q}", "answer": "{a}", "extract": "= (\\d+)|none"}
    path = write_suite([{"q": "?", "a": "= 7, not none"}, {"q": "?", "a": "none"}], method="exact_match", **fields)
    assert [item.expected for item in ask(str(path)).items] == ["7", "none"]


def test_a_likelihood_that_is_not_finite_is_reported(write_suite, questions, model, tokenizer, runtime, monkeypatch):
    asked = ask(str(write_suite(questions)))
    logits = model.logits
    monkeypatch.setattr(model, "logits", lambda h: logits(h) * np.nan)
    with pytest.raises(UserError, match="no finite likelihood"):
        score(model, tokenizer, asked, runtime)


def test_an_archive_may_contain_other_files(write_suite, questions, tmp_path):
    """Other members are ignored: links, folders, files with other names."""
    path = write_suite(questions, name="one")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(tmp_path / "one.jsonl", "x/one.jsonl")
        link = tarfile.TarInfo("x/other.jsonl")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
        info = tarfile.TarInfo("x/two.jsonl")
        info.size = 3
        archive.addfile(info, io.BytesIO(b"{}\n"))
    assert len(ask(str(path), tmp_path / "a.tar").items) == 6
