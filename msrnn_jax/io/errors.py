"""Errors in one line."""


def in_words(error: BaseException) -> str:
    """An error of somebody else's code in one line: its type and the first line of what it says."""
    line = first_line(error)
    return f"{type(error).__name__}: {line}" if line else type(error).__name__


def first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), "")


def lacks_memory(error: Exception) -> bool:
    """Whether a JaxRuntimeError is for want of memory, as XLA says it on every kind of device."""
    return "RESOURCE_EXHAUSTED" in str(error)
