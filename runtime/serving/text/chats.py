"""Chats become prompts, by the chat template of the tokenizer."""

from collections.abc import Mapping, Sequence
from typing import Any

from ....tiering.errors import RequestError
from ...checkpoints.files.failures import is_failure, reason

_OURS = frozenset({"conversation", "tools", "chat_template", "tokenize", "add_generation_prompt", "return_dict",
                   "return_tensors", "sanitize_control_tokens", "continue_final_message", "tokenizer_kwargs", "padding",
                   "truncation", "max_length", "documents", "return_assistant_tokens_mask"})  # fmt: skip
"""Arguments of ``apply_chat_template`` that are no variables of templates."""


class ChatTemplate:
    """The chat template of ``tokenizer``."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        template = tokenizer.chat_template
        self._texts: list[str] = (
            [] if not template else [*template.values()] if isinstance(template, Mapping) else [template]
        )

    @property
    def exists(self) -> bool:
        """Whether the tokenizer has one."""
        return bool(self._texts)

    @property
    def text(self) -> str:
        """The template, or the first of several."""
        return self._texts[0] if self._texts else ""

    def mentions(self, word: str) -> bool:
        """Whether the template knows ``word``: a variable, or a role."""
        return any(word in text for text in self._texts)

    def encode(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Return the tokens of ``messages``, up to where the answer begins. Special tokens in their texts are text.

        Raises RequestError.
        """
        if not self.exists:
            raise RequestError(
                "this model's tokenizer has no chat template; have a text continued instead "
                "(/v1/completions, or generate --raw)"
            )
        variables = variables or {}
        if reserved := _OURS & variables.keys():
            raise RequestError(f"{min(reserved)} is no variable of a chat template")
        if tools and not self.mentions("tools"):
            raise RequestError("this model's chat template takes no tools; leave them out")
        if messages[-1]["role"] == "assistant":
            variables = {**variables, "continue_final_message": True}
        try:
            ids: list[int] = self._tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                tools=[dict(tool) for tool in tools] if tools else None,
                add_generation_prompt="continue_final_message" not in variables,
                sanitize_control_tokens=True,
                return_dict=True,
                **variables,
            )["input_ids"]
        except BaseException as error:  # templates and tokenizers fail in any way
            if not is_failure(error):
                raise
            raise RequestError(f"the model's chat template refuses these messages: {reason(error)}") from error
        return ids


def encode_text(tokenizer: Any, text: str) -> list[int]:
    """Return the tokens of a plain text. Special tokens in it count. Raises RequestError."""
    try:
        ids: list[int] = tokenizer(text, return_attention_mask=False)["input_ids"]
    except BaseException as error:
        if not is_failure(error):
            raise
        raise RequestError(f"the tokenizer cannot read the prompt: {reason(error)}") from error
    return ids
