"""Ctrl-C and SIGTERM end a command at once, also inside a compiled program; the next run clears what was half done."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

NUMBERS = (signal.SIGINT, signal.SIGTERM)


def end_at_once() -> None:
    """From here on either signal ends this process, without a traceback.

    A thread hears of it, since the main one cannot while it is inside a compiled program.
    """
    heard, told = os.pipe()
    os.set_blocking(told, False)
    signal.set_wakeup_fd(told, warn_on_full_buffer=False)
    for number in NUMBERS:
        signal.signal(number, lambda number, frame: None)
    threading.Thread(target=_end_when_told, args=(heard,), daemon=True).start()


def _end_when_told(heard: int) -> None:
    while True:
        number = os.read(heard, 1)[0]
        if number in NUMBERS:
            show_cursor = b"\x1b[?25h" if os.isatty(2) else b""  # which bars hide
            with contextlib.suppress(OSError):
                os.write(2, show_cursor + b"interrupted\n")
            os._exit(128 + number)


def raise_on_interrupt() -> None:
    """From here on ctrl-C is a KeyboardInterrupt, and a SIGTERM ends this process as Python does."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextlib.contextmanager
def ending_when_told() -> Iterator[None]:
    """Lets either signal end the processes that a command has started, too: they raise as errors do."""

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        del frame
        raise SystemExit(128 + number)

    wakeup = signal.set_wakeup_fd(-1)
    handlers = {signal.SIGTERM: leave, signal.SIGINT: signal.default_int_handler}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
