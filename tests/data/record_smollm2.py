"""Records what transformers computes with the weights of our SmolLM2 checkpoint.

    python tests/data/record_smollm2.py CHECKPOINT tests/data/smollm2_logits.json

Run from the checkout, with the extras `test` and `torch`; `tests/test_recorded.py` then needs neither.
"""

import argparse
import json
import pathlib

import numpy as np
import torch
import transformers

import msrnn_jax as ms

TEXT = (
    "The lighthouse keeper had counted ships for thirty years. Every evening he climbed the spiral stairs, lit the "
    "lamp, and wrote the names of the vessels that passed into a small blue notebook. One night in October, no ships "
    "came at all, and so"
)
MESSAGES = [{"role": "user", "content": "What is the capital of France? Answer with one word."}]
NUM_POSITIONS = 8
NUM_TOKENS = 40


def to_transformers(config: ms.Config, params: ms.Params) -> transformers.LlamaForCausalLM:
    """The same model in torch: matrices turned to [out, in], heads joined; both rotate halves."""
    assert config.tied_embeddings and config.rope.kind == "default"
    assert not config.attention_bias and not config.mlp_bias
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.model_dim,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            intermediate_size=config.mlp_dim,
            max_position_embeddings=config.max_length,
            rms_norm_eps=config.norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope.theta},
            tie_word_embeddings=True,
        )
    )
    tensors = {"model.embed_tokens.weight": params.embedding, "model.norm.weight": params.final_norm}
    for index, layer in enumerate(params.layers):
        layers = {
            "input_layernorm": layer.attention_norm,
            "self_attn.q_proj": layer.query.reshape(config.model_dim, -1).T,
            "self_attn.k_proj": layer.key.reshape(config.model_dim, -1).T,
            "self_attn.v_proj": layer.value.reshape(config.model_dim, -1).T,
            "self_attn.o_proj": layer.output.reshape(-1, config.model_dim).T,
            "post_attention_layernorm": layer.mlp_norm,
            "mlp.gate_proj": layer.gate.T,
            "mlp.up_proj": layer.up.T,
            "mlp.down_proj": layer.down.T,
        }
        tensors |= {f"model.layers.{index}.{name}.weight": value for name, value in layers.items()}
    tensors["lm_head.weight"] = params.embedding
    model.load_state_dict({name: torch.tensor(np.array(value)) for name, value in tensors.items()})
    return model.eval()


def record(model: transformers.LlamaForCausalLM, tokens: list[int], watched: list[int]) -> dict:
    """Logits of the watched tokens, the normaliser and the best token at positions spread over a text."""
    with torch.no_grad():
        logits = model(torch.tensor([tokens])).logits[0]
    positions = np.linspace(0, len(tokens) - 1, NUM_POSITIONS).round().astype(int).tolist()
    losses = torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(tokens[1:]))
    return {
        "tokens": tokens,
        "loss": round(float(losses), 5),
        "positions": positions,
        "argmax": logits[positions].argmax(-1).tolist(),
        "logsumexp": [round(float(value), 5) for value in logits[positions].logsumexp(-1)],
        "logits": [[round(float(value), 5) for value in row] for row in logits[positions][:, watched]],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    arguments = parser.parse_args()

    config, params = ms.load(arguments.checkpoint, dtype="float32")
    tokenizer = ms.load_tokenizer(arguments.checkpoint)
    model = to_transformers(config, params)
    text, chat = tokenizer.encode(TEXT), tokenizer.chat(MESSAGES)
    # Half of them tokens of the text, so that likely ones are among them, half spread over the vocabulary.
    frequent = sorted(set(text))[: NUM_TOKENS // 2]
    spread = np.linspace(100, config.vocab_size - 1, NUM_TOKENS - len(frequent)).astype(int).tolist()
    recorded = {
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "source": json.loads((arguments.checkpoint / "source.json").read_text())["files"],
        "text": TEXT,
        "messages": MESSAGES,
        "watched": frequent + spread,
        "runs": {"text": record(model, text, frequent + spread), "chat": record(model, chat, frequent + spread)},
    }
    arguments.out.write_text(json.dumps(recorded) + "\n")
    for name, run in recorded["runs"].items():
        best = [tokenizer.decode([token]) for token in run["argmax"]]
        print(f"{name}: {len(run['tokens'])} tokens, loss {run['loss']}, best at {run['positions']}: {best}")


if __name__ == "__main__":
    main()
