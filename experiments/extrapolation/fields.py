"""What every result of the experiment holds."""

from experiments.common.schema import SERIES, SIZE, SIZES, STATE, TEXT, check_fields
from msrnn_jax.io.journal import Line

FIELDS = {**STATE, **{"setting.positions": TEXT, "setting.context": SIZE, "nats": SERIES, "tokens": SIZES}}


def check(where: str, line: Line) -> None:
    """Refuses what is no result."""
    check_fields(where, line, FIELDS)
    if len(line["nats"]) != len(line["tokens"]):
        raise ValueError(f"{where}: 'nats' has {len(line['nats'])} numbers and 'tokens' {len(line['tokens'])}")
