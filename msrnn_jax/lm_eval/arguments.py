"""What the harness hands over as text or numbers, as this library takes it."""

import re
from typing import Any

from msrnn_jax.devices.sharding import DATA
from msrnn_jax.generation.sampling import Sampler, make_sampler
from msrnn_jax.recurrence.checks import check_int

SAMPLING = ("temperature", "top_k", "top_p", "min_p")
NEUTRAL = {"num_beams": 1, "num_return_sequences": 1, "repetition_penalty": 1.0, "top_k": 0}  # change nothing
WITHOUT_EFFECT = ("until", "max_gen_toks", "do_sample")  # on how a token is drawn


def with_commas(text: str) -> str:
    """A text in which commas are written as a plus, since the harness ends an argument at a comma."""
    return re.sub(r"\+(?=\w+=)", ",", str(text))


def check_budget(budget: Any) -> int | float:
    """A number of tokens, or a share as a float."""
    if isinstance(budget, float):
        if 0 < budget <= 1:
            return budget
        raise ValueError(f"budget is {budget}; a share of the context must be above 0 and at most 1.0")
    return check_int("budget", budget, 1)


def check_batch(batch: int | str, mesh: Any) -> int | None:
    """Rows at once; None for "auto"."""
    if str(batch).startswith("auto"):
        return None
    if not str(batch).isdecimal() or int(batch) < 1:
        raise ValueError(f"batch_size is {batch!r}; it must be a whole number of at least 1, or auto")
    if mesh is not None and int(batch) % mesh.shape[DATA]:
        raise ValueError(f"batch_size is {batch}; it must be a multiple of {mesh.shape[DATA]}, the mesh's {DATA} axis")
    return int(batch)


def sampler_of(settings: dict[str, Any]) -> Sampler:
    """The sampler that a task asks for.

    Raises:
      ValueError: for what this model cannot do, such as beams.
    """
    settings = {name: value for name, value in settings.items() if value not in (None, NEUTRAL.get(name))}
    other = sorted(set(settings) - {*SAMPLING, *WITHOUT_EFFECT})
    if other:
        raise ValueError(
            f"generation option {other[0]} is {settings[other[0]]!r}; only {', '.join(SAMPLING)} are known"
        )
    if not settings["do_sample"]:
        return make_sampler()
    given = {name: settings[name] for name in SAMPLING if settings.get(name) is not None}
    return make_sampler(**{"temperature": 1.0, **given})
