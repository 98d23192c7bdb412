"""Names and messages from elsewhere, made safe to print: nothing in them acts on a terminal or breaks a line."""

import re

_HIDDEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff\ufff9-\ufffb"
    "\U000e0000-\U000e007f]"
)
"""Control signs, line separators, signs that turn the direction of writing, and others that take no room."""


def visible(text: str) -> str:
    r"""The text with what cannot be seen written out, as in `\n` and `\u202e`."""
    return _HIDDEN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
