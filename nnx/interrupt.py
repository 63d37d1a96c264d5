"""Ctrl-C during training: heard between two steps, never in the middle of one."""

import signal
import threading


class Interrupt:
    """Ctrl-C inside a `with` block: noted, and heard between two runs of steps.

    So an interrupt never leaves half-updated weights. A second one is not held back.
    """

    def __init__(self):
        self.requested = False

    def __enter__(self):
        self._old = None
        if threading.current_thread() is threading.main_thread():
            self._old = signal.getsignal(signal.SIGINT)
            if self._old is signal.default_int_handler:
                signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *exception):
        if self._old is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._old)

    def _note(self, number, frame):
        self.requested = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def check(self):
        """Raise KeyboardInterrupt if Ctrl-C was pressed."""
        if self.requested:
            raise KeyboardInterrupt
