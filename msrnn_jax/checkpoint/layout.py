"""What lies in a checkpoint's folder: a config, weights, and text files beside them."""

import os
import pathlib

from msrnn_jax.config import Config
from msrnn_jax.recurrence.checks import check_dtype

CONFIG_FILE = "config.json"
PARAMS_FOLDER = "params"
TOKENIZER_FILE = "tokenizer.json"
SETTINGS_FILE = "tokenizer_config.json"
TEMPLATE_FILE = "chat_template.jinja"
SOURCE_FILE = "source.json"


def is_checkpoint(folder: pathlib.Path) -> bool:
    """Whether a folder looks like a checkpoint of ours."""
    return (folder / CONFIG_FILE).is_file() and (folder / PARAMS_FOLDER).is_dir()


def existing(path: str | os.PathLike[str]) -> pathlib.Path:
    """The absolute folder of a checkpoint that is there."""
    folder = pathlib.Path(path).absolute()
    if not folder.exists():
        raise ValueError(f"checkpoint {str(path)!r} does not exist; `msrnn convert SRC DST` makes one")
    if not is_checkpoint(folder):
        raise ValueError(
            f"{str(path)!r} is not a checkpoint of this project: it needs {CONFIG_FILE} and {PARAMS_FOLDER}/; "
            "`msrnn convert SRC DST` makes one"
        )
    _stay_inside(folder)
    return folder


def read_config(path: str | os.PathLike[str], *, dtype: str | None = None) -> Config:
    """Reads the config of a checkpoint and nothing of its weights.

    Args:
      dtype: put into the config; by default it is that of the weights.

    Raises:
      ValueError: where the folder is no checkpoint, or its config is damaged.
    """
    return with_dtype(read_config_in(existing(path)), dtype)


def read_config_in(folder: pathlib.Path) -> Config:
    try:
        return Config.from_json((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{str(folder / CONFIG_FILE)!r} cannot be used: {error}") from error


def with_dtype(config: Config, dtype: str | None) -> Config:
    return config.replace(dtype=check_dtype(config.dtype if dtype is None else dtype).name)


def _stay_inside(folder: pathlib.Path) -> None:
    """Refuses links that lead out of the checkpoint's folder."""
    inside = os.path.realpath(folder)
    for place, folders, names in os.walk(folder):
        for name in (*folders, *names):
            path = pathlib.Path(place, name)
            target = pathlib.Path(os.path.realpath(path))
            if not target.is_relative_to(inside):
                raise ValueError(f"{str(path)!r} leads out of the checkpoint's folder")
            if not target.is_dir() and not target.is_file():  # to read from a pipe or a device may never end
                raise ValueError(f"{str(path)!r} is neither a file nor a folder")
