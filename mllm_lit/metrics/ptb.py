"""The tokens of a caption, as caption scorers count them: a pure-Python equal of ``PTBTokenizer`` of pycocoevalcap.

That one is a Java program (Stanford CoreNLP 3.4.1 with ``-preserveLines -lowerCase``) followed by the removal of
punctuation. It is a lexer: at each place the rule wins that sees the most text, what it only looks ahead to included,
and of equals the first. The same is done here, for what occurs in captions; benchmarks/scoring.py compares the two.

Known differences, all outside of what captions hold: a caption that contains a line separator other than a newline
shifts the captions after it there, and is a blank here; scripts whose letters Java's tables do not know.
"""

import re
from collections.abc import Callable, Sequence
from functools import lru_cache

REMOVED = frozenset(("''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"))
"""Dropped after tokenisation. Brackets (-lrb-, ...) stay: the official list has them in upper case only."""

# Building blocks. L is a letter, N a number without sign, A an apostrophe, B a blank.
# Superscripts, fractions and other numerals are word characters to Python, but no letters.
# ruff: noqa: E501
L = r"(?:[^\W\d_\u00b2\u00b3\u00b9\u00bc-\u00be\u2070-\u209c\u2150-\u218b\u2460-\u249b]|[\u00ad\u0300-\u036f]|&[aeiouAEIOU](?:acute|grave|uml);)"
LD = rf"(?:{L}|\d)"
A = r"(?:['\x92\u2019]|&apos;)"
A2 = rf"(?:{A}|[`\x91\u2018\u201b])"
B = r"[ \t\u00a0\u2000-\u200a\u3000]"
N = r"(?:\d*(?:[.:,\u00ad]\d+)+|\d+)"
WORD = rf"{L}{LD}*(?:[.!?]{L}{LD}*)*"
PART = rf"(?:[dDoOlL]{A2}{LD})?{LD}+"
HYPHEN = r"[-_\u058a\u2010\u2011]"
ACRO = r"(?:[A-Za-z](?:\.[A-Za-z])+|(?:Canada|Sino|Korean|EU|Japan|non)-U\.S|U\.S\.-U\.K)"
ENDING = rf"{A}(?i:[msd]|re|ve|ll)"
TAG = (
    r"<(?:[!?][A-Za-z-][^>\n]*|/[A-Za-z][\w:.-]*|[A-Za-z][\w:.-]*(?: +[A-Za-z][\w:.-]*(?: *= *(?:'[^'\n]*'|"
    r"\"[^\"\n]*\"|[A-Za-z][\w:.-]*))?)* */?) *>"
)
# What starts a sentence: a single letter with a period before one of them is no abbreviation.
FILES = "bat|bmp|c|class|cgi|cpp|dll|docx?|exe|gif|gz|h|html?|jar|java|jpe?g|mov|mp3|pdf|php|pl|png|ppt|ps|py|sql|tar|txt|wav|x|xml|zip"
STARTERS = (
    "About|According|Additionally|After|An?|As|At|But|Earlier|Her?|Here|However|If|In|It|Last|Many|More|Now|Once|One|"
    "Other|Our|She|Since|So|Some|Such|That|The|Then|There|These|They|This|We|When|While|What|Yet|You"
)
STOP_MARK = r"[,;:\u3001]"

# Abbreviations that keep their period.
MONTHS = "jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec"
DAYS = "mon|tues?|wed|thu(?:rs)?|fri"
STATES = (
    "ala|ariz|calif|colo|conn|ct|dak|fla|ga|ind|kans?|ky|md|mich|minn|mo|mont|neb|nev|okla|penn|tenn|va|vt|wisc?|wyo"
)
# Also words of their own, so only with a capital.
CAPITAL_STATES = "A(?i:z|rk)|D(?i:el)|I(?i:ll)|L(?i:a)|M(?i:ass|iss)|O(?i:re)|P(?i:a)|T(?i:ex)|W(?i:ash)"
FIRMS = "inc|cos?|corp|pp?t[ye]s?|ltd|plc|bancorp|bhd|assn|univ|intl|sys|invt|elec|natl|m[ft]g|dept|bldg|blvd|rd|ave"
TITLES = (
    "mr|mrs|ms|drs?|profs?|sens?|reps?|attys?|lt|col|gen|messrs|govs?|adm|rev|maj|sgt|cpl|pvt|capt|ste?|pres|lieut|"
    "hon|brig|co?mdr|pfc|spc|supts?|det|mt|ft|adj|adv|asst|assoc|ens|insp|mlle|mme|msgr|sfc|sr|jr|bros|esq"
)
OTHERS = r"(?:ed|ph)\.d|ph|tel|est|ext|sq|etc|al|seq|vs|alex|wm|jos|cie|a\.k\.a|cf"
ABBREVIATION = rf"(?:(?i:{MONTHS}|{DAYS}|{STATES}|{FIRMS}|{TITLES}|{OTHERS})|{CAPITAL_STATES}|{ACRO}|[A-Za-z])\."
BEFORE_NUMBER = r"(?i:ca|figs?|prop|nos?|art|pp|op)\."

_QUOTES = str.maketrans(
    dict.fromkeys("\x91\u2018\u201b\u2039", "`")
    | dict.fromkeys("\x92\u2019\u203a", "'")
    | dict.fromkeys("\x93\u201c\u00ab", "``")
    | dict.fromkeys("\x94\u201d\u00bb", "''")
)

URL_STOP = r"\s\"<>|()"
URL_END = r"\s\"<>|.!?(){},-"


def _spaces_kept(text: str) -> str:
    return text.replace(" ", "\u00a0")


def _bracketed(text: str) -> str:
    return _spaces_kept(text).replace("(", "-lrb-").replace(")", "-rrb-")


def _fraction(text: str) -> str:
    return {"\u00bc": "1/4", "\u00bd": "1/2", "\u00be": "3/4", "\u2153": "1/3"}.get(text, text)


def _currency(text: str) -> str:
    return {"\u00a2": "cents", "\u00a3": "#", "\x80": "$", "\u00a4": "$", "\u20a0": "$", "\u20ac": "$"}.get(text, text)


def _soft(text: str) -> str:
    return text.replace("\u00ad", "") or "-"


def _same(text: str) -> str:
    return text


def _quotes(text: str) -> str:
    return re.sub("&apos;", "'", text).translate(_QUOTES)


def _always(token: str) -> Callable[[str], str]:
    return lambda _: token


# What is matched (group 1 is the token, the rest is looked ahead to) and what becomes of it.
_TABLE: list[tuple[str, Callable[[str], str]]] = [
    (r"((?i:can))(?i:not)", _same),
    (rf"({A}(?i:t))(?i:is|was)", _same),
    (r"((?i:gon|wan))(?i:na)", _same),
    (r"((?i:got))(?i:ta)", _same),
    (r"((?i:lem|gim))(?i:me)", _same),
    (rf"({TAG})", _spaces_kept),
    (r"(&(?:MD|mdash|ndash);|[\x96\x97\u2013-\u2015])", _always("--")),
    (r"((?i:&amp;))", _always("&")),
    (r"(&(?:HT|TL|UR|LR|QC|QL|QR|odq|cdq|#\d+);)", _same),
    (rf"({WORD}){ENDING}", _soft),
    (rf"([A-Za-z\u00ad]*[A-MO-Za-mo-z]\u00ad*)[nN]{A2}[tT]", _soft),
    (rf"({WORD})", _soft),
    (rf"({A}(?i:n){A}?|[lLdDjJ]{A}|(?i:dunkin|somethin|ol){A}|{A}(?i:em|till?|cause)|[A-HJ-XZn]{A2}{L}{{2,}}|"
     rf"{A}[2-9]0[sS]|{L}+[aeiouyAEIOUY]{A2}[aeiouA-Z]{L}*|"
     rf"(?i:cont'd\.?|nor'easter|c'mon|e'er|s'mores|ev'ry|li'l|nat'l))", _same),
    (rf"([yY]{A}){L}", _same),
    (r"((?i:c\+\+|[cf]#))", _same),
    (rf"(https?://[^{URL_STOP}]+[^{URL_END}])", _same),
    (rf"((?:www\.(?:[^{URL_END}]+\.)+[a-zA-Z]{{2,4}}|(?:[^\s\"`'<>|.!?(){{}},\-_$/A-Z0-9:;=@\[\\\]^]+\.)+"
     rf"(?:com|net|org|edu))(?:/[^{URL_STOP}]+[^{URL_END}])?)", _same),
    (rf"(<?[a-zA-Z0-9][^{URL_STOP}{{}}\u00a0]*@(?:[^{URL_STOP}{{}}.\u00a0]+\.)*[^{URL_STOP}{{}}.\u00a0]+>?)", _same),
    (rf"(@[a-zA-Z_][a-zA-Z_0-9]*|#{L}+)", _same),
    (rf"({ENDING})[^A-Za-z]", _quotes),
    (rf"([nN]{A2}[tT])", _quotes),
    (r"(\d{1,2}[-/]\d{1,2}[-/]\d{2,4})", _same),
    (rf"([-+]?{N})", _soft),
    (r"([\u207a\u207b\u208a\u208b]?(?:[\u2070\u00b9\u00b2\u00b3\u2074-\u2079]+|[\u2080-\u2089]+))", _same),
    (r"((?:\d{1,4}[- \u00a0])?\d{1,4}(?:\\?/|\u2044)\d{1,4})", _spaces_kept),
    (r"([\u00bc\u00bd\u00be\u2153-\u215e])", _fraction),
    (rf"(-(?:[RL][RCS]B)-|C\.D\.s|pro-|anti-|(?i:cap{A}n|c{A}est))", _same),
    (r"([A-Za-z0-9]+(?:-[A-Za-z]+){0,2}(?:\\?/[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}){1,2})", _same),
    (r"([A-Z]*\$|#)", _same),
    (r"([\u00a2-\u00a5\x80\u20a0\u20a4\u20ac])", _currency),
    (rf"([A-Za-z])\.(?:{B}|\n)+(?:(?=[A-Z])(?i:{STARTERS})|{TAG})(?:{B}|\n)", _same),
    (rf"({ABBREVIATION})", _same),
    (rf"({LD}+(?:\.{LD}+)*\.(?i:{FILES}))(?:{B}|[\n.?!,])", _same),
    (rf"({BEFORE_NUMBER})(?:{B}|\n)?\d", _same),
    (rf"({A}\d\d)(?:{B}|\n)", _same),
    (rf"({WORD}\.){STOP_MARK}", _soft),
    (r"((?:\(\d{2,3}\)[ \u00a0]?|(?:\+\+?)?(?:\d{2,4}[- \u00a0])?\d{2,4}[- \u00a0])\d{3,4}[- \u00a0]?\d{3,5}|"
     r"(?:(?:\+\+?)?\d{2,4}\.)?\d{2,4}\.\d{3,4}\.\d{3,5})", _bracketed),
    (r"(\"|&quot;)", _always("''")),
    (r"(<|&lt;)", _always("<")),
    (r"(>|&gt;)", _always(">")),
    (r"([<>]?[:;=][-o*']?[()DPdpO\\{@|\[\]])[^A-Za-z0-9]", _bracketed),
    (r"([\^x=~<>]\.[\^x=~<>]|[-^x=~<>']_[-^x=~<>']|\([-^x=~<>'][_.]?[-^x=~<>']\))", _bracketed),
    (r"(\[)", _always("-lsb-")),
    (r"(\])", _always("-rsb-")),
    (r"(\{)", _always("-lcb-")),
    (r"(\})", _always("-rcb-")),
    (r"(\()", _always("-lrb-")),
    (r"(\))", _always("-rrb-")),
    (r"(-+)", lambda text: "--" if len(text) in (3, 4) else text),
    (r"(\.{3,}|(?:\.[ \u00a0]){2,}\.|[\x85\u2026])", _always("...")),
    (r"(@+|#+|_+|\*+|(?:\\\*){1,3})", _same),
    (rf"({STOP_MARK}|[?!]+|[.\u00a1\u00bf\u3002]|=|/)", _same),
    (rf"([A-Za-z0-9][A-Za-z0-9.,\u00ad]*(?:-(?:[A-Za-z0-9\u00ad]+|{ACRO}\.))+)", _soft),
    (rf"({PART}(?:{HYPHEN}{PART})*\.){STOP_MARK}", _same),
    (rf"({PART}(?:{HYPHEN}{PART})*)", _same),
    (r"([A-Z]+(?:(?:[+&]|&amp;)[A-Z]+)+)", lambda text: text.replace("&amp;", "&")),
    (r"(')[A-Za-z][^ \t\r\n\u00a0]", _same),
    (rf"({ENDING})", _quotes),
    (rf"(''|[`\u2018-\u201f\x91-\x94\u2039\u203a\u00ab\u00bb]{{1,2}}|{A})", _quotes),
    (r"(<<|>>)", _same),
    (r"([+%&~^|\\\u00a6-\u00a9\u00ac\u00ae-\u00ba\u00d7\u00f7\u2016\u2017\u2020-\u2023\u2030-\u2038\u203b-\u2044"
     r"\u2100-\u214f\u2190-\u2bff\u3012\uff01-\uff0f\uff1a-\uff20])", _same),
]  # fmt: skip
_RULES = [(re.compile(pattern), make) for pattern, make in _TABLE]
_BLANKS = re.compile(r"(?:\s|&nbsp;|[\u200b\u200e\u200f\ufeff\x00])+")

# Chunks between blanks that can be cut up without a look at what follows them, unless they hold a letter or an
# abbreviation with a period whose meaning depends on it. Nearly all text is of these, and most of them recur.
_ALONE = re.compile(r"[\"(]?[A-Za-z]+(?:['/-][A-Za-z]+)*[.,;:!?\")]*(?=[ \n])")
_DEPENDS = re.compile(rf"(?:^|[^A-Za-z])(?:[A-Za-z]\.|{BEFORE_NUMBER})")


def tokenize(caption: str, following: str = "") -> str:
    """The caption's tokens in lower case, without punctuation, joined by blanks.

    Args:
        caption: Its newlines count as blanks.
        following: The caption that is scored next. The Java program reads on across captions where a period ends one:
            in ``plan B.`` before a caption that starts with ``The``, but not before ``Men``, the ``b`` loses its period.

    >>> tokenize('A man\\'s dog (big) can\\'t see the "No. 5" U.S. flag, etc.')
    "a man 's dog -lrb- big -rrb- ca n't see the no. 5 u.s. flag etc."
    """
    text = caption.replace("\n", " ")
    end = len(text)
    text = f"{text}\n{following}\n"
    at = 0
    tokens: list[str] = []
    while at < end:
        if text[at] == " ":
            at += 1
            continue
        alone = _ALONE.match(text, at) if at == 0 or text[at - 1] == " " else None
        if alone is not None and ("." not in alone[0] or _DEPENDS.search(alone[0]) is None):
            tokens += _chunk(alone[0])
            at = alone.end()
            continue
        found, at = _longest(text, at)
        tokens += found
    return " ".join(tokens)


def tokenize_all(captions: Sequence[str]) -> list[str]:
    """Each caption's tokens, every caption followed by the next one; see :func:`tokenize`."""
    tokens: list[str] = []
    following = ""
    for caption in reversed(captions):
        tokens.append(tokenize(caption, following))
        following = caption if caption.strip() else f"{caption}\n{following}"
    return tokens[::-1]


@lru_cache(maxsize=1 << 16)
def _chunk(chunk: str) -> list[str]:
    at, tokens = 0, []
    while at < len(chunk):
        found, at = _longest(f"{chunk} ", at)
        tokens += found
    return tokens


def _longest(text: str, at: int) -> tuple[list[str], int]:
    """The token at a place, if it counts, and where the next one starts; what no rule knows gives nothing."""
    blanks = _BLANKS.match(text, at)
    best, token, stop = (blanks.end() - at, "", blanks.end()) if blanks else (0, "", at + 1)
    for pattern, make in _RULES:
        found = pattern.match(text, at)
        if found is not None and found.end() - at > best:
            best, token, stop = found.end() - at, make(found[1]), found.end(1)
    token = token.lower()
    return [token] if token and token not in REMOVED else [], stop
