"""Finds the fields of a text in protobuf's text format that its message does not have.

protobuf's own parser can skip them, but does not say which, and fails where one is a list of messages.
"""

from __future__ import annotations

import re

from google.protobuf.descriptor import Descriptor
from google.protobuf.text_format import ParseError

# Comments; strings; names and numbers; anything else.
_TOKEN = re.compile(r"""#[^\n]*|"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*'|[\w.+-]+|\S""")
_CLOSING = {"{": "}", "<": ">", "[": "]"}


def without_unknown(text: str, message: Descriptor) -> tuple[str, list[str]]:
    """Blanks the fields that a message does not have, and gives their paths, each once.

    What remains keeps its place, so that a parser's errors say where it is.

    Raises:
        ParseError: A bracket is not closed, or nested too deeply.
    """
    walk = _Walk(text)
    try:
        walk.fields(message, "")
    except RecursionError:
        raise ParseError("its brackets are nested too deeply") from None
    for start, end in walk.unknown:
        text = text[:start] + re.sub(r"[^\n]", " ", text[start:end]) + text[end:]
    return text, list(dict.fromkeys(walk.paths))


class _Walk:
    """Goes through the tokens of a text once.

    Attributes:
        paths: Of the unknown fields.
        unknown: Their places, those within others left out.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = [match for match in _TOKEN.finditer(text) if not match[0].startswith("#")]
        self._at = 0
        self.paths: list[str] = []
        self.unknown: list[tuple[int, int]] = []

    def fields(self, message: Descriptor | None, prefix: str) -> None:
        """The fields of a message, up to what closes it; None: one that is within an unknown field."""
        while self._token not in ("", "}", ">"):
            begin = self._at
            name = self._next()
            if not name.isidentifier():
                continue  # Separators; the parser says what else is wrong.
            field = message.fields_by_name.get(name) if message is not None else None
            self._value(field.message_type if field is not None else None, f"{prefix}{name}.")
            if message is not None and field is None:
                if self._token in (",", ";"):
                    self._next()
                self.paths.append(prefix + name)
                self.unknown.append((self._tokens[begin].start(), self._tokens[self._at - 1].end()))

    def _value(self, message: Descriptor | None, prefix: str) -> None:
        if self._token == ":":
            self._next()
        if self._token != "[":
            self._single(message, prefix)
            return
        opening = self._at
        self._next()
        while self._token not in ("", "]", "}", ">"):
            if self._token == ",":
                self._next()
            else:
                self._single(message, prefix)
        self._close(opening)

    def _single(self, message: Descriptor | None, prefix: str) -> None:
        opening = self._at
        if self._token in ("{", "<"):
            self._next()
            self.fields(message, prefix)
            self._close(opening)
        elif self._token not in ("", "]", "}", ">"):
            quoted = self._next()[0] in "\"'"
            # Strings that stand beside each other are one.
            while quoted and self._token[:1] in ('"', "'"):
                self._next()

    def _close(self, opening: int) -> None:
        bracket = self._tokens[opening]
        if self._token != _CLOSING[bracket[0]]:
            line = self._text.count("\n", 0, bracket.start()) + 1
            column = bracket.start() - self._text.rfind("\n", 0, bracket.start())
            raise ParseError(f"{line}:{column} : {bracket[0]!r} is not closed")
        self._next()

    @property
    def _token(self) -> str:
        """The next token; empty at the end."""
        return self._tokens[self._at][0] if self._at < len(self._tokens) else ""

    def _next(self) -> str:
        token = self._token
        self._at += 1
        return token
