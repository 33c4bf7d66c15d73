"""Three tiers: device memory, host memory, flash. On a machine without a GPU an emulated device stands for one.

    python examples/emulated_device.py
    python examples/emulated_device.py MODEL --device cuda:0 --device-memory 8GiB --host-memory 16GiB

"emulated:2GB" computes on the CPU. A part of host memory stands for the device's memory, and copies into it take the
time that a bus of 2 GB/s would need. It shows what a budget leads to before there is a GPU.
"""

import argparse
from pathlib import Path

from transformers import AutoTokenizer

import penstock

TINY = Path(__file__).parent / "tiny-moe"
MIB = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default=str(TINY), metavar="MODEL", help="folder, hub id or bundle")
    parser.add_argument("--prompt", default="It was a dark evening in November, and the old man")
    parser.add_argument("--tokens", type=int, default=32, help="how many to generate")
    parser.add_argument("--device", default="emulated:2GB", help='such as "cuda:0" or "emulated:8GB"')
    parser.add_argument("--device-memory", default="5MiB", help="memory on the device, for weights")
    parser.add_argument("--host-memory", default="6MiB", help="memory of the host, for weights")
    parser.add_argument("--store", help="folder for packed models; else ~/.cache/penstock")
    options = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    with penstock.load(
        options.model,
        device=options.device,
        device_memory=options.device_memory,
        host_memory=options.host_memory,
        store=options.store,
    ) as model:
        inputs = tokenizer(options.prompt, return_tensors="pt").to(model.device)
        output = model.generate(**inputs, max_new_tokens=options.tokens, do_sample=False)
        stats = model.penstock.stats()

    print(tokenizer.decode(output[0]))
    print(f"device memory:      {stats.device_bytes / MIB:.2f} MiB, of {stats.device_budget / MIB:.2f} MiB")
    print(f"host memory:        {stats.host_bytes / MIB:.2f} MiB, of {stats.host_budget / MIB:.2f} MiB")
    print(f"copied up:          {stats.bytes_copied / MIB:.2f} MiB in {stats.copy_seconds:.2f} s")
    print(f"read from flash:    {stats.flash_bytes_read / MIB:.2f} MiB in {stats.flash_read_seconds:.2f} s")
    found = stats.expert_hits / (stats.expert_hits + stats.expert_misses or 1)
    print(f"experts that were on the device when they were needed: {found:.0%}")


if __name__ == "__main__":
    main()
