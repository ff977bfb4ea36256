"""The public names of the package: independent of earlier imports, with signatures and progress."""

import dataclasses
import inspect
import pkgutil
import pydoc
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

import isoflop
from isoflop.errors import UserError
from isoflop.job import Listener
from small import TINY

ROOT = Path(__file__).parents[1]
FUNCTIONS = [name for name in isoflop.__all__ if name.islower()]
# Code that is copied into an export needs transformers, and isoflop imports only the part in torch alone.
COPIED = ("isoflop.export.modeling.modeling_isoflop", "isoflop.export.modeling.configuration_isoflop")
WALKED = [found.name for found in pkgutil.walk_packages(isoflop.__path__, "isoflop.")]
SUBMODULES = [name for name in WALKED if name not in COPIED]
TOLD = """
import importlib, sys, types
first = sys.argv[1]
importlib.import_module(first)  # before the package's names are asked for
import isoflop
for name in sys.argv[2:]:
    importlib.import_module(name)
from isoflop import *
from isoflop.evaluate.transduction import edit_distance
for name in isoflop.__all__:
    value = getattr(isoflop, name)
    assert not isinstance(value, types.ModuleType), name
    assert globals()[name] is value, name
"""


@pytest.mark.parametrize(
    "first",
    [
        "isoflop.evaluate",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("isoflop.evaluate.transduction", "isoflop.cli", "isoflop.job")
        ),
    ],
)
def test_no_submodule_shadows_a_public_name(first):
    names = [name for name in SUBMODULES if not name.endswith("__main__")]
    done = subprocess.run([sys.executable, "-c", TOLD, first, *names], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_public_names_stay_once_every_submodule_is_imported_here():
    before = {name: getattr(isoflop, name) for name in isoflop.__all__}
    for name in SUBMODULES:
        if not name.endswith("__main__"):
            import_module(name)
    for name, value in before.items():
        assert getattr(isoflop, name) is value and not isinstance(value, ModuleType)
    assert set(isoflop.__all__) <= set(dir(isoflop))


def test_help_shows_the_functions_with_their_signatures():
    text = pydoc.plain(pydoc.render_doc(isoflop))
    section = text[text.index("\nFUNCTIONS") :]
    for name in FUNCTIONS:
        assert f"\n    {name}(" in section
        kinds = {parameter.kind for parameter in inspect.signature(getattr(isoflop, name)).parameters.values()}
        assert not kinds & {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
        assert getattr(isoflop, name).__doc__
    assert "budget: str = '3m'" in section and "quiet: bool = False" in section


@pytest.mark.parametrize("name", FUNCTIONS)
def test_forwarded_arguments_have_the_same_names_and_defaults(name):
    """The public functions only add `quiet` to those of isoflop.job."""
    inner = getattr(import_module("isoflop.job"), name)
    taken = {k: p.default for k, p in inspect.signature(getattr(isoflop, name)).parameters.items() if k != "quiet"}
    given = {k: p.default for k, p in inspect.signature(inner).parameters.items()}
    if request := given.pop("request", None):  # bundles the settings of a generation
        given |= {field.name: field.default for field in dataclasses.fields(request)}
        assert sorted(taken) == sorted(given)
    else:
        assert list(taken) == list(given)
    for parameter, default in taken.items():
        if (name, parameter) != ("sample", "prompt"):
            assert default == given[parameter]


def test_the_docs_list_every_public_name_and_every_dependency():
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    assert [name for name in isoflop.__all__ if f"`isoflop.{name}" not in page] == []
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    licences = (ROOT / "docs" / "releasing.md").read_text(encoding="utf-8")
    assert [one for one in needed if f"| {one.partition('>')[0]} |" not in licences] == []


def test_importing_the_package_imports_no_heavy_library():
    program = "import sys, isoflop; assert not {'torch', 'numpy', 'rich', 'tyro', 'matplotlib'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_job_called_from_python_shows_what_the_command_line_does(corpus, tmp_path, capsys):
    run = tmp_path / "run"
    isoflop.pretrain([str(corpus)], "12steps", run, assignments=TINY)
    out = capsys.readouterr().out
    for words in ("plan for 12steps", "step 1/12", "step 12/12", "reached", "report:", f"isoflop sample {run}"):
        assert words in out
    isoflop.resume(run, "+6steps")
    assert "step 18/18" in capsys.readouterr().out
    isoflop.resume(run, "+6steps", quiet=True)
    assert capsys.readouterr().out == ""
    assert isoflop.evaluate(run).bits_per_byte == isoflop.evaluate(run).bits_per_byte > 0
    assert isoflop.evaluate(run, [str(corpus)]).tokens > 0
    assert isinstance(isoflop.sample(run, tokens=3), str)
    capsys.readouterr()


def test_quiet_or_a_custom_listener_prints_nothing(corpus, tmp_path, capsys):
    isoflop.pretrain([str(corpus)], "6steps", tmp_path / "quiet", assignments=TINY, quiet=True)
    lines = []
    isoflop.pretrain([str(corpus)], "6steps", tmp_path / "own", assignments=TINY, listener=Listener(say=lines.append))
    assert capsys.readouterr().out == "" and lines


def test_a_notebook_gets_plain_lines_that_fit(corpus, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ipykernel", ModuleType("ipykernel"))
    monkeypatch.delenv("COLUMNS", raising=False)
    isoflop.pretrain([str(corpus)], "6steps", tmp_path / "run", assignments=TINY)
    out = capsys.readouterr().out
    assert "\x1b" not in out and "step 6/6" in out
    lines = out.partition("a sample:")[0].splitlines()
    assert all(len(line) <= 100 or len(line.split()) <= 2 for line in lines)


def test_the_outcome_of_a_dry_run_is_its_plan(corpus, tmp_path, capsys):
    advice = isoflop.pretrain([str(corpus)], "6steps", tmp_path / "run", assignments=TINY, dry_run=True)
    assert advice.config.steps == 6 and "plan for 6steps" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("given", ["a.txt", Path("a.txt"), ["a.txt"], [Path("a.txt")]])
def test_one_path_is_a_list_of_one_and_never_of_its_characters(tmp_path, monkeypatch, given):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^a\.txt does not exist"):
        isoflop.pretrain(given, budget="20steps", assignments="model.layers=1", quiet=True)


def test_one_stop_string_is_a_list_of_one():
    assert isoflop.as_tuple("river") == ("river",) and isoflop.as_tuple(["a", Path("b")]) == ("a", "b")


@pytest.mark.parametrize(
    "arguments, named",
    [
        ({"prompt": b"It"}, "prompt"),
        ({"top_k": "3"}, "top_k"),
        ({"temperature": "hot"}, "temper"),
        ({"top_p": True}, "top_p"),
    ],
)
def test_arguments_of_the_wrong_type_are_one_line(arguments, named):
    run = Path(__file__).parent / "golden" / "words"
    with pytest.raises(UserError, match=named):
        isoflop.sample(run, **{"prompt": "It", "tokens": 1, **arguments})
