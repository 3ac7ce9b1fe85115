"""Every family of LLaMA: the numbers of transformers, from a config.json as the real models have it.

Each row is a tiny random model that transformers makes of such a config and saves, and that is converted from there.
"""

import json
import math
from functools import partial

import jax
import numpy as np
import oracle
import pytest
import tiny

import msrnn_jax as ms
from convert import convert
from convert.huggingface_config import read_config
from msrnn_jax.rotary import inverse_frequencies
from msrnn_jax.window import most_held

REASON = "needs torch==2.13.0 and transformers: pip install 'msrnn_jax[test,torch]'"
torch = pytest.importorskip("torch", reason=REASON)
transformers = pytest.importorskip("transformers", reason=REASON)

transformers.utils.logging.disable_progress_bar()

ORIGINAL = 48  # the original context length of scaled positions, and where windows are met
WINDOW = 20
BEYOND = 64  # tokens read after that
STEPS = 4  # of the last tokens, by `step`; those before by `extend`
TOLERANCE = 1e-4  # float32 sums in another order; logits reach 9, and 2.3e-5 was the largest difference

SIZES = {"vocab_size": 61, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 6}
# What the config.json of almost every model says and nothing depends on.
COMMON = {
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.40.0",
    "use_cache": True,
}
LLAMA = {**SIZES, **COMMON, "architectures": ["LlamaForCausalLM"], "model_type": "llama"}
LLAMA2 = {**LLAMA, "rms_norm_eps": 1e-05, "pretraining_tp": 1, "tie_word_embeddings": False, "rope_scaling": None}
LLAMA3 = {**LLAMA2, "num_key_value_heads": 3, "rope_theta": 500000.0, "attention_bias": False, "attention_dropout": 0.0}
LLAMA31 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": ORIGINAL,
    "rope_type": "llama3",
}
MISTRAL = {
    **{**SIZES, **COMMON, "architectures": ["MistralForCausalLM"], "model_type": "mistral"},
    **{"max_position_embeddings": 32768, "num_key_value_heads": 2, "rms_norm_eps": 1e-05, "rope_theta": 10000.0},
    "tie_word_embeddings": False,
}
QWEN2 = {
    **{**SIZES, **COMMON, "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "attention_dropout": 0.0},
    **{"max_position_embeddings": 32768, "max_window_layers": 24, "num_key_value_heads": 2, "rms_norm_eps": 1e-06},
    **{"rope_theta": 1000000.0, "sliding_window": 32768, "tie_word_embeddings": True, "use_sliding_window": False},
}
QWEN25 = {**QWEN2, "tie_word_embeddings": False, "use_mrope": False}
YARN = {"factor": 4.0, "original_max_position_embeddings": ORIGINAL, "type": "yarn"}
QWEN3 = {
    **{**QWEN2, "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "attention_bias": False, "head_dim": 10},
    **{"max_window_layers": 28, "rope_scaling": None, "sliding_window": None, "num_key_value_heads": 3},
}
SMOLLM3 = {
    **{**SIZES, **COMMON, "architectures": ["SmolLM3ForCausalLM"], "model_type": "smollm3", "attention_bias": False},
    **{"layer_types": ["full_attention"] * 4, "max_position_embeddings": 65536, "max_window_layers": 28},
    **{"mlp_bias": False, "no_rope_layer_interval": 4, "no_rope_layers": [1, 1, 1, 0], "num_hidden_layers": 4},
    **{
        "num_key_value_heads": 2,
        "pad_token_id": 3,
        "pretraining_tp": 2,
        "rms_norm_eps": 1e-06,
        "rope_theta": 5000000.0,
    },
    **{"sliding_window": None, "use_sliding_window": False},
}

SLIDING = {"sliding_window": WINDOW}

# By family: its config.json, and what of our config is not as in the first LLaMA.
ROWS = {
    "llama-1": (
        {
            **{**LLAMA, "architectures": ["LLaMAForCausalLM"], "bos_token_id": 0, "eos_token_id": 1},
            **{"max_sequence_length": 2048, "pad_token_id": -1, "rms_norm_eps": 1e-06, "torch_dtype": "float16"},
        },
        {"norm_eps": 1e-6},
    ),
    "llama-2": ({**LLAMA2, "max_position_embeddings": 4096, "num_key_value_heads": 6}, {"max_length": 4096}),
    "llama-3": ({**LLAMA3, "max_position_embeddings": 8192}, {"num_kv_heads": 3, "rope": ms.Rope(5e5)}),
    "llama-3.1": (
        {**LLAMA3, "max_position_embeddings": 131072, "mlp_bias": False, "rope_scaling": LLAMA31},
        {"num_kv_heads": 3, "rope": ms.Rope(5e5, "llama3", 8.0, 1.0, 4.0, ORIGINAL)},
    ),
    "llama-3.2": (
        {**LLAMA3, "head_dim": 10, "rope_scaling": {**LLAMA31, "factor": 32.0}, "tie_word_embeddings": True},
        {"tied_embeddings": True, "head_dim": 10, "rope": ms.Rope(5e5, "llama3", 32.0, 1.0, 4.0, ORIGINAL)},
    ),
    "llama-3.3": (
        {**LLAMA3, "eos_token_id": [2, 8, 9], "head_dim": 8, "num_key_value_heads": 1, "rope_scaling": LLAMA31},
        {"num_kv_heads": 1, "rope": ms.Rope(5e5, "llama3", 8.0, 1.0, 4.0, ORIGINAL)},
    ),
    "vicuna-1.5-16k": (
        {
            **{**LLAMA2, "max_length": 4096, "max_position_embeddings": 4096, "max_sequence_length": 16384},
            **{"pad_token_id": 0, "num_key_value_heads": 6, "rope_scaling": {"factor": 4.0, "type": "linear"}},
        },
        {"max_length": 4096, "rope": ms.Rope(1e4, "linear", 4.0)},
    ),
    "longchat-1.5": (
        {**LLAMA2, "num_key_value_heads": 6, "rope_scaling": {"factor": 8.0, "type": "linear"}},
        {"rope": ms.Rope(1e4, "linear", 8.0)},
    ),
    "yi": (
        {**LLAMA2, "num_key_value_heads": 1, "pad_token_id": 0, "rope_theta": 5000000.0, "rms_norm_eps": 1e-06},
        {"num_kv_heads": 1, "rope": ms.Rope(5e6), "norm_eps": 1e-6},
    ),
    "tinyllama": ({**LLAMA2, "num_key_value_heads": 2, "torch_dtype": "float32"}, {"num_kv_heads": 2}),
    "smollm2": (
        {
            **{**LLAMA2, "is_llama_config": True, "num_key_value_heads": 3, "rope_interleaved": False},
            **{"rope_theta": 100000, "tie_word_embeddings": True, "transformers.js_config": {"dtype": "q4"}},
        },
        {"tied_embeddings": True, "num_kv_heads": 3, "rope": ms.Rope(1e5)},
    ),
    "biases": (
        {**LLAMA3, "attention_bias": True, "mlp_bias": True},
        {"attention_bias": True, "output_bias": True, "mlp_bias": True},
    ),
    "mistral-0.1": ({**MISTRAL, **SLIDING}, {**SLIDING, "num_kv_heads": 2}),
    "mistral-0.3": (
        {**MISTRAL, "rope_theta": 1000000.0, "sliding_window": None},
        {"sliding_window": None, "rope": ms.Rope(1e6)},
    ),
    "mistral-nemo": (
        {**MISTRAL, "head_dim": 10, "hidden_size": 56, "rope_theta": 1000000.0, "sliding_window": None},
        {"head_dim": 10, "model_dim": 56, "sliding_window": None},
    ),
    "qwen2": (QWEN2, {"attention_bias": True, "output_bias": False, "tied_embeddings": True, "rope": ms.Rope(1e6)}),
    "qwen2-sliding": (
        {**QWEN2, **SLIDING, "max_window_layers": 1, "use_sliding_window": True},
        {"attention_bias": True, **SLIDING, "sliding_layers": (1,)},
    ),
    "qwen2.5-yarn": (
        {**QWEN25, "num_attention_heads": 2, "num_key_value_heads": 1, "rope_scaling": YARN},
        {"attention_bias": True, "rope": ms.Rope(1e6, "yarn", 4.0, original_length=ORIGINAL)},
    ),
    "qwen3": (QWEN3, {"qk_norm": True, "head_dim": 10, "tied_embeddings": True, "rope": ms.Rope(1e6)}),
    "qwen3-yarn": (  # the original length is that of the config, and the factor of two scales
        {
            **{**QWEN3, "attention_bias": True, "max_position_embeddings": ORIGINAL, "tie_word_embeddings": False},
            "rope_scaling": {
                **{"rope_type": "yarn", "factor": 6.0, "mscale": 1.5, "mscale_all_dim": 0.5},
                **{"beta_fast": 16, "beta_slow": 0.5, "truncate": False},
            },
        },
        {"qk_norm": True, "attention_bias": True, "output_bias": True},
    ),
    "smollm3": (SMOLLM3, {"unrotated_layers": (3,), "tied_embeddings": True, "rope": ms.Rope(5e6)}),
    "smollm3-sliding": (
        {
            **{key: value for key, value in SMOLLM3.items() if key not in ("layer_types", "no_rope_layers")},
            **{**SLIDING, "use_sliding_window": True, "no_rope_layer_interval": 2, "num_hidden_layers": 3},
            **{"attention_bias": True, "tie_word_embeddings": False},
        },
        {"unrotated_layers": (1,), **SLIDING, "sliding_layers": (1,), "output_bias": True},
    ),
}
# Where a mistake would show in the numbers alone.
SPECIAL = ("qk_norm", "unrotated_layers", "sliding_window", "sliding_layers", "rope", "attention_bias", "output_bias")


def make(folder, fields):
    """A random model of the config in these fields, saved by transformers; nothing keeps its initial value."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(fields))
    config = transformers.AutoConfig.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_config(
        config, dtype=torch.float32, attn_implementation="eager"
    ).eval()
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
    model.save_pretrained(folder)
    return model


@partial(jax.jit, compiler_options=tiny.QUICK)
def run(config, params, state, tokens):
    """Logits [T, V]: the last few by `step`, all before them by `extend`."""
    state, first = ms.extend(config, ms.Full(), params, state, tokens[:-STEPS], chunk=37)
    _, (last, _) = tiny.unroll(config, ms.Full(), params, state, tokens[-STEPS:])
    return jax.numpy.concatenate([first, last])


@pytest.mark.parametrize("name", ROWS)
def test_the_numbers_of_transformers(name, tmp_path):
    fields, expected = ROWS[name]
    model = make(tmp_path / "theirs", fields)
    config, params = ms.load(convert(tmp_path / "theirs", tmp_path / "ours", dtype="float32"))
    for field, value in expected.items():
        assert getattr(config, field) == value, field
    # transformers has written the config anew, in its own spelling: both say the same.
    problems: list[str] = []
    original = read_config(fields, problems)
    assert not problems and original is not None
    assert original.replace(max_length=config.max_length) == config

    scaled = config.rope.kind != "default" or config.sliding_window is not None
    count = ORIGINAL + BEYOND if scaled else 30
    tokens = np.random.default_rng(3).integers(0, SIZES["vocab_size"], count).astype(np.int32)
    with torch.no_grad():
        theirs = model(torch.tensor(tokens[None], dtype=torch.long)).logits[0].numpy()
    budget = tuple(most_held(config, "absolute", layer, count) for layer in range(config.num_layers))
    ours = np.asarray(run(config, params, ms.init_state(config, ms.Full(), budget), tokens))
    within = ORIGINAL if scaled else count
    np.testing.assert_allclose(ours[:within], theirs[:within], rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(ours[within:], theirs[within:], rtol=0, atol=TOLERANCE)

    # Whatever is special would be missed.
    for field, ignorant, weights in without_each(config, params):
        wrong = oracle.full_logits(ignorant, weights, tokens.tolist())
        assert np.abs(wrong - theirs).max() > 100 * TOLERANCE, field
        if field == "rope":
            assert np.abs(wrong - theirs)[within:].max() > 100 * TOLERANCE


def without_each(config, params):
    """The model once without every special thing that it has."""
    plain = config.replace(
        **{field: getattr(tiny.CONFIG, field) for field in SPECIAL if field != "rope"}, rope=ms.Rope(config.rope.theta)
    )
    for field in SPECIAL:
        if getattr(config, field) == getattr(plain, field):
            continue
        changes = {field: getattr(plain, field)} | ({"sliding_layers": None} if field == "sliding_window" else {})
        weights = params
        if field.endswith("_bias"):
            biases = ("output_bias",) if field == "output_bias" else ("query_bias", "key_bias", "value_bias")
            weights = params.replace(layers=tuple(w.replace(**dict.fromkeys(biases)) for w in params.layers))
        yield field, config.replace(**changes), weights


def test_the_sizes_of_scaling_are_such_that_it_does_something():
    """yarn and llama3 leave and divide some pair each, and yarn blends one; llama3 does in test_huggingface.py."""
    for name, width in (("llama-3.1", 8), ("llama-3.2", 10), ("qwen2.5-yarn", 24)):
        rope = ROWS[name][1]["rope"]
        ratios = inverse_frequencies(ms.Rope(rope.theta), width) / inverse_frequencies(rope, width)
        assert ratios.min() == 1 and ratios.max() == pytest.approx(rope.factor), name
        assert rope.kind == "llama3" or any(1.01 < ratio < 0.99 * rope.factor for ratio in ratios)


# What a config.json may say, family by family.


def read(fields):
    problems: list[str] = []
    return read_config(fields, problems), problems


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "smollm3"])
def test_where_a_config_is_silent_the_class_of_the_family_speaks(family):
    """Every default, against the config class itself."""
    fields = {**SIZES, "model_type": family, "num_attention_heads": 4, "num_hidden_layers": 30}
    if family != "llama":
        fields |= {"num_attention_heads": 32, "hidden_size": 64}  # which the class' own number of heads divides
    config, problems = read(fields)
    theirs = transformers.AutoConfig.for_model(**fields)
    assert config is not None and not problems
    assert config.num_kv_heads == theirs.num_key_value_heads
    assert config.head_dim == (getattr(theirs, "head_dim", None) or theirs.hidden_size // theirs.num_attention_heads)
    assert (config.max_length, config.norm_eps) == (theirs.max_position_embeddings, theirs.rms_norm_eps)
    assert config.rope == ms.Rope(theirs.rope_parameters["rope_theta"])
    assert config.tied_embeddings == theirs.tie_word_embeddings
    assert config.sliding_window == getattr(theirs, "sliding_window", None)
    rotated = getattr(theirs, "no_rope_layers", [1] * 30)
    assert config.unrotated_layers == tuple(layer for layer in range(30) if not rotated[layer])
    assert config.qk_norm == (family == "qwen3")
    assert config.attention_bias == (family == "qwen2")


@pytest.mark.parametrize("first", [0, 1, 28])
@pytest.mark.parametrize("base", [QWEN2, QWEN3], ids=["qwen2", "qwen3"])
def test_layers_that_slide_in_qwen(base, first):
    fields = {**base, "num_hidden_layers": 3, **SLIDING, "max_window_layers": first, "use_sliding_window": True}
    config, problems = read(fields)
    theirs = transformers.AutoConfig.for_model(**fields)
    assert config is not None and not problems
    sliding = [kind == "sliding_attention" for kind in theirs.layer_types]
    assert [config.window_of(layer) == WINDOW for layer in range(3)] == sliding
    named, _ = read({**fields, "layer_types": theirs.layer_types})
    assert named == config


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({**LLAMA, "model_type": "Yi", "auto_map": {}}, "model_type 'Yi' (must be one of llama, mistral, qwen2, qwen3"),
        ({**LLAMA, "model_type": "mixtral"}, "experts are not taken"),
        ({**LLAMA, "model_type": ["llama"]}, "model_type ['llama'] (must be one of"),
        ({**LLAMA, **SLIDING}, "sliding_window 20 (must be None)"),
        ({**LLAMA, "layer_types": ["sliding_attention"] * 2}, "must be 'full_attention' for every layer"),
        ({**LLAMA, "rope_condense_ratio": 8}, "rope_condense_ratio 8 (must be 1)"),
        ({**LLAMA, "no_rope_layers": [1, 0]}, "unknown key 'no_rope_layers'"),
        ({**MISTRAL, "sliding_window": 1}, "sliding_window is 1; it must be at least 2 where layers slide"),
        ({**MISTRAL, "layer_types": ["full_attention"] * 2}, "must be 'sliding_attention' for every layer"),
        ({**MISTRAL, "attention_bias": True}, "attention_bias True (must be False)"),
        ({**QWEN2, "attention_bias": False}, "attention_bias False (must be True)"),
        ({**QWEN25, "dual_chunk_attention_config": {"chunk_size": 262144}}, "dual_chunk_attention_config"),
        ({**QWEN25, "use_mrope": True}, "use_mrope True (must be False)"),
        ({**QWEN2, "use_sliding_window": "yes"}, "use_sliding_window is 'yes'; it must be true or false"),
        ({**QWEN2, "max_window_layers": -1}, "max_window_layers is -1"),
        ({**QWEN2, "layer_types": ["sliding_attention"] * 2}, "sliding_window is None; it must be at least 2"),
        ({**QWEN3, "layer_types": ["full_attention"]}, "for each of 2 layers"),
        ({**SMOLLM3, "no_rope_layers": [1, 0]}, "no_rope_layers is [1, 0]; it must be a 0 or 1 for each of 4 layers"),
        ({**SMOLLM3, "no_rope_layers": None, "no_rope_layer_interval": 0}, "no_rope_layer_interval is 0"),
        ({**QWEN3, "rope_scaling": {"type": "dynamic", "factor": 2.0}}, "its frequencies change as the text grows"),
        ({**QWEN3, "rope_scaling": {"type": "longrope"}}, "its frequencies depend on how long the whole text is"),
        ({**QWEN3, "rope_scaling": {"type": "yarn"}}, "missing key 'factor' (rope_type 'yarn')"),
        ({**QWEN3, "rope_scaling": {**YARN, "finetuned": True}}, "unknown key 'finetuned' = True (rope_type 'yarn')"),
        ({**QWEN3, "rope_scaling": {**YARN, "mscale": "1"}}, "rope_scaling: mscale is '1'; it must be a number"),
        ({**QWEN3, "rope_scaling": {**YARN, "truncate": None}}, "truncate is None; it must be true or false"),
        ({**QWEN3, "rope_scaling": {**YARN, "attention_factor": 0}}, "Rope.attention_factor is 0.0"),
    ],
    ids=lambda value: None if isinstance(value, dict) else value[:30],
)
def test_what_a_family_is_refused_for(fields, text):
    _, problems = read(fields)
    assert len(problems) == 1 and text in problems[0], problems


def test_what_yarn_leaves_out_is_what_transformers_makes_of_it():
    rope = {"rope_type": "yarn", "factor": None, "original_max_position_embeddings": 48, "beta_fast": 0}
    config, problems = read({**QWEN3, "max_position_embeddings": 192, "rope_scaling": rope})
    assert config is not None and not problems
    assert config.rope == ms.Rope(1e6, "yarn", 4.0, original_length=48)
    short = {key: value for key, value in LLAMA31.items() if key != "original_max_position_embeddings"}
    config, problems = read({**LLAMA3, "rope_scaling": short})
    assert config is not None and not problems
    assert config.rope.original_length == 2048  # the length of the config
