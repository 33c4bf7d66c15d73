"""Takes from this process what Linux has and macOS has not, then runs the model in the first argument, in the folder of
the second; prints its tokens and how blocks were read, as JSON."""

import json
import mmap
import os
import sys

sys.modules["liburing"] = None  # type: ignore[assignment] # it has no wheels there
for name in ("O_DIRECT", "posix_fadvise", "posix_fallocate", "fdatasync", "sched_getaffinity", "eventfd", "preadv"):
    delattr(os, name)
for name in ("MADV_HUGEPAGE", "MADV_NOHUGEPAGE"):
    delattr(mmap, name)

from transformers import AutoTokenizer  # noqa: E402

import penstock  # noqa: E402
from penstock.kernels.io.directio import DirectFile  # noqa: E402

model_folder, store = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(model_folder)
with penstock.load(model_folder, host_memory="8MiB", store=store, kv_host_memory="1MiB") as model:
    ids = tokenizer("Once upon a time", return_tensors="pt")
    tokens = model.generate(**ids, max_new_tokens=12, do_sample=False)[0].tolist()
with DirectFile(sys.executable) as file:
    print(json.dumps({"tokens": tokens, "direct": file.direct}))
