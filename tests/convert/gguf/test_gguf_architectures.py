"""convert: models of every architecture in GGUF files compute what transformers' own models do."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from checkpoints import BYTE_LEVEL, F, H, K, N, V, from_huggingface_to_gguf, gguf_metadata, write_gguf
from converted import loaded

import msrnn_jax as ms
from convert.gguf.config import read_config
from msrnn_jax.config import Rope

L = 1
D = 72  # other than N * H, yet a multiple of N, on which transformers insists
LENGTH = 48  # tokens read, beyond the original lengths of the scalings
SIZES = {
    "vocab_size": V,
    "hidden_size": D,
    "intermediate_size": F,
    "num_hidden_layers": L,
    "num_attention_heads": N,
    "num_key_value_heads": K,
    "head_dim": H,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
    "pad_token_id": 0,
}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16}
YARN_KEYS = {
    "rope__scaling__type": "yarn",
    "rope__scaling__factor": 4.0,
    "rope__scaling__original_context_length": 16,
}
POSITIONS = ("rope_parameters", "sliding_window", "no_rope_layers")  # settings of how tokens see each other
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 1e4, "factor": 5.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip


def llama3_factors(factor):
    """As in llama.cpp's converter, for theta 1e4."""
    wavelengths = 2 * np.pi * 1e4 ** (np.arange(0, H, 2) / H)
    smooth = np.clip((8192 / wavelengths - 1) / 3, 0, 1)
    return (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)


# Architecture of the file, class in transformers, its settings, metadata, and more tensors.
CASES = {
    "llama": ("llama", "Llama", {}, {}, {}),
    "llama, biases, tied": (
        "llama", "Llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}, {}, {},
    ),
    "llama, linear": (
        "llama", "Llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 3.0}},
        {"rope__scaling__type": "linear", "rope__scaling__factor": 3.0}, {},
    ),
    "llama, yarn": ("llama", "Llama", {"rope_parameters": YARN}, YARN_KEYS, {}),
    "llama, yarn, all keys": (
        "llama", "Llama",
        {"rope_parameters": {**YARN, "attention_factor": 1.5, "beta_fast": 8.0, "beta_slow": 0.5}},
        {**YARN_KEYS, "rope__scaling__yarn_attn_factor": 1.5, "rope__scaling__yarn_beta_fast": 8.0,
         "rope__scaling__yarn_beta_slow": 0.5, "rope__scaling__yarn_ext_factor": 1.0}, {},
    ),
    "llama, factors": (
        "llama", "Llama", {"rope_parameters": LLAMA3}, {}, {"rope_freqs.weight": llama3_factors(5.0)},
    ),
    "mistral": ("llama", "Mistral", {"sliding_window": 9}, {"attention__sliding_window": 9}, {}),
    "mistral3": (
        "mistral3", "Mistral",
        {"sliding_window": None, "rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 0.7}},
        {**YARN_KEYS, "rope__scaling__yarn_log_multiplier": 0.7, "attention__temperature_scale": 0.0}, {},
    ),
    "qwen2": ("qwen2", "Qwen2", {"use_sliding_window": False}, {}, {}),
    "qwen2, yarn": ("qwen2", "Qwen2", {"rope_parameters": YARN}, YARN_KEYS, {}),
    "qwen3": ("qwen3", "Qwen3", {}, {}, {}),
    "smollm3": (
        "smollm3", "SmolLM3", {"no_rope_layers": [1, 1, 1, 0], "num_hidden_layers": 4}, {"block_count": 4}, {},
    ),
}  # fmt: skip


def reference(kind, settings):
    """A random model of transformers, of which no weight is left at a value that could be dropped unnoticed."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    fields = {**SIZES, "tie_word_embeddings": False, **settings}
    config = getattr(transformers, f"{kind}Config")(**fields, attn_implementation="eager")
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3 + (1.0 if parameter.ndim == 1 else 0.0))
    return model


def logits_of(model, tokens):
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        return model(torch.tensor(tokens[None])).logits[0].numpy()


def write_model(path, model, architecture, metadata, more):
    state = {name: tensor.float().numpy() for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del state["lm_head.weight"]
    tensors = from_huggingface_to_gguf(state, interleaved=architecture not in ("qwen2", "qwen3"))
    fields = gguf_metadata(architecture, **{"embedding_length": D, "block_count": L, **metadata})
    tensors |= more
    return write_gguf(path, metadata=fields, tensors=tensors, architecture=architecture, tokenizer=BYTE_LEVEL)


def our_logits(path, tokens):
    config, params = loaded(path)
    state = ms.init_state(config, ms.Full(), budget=LENGTH)
    _, logits = jax.jit(ms.extend)(config, ms.Full(), params, state, jnp.asarray(tokens, jnp.int32))
    return np.asarray(logits)


@pytest.mark.parametrize("case", tiny.few(CASES, *list(CASES)[1::2]))
def test_logits_are_those_of_transformers(tmp_path, case):
    architecture, kind, settings, metadata, more = CASES[case]
    model = reference(kind, settings)
    tokens = np.random.default_rng(5).integers(0, V, LENGTH)
    expected = logits_of(model, tokens)
    source = write_model(tmp_path / "model.gguf", model, architecture, metadata, more)
    # Both compute in float32, in other orders; the logits are some tens.
    np.testing.assert_allclose(our_logits(source, tokens), expected, rtol=2e-4, atol=2e-3)
    plain = {name: value for name, value in settings.items() if name not in POSITIONS}
    if plain != settings:  # what the file says of positions makes a difference
        off = (
            {"no_rope_layers": [1] * 4} if kind == "SmolLM3" else {"sliding_window": None} if kind == "Mistral" else {}
        )
        assert np.abs(logits_of(reference(kind, {**plain, **off}), tokens) - expected).max() > 0.1


@pytest.mark.parametrize("case", ["llama", "qwen2", "qwen3"])
def test_transformers_reads_the_same_model_out_of_the_file(tmp_path, case):
    """Its own reader of GGUF, the tensors by its rules: written apart from ours, and from what the tests write."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    architecture, kind, settings, metadata, more = CASES[case]
    source = write_model(tmp_path / "model.gguf", reference(kind, settings), architecture, metadata, more)
    fields = load_gguf_checkpoint(source)["config"]
    config = getattr(transformers, f"{kind}Config")(**{**fields, "head_dim": H}, attn_implementation="eager")
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    tensors = load_gguf_checkpoint(source, return_tensors=True, model_to_load=model)["tensors"]
    model.load_state_dict({name: torch.as_tensor(tensor) for name, tensor in tensors.items()})
    tokens = np.random.default_rng(6).integers(0, V, LENGTH)
    np.testing.assert_allclose(our_logits(source, tokens), logits_of(model, tokens), rtol=2e-4, atol=2e-3)


KEYS = {
    "general.architecture": "llama", "llama.block_count": 2, "llama.context_length": 64, "llama.embedding_length": 32,
    "llama.feed_forward_length": 48, "llama.attention.head_count": 4, "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.vocab_size": 7,
}  # fmt: skip


def config_of(architecture="llama", **keys):
    renamed = {key.replace("llama.", f"{architecture}."): value for key, value in KEYS.items()}
    more = {f"{architecture}.{key.replace('__', '.')}": value for key, value in keys.items()}
    problems = []
    stored = {f"blk.{number}": None for number in range(20)}  # of which there must be one for every layer
    config = read_config({**renamed, "general.architecture": architecture, **more}, stored, problems)
    return config, problems


def rope_of(architecture="llama", **keys):
    config, problems = config_of(architecture, **keys)
    assert config is not None and problems == []
    return config.rope


def test_scalings_as_the_metadata_spell_them():
    assert rope_of() == Rope()
    assert rope_of(rope__scaling__type="none", rope__scaling__factor=4.0) == Rope()
    assert rope_of(rope__scaling__factor=0.0) == Rope()  # llama.cpp takes it as none
    assert rope_of(rope__scaling__factor=1.0) == Rope()
    assert rope_of(rope__scale_linear=4.0) == Rope(kind="linear", factor=4.0)  # an old spelling
    assert rope_of(rope__scale_linear=4.0, rope__scaling__factor=2.0) == Rope(kind="linear", factor=2.0)
    assert rope_of(rope__freq_base=500000, rope__scaling__finetuned=True) == Rope(theta=5e5)


def test_yarn_as_the_metadata_spell_it():
    yarn = {"rope__scaling__type": "yarn", "rope__scaling__factor": 4.0}
    assert rope_of(**yarn) == Rope(kind="yarn", factor=4.0, original_length=64)  # that of the context
    yarn["rope__scaling__original_context_length"] = 16
    assert rope_of(**yarn) == Rope(kind="yarn", factor=4.0, original_length=16)
    stated = rope_of(**yarn, rope__scaling__yarn_attn_factor=1.25, rope__scaling__yarn_log_multiplier=0.0)
    assert stated == Rope(kind="yarn", factor=4.0, original_length=16, attention_factor=1.25)
    betas = rope_of(**yarn, rope__scaling__yarn_beta_fast=16.0, rope__scaling__yarn_beta_slow=2.0)
    assert betas == Rope(kind="yarn", factor=4.0, original_length=16, beta_fast=16.0, beta_slow=2.0)
    full = rope_of("mistral3", **yarn, rope__scaling__yarn_log_multiplier=1.0)
    assert full.attention_factor == 1.0
    half = rope_of("mistral3", **yarn, rope__scaling__yarn_log_multiplier=0.5).attention_factor
    assert half == pytest.approx((1 + 0.1 * math.log(4)) / (1 + 0.05 * math.log(4)))
    both = {"rope__scaling__yarn_attn_factor": 1.25, "rope__scaling__yarn_log_multiplier": 0.5}
    _, problems = config_of("mistral3", **yarn, **both)
    assert "yarn_attn_factor and mistral3.rope.scaling.yarn_log_multiplier cannot both be honoured" in problems[0]


def test_sliding_windows_and_unrotated_layers():
    config, _ = config_of(attention__sliding_window=9)
    assert config is not None and config.sliding_window == 9 and config.sliding_layers is None
    config, _ = config_of("mistral3", attention__sliding_window=9)
    assert config is not None and config.sliding_window == 9
    config, _ = config_of(attention__sliding_window=0)
    assert config is not None and config.sliding_window is None
    config, _ = config_of("smollm3", block_count=9)
    assert config is not None and config.unrotated_layers == (3, 7)
    assert config_of("qwen3")[0].qk_norm and not config_of("qwen2")[0].qk_norm


@pytest.mark.parametrize(
    ("architecture", "keys", "problem"),
    [
        ("qwen2", {"foo": 1}, "unknown key 'qwen2.foo' = 1"),
        ("qwen3", {"expert_count": 64}, "qwen3.expert_count 64 (must be 0)"),
        ("mistral3", {"attention__temperature_scale": 0.1}, "mistral3.attention.temperature_scale 0.1 (must be 0.0)"),
        *(
            (name, {"attention__sliding_window": 9}, f"{name}.attention.sliding_window 9 (must be 0 in a {name} file)")
            for name in ("qwen2", "qwen3", "smollm3")
        ),
        ("smollm3", {"block_count": 2**60}, f"block_count is {2**60}, but there are 20 tensors in all"),
        ("llama", {"vocab_size": None}, "llama.vocab_size"),
        ("llama", {"feed_forward_length": [48, 64]}, "feed_forward_length is [48, 64]; it must be a positive integer"),
        ("llama", {"foo": [0] * 10_000}, "unknown key 'llama.foo' = [0, 0, 0,"),
        ("llama", {"rope__freq_base": math.nan}, "llama.rope.freq_base is nan; it must be a number above 0"),
        ("llama", {"rope__freq_base": 1e300}, "llama.rope: Rope.theta is inf; it must be a positive number"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_metadata_that_cannot_be_honoured(architecture, keys, problem):
    config, problems = config_of(architecture, **keys)
    assert config is None or "unknown" in problem or "must be 0" in problem
    assert any(problem in line and len(line) < 200 for line in problems), problems
