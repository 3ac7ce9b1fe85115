"""What is asked of a measurement: its settings, the model and text they name, and a plan for every policy."""

import dataclasses
from typing import NamedTuple

from jax.sharding import Mesh

from msrnn_jax.checkpoint.load import load_onto
from msrnn_jax.checkpoint.tokenizer import load_tokenizer
from msrnn_jax.config import Config
from msrnn_jax.devices.processes import check_mesh
from msrnn_jax.devices.sharding import DATA, parse_mesh
from msrnn_jax.evaluation.segments import Segments, check_size, cut_documents
from msrnn_jax.evaluation.sweep import check_settings
from msrnn_jax.io.provenance import text_hash
from msrnn_jax.params import Params
from msrnn_jax.policies import Full, Policy, parse_policy
from msrnn_jax.policies.source import source_hash
from msrnn_jax.recurrence.checks import as_tokens, check_int
from msrnn_jax.recurrence.sliding_window import room_for
from msrnn_jax.recurrence.slots import slots_of
from msrnn_jax.text.documents import read_documents


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is measured; frozen, and written into the results.

    Attributes:
      checkpoint: folder of the model.
      texts: paths as in `read_documents`; none for the default text.
      field: of a JSON row that holds its text.
      policies: as text.
      budgets: multi-state sizes; a policy that forgets nothing is measured once, with room for a whole segment, or
        for what windows let a query see of it.
      segment: tokens of a segment.
      segments: measure the first ones only; 0 measures all.
      bos_every_segment: put BOS before every segment, see `cut_documents`.
      batch: rows run at once; None: as many as fit.
      positions: how keys are rotated, as in `init_state`.
      dtype: the weights are cast to it; None leaves them as they are.
      fidelity: compare every prediction with the full model's.
      mesh: devices that share the work, as `parse_mesh` reads it; None: one.
    """

    checkpoint: str
    texts: tuple[str, ...] = ()
    field: str = "text"
    policies: tuple[str, ...] = ("full", "tova")
    budgets: tuple[int, ...] = (256,)
    segment: int = 4096
    segments: int = 0
    bos_every_segment: bool = False
    batch: int | None = None
    positions: str = "absolute"
    dtype: str | None = None
    fidelity: bool = False
    mesh: str | None = None


class Inputs(NamedTuple):
    """A model and the segments it reads."""

    config: Config
    params: Params
    segments: Segments
    text_sha256: str
    unreadable: tuple[str, ...] = ()  # what is wrong with documents that were left out
    mesh: Mesh | None = None


def read_inputs(settings: Settings) -> Inputs:
    """Loads a model and cuts texts into segments. Of many documents those that cannot be read are left out.

    Raises:
      ValueError: for texts or a checkpoint that cannot be used, and for sizes out of range.
    """
    check_size(settings.segment, 1 if settings.bos_every_segment else 2)
    check_int("segments", settings.segments, 0)
    unreadable: list[str] = []
    documents = read_documents(settings.texts, settings.field, unreadable.append)
    tokenizer = load_tokenizer(settings.checkpoint)
    segments = cut_documents(
        tokenizer, documents, settings.segment, settings.segments, bos_every_segment=settings.bos_every_segment
    )
    mesh = None if settings.mesh is None else parse_mesh(settings.mesh)
    check_mesh(mesh)
    _check_batch(settings.batch, mesh)
    config, params = load_onto(mesh, settings.checkpoint, settings.dtype)
    as_tokens(config, "the text", segments.tokens)
    digest = text_hash("\0".join(document.text for document in documents))
    return Inputs(config, params, segments, digest, tuple(unreadable), mesh)


def _check_batch(batch: int | None, mesh: Mesh | None) -> None:
    """Refuses a batch without rows, and one whose rows cannot be shared out evenly."""
    if batch is None:
        return
    check_int("batch", batch, 1)
    if mesh is not None and batch % mesh.shape[DATA]:
        raise ValueError(f"batch is {batch}; it must be a multiple of {mesh.shape[DATA]}, the mesh's {DATA} axis")


class Plan(NamedTuple):
    """One policy, and the budgets that it is measured at by one program."""

    policy: Policy
    budgets: list[int]
    code: str | None  # hash of the source of a user's own policy
    slots: int | tuple[int, ...]  # for the largest of the budgets; one per layer where they differ

    @property
    def is_full(self) -> bool:
        return self.policy == Full()


def make_plans(settings: Settings, inputs: Inputs) -> list[Plan]:
    """What is measured, in the order asked for; Full comes first where only `fidelity` asks for it.

    Raises:
      ValueError: for any setting that could not be measured: a mistake in the last must not cost the work on
        the first.
    """
    policies = list(dict.fromkeys(map(parse_policy, settings.policies)))
    if settings.fidelity and Full() not in policies:
        policies.insert(0, Full())
    lengths = inputs.segments.lengths
    everything = [room_for(inputs.config, settings.positions, int(lengths.max()) - 1)]
    budgets = list(dict.fromkeys(settings.budgets))
    plans = []
    for policy in policies:
        own = budgets if policy.forgets else everything
        check_settings(inputs.config, policy, lengths, own, positions=settings.positions)
        plans.append(Plan(policy, own, source_hash(policy), slots_of(inputs.config, policy, max(own))))
    return plans
