"""The engines that a user would pick, opened and fed the same way: penstock, transformers, accelerate, llama.cpp."""

import hashlib
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

MODES = ("penstock", "accelerate", "accelerate-cpu", "llama.cpp", "ram")
"""``accelerate`` keeps every decoder layer on disk, ``accelerate-cpu`` in host memory, and computes on a CUDA device.
``llama.cpp`` maps the file. ``ram`` is transformers with everything in memory and eager experts, the code whose bits
penstock promises."""


class Transformers:
    """A transformers model, or one of penstock, that is fed one sequence."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.handle: Any = getattr(model, "penstock", None)
        """Penstock's, if it is penstock's."""
        self.vocabulary = int(model.config.get_text_config().vocab_size)
        self.restart()

    def restart(self) -> None:
        """Forget the sequence."""
        self._cache: Any = None
        self.logits: torch.Tensor | None = None

    def feed(self, ids: list[int]) -> None:
        """Compute on ``ids`` at once, behind all that was fed before. Only the logits of the last one are kept."""
        out = self.model(
            torch.tensor([ids], device=self.model.device), past_key_values=self._cache, use_cache=True, logits_to_keep=1
        )
        self._cache, self.logits = out.past_key_values, out.logits

    def close(self) -> None:
        """Close a model of penstock."""
        if self.handle:
            self.handle.close()


def digest(logits: torch.Tensor | None) -> str | None:
    """Name the bits of ``logits``, or None without any."""
    return (
        None if logits is None else hashlib.sha256(logits.contiguous().view(torch.uint8).numpy().data).hexdigest()[:12]
    )


class LlamaCpp:
    """llama.cpp on a mapped GGUF file that is fed one sequence."""

    def __init__(self, file: Path, longest: int, threads: int) -> None:
        import llama_cpp

        self.handle = None
        self.logits = None  # its bits are its own
        self._api = llama_cpp
        self._quiet = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self._quiet, None)
        llama_cpp.llama_backend_init()
        parameters = llama_cpp.llama_model_default_params()
        parameters.use_mmap = True
        self._model = llama_cpp.llama_model_load_from_file(str(file).encode(), parameters)
        if not self._model:
            raise SystemExit(f"llama.cpp cannot open {file}")
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx = parameters.n_batch = max(512, -(-longest // 256) * 256)
        parameters.n_threads = parameters.n_threads_batch = threads
        self._context = llama_cpp.llama_init_from_model(self._model, parameters)
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))

    def feed(self, ids: list[int]) -> None:
        """Compute on ``ids`` at once, behind all that was fed before."""
        array = (self._api.llama_token * len(ids))(*ids)
        if self._api.llama_decode(self._context, self._api.llama_batch_get_one(array, len(ids))):
            raise SystemExit("llama.cpp could not decode")
        self._api.llama_synchronize(self._context)

    def close(self) -> None:
        """Free the model."""
        self._api.llama_free(self._context)
        self._api.llama_model_free(self._model)


def open_engine(
    mode: str,
    model: Path,
    *,
    longest: int,
    threads: int,
    scratch: str,
    gguf: Path | None = None,
    settings: dict[str, Any] | None = None,
) -> closing[Any]:
    """Load ``model`` (``gguf`` for llama.cpp) for sequences of up to ``longest`` tokens, as a context manager
    of a ``Transformers`` or ``LlamaCpp``.

    ``settings`` go to penstock. ``scratch`` is a folder for the files that accelerate writes. ``threads`` is for
    llama.cpp.
    """
    transformers.utils.logging.disable_progress_bar()
    if mode == "penstock":
        import penstock

        return closing(Transformers(penstock.load(model, **(settings or {}))))
    if mode == "llama.cpp":
        if gguf is None:
            raise SystemExit("llama.cpp needs the model as a GGUF file: --gguf FILE (bench/to_gguf.py makes one)")
        return closing(LlamaCpp(gguf, longest, threads))
    options: dict[str, Any] = {"experts_implementation": "eager"}
    if mode.startswith("accelerate"):
        layers = AutoConfig.from_pretrained(model).num_hidden_layers
        outside, inside = ("cpu", "disk") if mode == "accelerate" else (0, "cpu")
        place = dict.fromkeys(("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"), outside)
        place |= {f"model.layers.{layer}": inside for layer in range(layers)}
        options = {"device_map": place, "offload_folder": scratch}
    return closing(Transformers(AutoModelForCausalLM.from_pretrained(model, **options).eval()))
