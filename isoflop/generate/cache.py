"""The key-value cache: keys and values of earlier positions, so that decoding computes one new position per token.

Rows may have different lengths. Their positions are stored in columns that end together: the last position of every row
is in the last column, so that the distance between two columns is that of their positions in every row. Windows, ALiBi
and relative positions therefore need no change. The padding in front of a short row is masked (`visible`), and blocks
that depend on absolute positions get the position of each row (`start`).

    columns       0 1 2 3 4 5 6      start
    a row of 7    a b c d e f g        7
    a row of 3            x y z        3
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from isoflop.model.blocks.part import Start

Lengths = npt.NDArray[np.int64]


@dataclass
class Held:
    """The buffers of one layer for keys and values, (slots, H, room, K) each. The first `rows` slots are in use, and
    `count` columns are written, the newest last. `window`: positions that each one attends to; 0: all."""

    keys: Tensor
    values: Tensor
    rows: int
    window: int = 0
    whole: bool = True  # room for all positions, whatever the window
    count: int = 0

    @property
    def room(self) -> int:
        return self.keys.shape[2]

    def needed(self, length: int) -> int:
        """How many of `length` positions have to be kept for later ones."""
        return length if self.whole else min(length, self.window - 1)

    def add(self, k_BHTK: Tensor, v_BHTK: Tensor) -> None:
        start, self.count = self.count, self.count + k_BHTK.shape[2]
        self.keys[: self.rows, :, start : self.count] = k_BHTK
        self.values[: self.rows, :, start : self.count] = v_BHTK

    def last(self, positions: int) -> tuple[Tensor, Tensor]:
        """Views of the last `positions` columns, or of all if fewer are written."""
        held = slice(max(0, self.count - positions), self.count)
        return self.keys[: self.rows, :, held], self.values[: self.rows, :, held]

    def keep(self, positions: int) -> None:
        """Move the last `positions` columns to the front and drop the others."""
        keys, values = (tensor.clone() for tensor in self.last(positions))
        self.count = 0
        self.add(keys, values)

    def reach(self, positions: int) -> None:
        """Shift all columns to the right until `positions` are written; the columns in front belong to no row."""
        missing = positions - self.count
        if missing > 0:
            keys, values = (tensor.clone() for tensor in self.last(self.count))
            self.count = missing
            self.add(keys, values)


class KVCache:
    """Room for `context` positions of every layer, allocated once, when a layer's first keys show their shape. A layer
    with a window has room for two windows: the window is contiguous, and is moved to the front once per window.

    Args:
        context: capacity of a row in positions.
        slots: capacity in rows; 0: the rows of the first forward pass.
        spare: columns beyond `context`: if rows leave and others join, all are moved to the front once per `spare`.
        windows: False: a layer with a window has room for all positions, so that they can be copied to another cache.

    Attributes:
        length: positions held; the longest row's, if rows differ. It changes in `advance`, once per forward pass, so
            that all layers of a pass see the same.
        lengths: the positions of each row if they differ, else None. A negative one means that the next forward pass
            begins with that many tokens of padding in this row.
    """

    def __init__(self, context: int, slots: int = 0, spare: int = 0, windows: bool = True) -> None:
        self.context, self.slots, self.spare, self.windows = context, slots, spare, windows
        self.length = self.rows = self.appended = 0
        self.lengths: Lengths | None = None
        self.layers: dict[int, Held] = {}
        self.device = torch.device("cpu")
        self.starts: dict[int, Start] = {}  # both cached for one forward pass, whose layers ask alike
        self.seen: dict[int, Tensor | None] = {}

    # The interface to models (blocks/part.py)

    def start(self, T: int) -> Start:
        """The position of the first of T new tokens; or positions_BT of all of them, if rows have different lengths.
        Padding in front of a row has position 0."""
        if self.lengths is None:
            return self.length
        if T not in self.starts:
            positions_BT = np.maximum(self.lengths[:, None] + np.arange(T), 0)
            self.starts[T] = torch.from_numpy(positions_BT).to(self.device)
        return self.starts[T]

    def visible(self, S: int) -> Tensor | None:
        """visible_BS: which of the last S columns, counted after `append`, are not padding. None: no padding."""
        if self.lengths is None:
            return None
        if S not in self.seen:
            own = self.lengths + self.appended
            mask = np.arange(S - 1, -1, -1) < own[:, None]
            self.seen[S] = None if own.min() >= S else torch.from_numpy(mask).to(self.device)
        return self.seen[S]

    def append(self, layer: int, k_BHTK: Tensor, v_BHTK: Tensor, window: int = 0) -> tuple[Tensor, Tensor]:
        """Store T new positions of one layer.

        Args:
            window: how many positions each one attends to at most, itself included; 0: all.

        Returns:
            The layer's keys and values, (B, H, S, K), at the last S of the length + T positions, valid until the next
            append: all of them, or with a window at least those that the T new ones attend to.

        Raises:
            ValueError: if they do not fit.
        """
        T = k_BHTK.shape[2]
        held = self.of_layer(layer, k_BHTK, v_BHTK, window)
        before = min(window - 1, self.length) if window else self.length
        if not held.whole and window - 1 + T > held.room:
            return longer_than_room(held, k_BHTK, v_BHTK, before)
        if held.count + T > held.room:
            held.keep(held.needed(self.length))
        held.add(k_BHTK, v_BHTK)
        return held.last(before + T)

    def reserve(self, layer: int, k_BHTK: Tensor, v_BHTK: Tensor) -> Held:
        """The buffers of a layer without a window, in which the caller writes one new position to the last column.

        Args:
            k_BHTK, v_BHTK: of the shape of the new position, T = 1; their numbers are not read.
        """
        held = self.of_layer(layer, k_BHTK, v_BHTK, 0)
        if held.count + 1 > held.room:
            held.keep(held.needed(self.length))
        held.count += 1
        return held

    def of_layer(self, layer: int, k_BHTK: Tensor, v_BHTK: Tensor, window: int) -> Held:
        """The buffers of a layer to which T positions will be appended, made if it has none."""
        rows, T = k_BHTK.shape[0], k_BHTK.shape[2]
        if self.length + T > self.context:
            raise ValueError(f"{self.length + T} positions do not fit in a cache of {self.context}")

        self.rows, self.appended, self.device = rows, T, k_BHTK.device
        if layer not in self.layers:
            self.layers[layer] = self.make_room(k_BHTK, v_BHTK, window)
        held = self.layers[layer]
        held.rows = rows
        return held

    def advance(self, positions: int) -> None:
        """Add the positions that every layer has just appended to the length."""
        self.starts, self.seen = {}, {}
        self.length += positions
        if self.lengths is not None:
            self.place(self.lengths + positions)

    # The interface to decoding (batch.py, transduce.py)

    def place(self, lengths: Lengths) -> None:
        """Set the length of each row."""
        self.starts, self.seen = {}, {}
        self.rows = len(lengths)
        self.length = max(0, int(lengths.max(initial=0)))
        alike = bool((lengths == self.length).all())
        self.lengths = None if alike else lengths

    def lengths_of_rows(self) -> Lengths:
        return np.full(self.rows, self.length) if self.lengths is None else self.lengths

    def select(self, rows_B: Tensor) -> None:
        """Replace the rows by these, in this order, with repetitions, as a beam search needs it. At most `slots`, if
        those are set."""
        lengths = self.lengths_of_rows()[rows_B.cpu().numpy()]
        for layer, held in self.layers.items():
            keys, values = (tensor[rows_B] for tensor in held.last(held.needed(self.length)))
            if held.keys.shape[0] < len(rows_B) or not self.slots:
                self.layers[layer] = self.make_room(keys, values, held.window)
            self.layers[layer].rows, self.layers[layer].count = len(rows_B), 0
            self.layers[layer].add(keys, values)
        self.place(lengths)

    @torch.inference_mode()
    def drop(self, rows: Lengths) -> Lengths:
        """Remove these rows. The last ones take their places, so that little is copied.

        Returns:
            The old number of each remaining row.
        """
        left = np.delete(np.arange(self.rows), rows)
        holes, moved = rows[rows < len(left)], left[left >= len(left)]
        order = np.arange(len(left))
        order[np.sort(holes)] = moved
        lengths = self.lengths_of_rows()[order]

        for held in self.layers.values():
            if len(holes):
                to, of = (torch.from_numpy(index).to(held.keys.device) for index in (np.sort(holes), moved))
                columns = slice(max(0, held.count - self.length), held.count)
                for tensor in (held.keys, held.values):
                    tensor[to, :, columns] = tensor[of, :, columns]
            held.rows = len(left)
        self.place(lengths)
        return order

    @torch.inference_mode()
    def join(self, other: "KVCache") -> None:
        """Append the rows of another cache, which must have the same layers."""
        lengths = np.concatenate([self.lengths_of_rows(), other.lengths_of_rows()])
        for layer, theirs in other.layers.items():
            columns = theirs.needed(other.length)
            keys, values = theirs.last(columns)
            if layer not in self.layers:
                self.layers[layer] = self.make_room(keys, values, theirs.window)
                self.layers[layer].rows = 0
            mine = self.layers[layer]
            mine.reach(columns)
            at = slice(self.rows, self.rows + other.rows)
            mine.keys[at, :, mine.count - columns : mine.count] = keys
            mine.values[at, :, mine.count - columns : mine.count] = values
            mine.rows = at.stop
        self.place(lengths)

    def open(self, rows: int) -> None:
        """Append `rows` empty rows."""
        self.place(np.concatenate([self.lengths_of_rows(), np.zeros(rows, np.int64)]))

    @torch.inference_mode()
    def begin_with(self, prefix: "KVCache", rows: Lengths, lengths: Lengths) -> None:
        """Copy the first positions of another cache's only row into some rows, whose lengths `place` has set.

        Args:
            prefix: made with `windows` False.
            rows: the rows to fill.
            lengths: how many positions of the prefix each of them gets, at least 1.
        """
        for layer, theirs in prefix.layers.items():
            keys, values = theirs.last(prefix.length)
            if layer not in self.layers:
                like_k, like_v = (tensor.expand(self.rows, -1, -1, -1) for tensor in (keys, values))
                self.layers[layer] = self.make_room(like_k, like_v, theirs.window)
            mine = self.layers[layer]
            mine.rows, columns = self.rows, mine.needed(self.length)
            mine.count = max(mine.count, columns)
            source = np.maximum(lengths[:, None] - columns + np.arange(columns), 0)
            source_nS, rows_n = (torch.from_numpy(index).to(keys.device) for index in (source, rows))
            for tensor, given in ((mine.keys, keys), (mine.values, values)):
                tensor[rows_n, :, mine.count - columns : mine.count] = given[0][:, source_nS].transpose(0, 1)

    def clear(self) -> None:
        """Remove all rows and keep the buffers."""
        self.place(np.zeros(0, np.int64))
        for held in self.layers.values():
            held.count = 0

    def make_room(self, k_BHTK: Tensor, v_BHTK: Tensor, window: int) -> Held:
        """The buffers of one layer, of zeros: masked positions are multiplied as well and must be finite."""
        whole = not (window and self.windows)
        columns = self.context + self.spare if whole else min(self.context + self.spare, 2 * window)
        slots = max(self.slots, k_BHTK.shape[0])
        keys, values = (x.new_zeros(slots, x.shape[1], columns, x.shape[3]) for x in (k_BHTK, v_BHTK))
        return Held(keys, values, k_BHTK.shape[0], window, whole)


def longer_than_room(held: Held, k_BHTK: Tensor, v_BHTK: Tensor, before: int) -> tuple[Tensor, Tensor]:
    """`append` for more new positions than fit into the layer's buffers: returns copies, and stores the last ones."""
    k_BHSK, v_BHSK = (torch.cat(pair, dim=2) for pair in zip(held.last(before), (k_BHTK, v_BHTK), strict=True))
    held.count = 0
    first = max(0, k_BHSK.shape[2] - held.room)
    held.add(k_BHSK[:, :, first:], v_BHSK[:, :, first:])
    return k_BHSK, v_BHSK
