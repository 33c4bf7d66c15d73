"""Quality against size of KV formats: perplexity of a text when old keys and values are stored in 8 or 4 bits.

    python bench/kv_formats.py MODEL --text FILE [--tokens 16384] [--context 1024] [--shares 0.25 0.5]

Each query sees what it would see in decoding token by token: the first page and the recent ones as they are, those
before them as they were encoded when they left the recent window, once. A window of the text goes through the model in
one forward, whose attention takes the queries a page at a time. `mixed` has the given share of old pages in int8, those
that got most attention until they left, and the others in int4. Nothing here is timed.
"""

import argparse
import random
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from report import Table, publish
from torch.nn import functional
from transformers import AttentionInterface, AutoModelForCausalLM, AutoTokenizer

from penstock.kernels.kv.base import PageShape
from penstock.kernels.kv.quantised import is_encodable
from penstock.kernels.kv.registry import FORMATS
from penstock.runtime.cli.text import beginning, encode, read_text
from penstock.runtime.evaluation.evaluation import Quality, evaluate, predicted, windows
from penstock.runtime.evaluation.logits import KeptLogits
from penstock.tiering.kv.selection.kv_precision import AS_IS, ScoredPage, Window, assign_formats

NAME = "penstock-kv-formats"
BITS = {AS_IS: 16, "int8": 9, "int4": 5}
"""Bits of a number, with its share of scales."""


@dataclass
class Layer:
    """The pages of one layer: planes of keys and values, and what the policy knows about them."""

    shape: PageShape
    keys: list[torch.Tensor] = field(default_factory=list)
    values: list[torch.Tensor] = field(default_factory=list)
    pages: list[ScoredPage] = field(default_factory=list)

    def append(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Append a page of keys and values, [H, tokens, D] each, as it is."""
        missing = self.shape.tokens - keys.shape[1]
        for planes, numbers, of_keys in ((self.keys, keys, True), (self.values, values, False)):
            planes.append(self._encoded(AS_IS, functional.pad(numbers, (0, 0, 0, missing)), of_keys=of_keys))
        self.pages.append(ScoredPage(age=0, encodable=is_encodable(keys, values)))

    def encode(self, number: int, name: str) -> None:
        """Encode page ``number``, which is as it is, in the format ``name``."""
        for planes, of_keys in ((self.keys, True), (self.values, False)):
            numbers = torch.empty(self.shape.heads, self.shape.tokens, self.shape.dim, dtype=self.shape.dtype)
            was = FORMATS[AS_IS]
            (was.decode_keys if of_keys else was.decode_values)(planes[number], self.shape, numbers)
            planes[number] = self._encoded(name, numbers, of_keys=of_keys)
        self.pages[number] = replace(self.pages[number], format=name)

    def _encoded(self, name: str, numbers: torch.Tensor, *, of_keys: bool) -> torch.Tensor:
        now = FORMATS[name]
        length = now.key_bytes(self.shape) if of_keys else now.value_bytes(self.shape)
        plane = torch.empty(length, dtype=torch.uint8)
        (now.encode_keys if of_keys else now.encode_values)(numbers, plane)
        return plane

    def attend(self, query: torch.Tensor, tokens: int, scaling: float) -> torch.Tensor:
        """Attend from ``query`` [Hq, R, D], the last R of ``tokens`` tokens: [Hq, R, D]. Adds to the masses of
        pages."""
        heads, rows, dim = query.shape
        high = self.shape.tokens
        scores = torch.empty(heads, rows, tokens)
        for number, page in enumerate(self.pages):
            planes = [self.keys[number].data_ptr()]
            FORMATS[page.format].scores(query, planes, self.shape, scaling, scores, number * high)
        later = torch.arange(tokens) > torch.arange(tokens - rows, tokens)[:, None]
        probabilities = scores.masked_fill_(later, -torch.inf).softmax(-1).to(query.dtype)
        out = torch.zeros(heads, rows, dim)
        for number, (page, part) in enumerate(zip(self.pages, torch.split(probabilities, high, -1), strict=True)):
            planes = [self.values[number].data_ptr()]
            FORMATS[page.format].weigh(probabilities, number * high, planes, self.shape, out)
            self.pages[number] = replace(page, mass=page.mass + part.sum().item(), age=page.age + rows)
        return out.to(query.dtype)


class Paged:
    """An attention function over pages. It counts pages by format. ``fine_share`` of the old pages are int8, or all
    pages stay as they are if it is None. If ``drawn``, the int8 pages are chosen at random, not by their attention."""

    def __init__(self, window: Window, fine_share: float | None, *, drawn: bool = False) -> None:
        self._window, self._fine_share = window, fine_share
        self._chance = random.Random(0) if drawn else None
        self.counts = dict.fromkeys(BITS, 0)

    def __call__(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float,
        **_: Any,
    ) -> tuple[torch.Tensor, None]:
        """Attend causally from query [1, Hq, T, D] to key and value [1, H, T, D]. The mask is ignored."""
        high = self._window.page
        layer = Layer(PageShape(key.shape[1], high, key.shape[3], key.dtype))
        outs = []
        for each in zip(*(torch.split(part[0], high, 1) for part in (query, key, value)), strict=True):
            now, keys, values = (part.contiguous() for part in each)
            layer.append(keys, values)
            tokens = (len(layer.pages) - 1) * high + now.shape[1]
            outs.append(layer.attend(now, tokens, scaling))
            if now.shape[1] == high and self._fine_share is not None:
                leaving = assign_formats(
                    self._seen(layer.pages), tokens, window=self._window, fine_share=self._fine_share
                )
                for number, name in leaving.items():
                    layer.encode(number, name)
        for page in layer.pages:
            self.counts[page.format] += 1
        return torch.cat(outs, 1).transpose(0, 1)[None].contiguous(), None

    def _seen(self, pages: list[ScoredPage]) -> list[ScoredPage]:
        """``pages`` as those see them who choose."""
        if self._chance is None:
            return pages
        return [replace(page, mass=self._chance.random() * page.age) for page in pages]


def row_of(name: str, paged: Paged, quality: Quality, usual: Quality) -> dict[str, Any]:
    """Collect the figures of one format."""
    old = {format_: count for format_, count in paged.counts.items() if format_ != AS_IS}
    whole = sum(paged.counts.values())
    return {
        "format": name,
        "bits_of_old_pages": sum(BITS[each] * count for each, count in old.items()) / max(1, sum(old.values())) or 16,
        "bits": sum(BITS[each] * count for each, count in paged.counts.items()) / whole,
        "perplexity": quality.perplexity,
        "perplexity_change": quality.perplexity / usual.perplexity - 1,
        "kl_divergence": quality.kl_divergence,
        "top1_agreement": quality.top1_agreement,
    }


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure as-is, int8, int4, and each mixture: of important pages and of random ones."""
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    ids = encode(tokenizer, read_text(str(options.text)), options.tokens)
    texts = windows(ids, beginning(tokenizer), options.context)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype="auto")
    window = Window(page=options.page, first=options.first, recent=options.recent)
    shares: dict[str, float | None] = {AS_IS: None, "int8": 1.0, "int4": 0.0}
    shares |= {f"mixed, {share:.0%} int8": share for share in options.shares}
    rows: list[dict[str, Any]] = []
    with KeptLogits(Path(tempfile.gettempdir()), predicted(texts)) as kept:
        usual = None
        cases = [(name, share, False) for name, share in shares.items()]
        cases += [(f"random, {share:.0%} int8", share, True) for share in options.shares]
        for name, share, drawn in cases:
            paged = Paged(window, share, drawn=drawn)
            AttentionInterface.register(NAME, paged)
            model.set_attn_implementation(NAME)
            keep, against = (kept, None) if usual is None else (None, kept)
            quality = evaluate(model, texts, keep=keep, against=against).quality
            usual = usual or quality
            rows.append(row_of(name, paged, quality, usual))
    return rows


def main() -> None:
    """Measure all formats, and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--page", type=int, default=64)
    parser.add_argument("--first", type=int, default=1, help="pages at the beginning that stay as they are")
    parser.add_argument("--recent", type=int, default=128, help="tokens at the end that stay as they are")
    parser.add_argument("--shares", nargs="*", type=float, default=[0.25, 0.5], help="of old pages that are int8")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    found = measure(options)
    rows = [
        (
            each["format"],
            f"{each['bits_of_old_pages']:.1f}",
            f"{each['bits']:.1f}",
            f"{each['perplexity']:.3f}",
            f"{each['perplexity_change']:+.2%}",
            f"{each['kl_divergence']:.5f}",
            f"{each['top1_agreement']:.1%}",
        )
        for each in found
    ]
    columns = ("format", "bits, old pages", "bits, all", "perplexity", "", "KL divergence", "same top token")
    title = f"{options.model.name}, {options.tokens} tokens, windows of {options.context}"
    publish([Table(title, columns, rows)], {"formats": found}, json_file=options.json, markdown=options.markdown)


if __name__ == "__main__":
    main()
