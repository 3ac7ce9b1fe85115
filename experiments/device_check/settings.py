"""What is checked and timed."""

import dataclasses

from experiments.common import published


@dataclasses.dataclass(frozen=True)
class Settings:
    """One run.

    Attributes:
      shape: of the model that is timed.
      layers: of it; None for all that fit.
      batch: rows of the larger batch, or as many as fit; by default those of the paper's Table 1.
      tokens: of the text whose perplexity is taken.
      steps: in a call of decoding.
      minutes: in all.
      seed: of the model and the text that are checked.
    """

    shape: str
    layers: int | None = None
    policy: str = "tova"
    budget: int = 512
    batch: int = published.BATCH[512]
    tokens: int = 2048
    steps: int = 32
    turns: int = 3
    minutes: float = 5.0
    bandwidth: float | None = None
    flops: float | None = None
    seed: int = 0
