"""For all tests: what they start can be interrupted, even where they run in the background of a shell."""

import signal

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # which every child would inherit
    signal.signal(signal.SIGINT, signal.default_int_handler)
