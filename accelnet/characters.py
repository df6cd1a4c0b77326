"""Characters that may be shown: none that steers a terminal, and plain ones where an encoding lacks others."""

import re
import unicodedata

# Control characters but for lines and tabs, halves of characters, separators of lines and paragraphs; embeddings and
# overrides of the writing direction, which make text read as another one.
_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u2028-\u202e\u2066-\u2069]")
# What draws colours and progress bars: a colour, a move, a wiped line, the cursor hidden and shown.
_DRAWING = re.compile(r"(\x1b\[(?:[0-9;]*[ABCDGKm]|\?25[hl])|[\r\b])")
_PLAIN = {
    "─": "-", "━": "-", "═": "=", "│": "|", "┃": "|", "║": "|", "╭": "+", "╮": "+", "╯": "+", "╰": "+", "┌": "+",
    "┐": "+", "└": "+", "┘": "+", "├": "+", "┤": "+", "╸": "-", "╺": "-", "█": "#", "•": "*", "·": "*", "×": "x",
    "µ": "u", "μ": "u", "–": "-", "—": "-", "−": "-", "→": "->", "≤": "<=", "≥": ">=", "±": "+-", "≈": "~",
    "√": "sqrt", "‘": "'", "’": "'", "“": '"', "”": '"', "✓": "*", "ß": "ss", "€": "EUR",
}  # fmt: skip


def visible(text: str) -> str:
    r"""Escape every character that could steer a terminal; lines and tabs stay.

    Example:
        >>> print(visible("loss \x1b[31mred\r \u202e"))
        loss \x1b[31mred\r \u202e
    """
    return _STEERING.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def encodable(text: str, encoding: str | None) -> str:
    """Return text with plain replacements for the characters that an encoding lacks.

    Example:
        >>> encodable("3 × 4 µs ─ é ☃", "ascii"), encodable("3 × 4 µs ─ é ☃", "latin-1")
        ('3 x 4 us - e ?', '3 × 4 µs - é ?')
    """
    encoding = encoding or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return "".join(_encodable_character(character, encoding) for character in text)
    return text


def drawn(text: str) -> str:
    r"""Escape what could steer a terminal, but for colours and the moves of progress bars.

    Example:
        >>> drawn("\x1b[31mred\x1b]0;title")
        '\x1b[31mred\\x1b]0;title'
    """
    return "".join(part if number % 2 else visible(part) for number, part in enumerate(_DRAWING.split(text)))


def _encodable_character(character: str, encoding: str) -> str:
    candidates = (character, _PLAIN.get(character, ""), unicodedata.normalize("NFKD", character))
    found = (candidate.encode(encoding, "ignore").decode(encoding) for candidate in candidates)
    return next(filter(None, found), "?")
