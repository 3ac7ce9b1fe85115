"""Experiments of the paper, one file per table or figure; run them from the checkout."""

import signal
import sys
import threading

# So it is while `python -m` imports an experiment, which takes seconds. A ctrl-C then ends the process: it might
# else land in a callback of JAX and be lost. Commands see to their signals once they run.
if sys.argv[:1] == ["-m"] and threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.SIG_DFL)
