"""Records what transformers makes of the GGUF file of SmolLM2, by its own reading of weights, tokens and chat template.

    python tests/data/record_smollm2.py SmolLM2-135M-Instruct.Q4_1.gguf tests/data/smollm2_logits.json

Needs torch, transformers, accelerate, gguf and jinja2, and nothing of ours, so that no mistake of our converter or
tokenizer can get into the numbers. Only `gguf.dequantize` is called on both sides. `tests/model/test_recorded.py` needs
neither torch nor transformers.
"""

import argparse
import hashlib
import json
import pathlib

import numpy as np
import torch
import transformers

# No digits: transformers ignores the file's pre-tokenizer, 'smollm', which takes them one by one. No merge of this
# vocabulary joins two, so the tokens would be the same, but the test is not to rest on that.
TEXT = (
    "The lighthouse keeper had counted ships for thirty years. Every evening he climbed the spiral stairs, lit the "
    "lamp, and wrote the names of the vessels that passed into a small blue notebook. One night in October, no ships "
    "came at all, and so"
)
MESSAGES = [{"role": "user", "content": "What is the capital of France? Answer with one word."}]
NUM_POSITIONS = 8
NUM_TOKENS = 40


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
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    arguments = parser.parse_args()

    folder, name = arguments.model.parent, arguments.model.name
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=name)
    text = tokenizer(TEXT)["input_ids"]
    chat = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=False)
    assert not any(letter.isdigit() for letter in tokenizer.decode(text + chat))
    # Half of them tokens of the text, so that likely ones are among them, half spread over the vocabulary.
    frequent = sorted(set(text))[: NUM_TOKENS // 2]
    spread = np.linspace(100, model.config.vocab_size - 1, NUM_TOKENS - len(frequent)).astype(int).tolist()
    recorded = {
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "source": {name: hashlib.sha256(arguments.model.read_bytes()).hexdigest()},
        "text": TEXT,
        "messages": MESSAGES,
        "watched": frequent + spread,
        "runs": {"text": record(model, text, frequent + spread), "chat": record(model, chat, frequent + spread)},
    }
    arguments.out.write_text(json.dumps(recorded) + "\n")
    for label, run in recorded["runs"].items():
        best = [tokenizer.decode([token]) for token in run["argmax"]]
        print(f"{label}: {len(run['tokens'])} tokens, loss {run['loss']}, best at {run['positions']}: {best}")


if __name__ == "__main__":
    main()
