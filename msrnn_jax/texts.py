"""Texts to measure perplexity on."""

import pathlib
from collections.abc import Sequence


def default_text() -> str:
    """About 465,000 characters of English that every Python brings along: its help topics.

    The text differs between Python versions; say its hash beside a number.
    """
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))


def read_texts(paths: Sequence[str | pathlib.Path]) -> list[str]:
    """Reads UTF-8 text files, line ends as `\\n`.

    Raises:
      ValueError: for a path that is missing, no file, empty, or not UTF-8.
    """
    return [_read(pathlib.Path(path)) for path in paths]


def _read(path: pathlib.Path) -> str:
    if not path.exists():
        raise ValueError(f"text file {str(path)!r} does not exist")
    if not path.is_file():
        raise ValueError(f"text file {str(path)!r} is not a file")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"text file {str(path)!r} is not UTF-8: {error.reason} at byte {error.start}") from error
    except OSError as error:
        raise ValueError(f"text file {str(path)!r} cannot be read: {error.strerror}") from error
    if not text.strip():
        raise ValueError(f"text file {str(path)!r} is empty")
    return text
