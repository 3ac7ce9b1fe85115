"""The same numbers as transformers' LLaMA: tiny random models, saved by it, converted and loaded by us."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from converted import loaded

import msrnn_jax as ms

REASON = "needs torch==2.13.0 and transformers: pip install 'msrnn_jax[test,torch]'"
torch = pytest.importorskip("torch", reason=REASON)
transformers = pytest.importorskip("transformers", reason=REASON)
from experiments.throughput.transformers_peer import to_torch  # noqa: E402, needs both

transformers.utils.logging.disable_progress_bar()

COUNT = 24  # tokens read
NEW = 12  # tokens generated
# All sizes differ, N * H and K * H too; an epsilon large enough to be seen.
SIZES = {
    "vocab_size": 61,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 10,
    "intermediate_size": 80,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-2,
    "bos_token_id": None,
    "eos_token_id": None,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
# Sums in another order; logits reach 8, and 2e-5 was the largest difference.
FLOAT32 = 1e-4
# transformers computes norms and rotations in float32 whatever the dtype: 2e-6 was the largest difference.
FLOAT64 = 1e-5


def write_model(folder, dtype="float32", max_shard_size="1GB", **changes):
    """A random model, saved by transformers.

    Nothing keeps its initial value: norms of one and biases of zero would hide a mistake, and so would
    weights so small that attention is uniform.
    """
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**SIZES, **changes}))
    random = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=random)
            if name.endswith("norm.weight"):
                weight.copy_(1 + 0.3 * noise)
            elif name.endswith("bias"):
                weight.copy_(0.5 * noise)
            else:
                gain = 2.0 if "q_proj" in name or "k_proj" in name or "lm_head" in name else 1.0
                weight.copy_(gain * noise / math.sqrt(weight.shape[1]))
    model.to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size=max_shard_size)
    return folder


def read_model(folder, dtype="auto"):
    """The model in a folder as transformers reads it, by default in the dtype of the file."""
    return transformers.LlamaForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def forward(model, tokens):
    with torch.no_grad():
        logits = model(torch.tensor(tokens[None], dtype=torch.long)).logits[0]
    return logits.double().numpy()


def their_logits(folder, tokens, dtype="auto"):
    return forward(read_model(folder, dtype), tokens)


def load_ours(folder):
    config, params = loaded(folder)
    return config, jax.tree.map(jnp.asarray, params)


def unroll(config, params, tokens, policy=ms.Full()):  # noqa: B008, a frozen value
    """Logits [T, V] of stepping, with a budget of T."""
    state = ms.init_state(config, policy, budget=len(tokens))
    _, (logits, _) = tiny.unroll_jit(config, policy, params, state, tokens)
    return np.asarray(logits, np.float64)


def our_logits(folder, tokens):
    return unroll(*load_ours(folder), tokens)


def some_tokens(count=COUNT, seed=0):
    return np.random.default_rng(seed).integers(0, SIZES["vocab_size"], count).astype(np.int32)


def check_logits(folder, tolerance):
    tokens = some_tokens()
    ours, theirs = our_logits(folder, tokens), their_logits(folder, tokens)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One model for the tests that are about something else than the model."""
    return write_model(tmp_path_factory.mktemp("huggingface") / "model")


@pytest.fixture(scope="module")
def model(folder):
    return read_model(folder)


@pytest.fixture(scope="module")
def ours(folder):
    """Our config and params of the same model."""
    return load_ours(folder)


def test_llama3_rope_is_tried_on_fast_blended_and_slow_pairs():
    wavelengths = [2 * math.pi * LLAMA3["rope_theta"] ** (i / SIZES["head_dim"]) for i in range(0, 10, 2)]
    turns = [LLAMA3["original_max_position_embeddings"] / wavelength for wavelength in wavelengths]
    low, high = LLAMA3["low_freq_factor"], LLAMA3["high_freq_factor"]
    assert any(turn > high for turn in turns)
    assert any(low < turn < high for turn in turns)
    assert any(turn < low for turn in turns)


def test_everything_at_once_in_float64(tmp_path, x64):
    changes = {"attention_bias": True, "mlp_bias": True, "rope_parameters": LLAMA3}
    check_logits(write_model(tmp_path / "model", "float64", **changes), FLOAT64)


def test_bfloat16(tmp_path):
    """Both round to 8 bits after every product, though not in all the same places: transformers rounds the
    cosines too. So the two differ by about what rounding costs either of them, which float32 arithmetic on the
    same weights tells; measured in standard deviations of the logits: 2.3 % apart, 2.4 % ours, 2.8 % theirs.
    """
    folder = write_model(tmp_path / "model", "bfloat16")
    tokens = some_tokens()
    ours, theirs = our_logits(folder, tokens), their_logits(folder, tokens)
    exact = their_logits(folder, tokens, "float32")
    assert deviation(ours, theirs) < 0.04 * exact.std()
    assert deviation(ours, exact) < 1.25 * deviation(theirs, exact)


def deviation(one, other):
    return np.sqrt(np.mean((one - other) ** 2))


def test_a_budget_that_holds_everything_changes_nothing(model, ours):
    tokens = some_tokens()
    np.testing.assert_allclose(unroll(*ours, tokens, ms.TOVA()), forward(model, tokens), rtol=0, atol=FLOAT32)


def test_losses(model, ours):
    config, params = ours
    tokens = some_tokens()
    state = ms.init_state(config, ms.Full(), budget=COUNT)
    _, losses = jax.jit(ms.nll)(config, ms.Full(), params, state, tokens[:-1], tokens[1:])
    logits = torch.tensor(forward(model, tokens)[:-1])
    theirs = torch.nn.functional.cross_entropy(logits, torch.tensor(tokens[1:], dtype=torch.long), reduction="none")
    np.testing.assert_allclose(losses, theirs, rtol=0, atol=FLOAT32)


def continue_theirs(model, prompt):
    """Their greedy continuation, and by how much the best token led at its closest."""
    result = model.generate(
        torch.tensor(prompt[None], dtype=torch.long),
        do_sample=False,
        max_new_tokens=NEW,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    second, best = torch.cat(result.logits).sort().values[:, -2:].T
    return result.sequences[0, len(prompt) :].numpy(), float((best - second).min())


@pytest.mark.exhaustive
def test_greedy_generation(model, ours):
    config, params = ours
    prompts, lengths = some_tokens(18, seed=1).reshape(2, 9), [9, 5]  # what follows the five is to be ignored
    theirs = []
    for prompt, length in zip(prompts, lengths, strict=True):
        tokens, lead = continue_theirs(model, prompt[:length])
        assert lead > 10 * FLOAT32, "too close to call; take another seed"
        assert len(set(tokens)) > NEW // 2, "it repeats itself; take another seed"
        theirs.append(tokens)
    settings = {"budget": 32, "max_new_tokens": NEW, "mode": "oneshot"}
    alone, *_ = ms.generate(config, ms.Full(), params, prompts[:1], **settings)
    both, *_ = ms.generate(config, ms.Full(), params, prompts, lengths, **settings)
    np.testing.assert_array_equal(alone, theirs[:1])
    np.testing.assert_array_equal(both, theirs)


def equal_tensors(one, other):
    one, other = one.state_dict(), other.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("changes", "dtype"),
    [
        ({"tie_word_embeddings": True}, "bfloat16"),
        ({"attention_bias": True, "mlp_bias": True, "rope_parameters": LLAMA3}, "float32"),
    ],
)
def test_the_way_back(tmp_path, changes, dtype):
    """What timings compare with is the model that was converted, to the bit."""
    folder = write_model(tmp_path / "model", dtype, **changes)
    again, theirs, tokens = to_torch(*load_ours(folder)), read_model(folder), some_tokens()
    assert equal_tensors(again, theirs) and again.dtype == theirs.dtype
    np.testing.assert_array_equal(forward(again, tokens), forward(theirs, tokens))
