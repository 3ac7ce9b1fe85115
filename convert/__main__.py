"""`python -m convert`: ready for ctrl-C before anything else is imported."""

from msrnn_jax.__main__ import end_at_once_on_interrupts

if __name__ == "__main__":
    end_at_once_on_interrupts()
    from .cli import app

    app(prog_name="python -m convert")
