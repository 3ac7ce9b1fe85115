"""`python -m convert`: ready for ctrl-C before anything else is imported."""

from msrnn_jax.cli.interrupts import end_at_once

if __name__ == "__main__":
    end_at_once()
    from .cli import app

    app(prog_name="python -m convert")
