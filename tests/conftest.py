"""What must be so before any test is imported."""

import os

import torch
from hypothesis import settings

settings.register_profile("any machine", deadline=None)  # a busy machine may take any time for an example
settings.load_profile("any machine")

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # Triton looks when it is imported, which torch may do for itself
