"""Groups tokens by the expert that they chose, in the order of transformers' eager code."""

import torch

Groups = dict[int, tuple[torch.Tensor, torch.Tensor]]
"""Expert -> (token rows, positions among the top k)."""

_FEW = 64
"""Router choices up to which grouping in Python beats tensor operations."""


def group(index: torch.Tensor, experts: int) -> Groups:
    """The tokens of each expert: experts ascend, rows are in the order of the eager code.

    ``index`` is [tokens, top_k], in host memory. Entries >= ``experts`` mean "no expert" and are left out.
    """
    tokens, top_k = index.shape
    if tokens * top_k <= _FEW:
        grouped: dict[int, tuple[list[int], list[int]]] = {}
        picked = index.tolist()
        for pick in range(top_k):
            for row in range(tokens):
                rows, picks = grouped.setdefault(picked[row][pick], ([], []))
                rows.append(row)
                picks.append(pick)
        return {
            expert: (torch.tensor(grouped[expert][0]), torch.tensor(grouped[expert][1]))
            for expert in sorted(grouped)
            if expert < experts
        }
    flat = index.t().reshape(-1)
    order = flat.argsort(stable=True)
    counts = torch.bincount(flat, minlength=experts + 1).tolist()
    parts = torch.split(order, counts)
    return {expert: (parts[expert] % tokens, parts[expert] // tokens) for expert in range(experts) if counts[expert]}


def move_groups(groups: Groups, device: torch.device) -> Groups:
    """``groups`` with their tensors on ``device``, in one copy."""
    if device.type == "cpu" or not groups:
        return groups
    counts = [len(rows) for rows, _ in groups.values()]
    both = torch.stack([torch.cat(parts) for parts in zip(*groups.values(), strict=True)]).to(device)
    rows, picks = (each.split(counts) for each in both)
    return dict(zip(groups, zip(rows, picks, strict=True), strict=True))
