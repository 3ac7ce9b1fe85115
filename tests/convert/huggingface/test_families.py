"""Every family of LLaMA: the numbers of transformers, from a config.json as the real models have it.

Each row is a tiny random model of such a config. What transformers makes of it is recorded in data/families.json, so
that nothing here is skipped where torch is not; where it is, transformers is asked again, for all logits, and for
those recorded. After a change of rows the record is renewed by

    PYTHONPATH=.:tests python tests/convert/huggingface/test_families.py
"""

import json
import math
import pathlib
from functools import cache
from tempfile import TemporaryDirectory

import jax
import numpy as np
import oracle
import pytest
import safetensors.numpy
import tiny
from converted import loaded

import msrnn_jax as ms
from convert.huggingface.config import read_config
from msrnn_jax.config import MAX_WINDOW
from msrnn_jax.recurrence.rotary import inverse_frequencies, query_scale
from msrnn_jax.recurrence.sliding_window import most_held

REASON = "needs torch==2.13.0 and transformers: pip install 'msrnn_jax[test,torch]'"
RECORD = pathlib.Path(__file__).parents[2] / "data" / "families.json"
NUM_POSITIONS, NUM_TOKENS = 12, 9  # of the logits recorded, from the first to the last
DIGITS = 6  # of each

ORIGINAL = 48  # the original context length of scaled positions, and where windows are met
WINDOW = 20
BEYOND = 64  # tokens read after that
TOLERANCE = 1e-4  # float32 sums in another order; logits reach 9, and 3.3e-5 was the largest difference

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
            **{**LLAMA2, "max_length": ORIGINAL, "max_position_embeddings": ORIGINAL},
            "max_sequence_length": 4 * ORIGINAL,
            **{"pad_token_id": 0, "num_key_value_heads": 6, "rope_scaling": {"factor": 4.0, "type": "linear"}},
        },
        {"max_length": ORIGINAL, "rope": ms.Rope(1e4, "linear", 4.0)},
    ),
    "longchat-1.5": (
        {
            **{**LLAMA2, "max_position_embeddings": ORIGINAL, "num_key_value_heads": 6},
            "rope_scaling": {"factor": 8.0, "type": "linear"},
        },
        {"max_length": ORIGINAL, "rope": ms.Rope(1e4, "linear", 8.0)},
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
        {**MISTRAL, "head_dim": 8, "hidden_size": 60, "rope_theta": 1000000.0, "sliding_window": None},
        {"head_dim": 8, "model_dim": 60, "sliding_window": None},
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
SPECIAL = ("qk_norm", "unrotated_layers", "sliding_window", "sliding_layers", "rope")
SPECIAL += ("attention_bias", "output_bias", "mlp_bias")


def weights_of(config):
    """Random weights [out, in] by Hugging Face's names; nothing keeps the value that a model starts with.

    The legacy generator is the one whose numbers NumPy never changes.
    """
    width, heads, kv_heads = config.model_dim, config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    shapes = {"model.embed_tokens.weight": (config.vocab_size, width), "model.norm.weight": (width,)}
    if not config.tied_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, width)
    for layer in range(config.num_layers):
        modules = {
            "self_attn.q_proj": (heads, width, config.attention_bias),
            "self_attn.k_proj": (kv_heads, width, config.attention_bias),
            "self_attn.v_proj": (kv_heads, width, config.attention_bias),
            "self_attn.o_proj": (width, heads, config.output_bias),
            "mlp.gate_proj": (config.mlp_dim, width, config.mlp_bias),
            "mlp.up_proj": (config.mlp_dim, width, config.mlp_bias),
            "mlp.down_proj": (width, config.mlp_dim, config.mlp_bias),
        }
        norms = {"input_layernorm": width, "post_attention_layernorm": width}
        norms |= dict.fromkeys(("self_attn.q_norm", "self_attn.k_norm"), config.head_dim) if config.qk_norm else {}
        root = f"model.layers.{layer}"
        shapes |= {f"{root}.{name}.weight": (size,) for name, size in norms.items()}
        for name, (rows, columns, bias) in modules.items():
            shapes[f"{root}.{name}.weight"] = (rows, columns)
            if bias:
                shapes[f"{root}.{name}.bias"] = (rows,)
    random = np.random.RandomState(7)
    weights = {}
    for name, shape in shapes.items():
        noise = random.standard_normal(shape)
        gain = 2.0 if "q_proj" in name or "k_proj" in name or "lm_head" in name else 1.0
        scaled = 0.5 * noise if name.endswith("bias") else gain * noise / math.sqrt(shape[-1])
        weights[name] = (1 + 0.3 * noise if name.endswith("norm.weight") else scaled).astype(np.float32)
    return weights


def write(folder, fields):
    """A checkpoint of the config in these fields."""
    config, problems = read(fields)
    assert config is not None and not problems
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(fields))
    safetensors.numpy.save_file(weights_of(config), folder / "model.safetensors", {"format": "pt"})
    return folder


def text_of(config):
    """Tokens: where positions are scaled or layers slide, beyond the original context."""
    scaled = config.rope.kind != "default" or config.sliding_window is not None
    return np.random.RandomState(3).randint(0, config.vocab_size, ORIGINAL + BEYOND if scaled else 30).astype(np.int32)


@cache
def ask_transformers(name):
    """What transformers computes: its config as it writes it, and logits [T, V]."""
    torch = pytest.importorskip("torch", reason=REASON)
    transformers = pytest.importorskip("transformers", reason=REASON)
    transformers.utils.logging.disable_progress_bar()
    with TemporaryDirectory() as folder:
        source = write(pathlib.Path(folder) / "theirs", ROWS[name][0])
        model, found = transformers.AutoModelForCausalLM.from_pretrained(
            source, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
        )
        model.config.save_pretrained(pathlib.Path(folder) / "written")
        written = json.loads((pathlib.Path(folder) / "written/config.json").read_text())
    assert not any(found.values()), found  # every tensor is there, under its name and in its shape
    config, _ = read(ROWS[name][0])
    with torch.no_grad():
        return written, model.eval()(torch.tensor(text_of(config)[None].astype(np.int64))).logits[0].numpy()


def recorded_places(count, size):
    """Positions and tokens whose logits are recorded, the first and the last among them."""
    spread = (
        np.linspace(0, last - 1, number).round().astype(int)
        for last, number in ((count, NUM_POSITIONS), (size, NUM_TOKENS))
    )
    return np.ix_(*spread)


def record():
    """Writes what transformers computes for every row."""
    rows = {}
    for name in ROWS:
        _, logits = ask_transformers(name)
        some = logits[recorded_places(*logits.shape)]
        rows[name] = [[float(f"{value:.{DIGITS}g}") for value in row] for row in some]
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(values)}" for name, values in rows.items())
    RECORD.write_text(f"{{\n{lines}\n}}\n")


@jax.jit
def run(config, params, state, tokens):
    """Logits [T, V]."""
    return ms.extend(config, ms.Full(), params, state, tokens, chunk=37)[1]


@cache
def ours(name):
    """The converted model of a row: config, params, and the logits [T, V] of its text."""
    with TemporaryDirectory() as folder:
        source = write(pathlib.Path(folder) / "theirs", ROWS[name][0])
        config, params = loaded(source, "float32")
    params = jax.tree.map(jax.numpy.asarray, params)
    tokens = text_of(config)
    budget = tuple(most_held(config, "absolute", layer, len(tokens)) for layer in range(config.num_layers))
    return config, params, np.asarray(run(config, params, ms.init_state(config, ms.Full(), budget), tokens))


# The other rows differ from these in sizes and factors alone.
TYPICAL = ("llama-2", "llama-3.2", "vicuna-1.5-16k", "yi", "biases", "mistral-0.1", "mistral-nemo")
TYPICAL += ("qwen2-sliding", "qwen2.5-yarn", "qwen3", "qwen3-yarn", "smollm3", "smollm3-sliding")


@pytest.mark.parametrize("name", tiny.few(ROWS, *TYPICAL))
def test_the_numbers_of_transformers(name):
    """As they were recorded."""
    config, params, logits = ours(name)
    for field, value in ROWS[name][1].items():
        assert getattr(config, field) == value, field
    tokens = text_of(config)
    if config.rope.kind != "default":
        original = config.max_length if config.rope.kind == "linear" else config.rope.original_length
        assert len(tokens) >= original + BEYOND
    places = recorded_places(*logits.shape)
    recorded = np.array(json.loads(RECORD.read_text())[name])
    beyond = places[0][:, 0] >= ORIGINAL
    np.testing.assert_allclose(logits[places][~beyond], recorded[~beyond], rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(logits[places][beyond], recorded[beyond], rtol=0, atol=TOLERANCE)

    # Whatever is special would be missed.
    for field, ignorant, weights in without_each(config, params):
        wrong = np.abs(oracle.full_logits(ignorant, weights, tokens.tolist())[places] - recorded)
        assert wrong.max() > 100 * TOLERANCE, field
        if field == "rope":
            assert wrong[beyond].max() > 100 * TOLERANCE


@pytest.mark.parametrize("name", ROWS)
def test_the_numbers_of_the_transformers_installed(name):
    """All of them, and that they are those recorded."""
    written, theirs = ask_transformers(name)
    config, _, logits = ours(name)
    np.testing.assert_allclose(logits[:ORIGINAL], theirs[:ORIGINAL], rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(logits[ORIGINAL:], theirs[ORIGINAL:], rtol=0, atol=TOLERANCE)
    recorded = json.loads(RECORD.read_text())[name]
    np.testing.assert_allclose(theirs[recorded_places(*theirs.shape)], recorded, rtol=0, atol=TOLERANCE / 2)
    # transformers writes the config anew, in its own spelling: both say the same.
    again, problems = read(written)
    assert again == config and not problems


BIASES = {
    "attention_bias": ("query_bias", "key_bias", "value_bias"),
    "output_bias": ("output_bias",),
    "mlp_bias": ("gate_bias", "up_bias", "down_bias"),
}


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
            biases = dict.fromkeys(BIASES[field])
            weights = params.replace(layers=tuple(w.replace(**biases) for w in params.layers))
        yield field, config.replace(**changes), weights


def test_the_sizes_of_scaling_are_such_that_it_does_something():
    """yarn and llama3 leave and divide some pair each, and yarn blends one; llama3 does in test_huggingface_reader."""
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
    transformers = pytest.importorskip("transformers")
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


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "smollm3"])
def test_heads_that_do_not_divide_the_width_are_refused_where_the_config_class_refuses_them(family):
    transformers = pytest.importorskip("transformers", reason=REASON)
    fields = {**SIZES, "model_type": family, "num_attention_heads": 10, "num_key_value_heads": 2, "head_dim": 8}
    _, problems = read(fields)
    try:
        transformers.AutoConfig.for_model(**fields)
    except Exception as error:  # not a ValueError but huggingface_hub's own
        assert "is not a multiple of the number of attention" in str(error)
        assert "hidden_size 48 is no multiple of num_attention_heads 10" in problems[0]
    else:
        assert not problems


@pytest.mark.parametrize("fields", [LLAMA, QWEN2, QWEN3, SMOLLM3], ids=lambda fields: fields["model_type"])
def test_heads_of_keys_that_are_null_are_all(fields):
    config, problems = read({**fields, "num_key_value_heads": None})
    assert config is not None and not problems
    assert config.num_kv_heads == config.num_heads == 6


def test_a_window_that_smollm3_does_not_use():
    window = {"sliding_window": WINDOW, "layer_types": None, "use_sliding_window": False}
    config, problems = read({**SMOLLM3, **window})
    assert config is not None and not problems
    assert config.sliding_window is None and config.unrotated_layers == (3,)
    transformers = pytest.importorskip("transformers")
    assert "sliding_attention" not in transformers.AutoConfig.for_model(**{**SMOLLM3, **window}).layer_types


def test_the_largest_window():
    config, problems = read({**MISTRAL, "sliding_window": MAX_WINDOW})
    assert config is not None and not problems
    params = ms.init_params(config, jax.random.key(0))
    tokens = np.arange(9, dtype=np.int32)
    logits = []
    for one in (config, config.replace(sliding_window=None)):
        logits.append(np.asarray(run(one, params, ms.init_state(one, ms.Full(), 9), tokens)))
    np.testing.assert_allclose(logits[0], logits[1], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("first", [0, 1, 28])
@pytest.mark.parametrize("base", [QWEN2, QWEN3], ids=["qwen2", "qwen3"])
def test_layers_that_slide_in_qwen(base, first):
    fields = {**base, "num_hidden_layers": 3, **SLIDING, "max_window_layers": first, "use_sliding_window": True}
    config, problems = read(fields)
    transformers = pytest.importorskip("transformers")
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
        ({**LLAMA, **SLIDING}, "sliding_window 20 (must be None)"),
        ({**LLAMA, "layer_types": ["sliding_attention"] * 2}, "must be 'full_attention' for every layer"),
        ({**LLAMA, "rope_condense_ratio": 8}, "rope_condense_ratio 8 (must be 1)"),
        ({**LLAMA, "no_rope_layers": [1, 0]}, "unknown key 'no_rope_layers'"),
        (
            {**MISTRAL, "sliding_window": MAX_WINDOW + 1},
            "Config.sliding_window is 2147483648; it must be a whole number",
        ),
        ({**LLAMA, "num_attention_heads": 5, "head_dim": 8}, "hidden_size 48 is no multiple of num_attention_heads 5"),
        ({**LLAMA, "rope_theta": 10**400}, "rope_theta: Rope.theta is 1000"),
        ({**LLAMA, "rms_norm_eps": 10**400}, "rms_norm_eps is 1000"),
        ({**QWEN3, "rope_scaling": {**YARN, "factor": 10**400}}, "rope_scaling: Rope.factor is 1000"),
        ({**QWEN3, "rope_scaling": {**YARN, "mscale": 10**400}}, "rope_scaling: mscale is 1000"),
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
        ({**QWEN3, "rope_scaling": {"type": "longrope"}}, "its frequencies depend on how long the whole text is"),
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


@pytest.mark.parametrize("name", ["mscale", "mscale_all_dim"])
def test_one_scale_of_yarn_alone_says_nothing(name):
    """As in transformers, which takes the usual factor then, 0.1 ln(4) + 1."""
    config, problems = read({**QWEN3, "rope_scaling": {**YARN, name: 0.5}})
    assert config is not None and not problems
    assert query_scale(config.rope) == pytest.approx((0.1 * math.log(4) + 1) ** 2)


@pytest.mark.parametrize("kind", ["yarn", "llama3"])
def test_the_length_of_the_first_llamas_is_nothing_that_scaling_goes_by(kind):
    """Nor anything else: the config class does not look at it."""
    scaling = {**LLAMA31, "type": kind, "rope_type": kind}
    del scaling["original_max_position_embeddings"]
    scaling = {"type": "yarn", "factor": 4.0} if kind == "yarn" else scaling
    fields = {**SIZES, "model_type": "llama", "max_sequence_length": 16384, "rope_scaling": scaling}
    config, problems = read(fields)
    assert config is not None and not problems
    assert config.rope.original_length == config.max_length == 2048


@pytest.mark.parametrize("factor", [0.5, 1.0])
def test_two_scales_of_yarn_make_nothing_of_a_factor_that_does_not_scale(factor):
    rope = {**YARN, "factor": factor, "mscale": 1.5, "mscale_all_dim": 0.5}
    config, problems = read({**QWEN3, "rope_scaling": rope})
    assert config is not None and not problems
    assert query_scale(config.rope) == 1


STATED = {**QWEN3, "rope_scaling": {**YARN, "attention_factor": 1.25, "mscale": 1.5, "mscale_all_dim": 0.5}}
SCALED = {**QWEN3, "rope_scaling": {**YARN, "mscale": 1.5, "mscale_all_dim": 0.5}}


def test_a_stated_attention_factor_wins_over_scales_of_yarn():
    """Products of queries and keys are then 1.25^2 as large; by scales (0.15 ln 4 + 1)^2 / (0.05 ln 4 + 1)^2."""
    for fields, scale in ((STATED, 1.5625), (SCALED, 1.276094)):
        config, problems = read(fields)
        assert config is not None and not problems
        assert query_scale(config.rope) == pytest.approx(scale, rel=1e-6)


@pytest.mark.parametrize("fields", [STATED, SCALED], ids=["stated", "scales"])
def test_the_attention_factor_is_that_of_transformers(fields):
    pytest.importorskip("torch", reason=REASON)
    rope_utils = pytest.importorskip("transformers.modeling_rope_utils", reason=REASON)
    transformers = pytest.importorskip("transformers", reason=REASON)
    theirs = transformers.AutoConfig.for_model(**fields)
    _, factor = rope_utils.ROPE_INIT_FUNCTIONS["yarn"](theirs, "cpu")
    config, _ = read(fields)
    assert config is not None and query_scale(config.rope) == pytest.approx(factor**2)


if __name__ == "__main__":
    record()
