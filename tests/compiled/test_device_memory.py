"""What one device holds on paper, against the compilers of TPU v5e and H100, at the widths of LLaMA-2-7B."""

import pytest
from rich.console import Console

from experiments.compiled.programs import Case
from experiments.device_memory import check

pytestmark = pytest.mark.optimised

CASES = [
    Case("h100", "step", batch=64, layers=2),
    Case("h100", "step", batch=8, layers=3, mesh="data=2,model=2"),
    Case("v5e", "step", batch=8, layers=4),
    Case("v5e", "step", batch=64, layers=3, mesh="data=1,model=4"),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_paper_is_at_least_the_compilers_count_and_at_most_a_tenth_more(case: Case) -> None:
    (row,) = check([case], Console(quiet=True))
    assert row["compiled"] <= row["ours"] <= 1.1 * row["compiled"] and row["holds"]


def test_a_batch_that_is_refused_is_too_large_on_paper() -> None:
    (row,) = check([Case("v5e", "step", batch=1024, layers=2)], Console(quiet=True))
    assert row["compiled"] is None and row["holds"]
