"""States on disk, and states that go over to another policy."""

import itertools
import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import tiny

import msrnn_jax as ms

CONFIG = tiny.CONFIG
OUT = 20
MORE = {"positions": "cache", "dtype": "bfloat16", "slots": 30}


def state_after(policy, count=15, budget=6, **options):
    state = ms.init_state(CONFIG, policy, tiny.budget_for(policy, OUT, budget), **options)
    return ms.extend(CONFIG, policy, tiny.params(), state, tiny.tokens(count))[0]


def bits(tree):
    return [(leaf.dtype, np.asarray(leaf).tobytes()) for leaf in jax.tree.leaves(tree)]


@pytest.mark.parametrize(
    ("policy", "options"),
    tiny.few(
        itertools.product([ms.TOVA(), ms.H2O(recent=3), ms.Window(sinks=4), ms.Full()], [{}, MORE]),
        *[(ms.TOVA(), {}), (ms.H2O(recent=3), MORE), (ms.Full(), {})],
    ),
    ids=str,
)
def test_a_state_comes_back_to_the_bit(policy, options, tmp_path):
    state, path = state_after(policy, **options), tmp_path / "state.safetensors"
    ms.save_state(path, CONFIG, policy, tiny.params(), state, notes={"turns": 3})
    again, notes = ms.load_state(path, CONFIG, policy, tiny.params())
    assert notes == {"turns": 3} and os.listdir(tmp_path) == ["state.safetensors"]
    assert jax.tree.structure(again) == jax.tree.structure(state) and bits(again) == bits(state)
    tiny.step(CONFIG, policy, tiny.params(), again, jnp.int32(1))


KINDS = ["gkv:recent=2,every=3", "h2o:adaptive=0.3,every=2", "random:prompt=True,scope=head", "tova:pyramid=2"]


@pytest.mark.parametrize("text", tiny.few([*KINDS, "triattention:every=2"], KINDS[0], KINDS[2]))
def test_whatever_a_policy_keeps_comes_back(text, tmp_path):
    """Statistics of rows, more slots than budget + 1, pinned tokens, budgets of layers and of heads."""
    policy, path = ms.parse_policy(text), tmp_path / "state"
    budget = np.array([[5, 6, 4], [6, 5, 6]]) if "prompt" in text else 6
    state = ms.init_state(CONFIG, policy, budget)
    state, _ = ms.prefill(CONFIG, policy, tiny.params(), state, tiny.tokens(3))
    state, _ = ms.extend(CONFIG, policy, tiny.params(), state, tiny.tokens(9))
    ms.save_state(path, CONFIG, policy, tiny.params(), state)
    again, _ = ms.load_state(path, CONFIG, policy, tiny.params())
    assert jax.tree.structure(again) == jax.tree.structure(state) and bits(again) == bits(state)
    with pytest.raises(ValueError, match="was made for a policy that keeps the prompt|other statistics|was made under"):
        ms.save_state(path, CONFIG, ms.Random(scope=policy.scope), tiny.params(), state)
        ms.load_state(path, CONFIG, ms.TOVA(), tiny.params())


def test_a_state_belongs_to_a_model_a_policy_and_a_position_mode(tmp_path):
    path = tmp_path / "state"
    ms.save_state(path, CONFIG, ms.TOVA(), tiny.params(), state_after(ms.TOVA(), positions="cache"))
    with pytest.raises(ValueError, match="has positions cache, not absolute"):
        ms.load_state(path, CONFIG, ms.TOVA(), tiny.params(), positions="absolute")
    assert ms.load_state(path, CONFIG, ms.TOVA(), tiny.params(), positions="cache")[0].mode == "cache"
    ms.save_state(path, CONFIG, ms.TOVA(), tiny.params(), state_after(ms.TOVA()))
    with pytest.raises(ValueError, match="was made under tova, not h2o"):
        ms.load_state(path, CONFIG, ms.H2O(), tiny.params())
    ms.save_state(
        tmp_path / "four", CONFIG, ms.Window(sinks=4), tiny.params(), ms.init_state(CONFIG, ms.Window(sinks=4), 6)
    )
    with pytest.raises(ValueError, match="was made under window:sinks=4, not window:sinks=1"):
        ms.load_state(tmp_path / "four", CONFIG, ms.Window(sinks=1), tiny.params())
    with pytest.raises(ValueError, match="belongs to model [0-9a-f]{16}, not [0-9a-f]{16}"):
        ms.load_state(path, CONFIG, ms.TOVA(), tiny.params(seed=1))
    with pytest.raises(ValueError, match="belongs to another config [0-9a-f]{16}, not [0-9a-f]{16}"):
        ms.load_state(path, CONFIG.replace(norm_eps=0.1), ms.TOVA(), tiny.params())
    with pytest.raises(ValueError, match="layer 0 has 1 rows of slots, but h2o forgets by head"):
        ms.save_state(path, CONFIG, ms.H2O(), tiny.params(), state_after(ms.TOVA()))
    for wrong in (tmp_path, path / "state"):
        with pytest.raises(ValueError, match="state is '.*', which cannot be written: (Is|Not) a directory"):
            ms.save_state(wrong, CONFIG, ms.TOVA(), tiny.params(), state_after(ms.TOVA()))


def test_a_state_belongs_to_the_code_of_a_policy_and_notes_are_json(tmp_path):
    path, code = tmp_path / "state", tmp_path / "mine.py"
    code.write_text("import msrnn_jax as ms\nclass Mine(ms.TOVA): pass\n")
    policy = ms.parse_policy(f"{code}:Mine")
    ms.save_state(path, CONFIG, policy, tiny.params(), state_after(policy))
    assert ms.load_state(path, CONFIG, policy, tiny.params())[1] == {}
    code.write_text(code.read_text() + "# changed\n")
    with pytest.raises(ValueError, match="state '.*' was made under .*mine.py:Mine before its code changed"):
        ms.load_state(path, CONFIG, policy, tiny.params())
    with pytest.raises(ValueError, match="notes of a state must be JSON values: .*float32"):
        ms.save_state(path, CONFIG, policy, tiny.params(), state_after(policy), notes={"a": np.float32(1)})


def test_damaged_files_are_refused(tmp_path):
    path = tmp_path / "state"
    policy = ms.TOVA()
    ms.save_state(path, CONFIG, policy, tiny.params(), state_after(policy))
    whole = path.read_bytes()

    def refused(message):
        with pytest.raises(ValueError, match=message):
            ms.load_state(path, CONFIG, policy, tiny.params())

    for size in (0, 5, 300, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        refused("cannot be read")
    path.write_bytes(b"\xff" * 400)
    refused("cannot be read")
    path.unlink()
    refused("does not exist")

    path.write_bytes(whole)
    with safetensors.safe_open(path, framework="numpy") as file:
        header = file.metadata()
    leaves = safetensors.numpy.load(whole)

    def change(header=header, **changes):
        made = {**leaves, **{name.replace("_", "."): value for name, value in changes.items()}}
        made = {name: value for name, value in made.items() if value is not None}
        path.write_bytes(safetensors.numpy.save(made, header))

    change(header={**header, "format": "2"})
    refused("is no state of this version")
    change(header={**header, "positions": "relative"})
    refused("cannot be used: positions is 'relative'")
    change(header={**header, "notes": "{"})
    refused("cannot be read")
    change(_t=None)
    refused(r"cannot be used: \.t is missing, left over or of another shape")
    change(**{".layers[1].positions": np.full((1, 7), 3, np.int32)})
    refused("layer 1 holds a position twice")
    change(**{".layers[1].positions": np.arange(7, dtype=np.int32)[None] + 9})
    refused(r"layer 1 holds a position outside 0 \.\. 14")
    change(**{".layers[0].budget": np.asarray(7, np.int32)})
    refused("layer 0 has budget 7; it must be from 1 to 6")
    change(**{".layers[0].positions": np.arange(7, dtype=np.int32)[None]})
    refused("layer 0 holds 7 tokens in 7 slots; one must be free")
    change(_t=np.asarray(-1, np.int32))
    refused("it has seen -1 tokens; that must be from 0 to 2147483646, so that it can go on")
    change(header={**header, "notes": "[]"})
    refused("its notes are no JSON object")
    change(**{".layers[0].values": leaves[".layers[0].values"][:, :4]})
    refused("is missing, left over or of another shape")
    change()
    assert json.loads(header["notes"]) == {} and int(ms.load_state(path, CONFIG, policy, tiny.params())[0].t) == 15


CHANGES = [
    (ms.TOVA(), ms.H2O(scope="layer")),
    (ms.TOVA(), ms.H2O()),
    (ms.Window(), ms.TOVA(scope="head")),
    (ms.H2O(), ms.TOVA(scope="head")),
    (ms.TOVA(scope="head"), ms.Random(scope="head")),
]


@pytest.mark.parametrize(
    ("change", "budget"),
    tiny.few(
        itertools.product(CHANGES, [None, 6, 11]),
        *zip(CHANGES[:3], [11, None, 6], strict=True),
    ),
    ids=lambda value: " to ".join(map(str, value)) if isinstance(value, tuple) else str(value),
)
def test_another_policy_goes_on_with_the_same_memories(change, budget):
    old, new = change
    before = state_after(old)
    after = ms.adopt(new, before, budget)
    rows = [tiny.held(layer) for layer in before.layers]
    heads = CONFIG.num_kv_heads if new.scope == "head" else 1
    assert [tiny.held(layer) for layer in after.layers] == [row * (heads // len(row)) for row in rows]
    assert all(int(layer.budget) == (budget or 6) for layer in after.layers)
    # What is read next depends on the memories alone, not on how the two would forget.
    _, logits = tiny.step(CONFIG, old, tiny.params(), before, jnp.int32(7))
    state, adopted = tiny.step(CONFIG, new, tiny.params(), after, jnp.int32(7))
    np.testing.assert_allclose(adopted, logits, atol=1e-5)
    state, _ = ms.extend(CONFIG, new, tiny.params(), state, tiny.tokens(9, 1))
    assert all(len(row) == (budget or 6) for layer in state.layers for row in tiny.held(layer))


def test_what_cannot_be_adopted_is_refused():
    with pytest.raises(ValueError, match="tova forgets by layer, but the heads of layer 0 hold different tokens"):
        ms.adopt(ms.TOVA(), state_after(ms.H2O()))
    few = state_after(ms.H2O(), count=5)  # nothing was forgotten yet, so all heads hold the same
    assert tiny.held(ms.adopt(ms.TOVA(), few).layers[1]) == [[0, 1, 2, 3, 4]]
    with pytest.raises(ValueError, match="budget is 4, but layer 0 holds 6 tokens; compress the state first"):
        ms.adopt(ms.H2O(), state_after(ms.TOVA()), 4)
    with pytest.raises(ValueError, match="budget is 6, but tova:sinks=7 protects 7 sinks"):
        ms.adopt(ms.TOVA(sinks=7), state_after(ms.TOVA()))


def test_a_state_that_no_windows_let_be_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("msrnn_jax.checkpoint.state_file.config_hash", lambda config: "edited")
    policy, path = ms.Full(), tmp_path / "state"
    ms.save_state(path, CONFIG, policy, tiny.params(), state_after(policy))
    sliding = CONFIG.replace(sliding_window=5, sliding_layers=(1,))
    with pytest.raises(ValueError, match="layer 1 holds a token that left its sliding window of 5 before 15"):
        ms.load_state(path, sliding, policy, tiny.params())
    state = ms.init_state(sliding, policy, OUT)
    state, _ = ms.extend(sliding, policy, tiny.params(), state, tiny.tokens(15))
    ms.save_state(path, sliding, policy, tiny.params(), state)
    assert bits(ms.load_state(path, sliding, policy, tiny.params())[0]) == bits(state)
