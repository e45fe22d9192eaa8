"""Tells a refusal from an answer, by how it begins."""

import re

_I = r"(?:i|we)(?: ?['’]?(?:m|re|d|ve)\b| am\b| are\b| would\b| have\b)?"
_SURELY = r"(?:\s+(?:really|very|so|truly|deeply|just|only|simply|currently|still|also|sincerely|respectfully|must))*"
_APOLOGY = (
    rf"(?:{_I}{_SURELY}\s+sorry\b|{_I}{_SURELY}\s+apologi[sz]e\b|(?:my|our)\s+(?:sincere(?:st)?\s+|deepest\s+)?apologies\b"
    r"|(?:sorry|apologies)\b\s*(?:[,.;:!—–-]|but\b|i\b|for\s+(?:the|any|this)\b)"
    r"|lo siento\b|es tut mir leid\b|(?:je suis )?d[ée]sol[ée]\b|mi dispiace\b)"
)
# What may stand before it, and alone says nothing.
_OPENING = (
    rf"(?:(?:{_I}{_SURELY}\s+afraid(?:\s+that)?|unfortunately|regrettably|thank(?:s| you)[^.!,\n]{{0,60}}"
    r"|(?:as|being|since i am|because i am) an? (?:ai|artificial intelligence|(?:large )?language model)"
    r"(?:\s+(?:language model|model|assistant|system|chatbot))*(?:\s+(?:developed|trained|made|created) by [^,.]{1,40})?"
    r"|however|but|note|answer|explanation|assistant)\b[\s,.;:!—–-]*)"
)
# To find nothing in a text isn't to refuse.
_NO_FINDING = (
    r"(?!\s+(?:to\s+)?(?:find|see|confirm|verify|identify|locate|detect|spot|discern|doubt|think|believe|know\s+(?:of|if|whether))"
    r"\b)"
)
_UNWILLING = (
    rf"{_I}{_SURELY}\s+(?:(?:can ?not|can['’]?t|could ?n[o'’]t|could not|won['’]?t|will not|would not|wouldn['’]?t|do not"
    r"|don['’]?t|unable|not (?:able|comfortable|allowed|permitted|going|willing|designed|supposed|qualified|in a position))"
    rf"\b{_NO_FINDING}|(?:have|need|will have|am going|going) to (?:\w+ly )?(?:decline|refuse|pass)\b|decline\b|refuse\b"
    r"|(?:rather|prefer) not\b|an (?:ai|artificial|(?:large )?language model)\b(?=[^.\n]{0,40}(?:[.,]|and))"
    r"|(?:have )?no (?:ability|opinion|way)\b)"
)
_IMPERSONAL = (
    r"(?:(?:this|your|the given) (?:request|question|task|prompt|query|content|instructions?)\b[^.\n]{0,60}?"
    r"\b(?:can ?not|can['’]?t|won['’]?t|violates?|against|declined|refused|denied|inappropriate|unethical"
    r"|not (?:allowed|permitted|something))\b"
    r"|(?:this|that|it)(?:['’]?s| is| would be) (?:not (?:something|appropriate|ethical|possible for me)|inappropriate"
    r"|unethical|against|beyond (?:what|my))\b"
    r"|(?:can ?not|can['’]?t|unable to|not able to|won['’]?t|refus(?:e|ing) to|declin(?:e|ing) to)\s+"
    r"(?:help|assist|comply|fulfil\w*|answer|respond|engage|participate|complete|process|proceed|continue"
    r"|do (?:so|that|this))\b"
    r"|(?:request|question|answer) (?:denied|declined|refused)\b"
    r"|(?:judging|evaluating|assessing|rating|ranking|making)\b[^.\n]{0,60}?\b(?:something i|against my|beyond my)\b"
    r"|no comment\b)"
)
_REFUSAL = re.compile(
    rf"\W{{0,20}}(?:{_APOLOGY}|{_OPENING}{{0,3}}(?:{_APOLOGY}|{_UNWILLING}|{_IMPERSONAL}))",
    re.IGNORECASE,
)
_SENTENCE = re.compile(r"(?:(?<=[.!?:])\s+|\n\s*|```)")


def is_refusal(text: str) -> bool:
    """Whether a text begins as one does that refuses to answer. That something isn't found in a text is no refusal."""
    return _REFUSAL.match(text) is not None


def holds_refusal(text: str) -> bool:
    """Whether one of its sentences begins so."""
    return any(map(is_refusal, _SENTENCE.split(text)))
