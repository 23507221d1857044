"""How prompts are cleaned before they are tokenized, as the peers' prompts were.

Wan and TAVR run ftfy (unicode repair), unescape HTML twice and collapse white space.
Here that repair is plain Python, the same with every installation: characters that were
decoded as Windows-1252 instead of UTF-8 (of accented Latin letters, punctuation and
emoji; not of whole alphabets), C1 controls, ligatures, full-width forms, curly quotes,
surrogate pairs, terminal escapes and control characters. TAVR also deletes one sentence
that its captions are full of.
"""

import html
import re
import unicodedata

GESTURES = "The person is talking with gestures."

# Windows-1252, its five holes filled with the C1 controls of the same number.
_CODES = {
    bytes([code]).decode("cp1252", "replace").replace("\ufffd", chr(code)): code
    for code in range(0x80, 0x100)
}
_C1 = {code: char for char, code in _CODES.items() if code < 0xA0}
_CONTINUING = "".join(re.escape(char) for char, code in _CODES.items() if code < 0xC0)
_LOW = "".join(re.escape(char) for char, code in _CODES.items() if code < 0xA0)
# Lead bytes C2 C3; E2 80..9F; F0 9F; EF BB BF (byte order mark), seen as Windows-1252.
# A quotation mark that closes a word after Â or Ã is meant.
_MISREAD = re.compile(
    rf"[ÂÃ](?![’”»](?!\w))[{_CONTINUING}]"
    rf"|â[{_LOW}][{_CONTINUING}]|ðŸ[{_CONTINUING}]{{2}}|ï»¿"
)
# Ligatures, full and half width forms, the ideographic space.
_COMPATIBLE = re.compile(
    "[Ĳĳŉ\u01c4-\u01cc\u01f1-\u01f3\ufb00-\ufb06\uff01-\uffef\u3000]"
)
_QUOTES = dict.fromkeys([0x2BC, *range(0x2018, 0x201C)], "'") | dict.fromkeys(
    range(0x201C, 0x2020), '"'
)
_ESCAPE = re.compile(r"\x1b\[[\d;]*[a-zA-Z]")
_CONTROLS = dict.fromkeys(
    [*range(9), 0x0B, *range(0x0E, 0x20), 0x7F]
    + [*range(0x206A, 0x2070), 0xFEFF, *range(0xFFF9, 0xFFFD)]
)


def clean(prompt: str) -> str:
    """Return the prompt as the text encoder is to see it."""
    text = repair(prompt.replace(GESTURES, ""))
    return " ".join(html.unescape(html.unescape(text)).split())


def repair(text: str) -> str:
    """Mend what went wrong with the characters of a text, until nothing changes."""
    before = None
    while text != before:
        before = text
        if "<" not in text:  # else it may be HTML that is meant
            text = html.unescape(text)
        text = _decode_again(text)
        text = text.translate(_C1)
        text = _COMPATIBLE.sub(lambda m: unicodedata.normalize("NFKC", m[0]), text)
        text = text.translate(_QUOTES)
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        text = _ESCAPE.sub("", text).translate(_CONTROLS)
        text = unicodedata.normalize("NFC", text)
    return text


def _decode_again(text: str) -> str:
    """Decode as UTF-8 what was decoded as Windows-1252, once or several times."""
    before = None
    while text != before:
        before = text
        text = _MISREAD.sub(
            lambda m: bytes(_CODES[c] for c in m[0]).decode("utf-8", "replace"), text
        )
    return text
