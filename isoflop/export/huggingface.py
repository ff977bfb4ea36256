"""Hugging Face folders: config.json, safetensors (one file or sharded) and the tokenizer; with an architecture of
transformers (architectures.py), or with isoflop's own modeling code (own_code.py)."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from isoflop.data.tokenizer import Tokenizer, mark_end, with_end_of_text
from isoflop.errors import UserError
from isoflop.export import own_code
from isoflop.export.architectures import HUGGING_FACE, limits, read_config, write_config
from isoflop.export.bundle import Bundle, gather, spread
from isoflop.export.fields import Fields
from isoflop.export.fit import anatomy_of
from isoflop.export.vocabulary import read_tokenizer, starting
from isoflop.files import to_json
from isoflop.untrusted import parse_json, read_bytes

TITLE = "a Hugging Face model"
DTYPES = ("F64", "F32", "F16", "BF16")


def read_folder(folder: Path, tokenizer: str = "", context: int = 0) -> Bundle:
    """The model in a Hugging Face folder.

    Args:
        tokenizer: the text of a tokenizer to use instead of the folder's.
        context: see bundle.gather.

    Raises:
        UserError: for a model that cannot be expressed with our blocks, or files that are damaged, missing or pickled.
    """
    fields = Fields(read_json(folder / "config.json"), str(folder / "config.json"))
    if fields.get("model_type", "") == own_code.NAME:
        shapes, load = open_weights(folder)
        config, weights = own_code.read_model(fields, shapes, load, str(folder), context)
        return Bundle(config, weights, text_of(folder, fields, tokenizer), f"hugging face {own_code.NAME}")

    anatomy = read_config(fields)
    stored_shapes, load = open_weights(folder)
    names = HUGGING_FACE[anatomy.family].names
    full_names = {stored: full_name(stored, stored_shapes, names.optional_prefix) for stored in stored_shapes}
    heads = {"lm_head.weight"} if anatomy.tied else set()
    stored_names = {
        name: stored
        for stored, name in full_names.items()
        if name not in heads and not any(name.endswith(ending) for ending in names.ignored)
    }
    shapes = {name: stored_shapes[stored] for name, stored in stored_names.items()}
    config, weights = gather(anatomy, names, shapes, lambda name: load(stored_names[name]), str(folder), context)

    return Bundle(config, weights, text_of(folder, fields, tokenizer), f"hugging face {anatomy.family}")


def read_written(folder: Path, context: int) -> Bundle:
    """What was written, for the comparison with the original: if the folder has modeling code, that code computes the
    logits."""
    bundle = read_folder(folder, context=context)
    if not (folder / own_code.FILES[0]).is_file():
        return bundle
    return own_code.Exported(bundle.config, bundle.weights, bundle.tokenizer, bundle.source)


def text_of(folder: Path, fields: Fields, tokenizer: str) -> str:
    """The text of the tokenizer that was given, or of the folder's."""
    return tokenizer or with_end_of_text(read_tokenizer(folder), end_of_text(folder, fields))


def end_of_text(folder: Path, fields: Fields) -> str | int | None:
    """The token that ends a text, by name or id, from the tokenizer's configuration or the model's."""
    path = folder / "tokenizer_config.json"
    eos = read_json(path).get("eos_token") if path.is_file() else None
    named = eos.get("content") if isinstance(eos, dict) else eos
    if isinstance(named, str):
        return named
    number = fields.get("eos_token_id", None)
    number = number[0] if isinstance(number, list) and number else number
    return number if isinstance(number, int) else None


def full_name(stored: str, names: Iterable[str], prefix: str) -> str:
    """The full name of a tensor: OpenAI's own files omit the prefix."""
    lacks_prefix = prefix and not any(name.startswith(prefix) for name in names)
    return prefix + stored if lacks_prefix and not stored.startswith("lm_head.") else stored


def open_weights(folder: Path) -> tuple[dict[str, tuple[int, ...]], Callable[[str], Tensor]]:
    """name -> shape of every tensor in a folder's safetensors, and a function that reads one.

    Raises:
        UserError: for a missing or invalid safetensors file, or a dtype that is not one of DTYPES.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = read_json(index).get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(s, str) and Path(s).name == s for s in shards.values()):
            raise UserError(f"{index} has no weight_map of file names in this folder")
        files = sorted(set(shards.values()))
    elif (folder / "model.safetensors").is_file():
        files = ["model.safetensors"]
    elif pickled := sorted([*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")]):
        raise UserError(
            f"{pickled[0]} is a pickle, which isoflop never opens, and there is no model.safetensors next to it; "
            "save the model as safetensors first"
        )
    else:
        raise UserError(f"{folder} has no model.safetensors")

    shapes: dict[str, tuple[int, ...]] = {}
    paths: dict[str, Path] = {}
    for file in files:
        if not (folder / file).is_file():
            raise UserError(f"{folder / file} is missing or not a file")
        with opened(folder / file) as tensors:
            for name in tensors.keys():  # noqa: SIM118 - not a dict
                part = tensors.get_slice(name)
                if part.get_dtype() not in DTYPES:
                    raise UserError(
                        f"{folder / file}: {name[:200]!r} is {part.get_dtype()}; supported are {', '.join(DTYPES)}"
                    )
                if name in shapes:
                    raise UserError(f"{folder} has {name[:200]!r} in two files")
                shapes[name], paths[name] = tuple(part.get_shape()), folder / file

    def load(name: str) -> Tensor:
        with opened(paths[name]) as tensors:
            return tensors.get_tensor(name)

    return shapes, load


class opened:
    """safetensors.safe_open, with a one-line error for an invalid file."""

    def __init__(self, path: Path) -> None:
        try:
            self.file = safetensors.safe_open(str(path), framework="pt")
        except (OSError, ValueError, MemoryError, safetensors.SafetensorError) as error:
            raise UserError(f"{path} cannot be read as safetensors ({str(error)[:120]})") from None

    def __enter__(self) -> Any:
        return self.file.__enter__()

    def __exit__(self, *error: Any) -> None:
        self.file.__exit__(*error)


def read_json(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise UserError(f"{path} does not exist; name a folder with config.json and model.safetensors")
    value = parse_json(read_bytes(path), str(path))
    if not isinstance(value, dict):
        raise UserError(f"{path} is not a JSON object")
    return value


def write_folder(bundle: Bundle, folder: Path) -> str:
    """Write a bundle into an existing empty folder: configuration, weights and tokenizer, in transformers' layout.

    Returns:
        The architecture.

    Raises:
        UserError: naming the block that none of its architectures has.
    """
    anatomy = anatomy_of(bundle.config, limits(), TITLE)
    write_parts(bundle, folder, write_config(anatomy), spread(bundle, anatomy, HUGGING_FACE[anatomy.family].names))
    return anatomy.family


def write_own(bundle: Bundle, folder: Path) -> str:
    """`write_folder` with isoflop's own modeling code in place of an architecture of transformers.

    Raises:
        UserError: naming the block that is not in isoflop's tables.
    """
    write_parts(bundle, folder, own_code.config_fields(bundle.config), own_code.tensors_of(bundle))
    own_code.write_code(folder)
    return own_code.NAME


def write_parts(bundle: Bundle, folder: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write the files of a folder, given those fields of config.json and the tensors that an architecture has."""
    safetensors.torch.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    tokenizer = Tokenizer.from_json(bundle.tokenizer)
    start, eos = token(tokenizer, tokenizer.start), token(tokenizer, tokenizer.eot)
    ids = {"bos_token_id": tokenizer.start, "eos_token_id": tokenizer.eot}
    tokenizer_text = starting(bundle.tokenizer, start, tokenizer.start)
    texts = {
        # The padding token is the end of text, which would get no gradient if the model's configuration named it.
        "config.json": to_json({**config, **ids, "pad_token_id": None}),
        "generation_config.json": to_json({**ids, "pad_token_id": tokenizer.eot}),
        "tokenizer.json": mark_end(tokenizer_text, tokenizer.eot) if tokenizer.end_of_text else tokenizer_text,
        "tokenizer_config.json": to_json(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "bos_token": start,
                "eos_token": eos,
                "pad_token": eos,
                "padding_side": "left",  # generated tokens follow the last token of each row
                "model_input_names": ["input_ids", "attention_mask"],  # transformers 4 adds token_type_ids
                "clean_up_tokenization_spaces": False,
                "model_max_length": bundle.config.context,
            }
        ),
    }
    for name, text in texts.items():
        (folder / name).write_bytes(text.encode("utf-8"))


def token(tokenizer: Tokenizer, number: int) -> str:
    return next(piece for piece, i in tokenizer.vocabulary.items() if i == number)
