"""Quality of attention with a fixed budget of KV: perplexity of a text that is fed on behind a prompt.

    python bench/kv_modes.py MODEL --text FILE [--tokens 16384] [--context 1024] [--prompt 512] [--budgets 25% 50%]

Each window of the text is a prompt, which is computed exactly, and what follows, which is fed a few tokens at a time: a
page that was dropped is not seen any more. What follows is measured, against exact attention. Nothing here is timed.
"""

import argparse
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from report import Table, publish
from torch.nn import functional
from transformers import AutoTokenizer

import penstock
from penstock.runtime.cli.text import beginning, encode, read_text
from penstock.runtime.evaluation.evaluation import windows

MODES = {
    "window": ("window", "even"),
    "H2O": ("h2o", "even"),
    "H2O, layers by need": ("h2o", "by-need"),
    "SnapKV": ("snapkv", "even"),
    "SnapKV, layers by need": ("snapkv", "by-need"),
    "Quest": ("quest", "even"),
}


@dataclass
class Run:
    """The results of one mode."""

    logits: torch.Tensor
    """float32 [n, V], of what followed the prompts."""
    looked_at: float
    """Share of pages."""
    dropped_share: float | None


def run(options: argparse.Namespace, texts: list[torch.Tensor], store: Path, **kv: Any) -> Run:
    """Feed all texts to the model with these settings of KV."""
    with penstock.load(options.model, store=store, host_memory="1GiB", kv_host_memory="128MiB", **kv) as model:
        tier = model.penstock.paged.tier
        tier.page_tokens = options.page
        logits = [_followed(model, text, options.prompt, options.step) for text in texts]
        selection = tier.selection
    if selection is None:
        return Run(torch.cat(logits), 1.0, None)
    budgets = selection.counters
    return Run(torch.cat(logits), budgets.pages_read / max(1, budgets.pages), budgets.dropped_share)


@torch.no_grad()
def _followed(model: Any, text: torch.Tensor, prompt: int, step: int) -> torch.Tensor:
    cache = model(text[None, :prompt], use_cache=True).past_key_values
    rest = torch.split(text[prompt:-1], step)
    return torch.cat([model(ids[None], past_key_values=cache, use_cache=True).logits[0].float() for ids in rest])


def row_of(name: str, budget: str, found: Run, usual: Run, targets: torch.Tensor) -> dict[str, Any]:
    """Collect the figures of one mode with one budget."""
    ours, exact = (each.logits.log_softmax(-1) for each in (found, usual))
    return {
        "mode": name,
        "budget": budget,
        "looked_at": found.looked_at,
        "dropped_share": found.dropped_share,
        "perplexity": math.exp(functional.nll_loss(ours, targets).item()),
        "perplexity_change": math.exp(
            functional.nll_loss(ours, targets).item() - functional.nll_loss(exact, targets).item()
        )
        - 1,
        "kl_divergence": functional.kl_div(ours, exact, reduction="batchmean", log_target=True).item(),
        "top1_agreement": (ours.argmax(-1) == exact.argmax(-1)).float().mean().item(),
    }


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure exact attention, and each mode with each budget."""
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    ids = encode(tokenizer, read_text(str(options.text)), options.tokens)
    texts = [torch.as_tensor(text) for text in windows(ids, beginning(tokenizer), options.context)]
    texts = [text for text in texts if len(text) > options.prompt + 1]
    if not texts:
        raise SystemExit(f"nothing of the text follows a prompt of {options.prompt} tokens; name a longer text")
    targets = torch.cat([text[options.prompt + 1 :] for text in texts])
    with tempfile.TemporaryDirectory() as folder:
        usual = run(options, texts, Path(folder))
        rows = [row_of("exact", "", usual, usual, targets)]
        for budget in options.budgets:
            for name, (mode, layers) in MODES.items():
                kv = {"kv_attention": mode, "kv_layers": layers, "kv_budget": budget}
                rows.append(row_of(name, budget, run(options, texts, Path(folder), **kv), usual, targets))
    return rows


def main() -> None:
    """Measure all modes, and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--step", type=int, default=1, help="tokens that are fed at a time behind the prompt, up to 16")
    parser.add_argument("--page", type=int, default=64)
    parser.add_argument("--budgets", nargs="*", default=["25%", "50%"])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    found = measure(options)
    rows = [
        (
            each["mode"],
            each["budget"],
            f"{each['looked_at']:.0%}",
            "" if each["dropped_share"] is None else f"{each['dropped_share']:.0%}",
            f"{each['perplexity']:.3f}",
            f"{each['perplexity_change']:+.2%}",
            f"{each['kl_divergence']:.5f}",
            f"{each['top1_agreement']:.1%}",
        )
        for each in found
    ]
    columns = ("mode", "budget", "pages looked at", "mass dropped", "perplexity", "", "KL divergence", "same top token")
    title = f"{options.model.name}, {options.tokens} tokens, windows of {options.context}, pages of {options.page}"
    publish([Table(title, columns, rows)], {"modes": found}, json_file=options.json, markdown=options.markdown)


if __name__ == "__main__":
    main()
