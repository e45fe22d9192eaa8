"""Where a quote stands in a text, and how far a text supports words that aren't a quote."""

import re
import unicodedata

Span = tuple[int, int]

_LEAST = 2  # characters: one alone is found in any text
# Words this short, and these, are in every text and support nothing.
_SHORT = 4
_COMMON = frozenset(
    re.findall(
        r"\w+",
        "about also been candidate candidates each from have having include included includes including into more most only "
        "other over required requirement requirements resume role some such than that their them then there these they "
        "this those through under using very well were what when where which while will with within without",
    )
)
_STEM = 5


def plain(text: str) -> str:
    """The form in which texts are searched and shown: composed characters (NFC)."""
    return unicodedata.normalize("NFC", text)


def find_quote(text: str, quote: str) -> Span | None:
    """Where to show a quote in `plain(text)`, word for word, blind only to kinds and amounts of white space.

    Whether it counts as one is for `evidence.is_verbatim` to say.
    Of several places the first that doesn't begin or end inside a word. None for a quote of less than two characters.
    """
    words = plain(quote).split()
    if len("".join(words)) < _LEAST:
        return None
    pattern = r"\s+".join(map(re.escape, words))
    text = plain(text)
    match = re.search(rf"(?<!\w){pattern}(?!\w)", text) or re.search(pattern, text)
    return match.span() if match else None


def support(quote: str, *texts: str) -> float:
    """Share of a paraphrase's words that stand in one of the texts, 0 to 1; 0 where it says nothing.

    Words are compared by their first five letters, so that "developing" finds "developed"; short and common ones don't
    count. A rule of thumb: it sees words, not meaning, and a denial supports itself.
    """
    words = _stems(quote)
    found = set().union(*map(_stems, texts))
    return len(words & found) / len(words) if words else 0.0


def _stems(text: str) -> set[str]:
    words = re.findall(r"[^\W_]+[+#]*", plain(text).casefold())
    return {word[:_STEM] for word in words if (len(word) >= _SHORT or not word.isalpha()) and word not in _COMMON}
