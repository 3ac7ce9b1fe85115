"""What every result of the experiment holds."""

from functools import partial

from experiments.common.schema import COUNT, MAYBE, MODE, SIZE, STATE, Kind, check_fields

TASK = Kind("squality or qasper", lambda value: value in ("squality", "qasper"))
FIELDS = {
    **STATE,
    **{"setting.task": TASK, "setting.mode": MODE, "setting.context": SIZE, "score": MAYBE},
    **{"reference_nats": MAYBE, "reference_tokens": SIZE, "generated_tokens": COUNT},
    **dict.fromkeys(("rouge1?", "rouge2?", "rougeL?"), MAYBE),
}
check = partial(check_fields, fields=FIELDS)  # refuses what is no result
