"""What every result of the experiment and of its judge holds."""

from experiments.common.schema import COUNT, MAYBE, SHARE, SIZE, STATE, TEXT, Kind, check_fields
from msrnn_jax.io.journal import Line

POLICY, FULL, EQUAL, UNREADABLE, DROPPED = "policy", "full", "equal", "unreadable", "dropped"
CHOICES = (POLICY, FULL, EQUAL, UNREADABLE, DROPPED)
STORY = {
    **STATE,
    **{"setting.max_new_tokens": SIZE, "tokens": COUNT, "ended": SHARE, "nats": MAYBE, "agreement": MAYBE},
    **{"same_until": MAYBE, **dict.fromkeys((f"distinct_{size}" for size in range(1, 5)), MAYBE)},
}
JUDGEMENT = {**STATE, "setting.first": TEXT, "choice": Kind("a choice", lambda value: value in CHOICES)}


def check(where: str, line: Line) -> None:
    """Refuses what is no story with its numbers."""
    check_fields(where, line, STORY)


def check_judgement(where: str, line: Line) -> None:
    """Refuses what is no choice of the judge's."""
    check_fields(where, line, JUDGEMENT)
