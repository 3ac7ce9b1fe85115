"""How a model is trained, and what of that is refused."""

import dataclasses

from experiments.finetune.gating import OBJECTIVES
from msrnn_jax.params import MATRICES
from msrnn_jax.policies import Learned, parse_policy
from msrnn_jax.policies.by_keys.gate import read_gate
from msrnn_jax.recurrence.checks import check_int

DTYPES = ("bfloat16", "float32")  # float16 would need its gradients scaled
RANGES = {  # of numbers that are no sizes
    "learning_rate": (0.0, 1.0),
    "weight_decay": (0.0, 1.0),
    "clip": (0.0, 1e9),
    "distill": (0.0, 1.0),
    "hinge": (0.0, 1e9),
    "temperature": (0.0, 1e9),
}
POSITIVE = ("learning_rate", "clip", "temperature")


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a model is trained.

    Attributes:
      steps: segments that every row reads.
      batch: rows, stretches of books side by side.
      length: tokens of a stretch, which is read from an empty state; a multiple of `segment`.
      segment: tokens of a step; the state goes on from one to the next, gradients do not.
      learning_rate, warmup, weight_decay, clip, accumulate: see `Descent`; warmup counts updates.
      lora: rank of adapters, which alone are trained; 0 trains all weights.
      lora_weights: the matrices that get adapters.
      merge: whether adapters are added into the weights of the checkpoint that is made.
      distill: share of KL(teacher || model) in the loss; the teacher is the model as it was, with full attention.
      gate: the objective by which a gate is trained, and nothing else, for the policy `learned`; see `Gating`. Empty:
        the model is trained.
      gate_width, gate_hidden: see `init_gate`.
      hinge, temperature: see `Gating`.
      start: a file to start the gate from; empty: all tokens fade alike, as many as the budget.
      compute: dtype of everything but the weights that are kept, which are float32.
      keep_every: steps after which all is kept for a run that goes on.
    """

    checkpoint: str = ""
    data: tuple[str, ...] = ()
    policy: str = "tova"
    budget: int = 64
    steps: int = 400
    batch: int = 4
    length: int = 2048
    segment: int = 512
    learning_rate: float = 1e-4
    warmup: int = 20
    weight_decay: float = 0.1
    clip: float = 1.0
    accumulate: int = 1
    lora: int = 0
    lora_weights: tuple[str, ...] = MATRICES
    merge: bool = False
    distill: float = 0.0
    gate: str = ""
    gate_width: int = 16
    gate_hidden: bool = False
    hinge: float = 1.0
    temperature: float = 0.3
    start: str = ""
    compute: str = "bfloat16"
    chunk: int = 128
    keep_every: int = 50
    seed: int = 0


def check(settings: Settings) -> None:
    """Refuses what no model could be trained with.

    Raises:
      ValueError: naming the setting, what it is and what it must be.
    """
    for name in ("budget", "steps", "batch", "length", "segment", "accumulate", "chunk", "keep_every", "gate_width"):
        check_int(name, getattr(settings, name), 1)
    for name in ("warmup", "lora", "seed"):
        check_int(name, getattr(settings, name), 0, 2**31 - 1)
    for name in settings.lora_weights:
        if name not in MATRICES:
            raise ValueError(f"weight {name!r} takes no adapter; it must be one of {', '.join(MATRICES)}")
    if settings.lora and not settings.lora_weights:
        raise ValueError(f"lora_weights is empty; it must name some of {', '.join(MATRICES)}")
    if not settings.lora and settings.lora_weights != Settings.lora_weights:
        raise ValueError(f"lora_weights is {', '.join(settings.lora_weights)}, but lora is 0; it must be a rank")
    for name, (least, most) in RANGES.items():
        value = getattr(settings, name)
        if not least <= value <= most or (name in POSITIVE and not value):
            above = "above" if name in POSITIVE else "from"
            raise ValueError(f"{name} is {value!r}; it must be {above} {least:g} and at most {most:g}")
    _check_gate(settings)
    if settings.length % settings.segment:
        raise ValueError(f"length is {settings.length}; it must be a multiple of the segment, {settings.segment}")
    if settings.steps % settings.accumulate:
        raise ValueError(f"steps is {settings.steps}; it must be a multiple of accumulate, {settings.accumulate}")
    if settings.compute not in DTYPES:
        raise ValueError(f"compute is {settings.compute!r}; it must be one of {', '.join(DTYPES)}")


def _check_gate(settings: Settings) -> None:
    if not settings.gate:
        for name in ("gate_width", "gate_hidden", "hinge", "temperature", "start"):
            if getattr(settings, name) != getattr(Settings, name):
                raise ValueError(f"{name} is {getattr(settings, name)!r}, but no gate is trained; give gate too")
        return
    if settings.gate not in OBJECTIVES:
        raise ValueError(f"gate is {settings.gate!r}; it must be one of {', '.join(OBJECTIVES)}")
    policy = parse_policy(settings.policy)
    if not isinstance(policy, Learned) or policy.gate or policy.soft:
        raise ValueError(f"policy is {policy}; a gate is trained for 'learned', without a file, and soft=False")
    if not policy.ageing and settings.gate == "soft":
        raise ValueError(f"policy is {policy}; with the objective 'soft' tokens fade with age: ageing=True")
    if settings.lora or settings.merge:
        raise ValueError("a gate is trained alone; lora must be 0, and merge not given")
    if settings.start:
        read_gate(settings.start)
    if settings.segment != settings.length:
        raise ValueError(f"segment is {settings.segment}; for a gate it must be the length, {settings.length}")
