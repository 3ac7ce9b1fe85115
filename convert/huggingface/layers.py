"""Which layers of a config.json slide, and which are not rotated: one function for every way to say it."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ..problems import is_count

FULL, SLIDING = "full_attention", "sliding_attention"
UNROTATED_EVERY = 4  # SmolLM3: layers from one that is not rotated to the next


class Layers(NamedTuple):
    """What layers differ in, as our config says it."""

    sliding_window: int | None = None
    sliding_layers: tuple[int, ...] | None = None
    unrotated_layers: tuple[int, ...] = ()


def all_alike(fields: Mapping[str, Any], count: int, problems: list[str]) -> Layers:
    """LLaMA: none slides."""
    return _layers(fields, None, [FULL] * count, problems, fixed=True)


def everywhere(fields: Mapping[str, Any], count: int, problems: list[str]) -> Layers:
    """Mistral: all layers slide, unless `sliding_window` is null; absent it is 4096."""
    window = fields.get("sliding_window", 4096)
    return _layers(fields, window, [FULL if window is None else SLIDING] * count, problems, fixed=True)


def by_first_layer(fields: Mapping[str, Any], count: int, problems: list[str]) -> Layers:
    """Qwen: with `use_sliding_window` the layers that `layer_types` names, else those from `max_window_layers` on."""
    window = fields.get("sliding_window", 4096) if _uses_window(fields, problems) else None
    first = fields.get("max_window_layers", 28)
    if type(first) is not int or first < 0:
        problems.append(f"max_window_layers is {first!r}; it must be a whole number of at least 0")
        return Layers()
    usual = [SLIDING if window is not None and layer >= first else FULL for layer in range(count)]
    return _layers(fields, window, usual, problems)


def by_rotation(fields: Mapping[str, Any], count: int, problems: list[str]) -> Layers:
    """SmolLM3: every fourth layer is not rotated, or those with a 0 in `no_rope_layers`; these may slide."""
    rotated = fields.get("no_rope_layers")
    if rotated is None:
        every = fields.get("no_rope_layer_interval", UNROTATED_EVERY)
        if not is_count(every):
            problems.append(f"no_rope_layer_interval is {every!r}; it must be a positive integer")
            return Layers()
        rotated = [int((layer + 1) % every != 0) for layer in range(count)]
    if not isinstance(rotated, list) or len(rotated) < count or any(value not in (0, 1) for value in rotated):
        problems.append(f"no_rope_layers is {rotated!r}; it must be a 0 or 1 for each of {count} layers")
        return Layers()
    window = fields.get("sliding_window") if _uses_window(fields, problems) else None
    usual = [FULL if window is None or value else SLIDING for value in rotated[:count]]
    unrotated = tuple(layer for layer, value in enumerate(rotated[:count]) if not value)
    return _layers(fields, window, usual, problems)._replace(unrotated_layers=unrotated)


def _uses_window(fields: Mapping[str, Any], problems: list[str]) -> bool:
    use = fields.get("use_sliding_window")
    if use is not None and not isinstance(use, bool):
        problems.append(f"use_sliding_window is {use!r}; it must be true or false")
    return use is True


def _layers(
    fields: Mapping[str, Any], window: Any, usual: Sequence[str], problems: list[str], *, fixed: bool = False
) -> Layers:
    """What the kinds of layers come to.

    Args:
      window: in tokens, None where no layer slides.
      usual: the kind of each layer where `layer_types` does not say it.
      fixed: the family's code does not look at `layer_types`, which may then say nothing else.
    """
    kinds = usual if fields.get("layer_types") is None else fields["layer_types"]
    if not isinstance(kinds, list) or len(kinds) != len(usual) or any(kind not in (FULL, SLIDING) for kind in kinds):
        problems.append(f"layer_types is {kinds!r}; it must be {FULL!r} or {SLIDING!r} for each of {len(usual)} layers")
        return Layers()
    if fixed and kinds != usual:
        problems.append(f"layer_types is {kinds!r}; it must be {usual[0]!r} for every layer, which its code goes by")
        return Layers()
    sliding = tuple(layer for layer, kind in enumerate(kinds) if kind == SLIDING)
    if not sliding:
        return Layers()
    if not is_count(window) or window < 2:
        problems.append(f"sliding_window is {window!r}; it must be at least 2 where layers slide")
        return Layers()
    return Layers(window, None if len(sliding) == len(kinds) else sliding)
