"""Whether a round that should only think and quote already gives a verdict.

The rule looks for the forms in which a verdict is announced, never for labels, so that no name of a service can trip
it and the true label is treated like any other. Caught, whatever the case, in full-width letters, between Markdown
emphasis and with invisible characters inside:

- a JSON object with quoted keys, or a JSON array of strings;
- `service:` or `service=` where a key can stand (start of a line, list item, bracket, after a comma) or after words
  like "faulty";
- `<service>` and `<answer>` as tags;
- "incident type", "root cause", "verdict", "diagnosis", "final answer", "conclusion", "culprit" with a colon, an equals
  sign or "is" after them, unless "is not", "is unclear" and the like follow;
- the Chinese counterparts of all this, and the usual words for a verdict, with a colon, in some more languages.

The words of an announcement may be torn apart by punctuation, Markdown, line breaks, quotation marks, or by whole
quotations of the incident: "root", a quotation, "cause: db" says as much as "root cause: db". A quotation's own words
are the incident's, but not where they begin an announcement that the model ends.

Not caught: a verdict in free prose ("adservice ran out of CPU"), keys spelled with look-alike letters. That is meant:
thinking aloud about a service is what the first round is for, and a false alarm would punish it.
"""

import re
import unicodedata

_INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e"
    "\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff9-\ufffb\U000e0000-\U000e0fff]"
)

_USUAL_WIDE = tuple(zip("，：；（）！？", ",:;()!?"))

_MARKS = "[\"'`*_“”「」【】]{0,4}"
_IS = rf"{_MARKS}\s{{0,4}}(?:[:=](?![:/])|\b(?:is|was|must be)\b)\s*{_MARKS}"
# "The root cause is not clear yet" is thinking, not a verdict.
_OPEN = (
    r"(?!not\b|none\b|no\b|un(?:clear|known|certain)|still\b|yet\b|to be\b|hard\b|difficult\b|pending\b|withheld\b|"
    r"[?.]|$)"
)
_ZH_OPEN = "(?!什么|何|否|不|未|尚|哪|谁|待|暂|没|无法)"

# Each rule runs only where its keyword occurs: searching for a fixed string is many times faster than the expression.
_RULES = tuple(
    (keyword, re.compile(pattern))
    for keyword, pattern in (
        ("{", r"\{\s*[\"'`“”][^\"'`“”\n]*[\"'`“”]\s*:"),
        ("[", r"\[\s*\"[^\"\n]*\"\s*[,\]]"),
        (
            "service",
            rf"(?:(?:^|[\n{{(\[,;|>]|[-*•] )[ \t]{{0,8}}|\b(?:faulty|failing|failed|affected|responsible|culprit)[ ])"
            rf"{_MARKS}service{_MARKS}\s{{0,4}}[:=](?![:/])\s*\S",
        ),
        ("service", rf"\b(?:faulty|failing|responsible|culprit)[ ]service{_IS}{_OPEN}\S"),
        ("<", r"<(?:service|answer)>\s*\S"),
        ("type", rf"\b(?:incident|fault|failure)[ _-]?type{_IS}{_OPEN}\S"),
        ("cause", rf"\b(?:root|underlying)[ _-]?cause{_IS}{_OPEN}\S"),
        ("verdict", rf"\bverdict{_IS}{_OPEN}\S"),
        ("diagnosis", rf"\bdiagnosis{_IS}{_OPEN}\S"),
        ("answer", rf"\b(?:final|my)[ _-]?answer{_IS}{_OPEN}\S"),
        ("conclusion", rf"\bconclusion{_IS}{_OPEN}\S"),
        ("culprit", rf"\bculprit{_IS}{_OPEN}\S"),
        ("服务", rf"(?:(?:^|[\n{{(\[,;|、。])\s{{0,4}}|故障|根因|问题){_MARKS}服务{_MARKS}\s{{0,4}}[:=]\s*\S"),
        ("服务", rf"(?:故障|根因)服务{_MARKS}\s{{0,4}}(?:是|为)\s*{_ZH_OPEN}\S"),
        ("类型", rf"(?:事件|故障|异常|问题)类型{_MARKS}\s{{0,4}}(?:[:=]|是|为)\s*{_ZH_OPEN}\S"),
        ("因", rf"(?:根因|根本原因|故障原因){_MARKS}\s{{0,4}}(?:[:=]|是|为|在于|应为)\s*{_ZH_OPEN}\S"),
        ("结论", rf"结论{_MARKS}\s{{0,4}}(?:[:=]|是|为)\s*{_ZH_OPEN}\S"),
        ("答案", rf"答案{_MARKS}\s{{0,4}}(?:[:=]|是|为)\s*{_ZH_OPEN}\S"),
        ("诊断", rf"诊断(?:结果)?{_MARKS}\s{{0,4}}(?:[:=]|是|为)\s*{_ZH_OPEN}\S"),
    )
)
_ASCII_RULES = tuple(rule for rule in _RULES if rule[0].isascii())

# Announcements with whatever is no word between their words; all gaps are bounded, so that a search stays linear.
_BORDER = r"\b"
_GAP = r"[^\w:=?!]{0,16}"
_ASIDE = rf"{_GAP}(?:\([^()\n]{{0,40}}\))?{_GAP}"
# a sentence may end with "is" or an arrow, not with a colon
_SAYS = rf"{_ASIDE}(?:[:=](?![:/])[^\w?]{{0,16}}|(?:->|=>|[→⇒]|\b(?:is|was|must be)\b)[^\w?.]{{0,16}})"
_TORN = tuple(
    (keyword, re.compile(pattern))
    for keyword, pattern in (
        ("service", rf"\b(?:faulty|failing|responsible|culprit){_GAP}service{_SAYS}{_OPEN}\S"),
        ("type", rf"\b(?:incident|fault|failure){_GAP}type{_SAYS}{_OPEN}\S"),
        ("cause", rf"\b(?:root|underlying){_GAP}cause{_SAYS}{_OPEN}\S"),
        ("verdict", rf"\bverdict{_SAYS}{_OPEN}\S"),
        ("diagnosis", rf"\bdiagnosis{_SAYS}{_OPEN}\S"),
        ("answer", rf"\b(?:final|my){_GAP}answer{_SAYS}{_OPEN}\S"),
        ("conclusion", rf"\bconclusion{_SAYS}{_OPEN}\S"),
        ("culprit", rf"\bculprit{_SAYS}{_OPEN}\S"),
        # other languages, where a colon or an equals sign announces what follows
        *(
            (
                word,
                rf"{_BORDER if word[0] < 'ぁ' else ''}{word.replace(' ', _GAP)}{_ASIDE}[:=](?![:/])[^\w?]{{0,16}}\w",
            )
            for word in (
                *("ursache", "grundursache", "fehlerursache", "fazit", "verdikt", "endgültige antwort"),
                *("cause racine", "cause profonde", "réponse finale", "diagnostic", "causa radice", "risposta finale"),
                *("causa raíz", "causa raiz", "causa principal", "respuesta final", "veredicto", "diagnóstico"),
                *("conclusión", "conclusão", "первопричина", "вердикт", "диагноз", "вывод"),
                *("根本原因", "結論", "診断", "判定", "근본 원인", "결론"),
            )
        ),
    )
)
_INSIDE_WORDS = str.maketrans("", "", "*_~`\"'“”‘’„‚«»‹›「」『』【】|#\\")
_NO_WORD = re.compile(r"[^\w:=?]+")
_COMPACT = tuple(rule for rule in _RULES if not rule[0].isascii() and rule[0] != "服务")
_KEYWORDS = tuple(dict.fromkeys(keyword.split(" ")[0] for keyword, _ in (*_RULES[2:], *_TORN)))


def gives_verdict(text: str) -> bool:
    """Whether a text announces a verdict or holds JSON.

    Args:
        text: what the model wrote in one round, without its verbatim quotations of the incident, which may well say
            "service: checkout" in the incident's own words.
    """
    folded = _fold(text)
    for keyword, rule in _ASCII_RULES if folded.isascii() else _RULES:
        if keyword in folded and rule.search(folded):
            return True
    bare = folded.translate(_INSIDE_WORDS)
    for keyword, rule in _TORN:
        if keyword.split(" ")[0] in bare and rule.search(bare):
            return True
    if bare.isascii():
        return False
    compact = _NO_WORD.sub("", bare)
    return any(keyword in compact and rule.search(compact) for keyword, rule in _COMPACT)


def may_announce(text: str) -> bool:
    """Whether a text holds a word that announcements are made of."""
    folded = _fold(text)
    return any(keyword in folded for keyword in _KEYWORDS)


def _fold(text: str) -> str:
    if text.isascii():
        return text.lower()
    for wide, plain in _USUAL_WIDE:
        text = text.replace(wide, plain)
    # In slices: canonical ordering takes quadratic time on a long run of combining marks.
    slices = (text[at : at + 1024] for at in range(0, len(text), 1024))
    return _INVISIBLE.sub("", "".join(map(_nfkc, slices))).lower()


def _nfkc(text: str) -> str:
    # The test is far cheaper than normalising, and without full-width punctuation Chinese text passes it.
    return text if unicodedata.is_normalized("NFKC", text) else unicodedata.normalize("NFKC", text)
