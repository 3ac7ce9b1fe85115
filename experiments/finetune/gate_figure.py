"""The picture of what gates are worth."""

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.common.figures import GREY, budget_axis, canvas, legend_below, ours, png
from experiments.finetune.gate_tables import BASE, TOVA


def draw(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Nats per token above TOVA in the untrained model, with two standard errors; a panel for every model."""
    models = list(dict.fromkeys(row["model"] for row in rows))
    figure, axes = canvas(len(models), width=5.0, height=4.0)
    names = list(dict.fromkeys(row["policy"] for row in rows))
    for place, model in zip(axes, models, strict=True):
        own = [row for row in rows if row["model"] == model]
        for number, policy in enumerate(names):
            mine = [row for row in own if row["policy"] == policy]
            points = [(row["budget"], row["above_tova"], 2 * row["above_tova_stderr"]) for row in mine]
            ours(place, policy, points, color=f"C{number}", label=mine[0]["name"])
        place.axhline(0.0, color=GREY, linestyle=":", linewidth=1)
        place.set_title("the model as it was" if model == BASE else "with adapters of its own")
        budget_axis(place, sorted({row["budget"] for row in own}))
    axes[0].set_ylabel(f"nats per token above {TOVA.upper()}, untrained")
    legend_below(figure, 4)
    return png(figure)
