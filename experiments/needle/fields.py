"""What every result of the experiment holds."""

from functools import partial

from experiments.common.schema import MODE, NUMBER, SHARE, SIZE, STATE, Kind, check_fields

ORDER = Kind("after or before", lambda value: value in ("after", "before"))
FIELDS = {
    **STATE,
    **{"setting.order": ORDER, "setting.length": SIZE, "setting.depth": NUMBER, "setting.mode": MODE},
    **dict.fromkeys(("correct", "choice", "answer_nats", "held_any", "held_all", "held_question"), SHARE),
}
check = partial(check_fields, fields=FIELDS)  # refuses what is no result
