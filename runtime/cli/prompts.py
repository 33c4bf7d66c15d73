"""The prompt of ``generate``: a text to continue, or a message that is answered by the model's chat template."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .text import read_text, tokenizing

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptOptions:
    """What the model reads."""

    prompt: Annotated[
        str | None, typer.Option("-p", "--prompt", metavar="TEXT", help='What you say; "-" reads stdin.')
    ] = None
    prompt_file: Annotated[str | None, typer.Option(metavar="FILE", help="Read it from a file.")] = None
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="What the model is told before, in a chat.")] = None
    chat: Annotated[
        bool | None,
        typer.Option(
            "--chat/--raw", help="Answer by the chat template, as where the model has one, or continue the plain text."
        ),
    ] = None

    def read(self) -> str:
        """The text of the prompt. Raises BadParameter and TextError."""
        if (self.prompt is None) == (self.prompt_file is None):
            raise typer.BadParameter("give either -p TEXT or --prompt-file FILE", param_hint="-p")
        if self.system is not None and self.chat is False:
            raise typer.BadParameter("a plain text has no system; leave --raw out", param_hint="--system")
        if self.prompt_file is not None:
            return read_text(self.prompt_file)
        assert self.prompt is not None
        return sys.stdin.read() if self.prompt == "-" else self.prompt

    def encode(self, tokenizer: Any, text: str) -> "Prompt":
        """The prompt as tokens. Raises BadParameter, RequestError and CheckpointError."""
        from ..serving.text.chats import ChatTemplate

        template = ChatTemplate(tokenizer)
        if self.chat is False or (self.chat is None and not template.exists):
            if self.system is not None:
                raise typer.BadParameter(
                    "this model has no chat template, so there is no system", param_hint="--system"
                )
            return Prompt(_plain(tokenizer, text), template.exists, False)
        messages = [{"role": "user", "content": text}]
        if self.system is not None:
            messages.insert(0, {"role": "system", "content": self.system})
        return Prompt(_tensors(template.encode(messages)), True, True)


@dataclass(frozen=True, slots=True)
class Prompt:
    """``inputs``: ``input_ids`` and ``attention_mask``, int64, [1, tokens]. ``as_chat``: written by the chat template,
    which the model has if ``has_template``."""

    inputs: "Mapping[str, torch.Tensor]"
    has_template: bool
    as_chat: bool

    @property
    def tokens(self) -> int:
        """How many it has."""
        return self.inputs["input_ids"].shape[1]

    def explain_silence(self) -> str:
        """Why nothing is written when the first token ends the text."""
        hint = (
            "it has a chat template: leave --raw out"
            if self.has_template and not self.as_chat
            else ("try another prompt" if self.as_chat else "it has no chat template: give it the beginning of a text")
        )
        return f"the first token of the model ends the text; {hint}"


def _tensors(ids: Sequence[int]) -> "Mapping[str, torch.Tensor]":
    import torch

    found = torch.tensor([[*ids]])
    return {"input_ids": found, "attention_mask": torch.ones_like(found)}


def _plain(tokenizer: Any, text: str) -> "Mapping[str, torch.Tensor]":
    with tokenizing(tokenizer):
        ids: list[int] = tokenizer(text, return_attention_mask=False)["input_ids"]
    if not ids and tokenizer.bos_token is None:
        raise typer.BadParameter(
            "the prompt is empty, and this model has no token to begin a text with", param_hint="-p"
        )
    return _tensors(ids or [tokenizer.bos_token_id])
