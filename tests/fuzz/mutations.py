"""Faults that Penstock once had, put back on purpose, each with a case that finds it."""

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch

from penstock.kernels.products import weighted_sum
from penstock.runtime.checkpoints import fp8_layouts
from penstock.runtime.loading import load as loading
from penstock.runtime.packing import pack as packing

Patch = pytest.MonkeyPatch


class Mutation(NamedTuple):
    """``put_back`` brings the fault back. ``case``, a line of JSON, finds it."""

    put_back: Callable[[Patch], None]
    case: str


def _replace(patch: Patch, old: Any, new: Any) -> None:
    """Put ``new`` wherever a module of Penstock has ``old``."""
    for name, module in [*sys.modules.items()]:
        if name.startswith("penstock."):
            for attribute in [key for key, value in vars(module).items() if value is old]:
                patch.setattr(module, attribute, new)


def scales_are_not_used(patch: Patch) -> None:
    """FP8 weights are computed without their scales."""
    patch.setattr(fp8_layouts, "_values", lambda scales: torch.ones_like(scales, dtype=torch.float32))


def small_files_are_those_of_the_bundle(patch: Patch) -> None:
    """What changes beside the weights in the checkpoint is not seen."""
    real = loading.bare_model
    patch.setattr(loading, "bare_model", lambda bundle, trusted, options, source=None: real(bundle, trusted, options))
    patch.setattr(packing, "refresh_model_folder", lambda *_: True)


def an_assert_stands_for_an_old_processor(patch: Patch) -> None:
    """Experts in bfloat16 ask for instructions that are not there."""

    def assert_(*_: Any) -> None:
        assert weighted_sum.LIBRARY is not None

    _replace(patch, weighted_sum.sum_weighted, assert_)
    _replace(patch, weighted_sum.add_weighted, assert_)


MUTATIONS = {
    "scales": Mutation(
        scales_are_not_used,
        '{"model": {"dtype": "bfloat16", "quantised": "fp8.weight_scale tensor"}, "settings": {}, '
        '"steps": [["Forward", {}]]}',
    ),
    "small files": Mutation(
        small_files_are_those_of_the_bundle,
        '{"model": {}, "settings": {}, "steps": [["EditFiles", {}]]}',
    ),
    "old processor": Mutation(
        an_assert_stands_for_an_old_processor,
        '{"model": {"architecture": "mixtral", "dtype": "bfloat16"}, "settings": {"processor": "old"}, '
        '"steps": [["Forward", {"rows": 2}]]}',
    ),
}
