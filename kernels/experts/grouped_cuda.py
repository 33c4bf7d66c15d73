"""Experts anywhere in an arena on a device, computed together: two launches for all of them."""

from collections.abc import Sequence

import torch

from ..weights.packed_weight import PackedWeight
from .experts import Expert, Recipe, find_form

_FORMS = {("", ""): False, ("int8", "int8"): True}
"""Formats of an expert's two matrices that have such products, and whether they are int8."""


def group_experts(
    states: Sequence[torch.Tensor], experts: Sequence[Expert], recipe: Recipe
) -> list[torch.Tensor] | None:
    """Compute ``compute_expert`` of each of ``states`` [rows, hidden] with its expert, all in two launches.

    The order of the sums differs from the CPU's. None if there is no such product for these experts, or if their forms
    differ. Raises NoTriton.
    """
    first = experts[0]
    int8 = _FORMS.get(find_form(first))
    if int8 is None or recipe.transposed or states[0].dtype != torch.bfloat16:
        return None
    shapes = (first.up.shape, first.down.shape)
    for expert in experts:
        alike = find_form(expert) == find_form(first) and (expert.up.shape, expert.down.shape) == shapes
        biased = expert.up_bias is not None or expert.down_bias is not None
        if not alike or biased or expert.up.dtype != torch.bfloat16:
            return None
    from ..cuda.grouped import multiply_grouped

    def products(x: torch.Tensor, weights: Sequence[torch.Tensor]) -> torch.Tensor:
        planes = [weight.planes[0] if isinstance(weight, PackedWeight) else weight for weight in weights]
        storage = planes[0].untyped_storage()
        arena = torch.empty(0, dtype=torch.uint8, device=x.device).set_(storage)
        offsets = torch.tensor([plane.data_ptr() - storage.data_ptr() for plane in planes], device=x.device)
        return multiply_grouped(x, starts, arena, offsets, weights[0].shape[0], int8=int8)

    counts = [len(state) for state in states]
    starts = torch.tensor([0, *counts], device=states[0].device).cumsum(0)
    inner = recipe.activation(products(torch.cat([*states]), [expert.up for expert in experts]))
    out = products(inner, [expert.down for expert in experts])
    return list(torch.split(out if recipe.post is None else recipe.post(out), counts))
