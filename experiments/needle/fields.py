"""What every result of the experiment holds."""

from experiments.common.schema import MODE, NUMBER, SHARE, SIZE, STATE, Kind, check_fields
from msrnn_jax.io.journal import Line

ORDER = Kind("after or before", lambda value: value in ("after", "before"))
FIELDS = {
    **STATE,
    **{"setting.order": ORDER, "setting.length": SIZE, "setting.depth": NUMBER, "setting.mode": MODE},
    **dict.fromkeys(("correct", "choice", "answer_nats", "held_any", "held_all", "held_question"), SHARE),
}


def check(where: str, line: Line) -> None:
    """Refuses what is no result."""
    check_fields(where, line, FIELDS)
