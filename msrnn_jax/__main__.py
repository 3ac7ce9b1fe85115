"""Entry point of `msrnn`, and of `python -m msrnn_jax`: ready for ctrl-C before anything else is imported."""

import sys

from msrnn_jax.cli.interrupts import end_at_once


def main() -> None:
    """Runs the command line."""
    end_at_once()
    from msrnn_jax.cli.app import app

    sys.exit(app())


if __name__ == "__main__":
    main()
