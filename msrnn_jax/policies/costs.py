"""What a step and a token of `extend` cost under every policy, over the same under Window: measured."""

import functools
import json
import pathlib
from typing import Any

FILE = pathlib.Path(__file__).with_name("costs.json")  # written by experiments.throughput.costs


@functools.cache
def measured() -> dict[str, Any]:
    """Where it was measured, and `over_window`: of policies as text, `step` and `extend`."""
    return json.loads(FILE.read_text(encoding="utf-8"))


def cost_of(policy: str) -> dict[str, float]:
    """Times over Window's by kind of work; empty for what was not measured."""
    return measured()["over_window"].get(policy, {})
