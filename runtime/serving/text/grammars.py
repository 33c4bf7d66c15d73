"""Grammars that answers keep to: JSON schemas, regular expressions, Lark. llguidance says which tokens may follow."""

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy
import torch

from ....tiering.errors import RequestError

NewMask = Callable[[int], "GrammarMask"]
"""Makes the mask for an answer to a prompt of so many tokens."""

_SPACE: Any = {"whitespace_pattern": r"[ \t\n\r]{1,16}"}
"""A model that does not know how to go on would write white space for ever."""

_DEEPEST = 64
"""How far into a schema a fault is looked for."""


class GrammarMask:
    """A logits processor that leaves the tokens that the grammar allows. For one answer. Where only one text can
    follow, that is its usual tokens."""

    def __init__(self, matcher: Any, prompt: int) -> None:
        """``prompt``: the number of tokens before the answer."""
        self._matcher, self._seen = matcher, prompt
        self._forced: list[int] = []

    def forces(self, input_ids: torch.Tensor) -> bool:
        """Whether one token alone may follow ``input_ids`` [1, N]."""
        for token in input_ids[0, self._seen :].tolist():
            self._matcher.consume_token(token)
            self._forced = self._forced[1:]
        self._seen = input_ids.shape[1]
        self._forced = self._forced or self._matcher.compute_ff_tokens()
        self._check()
        return bool(self._forced)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """``scores`` [1, vocabulary], less what may not follow."""
        if self.forces(input_ids):
            left = torch.full_like(scores, -torch.inf)
            left[0, self._forced[0]] = 0
            return left
        bits = numpy.frombuffer(self._matcher.compute_bitmask(), numpy.uint8)
        self._check()
        allowed = torch.from_numpy(numpy.unpackbits(bits, bitorder="little")[: scores.shape[1]].astype(bool))
        return scores.masked_fill(~allowed.to(scores.device), -torch.inf)

    def _check(self) -> None:
        if self._matcher.is_error():
            raise RequestError(f"the grammar is too much for this answer: {_line(self._matcher.get_error())}")


class Grammars:
    """Compiles grammars for the tokens of one model. Thread-safe."""

    def __init__(self, tokenizer: Any, vocabulary: int, ends: Sequence[int]) -> None:
        """``vocabulary`` is the number of the model's logits, ``ends`` are the tokens that end an answer."""
        self._tokenizer, self._vocabulary, self._ends = tokenizer, vocabulary, list(ends)
        self._lock = threading.Lock()
        self._tokens: Any = None

    def of_schema(self, schema: Mapping[str, Any]) -> NewMask:
        """The grammar of JSON that keeps to ``schema``. Raises RequestError, which names the place of a fault."""
        from llguidance import LLMatcher

        try:
            return self._compile(LLMatcher.grammar_from_json_schema(dict(schema), defaults=_SPACE))
        except RequestError as error:
            place = "".join(f"/{part}" for part in self._find_fault(schema, str(error)))
            raise RequestError(f"the JSON schema cannot be used, at #{place}: {error}") from error

    def of_regex(self, pattern: str) -> NewMask:
        """The grammar of texts that match ``pattern``. Raises RequestError."""
        from llguidance import LLMatcher

        return self._compile(LLMatcher.grammar_from_regex(pattern))

    def of_lark(self, grammar: str) -> NewMask:
        """The grammar that ``grammar`` describes, as Lark writes them. Raises RequestError."""
        from llguidance import LLMatcher

        return self._compile(LLMatcher.grammar_from_lark(grammar))

    def of_calls(self, tools: Sequence[Mapping[str, Any]]) -> NewMask:
        """The grammar of a call of one of ``tools``: functions, with ``name`` and maybe ``parameters``, a schema."""
        for tool in tools:
            self.of_schema(tool.get("parameters") or {"type": "object"})
        rules = [f"start: {' | '.join(f'call_{number}' for number in range(len(tools)))}"]
        for number, tool in enumerate(tools):
            opening = json.dumps(f'{{"name": {json.dumps(tool["name"])}, "arguments": ')
            schema = json.dumps({**(tool.get("parameters") or {"type": "object"}), "x-guidance": _SPACE})
            rules += [f'call_{number}: {opening} args_{number} "}}"', f"args_{number}: %json {schema}"]
        return self.of_lark("\n".join(rules))

    def prepare(self) -> None:
        """Do what takes a second now. Raises RequestError."""
        self._known_tokens()

    def token_bytes(self, token: int) -> bytes:
        """The bytes of ``token``, which may be a part of a character."""
        found: bytes = self._known_tokens().decode_bytes([token])
        return found

    def _compile(self, grammar: str) -> NewMask:
        from llguidance import LLMatcher

        tokens = self._known_tokens()
        matcher = LLMatcher(tokens, grammar, log_level=0)
        probe = matcher.deep_copy()
        probe.compute_bitmask()
        if matcher.is_error() or probe.is_error():
            raise RequestError(_line(matcher.get_error() or f"no text keeps to it ({_line(probe.get_error())})"))
        return lambda prompt: GrammarMask(matcher.deep_copy(), prompt)

    def _known_tokens(self) -> Any:
        from llguidance.hf import from_tokenizer

        with self._lock:
            if self._tokens is None:
                try:
                    self._tokens = from_tokenizer(self._tokenizer, self._vocabulary, self._ends or None)
                except Exception as error:  # it reads the tokenizers' own format only
                    raise RequestError(f"this model's tokenizer cannot keep to a grammar: {_line(error)}") from error
            return self._tokens

    def _find_fault(self, schema: Mapping[str, Any], said: str) -> list[str]:
        """The way to the innermost part of ``schema`` that is refused as the whole is."""
        from llguidance import LLMatcher

        shared = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
        way: list[str] = []
        inner = schema
        while len(way) < _DEEPEST:
            for parts, child in _children(inner):
                text = LLMatcher.grammar_from_json_schema({**shared, **child}, defaults=_SPACE)
                if _line(LLMatcher.validate_grammar(text, self._tokens)) == said:
                    way, inner = [*way, *parts], child
                    break
            else:
                break
        return way


def _children(schema: Mapping[str, Any]) -> Iterator[tuple[list[str], Mapping[str, Any]]]:
    """The schemas in a schema, with the way to them."""
    for key, value in schema.items():
        if key in ("properties", "patternProperties", "$defs", "definitions") and isinstance(value, Mapping):
            yield from (([key, name], each) for name, each in value.items() if isinstance(each, Mapping))
        elif isinstance(value, list):
            yield from (([key, str(at)], each) for at, each in enumerate(value) if isinstance(each, Mapping))
        elif isinstance(value, Mapping) and key not in ("const", "default"):
            yield [key], value


def _line(message: object) -> str:
    return " ".join(str(message).partition("<state>")[0].split())[:500]
