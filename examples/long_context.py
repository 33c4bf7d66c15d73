"""A long context whose keys and values (KV) do not fit in memory: a part of them lies on flash.

    python examples/long_context.py
    python examples/long_context.py MODEL --text book.txt --context 32768 --host-memory 8GiB --kv 512MiB

With `kv_host_memory` the KV of all contexts has a bound, which is a part of `host_memory`. Full pages that do not fit
go to flash, and are read ahead, layer by layer, when attention needs them.
"""

import argparse
from pathlib import Path

from transformers import AutoTokenizer

import penstock

HERE = Path(__file__).parent
MIB = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default=str(HERE / "tiny-moe"), metavar="MODEL")
    parser.add_argument("--text", type=Path, default=HERE / "passage.txt", metavar="FILE", help="what the context is")
    parser.add_argument("--context", type=int, default=960, help="tokens of the text")
    parser.add_argument("--tokens", type=int, default=24, help="how many to generate")
    parser.add_argument("--host-memory", default="10MiB", help="memory for weights and KV together")
    parser.add_argument("--kv", default="600KiB", metavar="SIZE", help="the part of it that KV may take")
    parser.add_argument("--store", help="folder for packed models; else ~/.cache/penstock")
    options = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    ids = tokenizer(options.text.read_text(), return_tensors="pt").input_ids[:, : options.context]
    with penstock.load(
        options.model, host_memory=options.host_memory, kv_host_memory=options.kv, store=options.store
    ) as model:
        # generate makes a cache by itself. This one is there after it, to be looked at or to go on with.
        cache = model.penstock.cache()
        output = model.generate(ids, past_key_values=cache, max_new_tokens=options.tokens, do_sample=False)
        stats = model.penstock.stats()

    print(repr(tokenizer.decode(output[0, ids.shape[1] :])))
    print(f"context:       {cache.get_seq_length()} tokens")
    print(f"KV in memory:  {stats.kv_host_bytes / MIB:.2f} MiB, of {stats.kv_host_budget / MIB:.2f} MiB")
    print(f"KV on flash:   {stats.kv_flash_bytes / MIB:.2f} MiB")
    print(f"KV read back:  {stats.kv_bytes_read / MIB:.2f} MiB in {stats.kv_pages_read} pages")
    print(f"waited for KV: {stats.kv_stall_seconds:.2f} s")


if __name__ == "__main__":
    main()
