"""What every result of the experiment holds."""

from experiments.common.schema import MAYBE, SIZE, STATE, check_fields
from msrnn_jax.io.journal import Line

FIELDS = {
    **STATE,
    **{"setting.segment": SIZE, "tokens": SIZE},
    **dict.fromkeys(("nats", "full_nats", "kl", "agreement"), MAYBE),
}


def check(where: str, line: Line) -> None:
    """Refuses what is no result."""
    check_fields(where, line, FIELDS)
