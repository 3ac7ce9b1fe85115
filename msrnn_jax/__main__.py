"""Entry point of `msrnn`, and of `python -m msrnn_jax`: ready for ctrl-C before anything else is imported."""

import os
import signal
import sys
from typing import Any


def main() -> None:
    """Runs the command line."""
    signal.signal(signal.SIGINT, _end_at_once)  # until a command takes over
    from msrnn_jax.cli import app

    sys.exit(app())


def _end_at_once(number: int, frame: Any) -> None:
    del frame
    os.write(2, b"interrupted\n")
    os._exit(128 + number)


if __name__ == "__main__":
    main()
