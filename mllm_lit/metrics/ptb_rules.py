"""The grammar of :mod:`mllm_lit.metrics.ptb`: what may start at a letter, at a digit, and at anything else.

Each rule is a pattern, of which the first group is the token and the rest only looked ahead to, and what becomes of
the token. It describes the observable behaviour of the Java program, rule by rule checked against its output.
"""

import re
from collections.abc import Callable

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
    r"(?a:<(?:[!?][A-Za-z-][^>\n]*|/[A-Za-z][\w:.-]*|[A-Za-z][\w:.-]*(?: +[A-Za-z][\w:.-]*(?: *= *(?:'[^'\n]*'|"
    r"\"[^\"\n]*\"|[A-Za-z][\w:.-]*))?)* */?) *>)"
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


Rule = tuple[str, Callable[[str], str]]

# Rules for words are tried at letters and digits, or at letters alone; the comments show what a rule takes as one token.
_WORD_PARTS: list[Rule] = [
    (r"([A-Za-z0-9]+(?:-[A-Za-z]+){0,2}(?:\\?/[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}){1,2})", _same),  # and/or, a-b/c
    (rf"({PART}(?:{HYPHEN}{PART})*)", _same),  # two-story, 5x7, a_b
    (rf"({PART}(?:{HYPHEN}{PART})*\.){STOP_MARK}", _same),  # half-ton.,
    (rf"([A-Za-z0-9][A-Za-z0-9.,\u00ad]*(?:-(?:[A-Za-z0-9\u00ad]+|{ACRO}\.))+)", _soft),  # vs.-e
    (rf"(<?[a-zA-Z0-9][^{URL_STOP}{{}}\u00a0]*@(?:[^{URL_STOP}{{}}.\u00a0]+\.)*[^{URL_STOP}{{}}.\u00a0]+>?)", _same),
]
_FILE: Rule = (rf"({LD}+(?:\.{LD}+)*\.(?i:{FILES}))(?:{B}|[\n.?!,])", _same)
_WEB: Rule = (
    rf"((?:(?i:www)\.(?:[^{URL_STOP}.!?{{}},]+\.)+[a-zA-Z]{{2,4}}|(?:[^\s\"`'<>|.!?(){{}},\-_$/A-Z0-9:;=@\[\\\]^]+\.)+"
    rf"(?:com|net|org|edu))(?:/[^{URL_STOP}]+[^{URL_END}])?)",
    _same,
)
_DOLLAR: Rule = (r"([A-Z]*\$|#)", _same)  # US$
_EMOTICON: Rule = (
    r"([\^x=~<>]\.[\^x=~<>]|[-^x=~<>']_[-^x=~<>']|\([-^x=~<>'][_.]?[-^x=~<>']\))",  # ^_^
    _bracketed,
)
_PHONE: Rule = (
    r"((?:\(\d{2,3}\)[ \u00a0]?|(?:\+\+?)?(?:\d{2,4}[- \u00a0])?\d{2,4}[- \u00a0])\d{3,4}[- \u00a0]?\d{3,5}|"
    r"(?:(?:\+\+?)?\d{2,4}\.)?\d{2,4}\.\d{3,4}\.\d{3,5})",
    _bracketed,
)
_NUMBER: Rule = (rf"([-+]?{N})", _soft)  # -1,000.50, 10:30

AT_LETTER: list[Rule] = [
    (r"((?i:can))(?i:not)", _same),
    (r"((?i:gon|wan))(?i:na)", _same),
    (r"((?i:got))(?i:ta)", _same),
    (r"((?i:lem|gim))(?i:me)", _same),
    (rf"({WORD}){ENDING}", _soft),  # man + 's
    (rf"([A-Za-z\u00ad]*[A-MO-Za-mo-z]\u00ad*)[nN]{A2}[tT]", _soft),  # do + n't
    (rf"({WORD})", _soft),  # the.end
    (rf"([lLdDjJ]{A}|(?i:dunkin|somethin|ol){A}|[A-HJ-XZn]{A2}{L}{{2,}}|{L}+[aeiouyAEIOUY]{A2}[aeiouA-Z]{L}*)", _same),
    (r"((?i:cont'd\.?|nor'easter|c'mon|e'er|s'mores|ev'ry|li'l|nat'l))", _same),
    (rf"([yY]{A}){L}", _same),  # y' + all
    (rf"([nN]{A2}[tT])", _quotes),
    (rf"(C\.D\.s|pro-|anti-|(?i:cap{A}n|c{A}est))", _same),
    (r"((?i:c\+\+|[cf]#))", _same),
    (rf"(https?://[^{URL_STOP}]+[^{URL_END}])", _same),
    _WEB,
    _DOLLAR,
    (rf"([A-Za-z])\.(?:{B}|\n)+(?:(?=[A-Z])(?i:{STARTERS})|{TAG})(?:{B}|\n)", _same),  # plan b + . The man
    (rf"({ABBREVIATION})", _same),
    _FILE,
    (rf"({BEFORE_NUMBER})(?:{B}|\n)?\d", _same),  # no. + 5
    (rf"({WORD}\.){STOP_MARK}", _soft),  # p.m.,
    *_WORD_PARTS,
    (r"([A-Z]+(?:(?:[+&]|&amp;)[A-Z]+)+)", lambda text: text.replace("&amp;", "&")),  # AT&T
    _EMOTICON,
]

AT_DIGIT: list[Rule] = [
    (r"(\d{1,2}[-/]\d{1,2}[-/]\d{2,4})", _same),  # 12/25/2014
    _NUMBER,
    (r"((?:\d{1,4}[- \u00a0])?\d{1,4}(?:\\?/|\u2044)\d{1,4})", _spaces_kept),  # 3 1/2
    _FILE,
    _PHONE,
    *_WORD_PARTS,
]

AT_OTHER: list[Rule] = [
    (rf"({A}(?i:t))(?i:is|was)", _same),  # 't + is
    (rf"({TAG})", _spaces_kept),
    (r"(&(?:MD|mdash|ndash);|[\x96\x97\u2013-\u2015])", _always("--")),
    (r"((?i:&amp;))", _always("&")),
    (r"(&(?:HT|TL|UR|LR|QC|QL|QR|odq|cdq|#\d+);)", _same),
    (rf"({WORD}){ENDING}", _soft),  # A word may also start with a combining mark or an entity.
    (rf"({WORD})", _soft),
    (rf"({A}(?i:n){A}?|{A}(?i:em|till?|cause)|{A}[2-9]0[sS])", _same),  # rock 'n' roll, the '90s
    _WEB,
    _WORD_PARTS[-1],
    (rf"(@[a-zA-Z_][a-zA-Z_0-9]*|#{L}+)", _same),
    (rf"({ENDING})[^A-Za-z]", _quotes),
    _NUMBER,
    (r"([\u207a\u207b\u208a\u208b]?(?:[\u2070\u00b9\u00b2\u00b3\u2074-\u2079]+|[\u2080-\u2089]+))", _same),
    (r"([\u00bc\u00bd\u00be\u2153-\u215e])", _fraction),
    (r"(-(?:[RL][RCS]B)-)", _same),
    _DOLLAR,
    (r"([\u00a2-\u00a5\x80\u20a0\u20a4\u20ac])", _currency),
    (rf"({A}\d\d)(?:{B}|\n)", _same),  # '99
    _PHONE,
    (r"(\"|&quot;)", _always("''")),
    (r"([<>]?[:;=][-o*']?[()DPdpO\\{@|\[\]])[^A-Za-z0-9]", _bracketed),  # :-)
    _EMOTICON,
    (r"(\[)", _always("-lsb-")),
    (r"(\])", _always("-rsb-")),
    (r"(\{)", _always("-lcb-")),
    (r"(\})", _always("-rcb-")),
    (r"(\()", _always("-lrb-")),
    (r"(\))", _always("-rrb-")),
    (r"(<<|>>)", _same),
    (r"(<|&lt;)", _always("<")),
    (r"(>|&gt;)", _always(">")),
    (r"(-+)", lambda text: "--" if len(text) in (3, 4) else text),
    (r"(\.{3,}|(?:\.[ \u00a0]){2,}\.|[\x85\u2026])", _always("...")),
    (rf"(@+|#+|_+|\*+|(?:\\\*){{1,3}}|{STOP_MARK}|[?!]+|[.\u00a1\u00bf\u3002]|=|/)", _same),
    (r"(')[A-Za-z][^ \t\r\n\u00a0]", _same),
    (rf"({ENDING})", _quotes),
    (rf"(''|[`\u2018-\u201f\x91-\x94\u2039\u203a\u00ab\u00bb]{{1,2}}|{A})", _quotes),
    (
        r"([+%&~^|\\\u00a6-\u00a9\u00ac\u00ae-\u00ba\u00d7\u00f7\u2016\u2017\u2020-\u2023\u2030-\u2038\u203b-\u2044"
        r"\u2100-\u214f\u2190-\u2bff\u3012\uff01-\uff0f\uff1a-\uff20])",
        _same,
    ),
]
