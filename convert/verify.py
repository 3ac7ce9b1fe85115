"""Whether a converted checkpoint computes what its source does in transformers."""

import contextlib
import importlib
import io
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int

import msrnn_jax as ms
from msrnn_jax.checkpoint.layout import CONFIG_FILE, read_config
from msrnn_jax.io.errors import first_line, typed_line
from msrnn_jax.recurrence.rotary import inverse_frequencies

from .folder import parse_object
from .huggingface.layers import SLIDING

TEXTS = 2
LENGTH = 64  # tokens of a text, or as many as the model's context has
LAST_BIT = 2.0**-23  # of a float32, relative
FREQUENCIES = 1e-5  # relative; transformers computes them in float32
# Two programs that add the same products in another order were seen to differ by up to 1.1 times what moving each
# weight by a last bit does; the smallest mistake of the tests, weights rounded to float16, by 96 times that.
MARGIN = 10.0


def check_verifiable(*, gguf: bool = False) -> None:
    """Refuses where a package is missing that verifying needs, so that nobody waits for a conversion first.

    Args:
      gguf: whether the source is a GGUF file, for which transformers needs one more.

    Raises:
      ValueError: torch, transformers or accelerate is missing or broken.
    """
    needed = ["torch", "transformers", *(["accelerate"] if gguf else [])]
    for name in needed:
        try:
            importlib.import_module(name)
        except (ImportError, OSError) as error:  # OSError: a library of torch's cannot be loaded
            raise ValueError(
                f"to verify, the package {name!r} is needed, and it cannot be imported ({first_line(error)}); "
                f"pip install {' '.join(needed)}"
            ) from error


def verify(source: Path, checkpoint: Path, *, report: Callable[[str], None]) -> None:
    """Compares the logits of both on fixed random tokens, with full attention, in float32 on the CPU.

    The source's weights are first rounded to the checkpoint's dtype, so that only the conversion is judged. What
    rounding explains is measured: it is `MARGIN` times the difference that noise in the last bit of every weight
    makes to transformers' own logits. What so few tokens do not show is compared as transformers has read it from a
    folder: windows, the frequencies of the rotation and the length of the context (not so of a .gguf file, of whose
    settings it leaves some out). First the source, then the checkpoint is loaded whole, in float32: that takes
    4 bytes of memory a weight, and some more for the largest.

    Args:
      source: a Hugging Face folder or a .gguf file, as it was converted. No code of it is run, nothing is downloaded.
      checkpoint: what was made of it.
      report: called with lines on what is going on.

    Raises:
      ValueError: torch or transformers is missing, transformers cannot load the source, or the settings or the logits
        differ, these by more than rounding explains.
    """
    check_verifiable(gguf=not source.is_dir())
    import transformers

    config = read_config(checkpoint, dtype="float32")
    dtype = parse_object((checkpoint / CONFIG_FILE).read_text(encoding="utf-8"), CONFIG_FILE)["dtype"]
    if not source.is_dir():
        _check_gguf(source, config)
    length = min(LENGTH, config.max_length)
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (TEXTS, length), np.int32)
    report(f"verifying with transformers {transformers.__version__}: {TEXTS} texts of {length} tokens in float32")
    model = _load_theirs(source)
    settings = _their_settings(model) if source.is_dir() else {}
    theirs, noise = _their_logits(model, dtype, tokens)
    del model
    if theirs.shape[-1] != config.vocab_size:
        raise ValueError(
            f"{checkpoint} is not made of {source}: it has {config.vocab_size} logits, "
            f"and its source {theirs.shape[-1]}"
        )
    different = f"{checkpoint} does not compute what {source} does in transformers"
    _check_settings(settings, config, different)
    ours = _our_logits(checkpoint, tokens)
    difference = float(np.abs(ours - theirs).max())
    allowed = MARGIN * max(noise, LAST_BIT * float(np.abs(theirs).max()))
    same = int((ours.argmax(-1) == theirs.argmax(-1)).sum())
    found = (
        f"the largest difference of a logit is {difference:.1e}, where rounding explains {allowed:.1e} (they reach "
        f"{np.abs(theirs).max():.1f}), and {same} of {tokens.size} greedy tokens agree"
    )
    if not difference <= allowed:  # nor is NaN
        raise ValueError(f"{different}: {found}")
    report(found)


def _check_gguf(source: Path, config: ms.Config) -> None:
    """Refuses what transformers leaves out, without a word, when it reads a GGUF file of a LLaMA."""
    lost = [name for name in ("attention_bias", "mlp_bias") if getattr(config, name)]
    lost += [f"rope scaling ({config.rope.kind})"] if config.rope.kind != "default" else []
    lost += ["sliding window"] if config.sliding_window is not None else []
    if lost:
        raise ValueError(f"{source} cannot be verified: transformers reads no {' and no '.join(lost)} of GGUF files")


def _their_settings(model: Any) -> dict[str, Any]:
    """What transformers goes by that may show in longer texts only."""
    stated = model.config
    kinds = getattr(stated, "layer_types", None) or [SLIDING] * stated.num_hidden_layers
    window = getattr(stated, "sliding_window", None)
    return {
        "context": stated.max_position_embeddings,
        "windows": [window if kind == SLIDING else None for kind in kinds],
        "frequencies": model.model.rotary_emb.inv_freq.double().tolist(),
    }


def _check_settings(theirs: Mapping[str, Any], config: ms.Config, different: str) -> None:
    """Refuses settings other than those; none are compared where there are none."""
    if not theirs:
        return
    ours = {"context": config.max_length, "windows": [config.window_of(layer) for layer in range(config.num_layers)]}
    for name, value in ours.items():
        if theirs[name] != value:
            raise ValueError(f"{different}: {name} {value}, there {theirs[name]}")
    frequencies = inverse_frequencies(config.rope, config.head_dim)
    if not np.allclose(frequencies, theirs["frequencies"], rtol=FREQUENCIES, atol=0.0):
        raise ValueError(f"{different}: the frequencies of the rotation differ")


def _our_logits(checkpoint: Path, tokens: Int[np.ndarray, "B T"]) -> Float[np.ndarray, "B T V"]:
    with jax.default_device(jax.local_devices(backend="cpu")[0]):  # others may multiply with fewer bits
        config, params = ms.load(checkpoint, dtype="float32")
        state = ms.init_state(config, ms.Full(), budget=tokens.shape[1])
        return np.stack([np.asarray(ms.extend(config, ms.Full(), params, state, text)[1]) for text in tokens])


def _their_logits(model: Any, dtype: str, tokens: Int[np.ndarray, "B T"]) -> tuple[Float[np.ndarray, "B T V"], float]:
    """The source's logits, and the largest difference that noise in the last bit of every weight makes to them.

    Args:
      model: the source in transformers; its weights are changed.
      dtype: that the weights are rounded to before.
    """
    import torch  # pyright: ignore[reportMissingImports]

    batch = torch.tensor(tokens, dtype=torch.long)
    random = torch.Generator().manual_seed(0)

    def logits() -> np.ndarray:
        return model(batch, use_cache=False).logits.float().numpy()

    with torch.inference_mode():
        for weight in model.parameters():
            weight.copy_(weight.to(getattr(torch, dtype)).to(torch.float32))
        exact = logits()
        for weight in model.parameters():
            up = torch.rand(weight.shape, generator=random) < 0.5
            weight.copy_(torch.nextafter(weight, torch.where(up, torch.inf, -torch.inf)))
        return exact, float(np.abs(logits() - exact).max())


def _load_theirs(source: Path) -> Any:
    import torch  # pyright: ignore[reportMissingImports]
    import transformers

    path, options = source, {"use_safetensors": True}
    if not source.is_dir():
        path, options = source.parent, {"gguf_file": source.name}
    try:
        with _quiet(transformers.utils.logging):
            loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
                path,
                dtype=torch.float32,
                attn_implementation="eager",
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
                **options,
            )
    except Exception as error:  # whatever it makes of somebody's files
        raise ValueError(f"transformers cannot load {source}: {typed_line(error)}") from error
    model, found = loaded
    missing = sorted(found["missing_keys"])
    if missing:
        raise ValueError(f"{source} cannot be verified: transformers finds no {missing[0]} in it, and makes one up")
    return model.eval()


@contextlib.contextmanager
def _quiet(logging: Any) -> Iterator[None]:
    """Without transformers' progress bars, of which one for GGUF files cannot be turned off, and warnings."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
