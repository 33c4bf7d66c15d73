"""Train examples/tiny-moe: a small Qwen3-MoE and its tokenizer, on plain English text, on a CPU.

    python examples/train_tiny_moe.py --text books.txt --heldout heldout.txt --steps 3600

Writes a bfloat16 safetensors checkpoint, a byte-level BPE tokenizer and a card (README.md) into --out.
Every 500 steps the model so far is written there too, so a run cut short leaves a usable one.
"""

import argparse
import copy
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast, Qwen3MoeConfig, Qwen3MoeForCausalLM

VOCABULARY, WINDOW, BATCH, PEAK_RATE = 4096, 256, 16, 3e-3
CARD = """# tiny-moe

A Qwen3-MoE of {parameters:.2f} M parameters ({active:.2f} M active per token): {layers} layers, hidden size {hidden},
{experts} experts per layer of which {top_k} are used, byte-level BPE vocabulary of {vocabulary}, tied embeddings,
bfloat16.

| | |
| --- | --- |
| Data | {data_bytes:.1f} MB of public-domain English books ({data_tokens:.2f} M tokens) |
| Training | {steps} steps of {batch} x {window} tokens ({epochs:.1f} epochs), AdamW, {threads} CPU threads |
| Held-out perplexity | {perplexity:.2f} per token, {bits:.3f} bits per byte |
| Held-out text | {heldout_tokens} tokens of other books, in windows of {window} |

It exists so that a fresh clone can show Penstock at work on a real model without a network. It writes English
sentences in the style of the nineteenth century and knows nothing.

Made by `python examples/train_tiny_moe.py --text books.txt --heldout heldout.txt --steps {steps}`.
"""


def train_tokenizer(text: str) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<|end|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator((text[i : i + 100_000] for i in range(0, len(text), 100_000)), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|end|>")


def encode(tokenizer: PreTrainedTokenizerFast, text: str) -> torch.Tensor:
    """Token ids of ``text``, [tokens] int64; a new work (a "# Title" line) starts with the end token."""
    works = [work.strip() for work in text.split("# Title: ")]
    ids: list[int] = []
    for encoding in tokenizer.backend_tokenizer.encode_batch([work for work in works if work]):
        ids += [tokenizer.eos_token_id, *encoding.ids]
    return torch.from_numpy(np.array(ids, dtype=np.int64))


def build(tokenizer: PreTrainedTokenizerFast) -> Qwen3MoeForCausalLM:
    config = Qwen3MoeConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=32,
        num_experts=16,
        num_experts_per_tok=4,
        moe_intermediate_size=72,
        intermediate_size=512,
        norm_topk_prob=True,
        decoder_sparse_step=1,
        mlp_only_layers=[],
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        output_router_logits=True,
        router_aux_loss_coef=0.005,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen3MoeForCausalLM(config)


def windows(ids: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    starts = torch.randint(0, len(ids) - WINDOW - 1, (BATCH,), generator=generator)
    return torch.stack([ids[s : s + WINDOW] for s in starts.tolist()])


def mean_loss(model: Qwen3MoeForCausalLM, ids: torch.Tensor, limit: int | None = None) -> float:
    """Mean negative log likelihood per token in nats over consecutive windows of ``ids``."""
    rows = ids[: len(ids) // WINDOW * WINDOW].view(-1, WINDOW)[:limit]
    total = 0.0
    with torch.no_grad():
        for batch in torch.split(rows, BATCH):
            logits = model(batch, output_router_logits=False).logits[:, :-1].float()
            total += torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum"
            ).item()
    return total / (rows.numel() - len(rows))


def train(model: Qwen3MoeForCausalLM, ids: torch.Tensor, steps: int, every: int, report: Callable[[int], None]) -> None:
    """Warm up, then cosine to zero; ``report(step)`` runs after each ``every`` steps and after the last."""
    model.set_experts_implementation("grouped_mm")
    decay = [p for p in model.parameters() if p.dim() >= 2]
    plain = [p for p in model.parameters() if p.dim() < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}], betas=(0.9, 0.95), fused=True
    )
    generator = torch.Generator().manual_seed(0)
    start = time.monotonic()
    for step in range(1, steps + 1):
        rate = PEAK_RATE * min(step / 200, 0.5 * (1 + math.cos(math.pi * step / steps)) + 1e-3)
        for group in optimizer.param_groups:
            group["lr"] = rate
        batch = windows(ids, generator)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 50 == 0:
            speed = step * BATCH * WINDOW / (time.monotonic() - start)
            print(f"step {step}  loss {loss.item():.3f}  rate {rate:.2e}  {speed:.0f} tokens/s", flush=True)
        if step % every == 0 or step == steps:
            report(step)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True, help="plain text to train on")
    parser.add_argument("--heldout", type=Path, required=True, help="other plain text, to measure on only")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "tiny-moe")
    parser.add_argument("--steps", type=int, default=3600)
    options = parser.parse_args()
    torch.manual_seed(0)
    text, heldout_text = options.text.read_text(), options.heldout.read_text()
    tokenizer = train_tokenizer(text)
    ids, heldout = encode(tokenizer, text), encode(tokenizer, heldout_text)
    model = build(tokenizer)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{len(ids) / 1e6:.2f} M tokens, {parameters / 1e6:.2f} M parameters", flush=True)

    def save(step: int) -> None:
        small = copy.deepcopy(model).to(torch.bfloat16)
        small.config.output_router_logits = False
        loss = mean_loss(small, heldout, None if step == options.steps else 64)
        small.save_pretrained(options.out)
        tokenizer.save_pretrained(options.out)
        c = model.config
        idle = (
            c.num_hidden_layers * (c.num_experts - c.num_experts_per_tok) * 3 * c.hidden_size * c.moe_intermediate_size
        )
        card = CARD.format(
            parameters=parameters / 1e6,
            active=(parameters - idle) / 1e6,
            layers=c.num_hidden_layers,
            hidden=c.hidden_size,
            experts=c.num_experts,
            top_k=c.num_experts_per_tok,
            vocabulary=VOCABULARY,
            data_bytes=len(text.encode()) / 1e6,
            data_tokens=len(ids) / 1e6,
            steps=step,
            batch=BATCH,
            window=WINDOW,
            epochs=step * BATCH * WINDOW / len(ids),
            threads=torch.get_num_threads(),
            perplexity=math.exp(loss),
            bits=loss * len(heldout) / len(heldout_text.encode()) / math.log(2),
            heldout_tokens=len(heldout),
        )
        (options.out / "README.md").write_text(card)
        print(f"step {step}  held-out perplexity {math.exp(loss):.2f}", flush=True)

    train(model, ids, options.steps, 500, save)


if __name__ == "__main__":
    main()
