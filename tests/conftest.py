"""What must be so before any test is imported."""

import os
import signal

if "PYTEST_XDIST_WORKER" in os.environ:
    # The workers share the cores. Threads that wait for each other spin: they slow other workers thirtyfold.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import penstock  # noqa: F401, I001 - before torch, which it may hold to a level of instructions
import torch
from hypothesis import HealthCheck, settings

# A busy machine may take any time for an example. A change is judged by the same examples everywhere; `make soak` draws
# others each time.
settings.register_profile("random", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("repeatable", settings.get_profile("random"), derandomize=True)
settings.load_profile("repeatable")

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # Triton looks when it is imported, which torch may do for itself

# A shell ignores SIGINT for what it runs in the background. Children inherit that, and Python then has no handler for
# Ctrl-C. Tests interrupt themselves and their children.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
