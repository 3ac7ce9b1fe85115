"""Trees of arrays in one line: shapes in place of numbers."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer


def spell(value: Any) -> str:
    """A value as short as may be: arrays as dtype and shape, single numbers as themselves, equal items once."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        if value.shape == () and isinstance(value, jax.Array) and not isinstance(value, Tracer):
            if jnp.issubdtype(value.dtype, jnp.number) and value.is_fully_addressable:
                return str(value.item())
        return f"{value.dtype}[{','.join(map(str, value.shape))}]"
    if isinstance(value, tuple | list):
        items = [spell(item) for item in value]
        same = len(items) > 1 and len(set(items)) == 1
        return f"{len(items)} x {items[0]}" if same else f"({', '.join(items)})"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {spell(item)}" for name, item in value.items()) + "}"
    return repr(value)


def spell_node(node: Any) -> str:
    """For `__repr__` of a `flax.struct.PyTreeNode`: its fields, without those that are None or static defaults."""
    shown = []
    for field in dataclasses.fields(node):
        value = getattr(node, field.name)
        is_default = not field.metadata.get("pytree_node", True) and value == field.default
        if value is not None and not is_default:
            shown.append(f"{field.name}={spell(value)}")
    return f"{type(node).__name__}({', '.join(shown)})"
