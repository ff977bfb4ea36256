"""What decoding side by side will hold, worked out before it begins."""

import inspect

from torch import nn

from isoflop.errors import UserError
from isoflop.model.blocks.part import Part, Unit
from isoflop.model.blocks.position import Position
from isoflop.model.language_model import LanguageModel
from isoflop.runtime import free_memory

AT_ONCE = 256  # rows side by side, if nothing is said and there is memory for them
SHARE = 0.8  # of the free memory that may be taken
READ_AT_ONCE = 8192  # tokens of prompts in one pass, or one prompt
WIDTHS = 24  # times d_model that a pass holds for each of its tokens, about: the widest branch and what it is made of
LOGITS = 5  # copies of the logits that choosing tokens holds, in float32


def slots_for(model: LanguageModel, rows: int, positions: int, longest: int, spare: int, slots: int, seen: bool) -> int:
    """How many of `rows` can be written side by side.

    Args:
        positions: of the longest row, what is written included.
        longest: of the prompts.
        spare: columns beyond those, see KVCache.
        slots: as many as were asked for; 0: as memory allows, 256 at most.
        seen: the ids of each row are remembered.

    Raises:
        UserError: if they do not fit, with the number that does.
    """
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
            f"a text of {positions} tokens holds about {in_words(row + reading)} while it is written, and "
            f"{in_words(int(SHARE * free))} are to be had on {device.type}; ask for fewer --tokens "
            "or shorten the prompt"
        )
    raise UserError(
        f"slots = {slots} texts side by side hold about {in_words(wanted * row + reading)}, and "
        f"{in_words(int(SHARE * free))} are to be had on {device.type}; at most {fits} fit"
    )


def bytes_of_row(model: LanguageModel, columns: int) -> int:
    """Of keys and values of one row in so many columns."""
    numbers = sum(
        part.cache_width * (min(columns, 2 * part.window) if part.window else columns)
        for part in model.modules()
        if isinstance(part, Part)
    )
    return numbers * model.embedding.weight.element_size()


def in_words(count: float) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{max(count, 2**20) / 2**20:.0f} MiB"


def not_ragged(model: nn.Module) -> str:
    """The name of the first part that has to have all rows at one position (Part.ragged); empty if none has."""
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
    """Whether it is an attention that looks back; a block gives its own on to one."""
    if isinstance(module, (Unit, LanguageModel)) or not isinstance(module, Part):
        return False
    return "cache" in inspect.signature(module.forward).parameters


def declares(cls: type, method: str) -> bool:
    """Whether the class that a method comes from says that it is `ragged` itself: what a subclass overrides is its own
    affair."""
    owner = next(base for base in cls.__mro__ if method in vars(base))
    return bool(vars(owner).get("ragged", False))
