"""What every result of the experiment holds."""

from experiments.common.schema import COUNT, MAYBE, MODE, SIZE, STATE, Kind, check_fields
from msrnn_jax.io.journal import Line

TASK = Kind("squality or qasper", lambda value: value in ("squality", "qasper"))
FIELDS = {
    **STATE,
    **{"setting.task": TASK, "setting.mode": MODE, "setting.context": SIZE, "score": MAYBE},
    **{"reference_nats": MAYBE, "reference_tokens": SIZE, "generated_tokens": COUNT},
    **dict.fromkeys(("rouge1?", "rouge2?", "rougeL?"), MAYBE),
}


def check(where: str, line: Line) -> None:
    """Refuses what is no result."""
    check_fields(where, line, FIELDS)
