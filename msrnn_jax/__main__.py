"""Entry point of `msrnn`, and of `python -m msrnn_jax`: ready for ctrl-C before anything else is imported."""

import os
import signal
import sys
from typing import Any


def main() -> None:
    """Runs the command line."""
    end_at_once_on_interrupts()
    from msrnn_jax.cli.app import app

    sys.exit(app())


def end_at_once_on_interrupts() -> None:
    """Makes ctrl-C end the process without a traceback, until a command takes over."""
    signal.signal(signal.SIGINT, _end_at_once)


def _end_at_once(number: int, frame: Any) -> None:
    del frame
    os.write(2, b"interrupted\n")
    os._exit(128 + number)


if __name__ == "__main__":
    main()
