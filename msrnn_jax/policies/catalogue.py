"""What there is of policies, made from their classes: what each keeps, by which equation, from which paper."""

import inspect
import re
from typing import Any, NamedTuple

import jax
import numpy as np

from msrnn_jax.config import Config
from msrnn_jax.policies.base import Policy, option_fields, spell_option
from msrnn_jax.policies.budgets import rows_for
from msrnn_jax.policies.costs import cost_of, measured
from msrnn_jax.policies.registry import POLICIES, unknown
from msrnn_jax.state import LayerInfo

# Shapes of statistics are told for LLaMA-3-8B: 8 KV heads of width 128, and four query heads for each.
EXAMPLE = Config(
    vocab_size=128256, model_dim=4096, num_layers=1, num_heads=32, num_kv_heads=8, head_dim=128, mlp_dim=14336
)  # fmt: skip
KINDS = {
    "by_attention": "attention received",
    "by_queries": "queries",
    "by_keys": "keys and values",
    "tova": "attention received",
    "h2o": "attention received",
}

PAGE = """
# Policies

Every policy takes the options `scope`, `sinks`, `recent`, `every`, `prompt`, `adaptive` and `pyramid`
([explained below](#options-of-every-policy)). Two of them are methods of their own: Ada-KV is `adaptive`, as in
`tova:scope=head,adaptive=0.2`, and PyramidKV is `pyramid`, as in `tova:pyramid=20`. Every policy works in `step`,
`extend`, `generate`, perplexity, traces and experiments, in every position mode. The tests hold it to an
oracle in numpy that was written from the equations alone. This page is what `msrnn policies --markdown` prints.

*Per slot* and *per row* count the numbers that a policy keeps besides keys and values: of every slot, and of every row
of slots (a KV head's, or a whole layer's), for 8 KV heads of width 128 with 4 query heads each. In equations p is a
position, k and v are key and value, a is attention and l its logits, g counts the query heads of a KV head, t is the
time.

*step* and *extend* are times divided by Window's, with default options. Brackets: the policy cuts at each token instead
of every 128. Measured on SmolLM2-135M with a budget of {budget}, {batch} rows in a step, {dtype},
{hardware}, jax {jax}. [All numbers and the command](costs.md).
"""


class Entry(NamedTuple):
    """A policy as people look it up."""

    name: str  # the text that makes it
    summary: str  # one sentence
    text: str  # what its class says, equations between dollar signs
    scored_by: str  # what it looks at
    paper: str | None  # arXiv number
    defaults: dict[str, str]  # of the options that every policy has, where they differ
    options: dict[str, str]  # its own, with their defaults
    per_slot: int  # numbers kept of every slot and row
    per_row: int  # numbers kept of every row, for the shapes of `EXAMPLE`
    cost: dict[str, float]  # `step` and `extend`, times over Window's; empty where it was not measured
    cost_at_each: dict[str, float]  # the same at each token, where it cuts more seldom by default


def catalogue() -> list[Entry]:
    """All policies of the library, in the order of `POLICIES`."""
    return [describe(name) for name in POLICIES]


def describe(name: str) -> Entry:
    """One policy of the library.

    Raises:
      ValueError: for a name that is none.
    """
    if name not in POLICIES:
        raise unknown(name)
    kind = POLICIES[name]
    text = inspect.getdoc(kind) or ""
    fields, common = option_fields(kind), option_fields(Policy)
    own = {key: field for key, field in fields.items() if key not in common}
    changed = {key: field for key, field in fields.items() if key in common and field.default != common[key].default}
    paper = re.search(r"arXiv:(\d{4}\.\d{5})", text)
    module = kind.__module__.split(".")
    known = [KINDS[part] for part in module if part in KINDS]
    return Entry(
        name=name,
        summary=text.partition("\n\n")[0].replace("\n", " "),
        text=text,
        scored_by=known[0] if known else "position",
        paper=paper[1] if paper else None,
        defaults={key: spell_option(key, field.default) for key, field in changed.items()},
        options={key: spell_option(key, field.default) for key, field in own.items()},
        per_slot=_count(jax.eval_shape(lambda: kind().init(1, 1))),
        per_row=_count(jax.eval_shape(lambda: kind().init_rows(_example(kind())))),
        cost=cost_of(name),
        cost_at_each=cost_of(str(kind().replace(every=1))) if kind().every > 1 else {},
    )


def common_options() -> dict[str, str]:
    """The options that every policy has, with what they do."""
    text = (inspect.getdoc(Policy) or "").partition("Attributes:\n")[2]
    found = re.findall(r"^  (\w+): (.*(?:\n    .*)*)", text, re.M)
    return {name: re.sub(r"\s+", " ", said) for name, said in found}


def as_markdown() -> str:
    """The catalogue as a page."""
    head = "| policy | scores by | defaults | per slot | per row | step | extend | paper |"
    found = measured()
    about = {name: found[name] for name in ("budget", "batch", "dtype", "hardware")}
    page = PAGE.format(**about, jax=found["versions"]["jax"])
    lines = [*page.strip("\n").splitlines(), "", head, "|---|---|---|---|---|---|---|---|"]
    for entry in catalogue():
        link = f"[{entry.paper}](https://arxiv.org/abs/{entry.paper})" if entry.paper else ""
        kept = entry.per_slot or "", entry.per_row or ""
        times = spell_cost(entry, "step"), spell_cost(entry, "extend")
        cells = entry.scored_by, spell(entry.defaults), *kept, *times, link
        lines.append(f"| [`{entry.name}`](#{entry.name}) | " + " | ".join(map(str, cells)) + " |")
    lines += ["", "## Options of every policy", ""]
    lines += [f"* `{name}`: {said}" for name, said in common_options().items()]
    for entry in catalogue():
        lines += ["", f"## {entry.name}", "", _listed(entry.text)]
        if entry.options:
            lines += ["", f"Options of its own: {spell(entry.options, '`')}."]
    return "\n".join(lines) + "\n"


def spell(options: dict[str, str], quote: str = "") -> str:
    """Options as the text of a policy has them."""
    return ", ".join(f"{quote}{name}={value}{quote}" for name, value in options.items())


def spell_cost(entry: Entry, work: str) -> str:
    """Times over Window's, as the page has them."""
    if work not in entry.cost:
        return ""
    return f"{entry.cost[work]:.2f}" + (f" ({entry.cost_at_each[work]:.2f})" if work in entry.cost_at_each else "")


def _listed(text: str) -> str:
    """The text of a class, its options as a list."""
    before, _, options = text.partition("Attributes:\n")
    options = re.sub(r"^  (\w+): ", r"* `\1`: ", options, flags=re.M)
    return before + re.sub(r"^    ", "  ", options, flags=re.M)


def _example(policy: Policy) -> LayerInfo:
    rows = rows_for(policy, EXAMPLE.num_kv_heads)
    return LayerInfo(EXAMPLE, 0, rows, np.zeros(EXAMPLE.head_dim // 2), True)


def _count(stats: Any) -> int:
    """Numbers of one row."""
    return sum(leaf.size // leaf.shape[0] for leaf in jax.tree.leaves(stats))
