"""What runs of some budgets should reach by the law of a ladder: what `isoflop train --budget` will say."""

from dataclasses import dataclass, replace
from typing import Any

from isoflop.budget import Budget
from isoflop.data.excerpt import excerpt
from isoflop.data.manifest import Data
from isoflop.data.prepare import Prepared
from isoflop.data.survey import SAMPLE_BYTES
from isoflop.errors import UserError
from isoflop.plan.advice import Advice, Facts
from isoflop.plan.asked import Asked
from isoflop.plan.fitted import Fitted
from isoflop.plan.planner import finalize, propose
from isoflop.trainer import RunConfig
from isoflop.trainer.workload import Workload


@dataclass(frozen=True)
class Target:
    """A budget and the plan for it.

    Attributes:
        advice: with the loss expected by the law; None where it buys no run here.
        why: why it buys none.
        beyond: times the compute of the ladder's largest run.
    """

    budget: Budget
    advice: Advice | None = None
    why: str = ""
    beyond: float = 1.0

    def line(self) -> str:
        if self.advice is None or self.advice.expected is None:
            return f"{self.budget.words()}: {self.why}"
        one, model = self.advice.expected, self.advice.config.model
        return (
            f"{self.budget.words()}: {model.layers} x {model.d_model}, {self.advice.parameters:,} parameters, "
            f"{self.advice.tokens:,} tokens: {one.bits_per_byte:.3f} bits per byte expected, {one.low:.3f} to "
            f"{one.high:.3f} ({one.level:.0%}); {self.beyond:.2g} times the compute of the largest run"
        )

    def to_dict(self) -> dict[str, Any]:
        said: dict[str, Any] = {"budget": str(self.budget), "expected": None, "why": self.why or None}
        if self.advice is not None:
            model, expected = self.advice.config.model, self.advice.expected
            said |= {
                "layers": model.layers,
                "d_model": model.d_model,
                "parameters": self.advice.parameters,
                "tokens": self.advice.tokens,
                "flops": self.advice.flops,
                "beyond": self.beyond,
                "expected": expected.to_dict() if expected else None,
            }
        return said


def look(budget: Budget, base: RunConfig, workload: Workload, data: Data, asked: Asked, law: Fitted) -> Target:
    """The plan for a budget on the ladder's own data.

    Args:
        base: what all sizes of the ladder share.
    """
    sample = excerpt(data, SAMPLE_BYTES) if isinstance(data, Prepared) else b""
    config = replace(base, data=replace(base.data, max_train_bytes=0))
    try:
        proposal = propose(budget, config, workload, asked, laws=(law,))
        advice = finalize(proposal, Facts.of(data, sample))
    except UserError as error:
        return Target(budget, why=str(error))
    return Target(budget, advice, beyond=advice.flops / law.largest)
