"""The training lines of metrics.jsonl."""

from collections import deque

from isoflop.records import TrainingLine
from isoflop.trainer.state import RunState

RATE_LINES = 20  # training lines over which tokens per second are averaged


class TrainingLog:
    """Writes a line for each step whose update was taken. Its `loss` is the training loss, with auxiliary losses and
    label smoothing; held-out lines have plain cross-entropy."""

    def __init__(self, state: RunState) -> None:
        self.state = state
        start = (state.tokens, state.seconds - state.aside_seconds)
        self.marks: deque[tuple[int, float]] = deque([start], maxlen=RATE_LINES)

    def add(self, loss: float, norm: float, scale: float) -> None:
        """Set the line of the newest step, and write it if it is due.

        Args:
            loss: in nats per token.
            norm: of the gradient, before clipping.
            scale: the learning rates as a share of their peaks.
        """
        state = self.state
        self.marks.append((state.tokens, state.seconds - state.aside_seconds))
        state.line = TrainingLine(
            step=state.step,
            loss=loss,
            grad_norm=norm,
            lr=state.config.optim.lr * scale,
            tokens=state.tokens,
            seconds=round(state.seconds, 4),
            flops=state.flops,
            tokens_per_second=round(self.rate(), 1),
        )
        if state.step % state.config.every.log == 0 or state.done:
            state.folder.append("metrics", state.line)

    def rate(self) -> float:
        """Tokens per second of steps over the last RATE_LINES lines, without the work between steps; 0 before there are
        two lines."""
        (tokens, seconds), (last_tokens, last_seconds) = self.marks[0], self.marks[-1]
        return (last_tokens - tokens) / (last_seconds - seconds) if last_seconds > seconds else 0.0
