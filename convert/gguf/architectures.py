"""What `general.architecture` says without saying it: facts that llama.cpp knows by the name alone."""

from typing import NamedTuple


class Architecture(NamedTuple):
    """How one sort of file differs from the others that are read.

    Attributes:
      interleaved: the rotated pairs are neighbours, so the rows of queries and keys stand in another order.
      qk_norm: queries and keys are normalised.
      unrotated_every: every so many layers, the last of them is not rotated.
      factors: `rope_freqs.weight` divides the rotary frequencies.
      log_multiplier: `rope.scaling.yarn_log_multiplier` has a say in the attention factor of YaRN.
    """

    interleaved: bool = True
    qk_norm: bool = False
    unrotated_every: int | None = None
    factors: bool = False
    log_multiplier: bool = False


ARCHITECTURES = {
    "llama": Architecture(factors=True),  # Mistral, Yi, SmolLM2, TinyLlama and Vicuna too
    "mistral3": Architecture(factors=True, log_multiplier=True),
    "qwen2": Architecture(interleaved=False),  # Qwen2.5 too
    "qwen3": Architecture(interleaved=False, qk_norm=True),
    "smollm3": Architecture(unrotated_every=4),  # no key says so
}
