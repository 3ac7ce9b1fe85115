"""What every result of the experiment and of its judge holds."""

from functools import partial

from experiments.common.schema import COUNT, MAYBE, SHARE, SIZE, STATE, TEXT, Kind, check_fields

POLICY, FULL, EQUAL, UNREADABLE, DROPPED = "policy", "full", "equal", "unreadable", "dropped"
CHOICES = (POLICY, FULL, EQUAL, UNREADABLE, DROPPED)
STORY = {
    **STATE,
    **{"setting.max_new_tokens": SIZE, "tokens": COUNT, "ended": SHARE, "nats": MAYBE, "agreement": MAYBE},
    **{"same_until": MAYBE, **dict.fromkeys((f"distinct_{size}" for size in range(1, 5)), MAYBE)},
}
JUDGEMENT = {**STATE, "setting.first": TEXT, "choice": Kind("a choice", lambda value: value in CHOICES)}
check = partial(check_fields, fields=STORY)  # refuses what is no story with its numbers
check_judgement = partial(check_fields, fields=JUDGEMENT)  # refuses what is no choice of the judge's
