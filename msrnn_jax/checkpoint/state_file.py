"""The state as a file: one .safetensors that says which model and policy it belongs to."""

import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from msrnn_jax.checkpoint.identity import config_hash, fingerprint
from msrnn_jax.config import Config
from msrnn_jax.io.atomic import check_writable, write_bytes
from msrnn_jax.params import Params
from msrnn_jax.policies import Policy
from msrnn_jax.policies.budgets import largest_budget, rows_for
from msrnn_jax.policies.source import source_hash
from msrnn_jax.recurrence.checks import check_protection, check_state
from msrnn_jax.recurrence.slots import init_state
from msrnn_jax.state import EMPTY, MOST_TOKENS, MultiState

FORMAT = "msrnn_jax state 2"
NEEDED = {"model", "config", "policy", "policy_sha256", "positions", "notes"}


def save_state(
    path: str | os.PathLike[str],
    config: Config,
    policy: Policy,
    params: Params,
    state: MultiState,
    *,
    notes: Mapping[str, Any] | None = None,
) -> None:
    """Writes a state, atomically and over a file that is there.

    Args:
      state: of one sequence.
      notes: JSON values to keep with it.

    Raises:
      ValueError: for a state of another model or policy, notes that are no JSON, and a path that cannot be written.
    """
    save_states(path, config, policy, params, [state], notes=notes)


def save_states(
    path: str | os.PathLike[str],
    config: Config,
    policy: Policy,
    params: Params,
    states: Sequence[MultiState],
    *,
    notes: Mapping[str, Any] | None = None,
) -> None:
    """`save_state` of several in one file; `load_state` takes the first."""
    import safetensors.numpy

    for state in states:
        check_state(config, policy, state)
    header = {
        "format": FORMAT,
        "model": fingerprint(config, params),
        "config": config_hash(config),
        "policy": str(policy),
        "policy_sha256": source_hash(policy) or "",
        "positions": states[0].mode,
        "notes": _as_json(notes or {}),
    }
    check_writable("state", path)
    leaves = {
        _prefix(index) + name: np.array(leaf, order="C")
        for index, state in enumerate(states)
        for name, leaf in _named(state).items()
    }
    write_bytes(path, safetensors.numpy.save(leaves, header))


def load_state(
    path: str | os.PathLike[str], config: Config, policy: Policy, params: Params, *, positions: str | None = None
) -> tuple[MultiState, dict[str, Any]]:
    """Reads a state that `save_state` wrote for the same model and policy.

    Args:
      positions: the position mode that it must have, see `init_state`; None takes what it has.

    Returns:
      The state, its budgets and slots those of the file, and the notes kept with it.

    Raises:
      ValueError: where the file is missing, damaged, or belongs to another model, policy or position mode, naming both.
    """
    states, notes = load_states(path, config, policy, params, positions=positions)
    return states[0], notes


def load_states(
    path: str | os.PathLike[str], config: Config, policy: Policy, params: Params, *, positions: str | None = None
) -> tuple[list[MultiState], dict[str, Any]]:
    """`load_state` of all states that `save_states` wrote into one file."""
    header = read_header(path)
    if header["policy"] != str(policy):
        raise ValueError(f"state {str(path)!r} was made under {header['policy']}, not {policy}")
    if header["policy_sha256"] != (source_hash(policy) or ""):
        raise ValueError(f"state {str(path)!r} was made under {policy} before its code changed")
    if positions is not None and header["positions"] != positions:
        raise ValueError(f"state {str(path)!r} has positions {header['positions']}, not {positions}")
    model = fingerprint(config, params)
    if header["model"] != model:
        raise ValueError(f"state {str(path)!r} belongs to model {header['model']}, not {model}")
    if header["config"] != config_hash(config):
        raise ValueError(f"state {str(path)!r} belongs to another config {header['config']}, not {config_hash(config)}")
    try:
        found = _by_state(_read(pathlib.Path(path)))
        states = [_state_of(config, policy, leaves, header["positions"]) for leaves in found]
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(f"state {str(path)!r} cannot be used: {error}") from None
    return states, json.loads(header["notes"])


def _state_of(config: Config, policy: Policy, found: Mapping[str, np.ndarray], positions: str) -> MultiState:
    rows = rows_for(policy, config.num_kv_heads)
    keys = [found[f".layers[{index}].keys"] for index in range(config.num_layers)]
    most = [largest_budget(policy, leaf.shape[1], rows) for leaf in keys]
    if min(most) < 1:
        raise ValueError(f"it has too few slots for {policy}")
    shapes = [found[f".layers[{index}].budget"].shape for index in range(config.num_layers)]
    budgets = [np.full(shape, each) for shape, each in zip(shapes, most, strict=True)]
    slots = [leaf.shape[1] for leaf in keys]
    make = partial(init_state, config, policy, budgets, slots=slots, positions=positions, dtype=keys[0].dtype)
    wanted = jax.eval_shape(make)
    names = _named(wanted)
    problems = [name for name in (*names, *found) if name not in names or name not in found]
    problems += [
        name
        for name, leaf in names.items()
        if name in found and (found[name].shape, found[name].dtype) != (leaf.shape, leaf.dtype)
    ]
    if problems:
        raise ValueError(f"{problems[0]} is missing, left over or of another shape")
    _check_values(config, found, positions, most)
    check_protection(policy, [found[f".layers[{index}].budget"] for index in range(len(wanted.layers))])
    return jax.tree.unflatten(jax.tree.structure(wanted), [jnp.asarray(found[name]) for name in names])


def read_header(path: str | os.PathLike[str]) -> dict[str, str]:
    """What a state file says of itself: format, model, policy, positions, notes.

    Raises:
      ValueError: where it is missing or no such file.
    """
    import safetensors

    if not pathlib.Path(path).is_file():
        raise ValueError(f"state {str(path)!r} does not exist")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            header = file.metadata() or {}
        if not isinstance(json.loads(header.get("notes", "{}")), dict):
            raise ValueError("its notes are no JSON object")
    except Exception as error:  # safetensors raises its own, which is no ValueError
        raise ValueError(f"state {str(path)!r} cannot be read: {error}") from None
    if header.get("format") != FORMAT or not set(header) >= NEEDED:
        raise ValueError(f"state {str(path)!r} is no state of this version; it must be a file written by save_state")
    return header


def _check_values(config: Config, found: Mapping[str, np.ndarray], mode: str, most: Sequence[int]) -> None:
    """Refuses what no run can have led to, and what would be read as something else."""
    t = int(found[".t"])
    if not 0 <= t < MOST_TOKENS:
        raise ValueError(f"it has seen {t} tokens; that must be from 0 to {MOST_TOKENS - 1}, so that it can go on")
    for index in range(config.num_layers):
        positions, budgets = found[f".layers[{index}].positions"], found[f".layers[{index}].budget"]
        slots = positions.shape[1]
        for budget in budgets.reshape(-1).tolist():
            if not 1 <= budget <= most[index]:
                raise ValueError(f"layer {index} has budget {budget}; it must be from 1 to {most[index]}")
        if positions.min() < EMPTY or positions.max() >= t:
            raise ValueError(f"layer {index} holds a position outside 0 .. {t - 1}")
        window = config.window_of(index)
        if window is not None and mode == "absolute" and ((positions != EMPTY) & (positions <= t - window)).any():
            raise ValueError(f"layer {index} holds a token that left its sliding window of {window} before {t}")
        for row in positions:
            held = row[row != EMPTY]
            if len(set(held.tolist())) < len(held):
                raise ValueError(f"layer {index} holds a position twice")
            if len(held) == slots:
                raise ValueError(f"layer {index} holds {slots} tokens in {slots} slots; one must be free")


def _as_json(notes: Mapping[str, Any]) -> str:
    try:
        return json.dumps(dict(notes))
    except (TypeError, ValueError) as error:
        raise ValueError(f"notes of a state must be JSON values: {error}") from None


def _named(state: Any) -> dict[str, Any]:
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state)}


def _prefix(index: int) -> str:
    """What the names of a state begin with, among several."""
    return f"[{index}]" if index else ""


def _by_state(found: Mapping[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    states: list[dict[str, np.ndarray]] = [{}]
    while any(name.startswith(_prefix(len(states))) for name in found):
        states.append({})
    for name, leaf in found.items():
        index = next((index for index in range(1, len(states)) if name.startswith(_prefix(index))), 0)
        states[index][name.removeprefix(_prefix(index))] = leaf
    return states


def _read(path: pathlib.Path) -> dict[str, np.ndarray]:
    import safetensors.numpy

    return safetensors.numpy.load_file(path)
