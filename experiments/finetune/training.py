"""One step of training, compiled once: read a segment, see how wrong it was, change the weights."""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jaxtyping import Int

import msrnn_jax as ms
from experiments.finetune.losses import Losses, Teacher, read_segment
from experiments.finetune.optimiser import Descent
from msrnn_jax.fork import fork

Trained = Any  # ms.Params or Adapters, float32, whatever is computed in


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


class Training(NamedTuple):
    """All that changes from step to step, so that a run can go on from it."""

    trained: Trained
    optimiser: optax.OptState
    states: ms.MultiState  # leaves [B, ...], after the last segment
    teachers: ms.MultiState | None  # the same of the teacher
    key: Array  # a raw key [2] uint32, that adapters were drawn from
    step: Array  # [] int32, the next one


class Told(NamedTuple):
    """What a step says of itself, means over its tokens before the weights were changed; all []."""

    loss: Any  # what is made small
    nats: Any  # of the next token
    kl: Any  # from the teacher, in nats; 0 without one
    gradient: Any  # its norm before it is cut


def begin(method: Method, trained: Trained, key: Array, batch: int) -> Training:
    """Training before its first step, with empty states."""
    with jax.numpy_dtype_promotion("standard"):
        optimiser = method.descent.transformation().init(trained)
    states, teachers = empty_states(method, batch)
    return Training(trained, optimiser, states, teachers, key, jnp.zeros((), jnp.int32))


def empty_states(method: Method, batch: int) -> tuple[ms.MultiState, ms.MultiState | None]:
    """For every row of a batch, of the model and of the teacher."""

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

        def row(state: ms.MultiState, behind: Any, tokens: Array) -> tuple[Losses, Any]:
            teacher = Teacher(frozen, behind) if method.distill and frozen is not None else None
            return read_segment(method.config, method.policy, params, state, tokens, teacher, method.chunk)

        losses, after = jax.vmap(row)(training.states, training.teachers, tokens)
        mean = jax.tree.map(jnp.mean, losses)
        return (1 - method.distill) * mean.nats + method.distill * mean.kl, (mean, after)

    (value, (mean, (states, teachers))), gradient = jax.value_and_grad(loss, has_aux=True)(training.trained)
    with jax.numpy_dtype_promotion("standard"):  # optax raises floats to the power of an int32
        norm = optax.tree.norm(gradient)
        change, optimiser = method.descent.transformation().update(gradient, training.optimiser, training.trained)
        trained = optax.apply_updates(training.trained, change)
    after = Training(trained, optimiser, states, teachers, training.key, training.step + 1)
    return after, Told(value, mean.nats, mean.kl, norm)


def model_of(method: Method, trained: Any, frozen: ms.Params | None) -> ms.Params:
    """The model that reads, in the dtype that is computed in."""
    trained = jax.tree.map(lambda leaf: leaf.astype(method.config.dtype), trained)
    if isinstance(trained, ms.Params):
        return trained
    assert frozen is not None
    return ms.attach_adapters(method.config, frozen, trained)
