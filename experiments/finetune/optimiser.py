"""How weights are changed: AdamW with a warm-up, a decay, a limit on the gradient and steps that are put together."""

import dataclasses
from typing import Any

import jax
import optax


@dataclasses.dataclass(frozen=True)
class Descent:
    """The optimiser's settings.

    Attributes:
      learning_rate: the highest, after the warm-up.
      warmup: updates until then, from 0.
      updates: all of them; the rate falls by a cosine to `final` of the highest.
      clip: the largest norm of a gradient; a longer one is scaled down to it.
      accumulate: steps whose mean gradient makes one update.
    """

    learning_rate: float
    updates: int
    warmup: int = 0
    final: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    weight_decay: float = 0.1
    clip: float = 1.0
    accumulate: int = 1

    def schedule(self) -> optax.Schedule:
        """The learning rate of every update, from 0."""
        warmup = min(self.warmup, self.updates)
        return optax.warmup_cosine_decay_schedule(
            init_value=self.learning_rate / (warmup + 1),
            peak_value=self.learning_rate,
            warmup_steps=warmup,
            decay_steps=max(self.updates, warmup + 1),
            end_value=self.final * self.learning_rate,
        )

    def rate(self, step: int) -> float:
        """The learning rate of the update that a step, from 0, belongs to."""
        return float(jax.device_get(self.schedule()(step // self.accumulate)))

    def transformation(self) -> optax.GradientTransformation:
        """Weights decay, norms and biases do not."""
        adamw = optax.adamw(self.schedule(), b1=self.beta1, b2=self.beta2, weight_decay=self.weight_decay, mask=decays)
        every = optax.chain(optax.clip_by_global_norm(self.clip), adamw)
        if self.accumulate == 1:  # a sum of gradients would take as much memory as the weights
            return every
        return optax.MultiSteps(every, self.accumulate).gradient_transformation()


def decays(trained: Any) -> Any:
    """True for matrices, False for norms and biases, as a tree of the same shape."""

    def one(where: Any, leaf: Any) -> bool:
        del leaf
        name = str(getattr(where[-1], "name", ""))
        return not name.endswith(("norm", "bias"))

    return jax.tree_util.tree_map_with_path(one, trained)
