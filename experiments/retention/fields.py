"""What every result of the experiment holds: numbers, or the record itself."""

from experiments.common.schema import (
    MAYBE,
    SERIES,
    SIZE,
    SIZES,
    STATE,
    TEXT,
    Kind,
    check_fields,
    is_list,
    is_map,
    is_number,
)
from experiments.retention.maps import fits
from msrnn_jax.io.journal import Line

LIVES = Kind(
    "counts and steps by tag",
    lambda value: (
        isinstance(value, dict)
        and all(is_list(pair, is_number) and len(pair) == 2 and pair[0] > 0 for pair in value.values())
    ),
)
FIELDS = {
    **STATE,
    **{"setting.segment": SIZE, "recent": MAYBE, "recent_end": MAYBE, "life": MAYBE, "lost": MAYBE},
    **{"first": SERIES, "first_held": SERIES, "tags": LIVES, "joined": LIVES},
}


def check(where: str, line: Line) -> None:
    """Refuses what is no result."""
    if not is_map(line):
        return check_fields(where, line, FIELDS)
    check_fields(where, line, {"map": TEXT, "shape": SIZES})
    if not fits(line):
        raise ValueError(f"{where}: 'map' is no record of shape {line['shape']}")
