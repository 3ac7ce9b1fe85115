"""Tiny checkpoints in other people's formats, written apart from the code that reads them."""

import json
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
import safetensors.numpy
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from msrnn_jax.config import Config

# Sizes all different, N * H, K * H, D / N and N / K too; rows are multiples of 32, the block of the quantised types.
V, D, L, N, K, H, F = 53, 64, 3, 8, 2, 16, 160
CONFIG = Config(
    vocab_size=V, model_dim=D, num_layers=L, num_heads=N, num_kv_heads=K, head_dim=H, mlp_dim=F, max_length=128
)
NUMPY_DTYPES = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16, "float32": np.float32, "float64": np.float64}


def make_weights(*, tied: bool = False, bias: bool = False) -> dict[str, np.ndarray]:
    """Random weights in our layout, float32, all exact in bfloat16; layers are spelled `0.query`."""
    random = np.random.default_rng(7)
    shapes: dict[str, tuple[int, ...]] = {"embedding": (V, D), "final_norm": (D,)}
    if not tied:
        shapes["unembedding"] = (D, V)
    for layer in range(L):
        shapes |= {
            f"{layer}.attention_norm": (D,),
            f"{layer}.query": (D, N * H),
            f"{layer}.key": (D, K * H),
            f"{layer}.value": (D, K * H),
            f"{layer}.output": (N * H, D),
            f"{layer}.mlp_norm": (D,),
            f"{layer}.gate": (D, F),
            f"{layer}.up": (D, F),
            f"{layer}.down": (F, D),
        }
        if bias:
            shapes |= {
                f"{layer}.query_bias": (N * H,),
                f"{layer}.key_bias": (K * H,),
                f"{layer}.value_bias": (K * H,),
                f"{layer}.output_bias": (D,),
                f"{layer}.gate_bias": (F,),
                f"{layer}.up_bias": (F,),
                f"{layer}.down_bias": (D,),
            }
    values = {name: random.normal(size=shape) for name, shape in shapes.items()}
    return {name: value.astype(ml_dtypes.bfloat16).astype(np.float32) for name, value in values.items()}


def flatten(params: Any) -> dict[str, np.ndarray]:
    """Params as `make_weights` spells them."""
    named = {name: getattr(params, name) for name in ("embedding", "final_norm", "unembedding")}
    for number, layer in enumerate(params.layers):
        named |= {f"{number}.{name}": value for name, value in vars(layer).items()}
    return {name: np.asarray(value) for name, value in named.items() if value is not None}


def to_huggingface(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same weights as `torch.nn.Linear` and `torch.nn.Embedding` hold them."""
    tensors = {"model.embed_tokens.weight": weights["embedding"], "model.norm.weight": weights["final_norm"]}
    if "unembedding" in weights:
        tensors["lm_head.weight"] = weights["unembedding"].T
    modules = {"query": "self_attn.q_proj", "key": "self_attn.k_proj", "value": "self_attn.v_proj"}
    modules |= {"output": "self_attn.o_proj", "gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj"}
    for layer in range(L):
        root = f"model.layers.{layer}"
        tensors[f"{root}.input_layernorm.weight"] = weights[f"{layer}.attention_norm"]
        tensors[f"{root}.post_attention_layernorm.weight"] = weights[f"{layer}.mlp_norm"]
        for field, module in modules.items():
            weight = weights[f"{layer}.{field}"]
            tensors[f"{root}.{module}.weight"] = weight.T
            if f"{layer}.{field}_bias" in weights:
                tensors[f"{root}.{module}.bias"] = weights[f"{layer}.{field}_bias"]
    return {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}


def huggingface_config(**changes: Any) -> dict[str, Any]:
    """A config.json as transformers 4 wrote it; None takes a key out."""
    fields = {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "head_dim": H,
        "hidden_act": "silu",
        "hidden_size": D,
        "initializer_range": 0.02,
        "intermediate_size": F,
        "max_position_embeddings": 128,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": N,
        "num_hidden_layers": L,
        "num_key_value_heads": K,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "transformers_version": "4.46.0",
        "use_cache": True,
        "vocab_size": V,
    }
    return {key: value for key, value in {**fields, **changes}.items() if value is not None}


def write_huggingface(
    folder: Path,
    *,
    config: dict[str, Any] | None = None,
    tensors: dict[str, np.ndarray] | None = None,
    dtype: str = "float32",
    shards: int = 1,
    files: dict[str, Any] | None = None,
) -> Path:
    """A checkpoint folder; `files` are more JSON or text files by name."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = to_huggingface(make_weights()) if tensors is None else tensors
    tensors = {name: tensor.astype(NUMPY_DTYPES[dtype]) for name, tensor in tensors.items()}
    if shards == 1:
        safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    else:
        weight_map = {}
        for shard in range(shards):
            part = dict(list(tensors.items())[shard::shards])
            name = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
            safetensors.numpy.save_file(part, folder / name)
            weight_map |= dict.fromkeys(part, name)
        index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config = huggingface_config() if config is None else config
    for name, content in {"config.json": config, **(files or {})}.items():
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def tiny_tokenizer() -> str:
    """A byte-level tokenizer of a few tokens, as the content of tokenizer.json."""
    vocabulary = {token: number for number, token in enumerate(["<pad>", "<s>", "</s>", "h", "i", "hi", "Ġ", "<turn>"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("h", "i")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<pad>", "<s>", "</s>", "<turn>"])
    return tokenizer.to_str()


def permute(rows: np.ndarray, heads: int) -> np.ndarray:
    """What llama.cpp's converter does to the rows of q and k: the halves of each head, interleaved."""
    order = [
        head * H + half * (H // 2) + place for head in range(heads) for place in range(H // 2) for half in range(2)
    ]
    return rows[order]


def to_gguf(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same weights under llama.cpp's names, permuted."""
    return from_huggingface_to_gguf(to_huggingface(weights))


def from_huggingface_to_gguf(
    tensors: dict[str, np.ndarray], *, interleaved: bool = True, heads: tuple[int, int] = (N, K)
) -> dict[str, np.ndarray]:
    """Hugging Face's tensors under llama.cpp's names, queries and keys permuted where these are `interleaved`."""
    names = {
        "model.embed_tokens.": "token_embd.",
        "model.norm.": "output_norm.",
        "lm_head.": "output.",
        "model.layers.": "blk.",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.q_norm": "attn_q_norm",
        "self_attn.k_norm": "attn_k_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    rotated = {"q_proj": heads[0], "k_proj": heads[1]} if interleaved else {}
    renamed = {}
    for name, tensor in tensors.items():
        count = rotated.get(name.split(".")[-2])
        for theirs, ggml in names.items():
            name = name.replace(theirs, ggml)
        renamed[name] = tensor if count is None else permute(tensor, count)
    return renamed


def gguf_metadata(architecture: str = "llama", **changes: Any) -> dict[str, Any]:
    """Metadata by key, the architecture left out, dots as `__`; None takes a key out."""
    fields = {
        "block_count": L,
        "context_length": 128,
        "embedding_length": D,
        "feed_forward_length": F,
        "attention__head_count": N,
        "attention__head_count_kv": K,
        "attention__key_length": H,
        "attention__value_length": H,
        "attention__layer_norm_rms_epsilon": 1e-05,
        "rope__freq_base": 10000.0,
        "rope__dimension_count": H,
        "vocab_size": V,
    }
    fields = {key: value for key, value in {**fields, **changes}.items() if value is not None}
    return {f"{architecture}.{key.replace('__', '.')}": value for key, value in fields.items()}


NUMPY_KINDS = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "I8": np.int8}  # the rest is quantised

# Metadata of tokenizers.
ALPHABET = ["Ġ", "h", "i", "1", "2", "3", "!", "Ċ", "o", "w"]
BYTE_LEVEL = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": ["<end>", "<start>", "<note>", *ALPHABET, "hi", "Ġh", "Ġhi", "12", "123", "how"],
    "tokenizer.ggml.token_type": [3, 3, 4, *[1] * (len(ALPHABET) + 6)],
    "tokenizer.ggml.merges": ["h i", "Ġ h", "Ġ hi", "1 2", "12 3"],
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 0,
}

PIECES = {  # piece: type, score
    "<unk>": (2, 0.0),
    "<s>": (3, 0.0),
    "</s>": (3, 0.0),
    **{f"<0x{byte:02X}>": (6, 0.0) for byte in (0x0A, 0xC3, 0xA9)},
    "<turn>": (4, 0.0),
    **dict.fromkeys(["▁", "a", "b", "c", "<", "s>"], (1, -9.0)),
    "ab": (1, -3.0),
    "bc": (1, -2.0),
    "abc": (1, -4.0),
    "▁a": (1, -5.0),
    "▁abc": (1, -6.0),
}
SENTENCEPIECE = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": list(PIECES),
    "tokenizer.ggml.token_type": [kind for kind, _ in PIECES.values()],
    "tokenizer.ggml.scores": [score for _, score in PIECES.values()],
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
}


def write_gguf(
    path: Path,
    *,
    metadata: dict[str, Any] | None = None,
    tensors: dict[str, np.ndarray] | None = None,
    kind: str = "F32",
    kinds: dict[str, str] | None = None,
    tokenizer: dict[str, Any] | None = None,
    architecture: str = "llama",
    split_max_tensors: int = 0,
) -> Path:
    """A GGUF file; matrices are stored as `kind`, or as `kinds` says by tensor name, the rest as F32.

    With `split_max_tensors`, several files of at most so many tensors, the metadata in the first.
    """
    writer = gguf.GGUFWriter(path, architecture, split_max_tensors=split_max_tensors)
    for key, value in {**(gguf_metadata() if metadata is None else metadata), **(tokenizer or {})}.items():
        _add(writer, key, value)
    for name, tensor in (to_gguf(make_weights()) if tensors is None else tensors).items():
        store = (kinds or {}).get(name, kind if tensor.ndim == 2 else "F32")
        ggml = gguf.GGMLQuantizationType[store]
        if tensor.dtype == np.uint8:  # blocks, as they are
            writer.add_tensor(name, tensor, raw_dtype=ggml)
        elif store in NUMPY_KINDS:
            writer.add_tensor(name, tensor.astype(NUMPY_KINDS[store]))
        else:
            writer.add_tensor(name, gguf.quantize(tensor, ggml), raw_dtype=ggml)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if key == "general.alignment":
        writer.add_custom_alignment(value)
    elif isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)
