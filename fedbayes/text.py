"""Texts for people: names and messages from elsewhere made safe to print, near matches, and numbers in short."""

import difflib
import re
from collections.abc import Iterable

_HIDDEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff\ufff9-\ufffb"
    "\U000e0000-\U000e007f]"
)
"""Control signs, line separators, signs that turn the direction of writing, and others that take no room."""


def visible(text: str) -> str:
    r"""The text with what cannot be seen written out, as in `\n` and `\u202e`."""
    return _HIDDEN.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def in_one_line(text: object) -> str:
    """The text with its line breaks and runs of blanks as single blanks."""
    return " ".join(str(text).split())


def closest(word: str, names: Iterable[str], most: int = 3) -> list[str]:
    """Names that a misspelt word may stand for: those that begin with it, then those that differ little."""
    names = sorted(names)
    longer = sorted((name for name in names if word and name.startswith(word)), key=len)
    return list(dict.fromkeys([*longer, *difflib.get_close_matches(word, names, n=most)]))[:most]


def fraction(value: object) -> str:
    """A share between 0 and 1 as `.812`; a dash where there is none."""
    if not isinstance(value, int | float):
        return "–"
    text = f"{value:.3f}"
    return text.removeprefix("0") if 0 <= value < 1 and text.startswith("0") else text


def duration(seconds: float) -> str:
    """Seconds as `0:41` or `1:02:03`."""
    minutes, seconds = divmod(round(max(seconds, 0.0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
