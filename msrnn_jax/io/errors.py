"""Errors in one line."""

LONGEST = 300  # characters


def first_line(error: BaseException) -> str:
    """The first line of what an error says, else its type."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:LONGEST]


def typed_line(error: BaseException) -> str:
    """An error of somebody else's code: its type and the first line of what it says."""
    name = type(error).__name__
    return f"{name}: {first_line(error)}" if str(error).strip() else name


def lacks_memory(error: Exception) -> bool:
    """Whether a JaxRuntimeError is for want of memory, as XLA says it on every kind of device."""
    return "RESOURCE_EXHAUSTED" in str(error)
