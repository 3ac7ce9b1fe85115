"""How texts are cut into words before byte-level tokens are merged: `tokenizer.ggml.pre`, by name."""

from typing import NamedTuple

from tokenizers import normalizers, pre_tokenizers

from . import gguf_cuts as cut


class Words(NamedTuple):
    """How texts are cut, and what goes with it.

    Attributes:
      cuts: one after another, each on the pieces that the one before it left.
      gpt2: the words of GPT-2 are cut then.
      spelled: more cuts, when words are spelled in the letters that stand for bytes.
      composed: texts are brought into Unicode's composed form (NFC) first.
      whole: a word that is a token stays whole, whatever the merges say.
      starts: BOS is put before a text where the file does not say whether to.
    """

    cuts: cut.Cuts = ()
    gpt2: bool = False
    spelled: cut.Cuts = ()
    composed: bool = False
    whole: bool = False
    starts: bool = False

    def normalizer(self) -> normalizers.Normalizer | None:
        """What is done to a text first."""
        return normalizers.NFC() if self.composed else None

    def pre_tokenizer(self) -> pre_tokenizers.PreTokenizer:
        """Cuts a text into words, spelled in the letters that stand for bytes."""
        letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=self.gpt2)
        steps = [*self.cuts, letters, *self.spelled]
        return pre_tokenizers.Sequence(steps) if len(steps) > 1 else letters


# The names that llama.cpp knows, for tokenizers of byte-level tokens that a model of our architectures may have.
# What is done is what the tokenizer.json of the family does, where that is known; llama.cpp normalises nothing.
_NAMES = {
    "default": Words(cut.UNKNOWN),
    "gpt-2 phi-2 jais trillion mellum a.x-4.0 gigachat granite-docling exaone4": Words(gpt2=True),
    "mpt olmo": Words(gpt2=True, composed=True),
    "smollm starcoder refact codeshell exaone minerva-7b": Words(cut.DIGITS, gpt2=True),
    "command-r": Words(cut.DIGITS, gpt2=True, composed=True),
    "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2": Words(cut.LLAMA3, whole=True, starts=True),
    "smaug-bpe": Words(cut.LLAMA3, whole=True),  # Llama 3's vocabulary without its BOS: SmolLM3
    "dbrx glm4 chatglm-bpe": Words(cut.LLAMA3),  # OpenAI's cl100k, Phi-4 too
    "minicpm5": Words(cut.MINICPM5, whole=True),
    "tekken": Words(cut.TEKKEN, whole=True, starts=True),  # Mistral Nemo and later
    "gpt-4o llama4 kanana2": Words(cut.GPT4O),
    "qwen2 deepseek-r1-qwen f2llmv2 hunyuan": Words(cut.QWEN2, composed=True),
    "megrez kormo": Words(cut.QWEN2),
    "deepseek-llm": Words(cut.DEEPSEEK_LLM),
    "deepseek-coder": Words(cut.DEEPSEEK_CODER),
    "deepseek-v3 hunyuan-dense": Words(cut.DEEPSEEK_V3),
    "falcon": Words(cut.FALCON_SIGNS, gpt2=True, spelled=cut.FALCON_DIGITS),
    "bailingmoe bailingmoe2 llada-moe": Words(cut.BAILING),
    "seed-coder": Words(cut.SEED_CODER),
    "poro-chat bloom gpt3-finnish": Words(cut.BLOOM),
    "viking": Words(cut.VIKING),
    "superbpe": Words(cut.SUPERBPE),
}
WORDS = {name: words for names, words in _NAMES.items() for name in names.split()}
