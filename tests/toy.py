"""A checkpoint that commands can be run on: a random model with a tokenizer of single characters."""

import json
import pathlib

import tiny
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

import msrnn_jax as ms


def make_toy(path: pathlib.Path, config: ms.Config = tiny.CONFIG) -> str:
    """Writes the checkpoint and returns its path."""
    alphabet = "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTU.\n"
    vocabulary = {"?": 0, **{letter: number for number, letter in enumerate(alphabet[:49], 1)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    settings = json.dumps({"bos_token_id": None, "eos_token_ids": [3]})
    template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    files = {
        "tokenizer.json": tokenizer.to_str(),
        "tokenizer_config.json": settings,
        "chat_template.jinja": template
        + "{% if messages[0]['content'] == 'x' %}{{ raise_exception('no x') }}{% endif %}",
    }
    ms.save(path, config, tiny.params(config=config), files=files)
    return str(path)
