"""Tokens become text as they come; no character is split."""

from typing import Any

_PENDING = 64
"""Tokens that may wait for the rest of a character. It has four bytes at most, so these are no text."""
_INCOMPLETE = "�"


class TokenText:
    """The text of tokens, one after the other. ``special``: special tokens are a part of it."""

    def __init__(self, tokenizer: Any, *, special: bool) -> None:
        self._tokenizer, self._special = tokenizer, special
        self._ids: list[int] = []
        self._begin = 0  # some tokens before those that are told: tokenizers join tokens by what is before them
        self._told = 0

    def feed(self, token: int) -> str:
        """Return the text that ``token`` completes."""
        self._ids.append(token)
        text = self._new_text()
        if text.endswith(_INCOMPLETE) and len(self._ids) - self._told < _PENDING:
            return ""
        return self._tell(text)

    def end(self) -> str:
        """Return the rest: bytes that no token has completed."""
        return self._tell(self._new_text())

    def _new_text(self) -> str:
        before = self._decode(self._ids[self._begin : self._told])
        return self._decode(self._ids[self._begin :])[len(before) :]

    def _tell(self, text: str) -> str:
        if text:
            self._begin, self._told = self._told, len(self._ids)
        return text

    def _decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(
            ids, skip_special_tokens=not self._special, clean_up_tokenization_spaces=False
        )
        return text
