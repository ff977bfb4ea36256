"""Estimates the memory of batched decoding before it begins."""

import inspect

from torch import nn

from isoflop.errors import UserError
from isoflop.model.blocks.part import Part, Unit
from isoflop.model.blocks.position import Position
from isoflop.model.language_model import LanguageModel
from isoflop.runtime import free_memory

AT_ONCE = 256  # rows at once by default, if memory allows
SHARE = 0.8  # of the free memory that may be used
READ_AT_ONCE = 8192  # tokens of prompts in one prefill pass, unless one prompt is longer
WIDTHS = 24  # times d_model that a pass holds per token, about: the widest branch and its inputs
LOGITS = 5  # copies of the logits that choosing tokens holds, in float32


def slots_for(model: LanguageModel, rows: int, positions: int, longest: int, spare: int, slots: int, seen: bool) -> int:
    """How many of `rows` can be decoded together.

    Args:
        positions: of the longest row, new tokens included.
        longest: length of the longest prompt.
        spare: further columns, see KVCache.
        slots: the requested number; 0: as memory allows, 256 at most.
        seen: whether the ids of each row are stored, for a repetition penalty.

    Raises:
        UserError: if they do not fit, with the number that does.
    """
    if slots < 0:
        raise UserError(f"slots = {slots} is negative; 0 is as many as memory allows")
    wanted = min(rows, slots or AT_ONCE)
    device = next(model.parameters()).device
    free = free_memory(str(device))
    if free is None:
        return wanted

    row = bytes_of_row(model, positions + spare) + model.config.vocab_size * (4 * LOGITS + seen)
    itemsize = model.embedding.weight.element_size()
    tokens = min(max(longest, READ_AT_ONCE), rows * longest)
    reading = tokens * WIDTHS * model.config.d_model * itemsize + bytes_of_row(model, longest) * -(-tokens // longest)
    fits = int((SHARE * free - reading) // row)
    if fits >= wanted or (fits >= 1 and not slots):
        return min(fits, wanted)
    if fits < 1:
        raise UserError(
            f"generating a text of {positions} tokens needs about {in_words(row + reading)}, and "
            f"{in_words(int(SHARE * free))} are available on {device.type}; ask for fewer --tokens "
            "or shorten the prompt"
        )
    raise UserError(
        f"slots = {slots} texts at once need about {in_words(wanted * row + reading)}, and "
        f"{in_words(int(SHARE * free))} are available on {device.type}; at most {fits} fit"
    )


def bytes_of_row(model: LanguageModel, columns: int) -> int:
    """Bytes of keys and values of one row with this many columns."""
    numbers = sum(
        part.cache_width * (min(columns, 2 * part.window) if part.window else columns)
        for part in model.modules()
        if isinstance(part, Part)
    )
    return numbers * model.embedding.weight.element_size()


def in_words(count: float) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{max(count, 2**20) / 2**20:.0f} MiB"


def not_ragged(model: nn.Module) -> str:
    """The name of the first part that needs all rows at one position (Part.ragged), or ""."""
    for module in model.modules():
        if isinstance(module, Position):
            methods = ["embed", "rotate", "query"]
        elif getattr(module, "positional", False) or takes_cache(module):
            methods = ["forward"]
        else:
            continue
        if not all(declares(type(module), method) for method in methods):
            return type(module).__name__
    return ""


def takes_cache(module: nn.Module) -> bool:
    """Whether a module is an attention with a cache; a block or model only passes its cache on."""
    if isinstance(module, (Unit, LanguageModel)) or not isinstance(module, Part):
        return False
    return "cache" in inspect.signature(module.forward).parameters


def declares(cls: type, method: str) -> bool:
    """Whether the class that defines a method declares `ragged` itself: a subclass that overrides the method has to
    declare it again."""
    owner = next(base for base in cls.__mro__ if method in vars(base))
    return bool(vars(owner).get("ragged", False))
