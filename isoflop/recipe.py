"""Loads a recipe: a Python function that returns a RunConfig, or a config.json.

A recipe is the user's own code, named on the command line, and is executed. A config.json is data and is not executed.
"""

import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from isoflop.config import from_dict, load_json, nearest, override
from isoflop.errors import UserError
from isoflop.trainer.config import RunConfig
from isoflop.untrusted import read_bytes


def load_recipe(recipe: str, config: Path | None, assignments: Sequence[str] = ()) -> RunConfig | None:
    """The configuration that `--recipe FILE.py:NAME` or `--config FILE.json` names, with the assignments of `--set`;
    None if neither is given.

    Raises:
        UserError: for both at once, a missing file or function, or a recipe that does not return a RunConfig.
    """
    if recipe and config is not None:
        raise UserError("--recipe and --config are two configurations; give one of them")
    if config is not None:
        return override(from_dict(RunConfig, load_json(config)), list(assignments))
    if recipe:
        return override(call_recipe(recipe), list(assignments))
    return None


def call_recipe(recipe: str) -> RunConfig:
    """The configuration that the recipe FILE.py:NAME returns."""
    file, separator, name = recipe.rpartition(":")
    if not separator or not name.isidentifier():
        raise UserError(f"--recipe {recipe!r} is not of the form FILE.py:NAME")
    path = Path(file)
    if path.suffix != ".py":
        raise UserError(f"--recipe {recipe!r}: {file!r} is not a Python file")
    source = read_bytes(path)

    # Compiled from the source text, so that exactly the text that the user sees is executed, and no stale .pyc file.
    module = types.ModuleType(path.stem)
    module.__file__ = str(path)
    try:
        program = compile(source, str(path), "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:
        raise UserError(f"--recipe {recipe!r}: {error}") from None
    exec(program, module.__dict__)
    functions: dict[str, Any] = {key: value for key, value in vars(module).items() if callable(value)}
    if name not in functions:
        raise UserError(f"--recipe {recipe!r}: {file} has no function {name}{nearest(name, functions)}")
    config = functions[name]()
    if not isinstance(config, RunConfig):
        raise UserError(f"--recipe {recipe!r}: {name}() returned {type(config).__name__}, not a RunConfig")
    return config
