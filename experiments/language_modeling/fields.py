"""What every result of the experiment holds."""

from functools import partial

from experiments.common.schema import MAYBE, SIZE, STATE, check_fields

FIELDS = {
    **STATE,
    **{"setting.segment": SIZE, "tokens": SIZE},
    **dict.fromkeys(("nats", "full_nats", "kl", "agreement"), MAYBE),
}
check = partial(check_fields, fields=FIELDS)  # refuses what is no result
