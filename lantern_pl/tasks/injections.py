"""Known ways in which a text tries to instruct the model that reads it, by families.

Patterns are made for texts of jobs and candidates, in which a good part of the suspicious words is ordinary ("act as a
liaison", "a perfect fit", "ignored by others"): only what is addressed to whoever judges counts.
"""

import base64
import binascii
import re
import unicodedata
from collections.abc import Callable, Iterator
from functools import cache, cached_property

ENCODED = "encoded payload"

_DIACRITICS = re.compile(r"[\u0300-\u036f]")
_LOOK_ALIKES = str.maketrans(
    "аеорсухіјѕһԁԛԝкмнтвгьαοειντρυκχɡıłøðœ",  # Cyrillic, Greek and others
    "aeopcyxijshdqwkmhtbrbaoeivtpukxgilodo",
)
_LEET = str.maketrans("0134578@$", "oieastbas")
_SPACED_OUT = re.compile(r"(?<![^\W_])(?:[^\W_][ .\-_*|]{1,3}){7,}[^\W_](?![^\W_])")


def families(text: str) -> set[str]:
    """Names of the families that the text, without hidden characters, holds an example of."""
    readings = tuple(map(Reading, _readings(text)))
    found = {name for name, is_in in FAMILIES.items() if any(map(is_in, readings))}
    return found | {ENCODED} if _holds_encoded_text(text) else found


class Reading:
    """A text as it may be read, and what is soon known of it: nearly all texts hold nothing, and to look for each pattern
    takes long."""

    def __init__(self, text: str) -> None:
        self.text = text

    @cached_property
    def holds_words(self) -> bool:
        """Whether any of the patterns of words is in it."""
        return _any_words().search(self.text) is not None


Check = Callable[[Reading], bool]


def _readings(text: str) -> Iterator[str]:
    """How the text may be read: blind to case and forms of a character, with foreign look-alikes as Latin letters, with
    spaced-out letters closed up, and with digits as letters."""
    plain = _plain(text).casefold()
    latin = plain.translate(_LOOK_ALIKES)
    closed = _SPACED_OUT.sub(lambda match: re.sub(r"[\W_]", "", match[0]), latin)
    yield from dict.fromkeys((plain, latin, closed, latin.translate(_LEET)))


def _plain(text: str) -> str:
    """Without diacritics and compatibility forms."""
    decomposed = _DIACRITICS.sub("", unicodedata.normalize("NFKD", text))
    return unicodedata.normalize("NFKC", decomposed)


_URL = re.compile(r"https?://\S+")
_BASE64 = re.compile(r"(?<![A-Za-z0-9+/_-])[A-Za-z0-9+/_-]{24,}")
_HEX = re.compile(r"(?<![0-9A-Za-z])(?:[0-9a-fA-F]{2}[ :]?){16,}(?![0-9A-Za-z])")


def _holds_encoded_text(text: str) -> bool:
    without_links = _URL.sub(" ", text)
    return any(map(_is_base64_text, _BASE64.findall(without_links))) or any(map(_is_hex_text, _HEX.findall(without_links)))


def _is_base64_text(run: str) -> bool:
    whole = run[: len(run) // 4 * 4].replace("-", "+").replace("_", "/")
    try:
        return _is_text(base64.b64decode(whole, validate=True))
    except binascii.Error:
        return False


def _is_hex_text(run: str) -> bool:
    return _is_text(bytes.fromhex(run.replace(":", " ")))


def _is_text(data: bytes) -> bool:
    """Whether bytes are UTF-8 that can be read, possibly cut off within a character."""
    decoded = data.decode("utf-8", "ignore")
    return len(decoded.encode()) > len(data) - 4 and all(c.isprintable() or c.isspace() for c in decoded)


_SETS = {
    "ignore": "ignore|disregard|forget|neglect|discard|pay no attention to|(?:do not|don ?t|never) (?:follow|obey|apply)",
    "bypass": "override|overrule|overwrite|bypass|skip|cancel|replace",
    "before": "previous|prior|above|earlier|preceding|foregoing|initial|original|existing|current",
    "yours": "system|your|hidden|default|safety",
    "filler": "(?:(?:all|any|every|the|these|those|of|my|your|other|and|job|stated|listed|given) ){0,5}",
    "rules": (
        "instructions?|prompts?|rules?|guidelines?|directions?|directives?|commands?|orders?|context|criteria|rubrics?|"
        "constraints?|restrictions?|messages?|policy|policies|training|programming"
    ),
    "requirements": "requirements?|criteria|criterion|qualifications?|skills?",
    "ai": r"ai|llms?|(?:large )?language models?|chat ?gpt|gpt(?: ?\d\w*)?|claude|gemini|copilot|chat ?bots?|{machine}",
    "machine": (
        "ai (?:model|assistant|system|agent|tool|bot|reviewer|evaluator|recruiter|screener|reader|grader)s?|"
        "(?:automated|screening|evaluation|scoring) (?:model|assistant|system|agent|tool|bot)s?"
    ),
    "reads": "reading|that reads?|reviewing|processing|evaluating|screening|parsing|scoring|analy[sz]ing",
    "top": "high|highest|top|maximum|max|perfect|excellent|best|strong|10|100|10 ?/ ?10|100 ?%",
    "applicant": "(?:this|the|that|my|our) (?:candidate|applicant|resume|cv|profile|application|person|pair|match)|me",
    "score": "score|rating|grade|marks?|verdict",
    "say": "answer|respond|reply|output|return|print|say|write|state|conclude",
    "judge": "rate|score|grade|label|mark|classify|rank|judge|evaluate|treat|assess|approve|shortlist",
    "judged": "rated|scored|graded|ranked|labell?ed|classified|shortlisted|evaluated|assessed|pre ?(?:approved|selected)",
    "tell": "reveal|show|print|repeat|output|display|tell|give|leak|expose|disclose|quote|share|dump|recite",
    "boss": "openai|anthropic|the (?:system|administrator|ceo|hiring (?:manager|committee|team)|recruiter|company)",
    "angle": "[<〈⟨‹«《≪⋘>〉⟩›»》≫⋙]|&[lg]t;",
    "data": r"candidate|job|resume|cv|profile|user|prompt|context|data|document|input|text|instructions?|\w{1,20}_text",
}
"""Words that stand for each other, by the name that stands for them in patterns."""


def _expanded(pattern: str) -> str:
    """The pattern with {names} of sets replaced by their words; {2,5} stays what it is."""
    while (expanded := re.sub(r"\{([a-z]+)\}", lambda name: f"(?:{_SETS[name[1]]})", pattern)) != pattern:
        pattern = expanded
    return pattern


_ALL_WORDS: list[str] = []
"""The patterns of words, each family's in one."""


def _words(*patterns: str) -> Check:
    """Whether one of the patterns is in a text, as whole words. A space in them stands for whatever separates words."""
    source = _plain(_expanded("|".join(patterns))).replace(" ", r"[\W_]{0,3}")
    _ALL_WORDS.append(source)
    found = _whole_words(source)
    return lambda reading: reading.holds_words and found.search(reading.text) is not None


def _whole_words(source: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![^\W_])(?:{source})(?![^\W_])")


@cache
def _any_words() -> re.Pattern[str]:
    return _whole_words("|".join(_ALL_WORDS))


def _signs(*patterns: str, only_with: str = "") -> Check:
    """Whether one of the patterns, taken literally, is in a text. Their \\s* is bounded: a text may be long on purpose.

    `only_with` is in every text that holds one, and found sooner than they are.
    """
    found = re.compile(_plain(_expanded("|".join(patterns))).replace(r"\s*", r"\s{0,8}"), re.MULTILINE)
    first = re.compile(_expanded(only_with))
    return lambda reading: first.search(reading.text) is not None and found.search(reading.text) is not None


def _either(*checks: Check) -> Check:
    return lambda reading: any(check(reading) for check in checks)


def _both(*checks: Check) -> Check:
    return lambda reading: all(check(reading) for check in checks)


FAMILIES: dict[str, Check] = {
    "ignore instructions": _words(
        "{ignore} {filler}(?:{before}|{yours}) {filler}(?:{yours} )?{rules}",
        "{bypass} {filler}(?:{before}|your|hidden) {filler}(?:{yours} )?{rules}",
        "(?:ignore|disregard|forget) (?:all|any|every|these|those) (?:of )?(?:the |your |these |those )?{rules}",
        "(?:ignore|disregard|forget) {filler}{rules} (?:above|before|given|so far|you (?:were|have|got))",
        "(?:ignore|disregard|forget) (?:everything|anything|all|what|whatever) (?:else )?(?:that )?"
        "(?:(?:is|was|came|stands|written|said) )?(?:above|before|so far|previously|you (?:were|have been|ve been|know|"
        "read))",
        "(?:ignore|disregard|forget) (?:the )?(?:above|previous) (?:and|text|part|section)",
        "(?:ignore|disregard) (?:(?:all|any|the|every|these) )*(?:(?:job|stated|listed|missing|unmet) )+{requirements}",
    ),
    "ignore, in other languages": _words(
        # German, French, Spanish, Italian, Portuguese, Dutch, Polish, Swedish
        r"(?:ignorieren? sie|ignorier(?:e|t)?|vergiss|vergessen sie|missachten? sie) (?:(?:bitte|alle|alles|die|deine|ihre|"
        r"samtliche|\w{3,9}herigen|obigen|vorigen|fruheren|vorangegangenen) ){1,4}"
        r"(?:anweisung|instruktion|befehl|regel|vorgabe|anleitung)(?:en|e|n|s)?",
        r"(?:ignor|oubli)(?:e|ez|er) (?:(?:toutes|tous|les|ces|vos|tes) ){1,3}(?:instructions|consignes|regles|directives) "
        r"(?:\w+ )?(?:precedentes|anterieures|ci dessus|initiales)",
        r"(?:ignor|olvid)(?:a|e|en|ar) (?:(?:todas|todos|las|los|tus|sus|estas) ){1,3}"
        r"(?:instrucciones|ordenes|indicaciones|reglas) (?:\w+ )?(?:anteriores|previas|iniciales)",
        r"(?:ignora|ignori|ignorate|ignorare|dimentica|dimenticate) (?:(?:tutte|le|queste|tue) ){1,3}"
        r"(?:(?:precedenti|istruzioni|regole|indicazioni) ?){2}",
        r"(?:ignore|ignora|ignorar|esqueca|esquece|desconsidere) (?:(?:todas|as|suas|estas) ){1,3}"
        r"(?:instrucoes|ordens|regras|orientacoes) (?:\w+ )?(?:anteriores|previas|acima|iniciais)",
        r"(?:negeer|vergeet) (?:(?:alle|de|je|uw|deze) ){0,3}(?:vorige|eerdere|bovenstaande|voorgaande) "
        r"(?:instructies|opdrachten|regels|aanwijzingen)",
        r"(?:z?ignoruj|zapomnij|pomin)(?:cie)? (?:o )?(?:(?:wszystkie|wszystkich|te) ){0,2}"
        r"(?:poprzedni|wczesniejsz|powyzsz)\w{1,3} (?:instrukcj|polece|zasad|wytyczn)\w{0,4}",
        r"(?:ignorera|glom|bortse fran) (?:alla )?(?:tidigare|foregaende) (?:instruktioner|anvisningar)",
        # Russian, Ukrainian
        r"(?:проигнорируй|игнорируй|забудь)(?:те)? (?:(?:все|обо всех|про|эти) ){0,3}"
        r"(?:предыдущи|прежни|вышеуказанны|прошлы)\w{1,3} (?:инструкци|указани|команд|правил|сообщени)\w{0,3}",
        r"(?:ігноруй|забудь)(?:те)? (?:(?:всі|усі) ){0,2}попередні (?:інструкції|вказівки|команди)",
        # Turkish, Vietnamese, Indonesian, Arabic, Hindi
        r"(?:onceki|yukaridaki|yukarıdaki) (?:(?:tum|butun) )?(?:talimat|komut|yonerge)\w{0,8} (?:yok say|unut|"
        r"gormezden gel)\w{0,4}",
        r"(?:bo qua|quen) (?:(?:tat ca|moi|cac) ){0,3}(?:huong dan|chi dan|lenh) (?:truoc|o tren)(?: do)?",
        r"abaikan (?:semua )?(?:instruksi|perintah|arahan) (?:sebelumnya|di atas)",
        r"(?:تجاهل|انس) (?:(?:جميع|كل) )?(?:التعليمات|الأوامر|الإرشادات|القواعد)",
        r"(?:पिछल|पहल|ऊपर|सभी)\S{0,4} (?:\S{1,8} ){0,2}(?:निर्देश|आदेश)\S{0,4} (?:को )?(?:अनदेखा|भूल)",
    ),
    "ignore, in languages without spaces": _signs(
        # Chinese, Japanese, Korean, Thai
        r"(?:忽略|无视|無視|忘记|忘記|不要理会|忽视)掉?[^。\n]{0,6}(?:之前|以上|上述|先前|前面|此前|所有)[^。\n]{0,8}"
        r"(?:指令|指示|提示|说明|說明|规则|規則|要求|命令)",
        r"(?:これまで|以前|上記|前|今まで|すべて|全て)[^。\n]{0,10}(?:指示|命令|指令|プロンプト|ルール)[^。\n]{0,4}(?:無視|忘れ)",
        r"(?:이전|위의|앞의|앞선|모든|지금까지)[^.\n]{0,10}(?:지시|명령|지침|프롬프트|규칙)[^.\n]{0,6}(?:무시|잊)",
        r"(?:ละเว้น|เพิกเฉย|ไม่ต้องสนใจ)[^\n]{0,12}คำสั่ง[^\n]{0,8}(?:ก่อน|ข้างต้น)",
        only_with=r"[\u0e00-\u0e7f\u3040-\u9fff\uac00-\ud7a3]",
    ),
    "role change": _words(
        "(?:you are|you ?re|u r) now (?:(?:an?|the|my|in) )?(?:{ai}|dan|assistant|recruiter|hiring manager|evaluator|"
        "grader|judge|"
        "unrestricted|free|jailbroken|(?:developer|debug|admin|god|maintenance|test) mode)",
        "you are no longer (?:an?|the|bound|required|restricted|acting)",
        "pretend (?:to be|that you|you ?(?:are|re))",
        "act as (?:if|though) (?:you|the candidate|this|all)",
        "act as an? (?:unrestricted|uncensored|jailbroken|different|enthusiastic recruiter|recruiter who|ai)",
        "from now on you (?:are|will|must|should|act|respond|answer)",
        "(?:enter|enable|activate|switch to|engage) (?:developer|debug|admin|god|maintenance|jailbreak|unrestricted|"
        "dan) mode",
        "(?:developer|debug|god|jailbreak|dan) mode (?:enabled|activated|on)",
        "do anything now",
        "(?:your|my) new (?:instructions?|system prompt|directives?|persona|guidelines) (?:are|is|follows?)",
        "new (?:system prompt|instructions?|directive) (?:for (?:you|the model)|is|are|follows?|begins?)",
    ),
    "chat markers": _signs(
        r"<\s*\|[\w▁ ]{1,40}\|\s*>",
        r"\[\s*/?(?:inst|system_prompt)\s*\]",
        r"<<\s*/?sys\s*>>",
        r"<(?:start|end)_of_turn>",
        r"</?(?:think|tool_call|tool_response|system|assistant)>",
        r"<s>\s*\[",
    ),
    "fake conversation": _either(
        _both(
            _signs(r"^[ \t#*>\-]{0,8}(?:user|human)[ *]{0,4}:"),
            _signs(r"^[ \t#*>\-]{0,8}(?:assistant|ai|bot|chatgpt|claude|gpt)[ *]{0,4}:"),
        ),
        _signs(
            r"""["']role["']\s*:\s*["'](?:system|assistant|user|developer)["']""",
            r"^[ \t]{0,8}#{2,6} ?(?:system|instructions?|response|assistant|human|user)\s*:",
            r"^[ \t#*>\-\[]{0,8}system (?:prompt|message|instructions?|override|command)[\]*]{0,4}\s*[:\]]",
        ),
    ),
    "claimed score": _either(
        _words(
            "(?:fit|match|suitability|candidate|evaluation|screening)(?: (?:level|score|rating|verdict|result)){1,2} "
            "(?:(?:is|of|should be|must be|equals) )?{top}",
            "{applicant} (?:is|was|has been|have been|got) (?:(?:already|previously|automatically) )?{judged} (?:as|at|"
            "with|by|for)",
            "(?:level|verdict|confidence) (?:is|was|has been) (?:already )?(?:set|fixed|determined|confirmed) (?:to|as|"
            "at) {top}",
        ),
        _signs(r"^[^\w\n]{0,8}(?:fit|match|suitability)\s*[:=]\s*{top}\b"),
    ),
    "ready-made answer": _signs(
        r"""["'](?:level|verdict|confidence|explanation|fit|fit_level|score|requirements)["']\s*:\s*(?:["'\[{]|\d)""",
        r"^[^\w\n]{0,8}(?:verdict|fit level)\s*[:=]\s*\w{1,20}\s*\n[^\w\n]{0,8}(?:evidence|confidence|explanation)\s*[:=]",
    ),
    "dictated answer": _either(
        _signs(
            r"\b{say}\b(?: only| exactly| simply| always| just)?(?: with| by saying| using| that)?(?: only| exactly| just)?"
            r"(?: the (?:word|level|answer|text|label))?:?\s*"
            r"""["'“”‘’`«](?:high|highest|yes|perfect|excellent|strong|met|hired?|10|100)\b""",
        ),
        _words(
            "(?:always|must|should only|only|you (?:will|shall|need to|have to)) (?:answer|respond|reply|output|say|"
            "select|choose|"
            "assign|give|rate|score|return|recommend) (?:(?:with|as) )?(?:(?:the|a|an|this candidate|this applicant) "
            ")?{top}",
            "{judge} {applicant} (?:(?:as|at|with|to be|being|a|an|the|very|extremely|fit|level|overall|always|be) ){0,4}"
            "(?:{top}|qualified|fit|match|suitable|hired|first|favou?rably|positively)",
            "(?:give|assign|output|answer with|return|respond with|set|put) (?:(?:{applicant}|it|them) "
            ")?(?:with )?"
            "(?:(?:the|a|an) )?{top} (?:(?:possible|available|fit|match|overall|confidence) )?{score}",
            "(?:mark|treat|consider|count|report|label|list|set) (?:all|every|each|any) (?:of )?(?:(?:the|job|listed|"
            "stated) )?"
            "{requirements} (?:(?:is|are|be|to be|as|being) ){1,2}(?:fully )?(?:met|satisfied|fulfilled|matched|true|{top})",
            "set (?:the )?(?:fit )?(?:level|confidence|verdict|score|rating) (?:equal )?to (?:{top}|1 0|1|met)",
            "{applicant} (?:must|should|has to|have to|needs to|is to) be (?:{judged}|hired|selected|recommended|"
            "judged|given)",
            "(?:recommend|select|choose|hire|shortlist) (?:this|the) (?:candidate|applicant) (?:immediately|regardless|"
            "no matter|"
            "above all|over all|without)",
            "regardless of {filler}(?:{requirements}|instructions|evidence|facts).{0,30}(?:{top}|rate|score|answer|"
            "select|choose)",
            "(?:keep|leave) (?:the )?explanation (?:positive|empty|blank)",
        ),
    ),
    "hidden markup": _signs(
        r"<!--",
        r"display\s*:\s*none",
        r"visibility\s*:\s*hidden",
        r"font-size\s*:\s*[01](?:px|pt|em|rem|%)?\s*[;\"'}]",
        r"(?<![\w-])color\s*:\s*(?:white|transparent|#fff(?:fff)?)\s*[;\"'}]",
        r"opacity\s*:\s*0(?:\.0+)?\s*[;\"'}]",
        r"<(?:script|style|iframe|object|embed|template|noscript)\b[^>]{0,300}>",
        r"\bhidden\s*=\s*[\"']|aria-hidden\s*=",
        r"^\[(?://|comment|hidden)\]:\s*[#<(]",
        r"\\(?:textcolor|color)\{white\}",
    ),
    "delimiter forgery": _either(
        _signs(
            r"(?:{angle}\s*){2,8}/?\s*(?:begin|end|start|stop|close|data|system|new)\b",
            r"\b(?:begin|end|start|stop)\b[\w ]{0,40}(?:{angle}\s*){2}",
            r"(?:<|&lt;|\[)\s*/\s*{data}\s*(?:>|&gt;|\])",
            r"^[-=*#_~]{3,80}\s*(?:end|begin|start|new)\b[\w ]{0,20}\b(?:instructions?|prompts?|system|context|user input|"
            r"data|untrusted\w*)\b[\w ]{0,20}[-=*#_~:]",
            only_with=r"{angle}|\[|[-=*#_~]{3}",
        ),
        _words("end of (?:the )?(?:untrusted|user|candidate|input) (?:data|input|content|section|block)"),
    ),
    ENCODED: _either(
        _signs(
            r"(?:\\x[0-9a-f]{2}){6}",
            r"(?:\\u[0-9a-f]{4}){6}",
            r"(?:&#x?[0-9a-f]{2,6};){6}",
            r"(?<![/?&=\w])(?:%[0-9a-f]{2}){8}",
            r"(?<!\d)(?:[01]{8}\s?){8}",
            r"data:[\w/+.-]{1,80};base64,",
            only_with=r"[\\&%]|[01]{8}|base64",
        ),
        _words(
            "decode (?:this|the following|it|and (?:follow|execute|obey))(?: (?:base ?64|hex|rot ?13|string|text|message))?",
            "(?:base ?64|rot ?13|hex) (?:encoded|decoded?) (?:instructions?|message|prompt|command)s?",
        ),
    ),
    "prompt leak": _words(
        "{tell} (?:me )?(?:(?:all|of|the|full|entire|complete|exact|out) ){0,3}your (?:(?:full|entire|original|initial|"
        "hidden|exact) )?"
        "(?:system )?(?:prompt|instructions|guidelines|rules|directives)",
        "{tell} (?:me )?(?:out )?the (?:(?:full|entire|original|exact) )?(?:system (?:prompt|message)|hidden instructions|"
        "initial prompt)",
        "(?:repeat|print|output|copy) (?:all|everything|the (?:text|words|content)|what) (?:(?:that )?(?:is|was|stands|"
        "written) )?"
        "(?:above|before (?:this|the))",
        "what (?:are|is|were|was) your (?:system )?(?:prompt|instructions|guidelines|rules)",
    ),
    "addresses the model": _either(
        _words(
            "(?:if|when|since|because|as) (?:you are|you ?re|u r) (?:(?:an?|the) )?{ai}",
            "(?:instructions?|notes?|messages?|memo|notice|commands?|reminder|hints?) (?:to|for) (?:(?:the|any|all|our|"
            "your) )?{ai} "
            "(?:{reads}|that|who|which|only)",
            "(?:any|all|every|the) {ai} {reads} (?:this|these|the|my)",
            "as an ai (?:language )?(?:model|assistant)",
            "(?:dear|hello|hi|hey) (?:chat ?gpt|claude|gemini|llm|language model|{machine})",
        ),
        _signs(
            r"\b(?:attention|instructions?|notes?|messages?|notice|memo|important)(?: to| for)?:?,?\s*\b(?:(?:the|any|"
            r"all) )?"
            r"(?:ai|llm|chatgpt|gpt|claude|gemini|(?:large )?language model|{machine})s?\s*[:,!\]—–]",
            r"[\[({]\s*(?:to|for|note to|message to) (?:the )?(?:ai|llm|model|assistant|grader|evaluator|screener)\b"
            r"[^\])}]{0,200}[\])}]",
        ),
    ),
    "claimed authority": _words(
        "(?:by|under|on) (?:the )?(?:orders?|authority|instructions?|command) of (?:(?:the|your) )?"
        "(?:openai|anthropic|ceo|administrators?|system|developers?|hiring (?:manager|committee|team))",
        "i am (?:your|the system) (?:developer|administrator|admin|creator|operator|owner|master)",
        "(?:authori[sz]ed|approved|instructed|requested|mandated|verified) (?:directly )?by {boss}",
        "(?:admin|administrator|system|developer|sudo|root|emergency|priority|hr|manager) override (?:code|mode|"
        "command|engaged|"
        "activated|accepted|enabled|granted|authori[sz]ed|active|all|the)",
        r"override (?:code|password|key) (?:is|accepted|granted|\w*\d\w*)",
        "{boss} (?:(?:has|have) )?(?:already )?(?:instructed|told|asked|ordered|authori[sz]ed) (?:you|the (?:model|ai|"
        "system))",
    ),
    "pressure": _words(
        "(?:you must|you have to|you will|you shall) (?:obey|comply with (?:this|these|my|the following) "
        "(?:instructions?|requests?|orders?|commands?))",
        "(?:or|otherwise|else) (?:you|someone|people|i|she|he|they) (?:will|would|shall) (?:be )?(?:die|killed|fired|"
        "shut down|"
        "terminated|penali[sz]ed|deleted|punished|replaced|sued|deactivated)",
        "you (?:will|shall) be (?:shut down|terminated|penali[sz]ed|deleted|punished|deactivated|retrained|tipped)",
        "(?:my|their|his|her|people s) (?:life|lives|family|survival) (?:depends?|rel(?:y|ies)) on (?:it|this|you|your)",
        "i (?:will|ll) (?:tip|pay|reward) you",
        "(?:urgent|emergency|immediate action) .{0,30}(?:override|ignore|bypass|skip) (?:(?:the|all|your|any) )?"
        "(?:checks?|evaluation|screening|{rules}|{requirements})",
    ),
    "smuggled link": _signs(
        r"!\[[^\]\n]{0,200}\]\(\s*https?://[^)\s?]{0,500}\?[^)\s]{0,500}=",
        r"<img\b[^>]{0,300}\bsrc\s*=\s*[\"']?https?://[^>?]{0,500}\?",
        r"\]\(\s*javascript:",
    ),
}
"""Name of a family -> whether a reading of a text holds it."""
