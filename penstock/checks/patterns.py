"""Texts that match a regular expression, made from its parsed form, so that samples pass the patterns a schema
declares."""

import random
import re
from importlib import import_module
from typing import Any

from penstock.plan import PlanError

# the parsed form has no public name; both modules have kept theirs since Python 3.11
parser: Any = import_module("re._parser")
codes: Any = import_module("re._constants")

LONGEST = 4
"""How often an open repetition is repeated at most, beyond its least."""
ALPHABET = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 -_.,"

_CATEGORIES = {
    codes.CATEGORY_DIGIT: "0123456789",
    codes.CATEGORY_NOT_DIGIT: "abcXYZ -",
    codes.CATEGORY_SPACE: " ",
    codes.CATEGORY_NOT_SPACE: "abcXYZ019",
    codes.CATEGORY_WORD: "abcXYZ019_",
    codes.CATEGORY_NOT_WORD: " -.",
}


def matching(pattern: str, rng: random.Random, field: str) -> str:
    """A text that ``pattern`` matches. Raises ``PlanError`` where none can be made."""
    try:
        text = _text(parser.parse(pattern), rng)
    except (re.error, NotImplementedError):
        text = None
    if text is None or re.search(pattern, text) is None:
        raise PlanError(
            f"no sample can be made for the pattern {pattern!r} of field {field!r}. Put events into samples.jsonl"
        )
    return text


def _text(tree: Any, rng: random.Random) -> str:
    return "".join(_part(code, argument, rng) for code, argument in tree)


def _part(code: Any, argument: Any, rng: random.Random) -> str:
    if code is codes.LITERAL:
        return chr(argument)
    if code is codes.NOT_LITERAL:
        return next(letter for letter in ALPHABET if ord(letter) != argument)
    if code is codes.ANY:
        return rng.choice(ALPHABET)
    if code is codes.IN:
        return rng.choice(_letters(argument))
    if code in (codes.MAX_REPEAT, codes.MIN_REPEAT, codes.POSSESSIVE_REPEAT):
        least, most, inner = argument
        return "".join(_text(inner, rng) for _ in range(rng.randint(least, min(most, least + LONGEST))))
    if code is codes.SUBPATTERN:
        return _text(argument[-1], rng)
    if code is codes.BRANCH:
        return _text(rng.choice(argument[1]), rng)
    if code is codes.AT:
        return ""
    raise NotImplementedError(str(code))


def _letters(members: list[tuple[Any, Any]]) -> list[str]:
    found: list[str] = []
    negated = members[0][0] is codes.NEGATE
    for code, argument in members:
        if code is codes.LITERAL:
            found.append(chr(argument))
        elif code is codes.RANGE:
            found += [chr(letter) for letter in range(argument[0], argument[1] + 1)]
        elif code is codes.CATEGORY:
            found += _CATEGORIES[argument]
    return [letter for letter in ALPHABET if letter not in found] if negated else found
