"""One step of training, compiled once: read a segment, see how wrong it was, change the weights."""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Int

import msrnn_jax as ms
from experiments.finetune.gating import Gating, loss_of, read_gated
from experiments.finetune.losses import Losses, Teacher, read_segment
from msrnn_jax.model.state_ops import fork
from msrnn_jax.policies import Gate, Learned

Trained = Any  # ms.Params, Adapters or Gate, float32, whatever is computed in


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


class Places:
    """Puts whole trees on every device, and batches a few rows to each.

    Attributes:
      devices: how many there are.
    """

    def __init__(self, batch: int):
        self.devices = jax.local_device_count()
        if batch % self.devices:
            raise ValueError(f"batch is {batch}; it must be a multiple of {self.devices}, the number of devices")
        self._mesh = Mesh(jax.local_devices(), ("data",)) if self.devices > 1 else None

    def whole(self, tree: Any) -> Any:
        """Every device has all of it."""
        return tree if self._mesh is None else jax.device_put(tree, NamedSharding(self._mesh, PartitionSpec()))

    def rows(self, tree: Any) -> Any:
        """Every device has some rows of it; leaves [B, ...]."""
        return tree if self._mesh is None else jax.device_put(tree, NamedSharding(self._mesh, PartitionSpec("data")))


@dataclasses.dataclass(frozen=True)
class Method:
    """All that a step depends on beside arrays; hashable, so that one program is compiled.

    Attributes:
      config: its dtype is what is computed in.
      length: tokens after which a stretch ends, and the room of the teacher's state.
      distill: share of the distance to the teacher in what is made small; the rest is the loss of the next token.
    """

    config: ms.Config
    policy: ms.Policy
    budget: int
    length: int
    distill: float
    chunk: int
    descent: Descent
    gating: Gating | None = None  # how a gate is trained; None: the model is


class Training(NamedTuple):
    """All that changes from step to step, so that a run can go on from it."""

    trained: Trained
    optimiser: optax.OptState
    states: ms.MultiState | None  # leaves [B, ...], after the last segment; None where a gate is trained
    teachers: ms.MultiState | None  # the same of the teacher
    key: Array  # a raw key [2] uint32, that adapters were drawn from
    step: Array  # [] int32, the next one


class Told(NamedTuple):
    """What a step says of itself, means over its tokens before the weights were changed; all []."""

    loss: Any  # what is made small
    nats: Any  # of the next token
    kl: Any  # from the teacher, in nats; 0 without one
    gate: Any  # what is asked of a gate beside these; 0 without one
    gradient: Any  # its norm before it is cut


def begin(method: Method, trained: Trained, key: Array, batch: int) -> Training:
    """Training before its first step, with empty states."""
    with jax.numpy_dtype_promotion("standard"):
        optimiser = method.descent.transformation().init(trained)
    states, teachers = empty_states(method, batch)
    return Training(trained, optimiser, states, teachers, key, jnp.zeros((), jnp.int32))


def empty_states(method: Method, batch: int) -> tuple[ms.MultiState | None, ms.MultiState | None]:
    """For every row of a batch, of the model and of the teacher."""
    if method.gating is not None:
        return None, None
    budget = method.budget if method.policy.forgets else method.length
    states = fork(ms.init_state(method.config, method.policy, budget), batch)
    return states, fork(ms.init_state(method.config, ms.Full(), method.length), batch) if method.distill else None


@partial(jax.jit, static_argnames="method", donate_argnames="training")
def train(
    method: Method, training: Training, frozen: ms.Params | None, tokens: Int[Array, "B S+1"]
) -> tuple[Training, Told]:
    """One step: reads the next segment of every row and changes what is trained.

    Args:
      frozen: the weights that adapters are put on, and the teacher's, in the dtype of the method's config; None where
        neither is.
    """

    def loss(trained: Trained) -> tuple[Array, tuple[Losses, Any]]:
        params = model_of(method, trained, frozen)

        def row(state: Any, behind: Any, tokens: Array) -> tuple[Losses, Any]:
            if method.gating is not None and isinstance(method.policy, Learned):
                how = method.config, method.policy, method.gating, trained, params, tokens
                return read_gated(*how, method.budget, method.distill > 0, method.chunk), (state, behind)
            teacher = Teacher(frozen, behind) if method.distill and frozen is not None else None
            return read_segment(method.config, method.policy, params, state, tokens, teacher, method.chunk)

        losses, after = jax.vmap(row)(training.states, training.teachers, tokens)
        mean = jax.tree.map(jnp.mean, losses)
        return loss_of(method.gating, method.distill, mean), (mean, after)

    (value, (mean, (states, teachers))), gradient = jax.value_and_grad(loss, has_aux=True)(training.trained)
    with jax.numpy_dtype_promotion("standard"):  # optax raises floats to the power of an int32
        norm = optax.tree.norm(gradient)
        change, optimiser = method.descent.transformation().update(gradient, training.optimiser, training.trained)
        trained = optax.apply_updates(training.trained, change)
    after = Training(trained, optimiser, states, teachers, training.key, training.step + 1)
    return after, Told(value, mean.nats, mean.kl, mean.gate, norm)


def model_of(method: Method, trained: Any, frozen: ms.Params | None) -> ms.Params:
    """The model that reads, in the dtype that is computed in."""
    if isinstance(trained, Gate):
        assert frozen is not None
        return frozen
    trained = jax.tree.map(lambda leaf: leaf.astype(method.config.dtype), trained)
    if isinstance(trained, ms.Params):
        return trained
    assert frozen is not None
    return ms.attach_adapters(method.config, frozen, trained)
