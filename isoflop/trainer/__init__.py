"""Training. The public interface: `train`, `RunConfig`, `RunResult`, `throughput`."""

from isoflop.trainer import throughput
from isoflop.trainer.config import RunConfig
from isoflop.trainer.loop import RunResult, train

__all__ = ["RunConfig", "RunResult", "throughput", "train"]
