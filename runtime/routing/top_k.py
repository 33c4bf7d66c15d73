"""Reads the number of experts per token from routers and configurations, whatever a model family calls it."""

from torch import nn

from ..checkpoints.modules import is_experts

NAMES = ("top_k", "num_experts_per_tok", "num_experts_per_token", "topk", "moe_top_k", "moe_topk", "moe_k")
"""Names of that number in transformers' routers and configurations."""


def experts_per_token(model: nn.Module) -> dict[str, int | None]:
    """The number of experts that one token goes through, by the path of each experts module; None where it is unknown.

    The router stands next to the experts, so the experts' parent and its children are asked first, then the
    configuration.
    """
    modules = dict(model.named_modules())
    found: dict[str, int | None] = {}
    for path, module in modules.items():
        if is_experts(module):
            parent = modules[path.rpartition(".")[0]]
            config = getattr(model, "config", None)
            places = [module, parent, *parent.children(), getattr(module, "config", None)]
            places.append(config.get_text_config() if config is not None else None)
            found[path] = next((count for place in places if (count := _count(place, int(module.num_experts)))), None)
    return found


def _count(place: object, experts: int) -> int | None:
    for name in NAMES:
        value = getattr(place, name, None)
        if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= experts:
            return value
    return None
