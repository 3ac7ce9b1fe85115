"""The config.json of a Hugging Face model of the LLaMA family, every key of it accounted for."""

from collections.abc import Mapping
from typing import Any

from msrnn_jax.config import DTYPES, MAX_LAYERS, Config

from ..problems import LARGEST, is_count
from .families import read_family
from .layers import Layers
from .rope import read_rope

SIZES = {
    "vocab_size": "vocab_size",
    "hidden_size": "model_dim",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "intermediate_size": "mlp_dim",
}
OTHERS = ("num_key_value_heads", "head_dim", "rms_norm_eps", "tie_word_embeddings", "model_type")
LENGTH = "max_position_embeddings"
ROPE = ("rope_theta", "rope_scaling", "rope_parameters")
DTYPE = ("dtype", "torch_dtype")

# Keys that no config class takes a null for; `Family.never_null` has those of one class.
NEVER_NULL = (*SIZES, LENGTH, "rms_norm_eps", "tie_word_embeddings", "use_cache", "initializer_range")

# Keys that would change what the model computes; here are the values that do not. The first is named in errors.
FIXED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", "swish"),  # two names of one function
    "rope_interleaved": (False, None),
    "partial_rotary_factor": (1, None),
    "rope_condense_ratio": (1, None),  # FastChat's, before `rope_scaling: {type: linear}` said the same
    "dual_chunk_attention_config": (None, {}),  # Qwen2.5-1M
    "quantization_config": (None,),
    "auto_map": (None, {}),  # code that comes with the checkpoint
    "is_encoder_decoder": (False, None),
    "add_cross_attention": (False, None),
    "cross_attention_hidden_size": (None,),
    "tie_encoder_decoder": (False, None),
    "pruned_heads": ({}, None),
}

# Keys that say nothing about the function computed: training, bookkeeping, the library's switches, token
# ids (read by the tokenizer's part), defaults of `generate` that older versions wrote here, into how many
# slices products were once cut (pretraining_tp), and what no config class looks at (max_sequence_length).
MEANINGLESS = """
    architectures transformers_version transformers.js_config _name_or_path name_or_path _commit_hash
    use_cache initializer_range attention_dropout pretraining_tp is_llama_config unsloth_version unsloth_fixed
    _attn_implementation _attn_implementation_autoset attn_implementation _flash_attn_2_enabled
    bos_token_id eos_token_id pad_token_id sep_token_id unk_token_id decoder_start_token_id
    output_attentions output_hidden_states return_dict use_return_dict torchscript use_bfloat16 tf_legacy_loss
    chunk_size_feed_forward is_decoder id2label label2id num_labels problem_type finetuning_task
    task_specific_params tokenizer_class prefix max_sequence_length
    max_length max_new_tokens min_length min_new_tokens do_sample early_stopping num_beams num_beam_groups
    diversity_penalty temperature top_k top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size
    encoder_no_repeat_ngram_size bad_words_ids num_return_sequences output_scores return_dict_in_generate
    forced_bos_token_id forced_eos_token_id remove_invalid_values exponential_decay_length_penalty
    suppress_tokens begin_suppress_tokens
"""
IGNORED = frozenset(MEANINGLESS.split())
KNOWN = {*SIZES, *OTHERS, LENGTH, *ROPE, *DTYPE, *FIXED, *IGNORED}


def read_config(fields: Mapping[str, Any], problems: list[str]) -> Config | None:
    """Our config, in float32 for now; None if the sizes are too broken to make one.

    Absent keys get the defaults of the family's config class in transformers, except for the sizes, which must be
    there. Everything that cannot be honoured is added to `problems`.
    """
    family = read_family(fields, problems)
    if family is None:
        return None  # what its keys mean is unknown
    known = KNOWN | {*family.biases, *family.fixed, *family.layer_keys, *family.ignored}
    nulls = [key for key in (*NEVER_NULL, *family.biases, *family.never_null) if fields.get(key, "") is None]
    problems += [f"{key} is null, which its config class does not take" for key in nulls]
    if fields.get("model_type") is None:
        problems.append("missing key 'model_type'")
    problems += [f"missing key {key!r}" for key in SIZES if key not in fields]
    fields = {key: value for key, value in fields.items() if key not in nulls}
    problems += [f"unknown key {key!r} = {value!r}" for key, value in fields.items() if key not in known]
    for key, accepted in {**FIXED, **family.fixed}.items():
        if key in fields and fields[key] not in accepted:
            problems.append(f"{key} {fields[key]!r} (must be {accepted[0]!r})")

    sizes = {key: fields.get(key) for key in SIZES}
    heads, width = sizes["num_attention_heads"], sizes["hidden_size"]
    kv_heads: Any = fields.get("num_key_value_heads", family.kv_heads)
    kv_heads = heads if kv_heads is None else kv_heads  # null is no default here
    usual = width // heads if is_count(heads) and is_count(width) and width % heads == 0 else None
    head_dim = _or(fields, "head_dim", usual if family.head_dim is None else family.head_dim)
    max_length = _or(fields, LENGTH, family.max_length)
    norm_eps = _or(fields, "rms_norm_eps", 1e-6)
    if usual is None and (family.whole_heads or head_dim is None) and is_count(heads) and is_count(width):
        reason = "which its config class insists on" if family.whole_heads else "and head_dim is not given"
        problems.append(f"hidden_size {width} is no multiple of num_attention_heads {heads}, {reason}")
    counts = {**sizes, "num_key_value_heads": kv_heads, "head_dim": head_dim, LENGTH: max_length}
    wrong = [
        f"{key} is {value!r}; it must be a positive integer"
        for key, value in counts.items()
        if value is not None and not is_count(value)
    ]
    flags = {"tie_word_embeddings": _or(fields, "tie_word_embeddings", family.tied)}
    flags |= {key: _or(fields, key, False) for key in family.biases}
    wrong += [
        f"{key} is {value!r}; it must be true or false" for key, value in flags.items() if type(value) is not bool
    ]
    if type(norm_eps) not in (int, float) or not 0 < norm_eps <= LARGEST:
        wrong.append(f"rms_norm_eps is {norm_eps!r}; it must be a positive number")
    problems += wrong
    rope = read_rope(fields, problems, family.theta, max_length)
    count = sizes["num_hidden_layers"]
    layers = family.read_layers(fields, count, problems) if is_count(count) and count <= MAX_LAYERS else Layers()
    if wrong or nulls or head_dim is None or None in counts.values():
        return None
    try:
        return Config(
            **{SIZES[key]: value for key, value in sizes.items()},  # pyright: ignore[reportArgumentType]
            **{field: flags[key] for key, ours in family.biases.items() for field in ours},
            **dict.fromkeys(family.always, True),
            **layers._asdict(),
            tied_embeddings=flags["tie_word_embeddings"],
            num_kv_heads=kv_heads,
            head_dim=head_dim,
            max_length=max_length,
            norm_eps=float(norm_eps),
            rope=rope,
        )
    except ValueError as error:
        problems.append(str(error))
        return None


def read_dtype(fields: Mapping[str, Any], problems: list[str]) -> str | None:
    """The dtype that the config states, if it does."""
    stated = {str(fields[key]).removeprefix("torch.") for key in DTYPE if fields.get(key) is not None}
    if len(stated) > 1:
        problems.append(f"dtype {fields['dtype']!r} and torch_dtype {fields['torch_dtype']!r} contradict each other")
    problems += [f"dtype {dtype!r} (must be one of {', '.join(DTYPES)})" for dtype in stated if dtype not in DTYPES]
    return next(iter(stated), None)


def _or(fields: Mapping[str, Any], key: str, default: Any) -> Any:
    value = fields.get(key)
    return default if value is None else value
