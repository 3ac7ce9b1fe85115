"""Nulls in a config.json: those that transformers takes are taken, and the others are refused by name."""

import pytest

from convert.huggingface.config import read_config

REASON = "needs torch==2.13.0 and transformers: pip install 'msrnn_jax[test,torch]'"
PLAIN = {
    **{"vocab_size": 61, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 6},
    **{
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-6,
        "use_cache": True,
    },
    **{"tie_word_embeddings": False, "hidden_act": "silu", "initializer_range": 0.02, "attention_dropout": 0.0},
    **{"rope_theta": 1e4, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "torch_dtype": "float32"},
}
NEVER = set(PLAIN) - {"num_key_value_heads", "head_dim", "attention_dropout"}
NEVER -= {"bos_token_id", "eos_token_id", "pad_token_id", "torch_dtype"}
BIASES = {"attention_bias": False, "mlp_bias": False}
WINDOWS = {"sliding_window": None, "use_sliding_window": False, "max_window_layers": 28, "layer_types": None}
# By model_type: keys beside the plain ones, and the keys that must not be null beside those that never may.
FAMILIES = {
    "llama": ({**BIASES, "layer_types": None}, {*BIASES}),
    "mistral": ({**BIASES, "sliding_window": 64}, {"num_key_value_heads", "attention_dropout"}),
    "qwen2": (WINDOWS, {"head_dim", "attention_dropout", "use_sliding_window", "max_window_layers"}),
    "qwen3": (
        {**WINDOWS, "attention_bias": False},
        {"attention_bias", "head_dim", "attention_dropout", "use_sliding_window", "max_window_layers"},
    ),
    "smollm3": (
        {**WINDOWS, **BIASES, "no_rope_layer_interval": 4, "no_rope_layers": [1, 0]},
        {*BIASES, "head_dim", "attention_dropout", "use_sliding_window", "no_rope_layer_interval"},
    ),
}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 32, "rope_theta": 1e4}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 1e4, "type": "yarn"}
YARN |= dict.fromkeys(("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"))
LINEAR = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4, "partial_rotary_factor": 1.0}
ROPES = [  # settings, and the keys of them that must not be null
    (LLAMA3, set(LLAMA3)),
    (YARN, {"rope_type", "rope_theta", "original_max_position_embeddings"}),
    (LINEAR, set(LINEAR)),
]


def with_null(fields, key):
    return {**fields, key: None}


def cases():
    for family, (more, refused) in FAMILIES.items():
        fields = {**PLAIN, **more, "model_type": family}
        for key in fields.keys() - {"model_type"} | {"rope_parameters", "rope_scaling", "dtype"}:
            yield pytest.param(with_null(fields, key), key, key in NEVER | refused, id=f"{family}-{key}")
    plain = {key: value for key, value in PLAIN.items() if key != "rope_theta"} | {"model_type": "llama"}
    for rope, refused in ROPES:
        for key in rope:
            fields = {**plain, "rope_parameters": with_null(rope, key)}
            yield pytest.param(fields, key, key in refused, id=f"{rope['rope_type']}-{key}")
    inner = {"rope_type": "default", "rope_theta": 5e5}
    yield pytest.param({**plain, "rope_theta": None, "rope_parameters": inner}, "rope_theta", False, id="theta-inside")


CASES = sorted(cases(), key=lambda case: case.id)


@pytest.mark.parametrize(("fields", "key", "refused"), CASES)
def test_a_null_is_refused_where_it_must_be(fields, key, refused):
    problems = []
    config = read_config(fields, problems)
    assert (len(problems) == 1 and key in problems[0]) if refused else (not problems and config is not None), problems


@pytest.mark.parametrize(("fields", "key", "refused"), CASES)
def test_transformers_refuses_the_same(fields, key, refused):
    pytest.importorskip("torch", reason=REASON)
    transformers = pytest.importorskip("transformers", reason=REASON)
    try:
        transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**fields))
    except Exception:  # of many kinds, huggingface_hub's own among them
        assert refused
    else:
        assert not refused
