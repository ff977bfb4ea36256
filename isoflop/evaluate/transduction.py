"""Edit-distance rates of outputs against references: phoneme error rate, character error rate, exact match.

An output is compared unit by unit: units are separated by blanks if more than half of the references contain one
(phonemes, words), else they are characters. The rate is edits over reference units, like the word error rate in speech
recognition (NIST's sclite): it can be above 1. An input with several references is scored against the one with the
fewest edits per unit.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from isoflop.data.prepared_pairs import LoosePairs, PreparedPairs
from isoflop.generate.transduce import transduce
from isoflop.model.encoder_decoder import EncoderDecoder

Units = Sequence[str]
Write = Callable[[Sequence[str]], list[str]]  # inputs -> an output for each


@dataclass(frozen=True)
class Transduction:
    """Counts over inputs.

    Attributes:
        inputs: number of inputs scored.
        edits: insertions, deletions and substitutions to the nearest reference.
        units: of those references.
        exact: inputs whose output is one of their references.
        unit: what is counted, "between blanks" or "characters".
    """

    inputs: int
    edits: int
    units: int
    exact: int
    unit: str

    @property
    def unit_error_rate(self) -> float:
        """Edits over reference units: the phoneme error rate where units are phonemes."""
        return self.edits / max(1, self.units)

    @property
    def exact_match(self) -> float:
        """Share of inputs whose whole output is correct."""
        return self.exact / max(1, self.inputs)

    def to_dict(self) -> dict[str, Any]:
        return {
            "unit_error_rate": self.unit_error_rate,
            "exact_match": self.exact_match,
            "inputs": self.inputs,
            "edits": self.edits,
            "reference_units": self.units,
            "unit": self.unit,
        }


def evaluate(model: EncoderDecoder, prepared: PreparedPairs | LoosePairs, beam: int = 1, most: int = 0) -> Transduction:
    """Decode the held-out inputs and score the outputs.

    Args:
        beam: hypotheses kept; 1 is greedy.
        most: number of inputs, from the first; 0: all.
    """
    tokenizer = prepared.tokenizer

    def write(inputs: Sequence[str]) -> list[str]:
        sources = [tokenizer.encode_batch([text])[0] for text in inputs]
        return [tokenizer.decode(ids) for ids in transduce(model, sources, tokenizer.eot, beam)]

    return judge(write, references(prepared), most)


def references(prepared: PreparedPairs | LoosePairs) -> dict[str, list[str]]:
    """Each held-out input with all its outputs, in the order of the held-out pairs."""
    pairs, decode = prepared.heldout(), prepared.tokenizer.decode
    outputs: dict[str, list[str]] = {}
    for number in range(len(pairs)):
        outputs.setdefault(decode(pairs.source[number]), []).append(decode(pairs.target[number]))
    return outputs


def judge(write: Write, wanted: Mapping[str, Sequence[str]], most: int = 0) -> Transduction:
    """Run `write` on the inputs and compare its outputs with the references, as the module's docstring describes."""
    inputs = list(wanted)[: most or None]
    split = units_of([reference for text in inputs for reference in wanted[text]])
    edits = units = exact = 0
    for text, output in zip(inputs, write(inputs), strict=True):
        units_written, references = split(output), [split(reference) for reference in wanted[text]]
        distances = [edit_distance(units_written, reference) for reference in references]
        best = min(range(len(references)), key=lambda i: distances[i] / max(1, len(references[i])))
        edits += distances[best]
        units += len(references[best])
        exact += 0 in distances
    return Transduction(len(inputs), edits, units, exact, "between blanks" if split is str.split else "characters")


def units_of(texts: Sequence[str]) -> Callable[[str], list[str]]:
    """The function that splits such texts into units."""
    return str.split if 2 * sum(" " in text for text in texts) > len(texts) else list


def edit_distance(output: Units, wanted: Units) -> int:
    """The smallest number of insertions, deletions and substitutions that turn one into the other (Levenshtein 1966),
    in O(nm) time and O(m) memory."""
    row = list(range(len(wanted) + 1))
    for i, one in enumerate(output, 1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(wanted, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (one != other))
    return row[-1]
