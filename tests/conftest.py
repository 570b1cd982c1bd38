"""What holds for every test process."""

import os
import signal
from pathlib import Path

from hypothesis import settings

# A shell starts background jobs with Ctrl-C ignored, and programs started by the tests would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A busy machine makes a test slow, not wrong.
settings.register_profile("ssd2", deadline=None)
settings.load_profile("ssd2")

# Kernels for a card run under Triton's interpreter where there is none; it asks when they are defined.
if not Path("/dev/nvidiactl").exists():
    os.environ["TRITON_INTERPRET"] = "1"
