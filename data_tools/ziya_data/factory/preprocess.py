"""Part 1: repair the encoding, find the language, Traditional to Simplified, one normal form, no meaningless marks."""

import re
import unicodedata
from functools import cache
from typing import Any

from ziya_data._factory import Scanner
from ziya_data.document import Document
from ziya_data.factory.language import identify
from ziya_data.factory.recipe import Preprocess

CONTROL = re.compile(
    "[\x00-\x08\x0b\x0e-\x1f\x7f-\x84\x86-\x9f\xad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff"
    "\ufff0-\ufffb\ud800-\udfff\ue000-\uf8ff\U000e0000-\U000e01ef\U000f0000-\U0010fffd]+"
)
"""Invisible and control characters, lone surrogates, private use. The tab and line ends are not among them."""

SYMBOLS = re.compile("[\u2300-\u23ff\u2400-\u243f\u2500-\u27bf\u2900-\u297f\u2b00-\u2bff\u3013\U0001f000-\U0001faff]+")
"""Boxes, bullets, dingbats, stars, emoji. Mathematics, arrows, currencies and units stay: they carry meaning."""

EMOTICONS = re.compile(
    r"[:;](?<![\w:].)[-~^']?[)(DPp\]\[|]{1,3}(?![\w/])"
    r"|\((?<!\w.) ?[\^T>•ಠ][_.oωw-]?[\^T<•ಠ][;；]? ?\)"
    r"|\^(?<![\w^].)(?:_+|[.oω])?\^(?![\w^])|T(?<!\w.)_+T(?!\w)"
)
"""Western and Eastern faces made of marks: ':-)', '(^_^)', 'T_T'. The look-behinds come after the first character, so
that the search can jump from one such character to the next."""

LINE_END = re.compile("\r\n?|[\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")
ODD_SPACES = "\t\xa0\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000"
BLANK_LINES = re.compile("\n{3,}")

WIDE = re.compile(
    "[\uff10-\uff19\uff21-\uff3a\uff41-\uff5a\ufb00-\ufb06\u2f00-\u2fd5\u2e80-\u2eff\uff05\uff0b\uff0d\uff1d\uff20\uff06]+"
)
"""Full-width letters, digits and operators, ligatures, radicals: these take their NFKC form. Full-width ，。！？：；
and brackets do not: in Chinese they are the right marks."""

ASCII_MARK = re.compile(r"[,;:!?](?<=[\u4e00-\u9fff].)(?=[\u4e00-\u9fff\s]|$)")
ASCII_STOP = re.compile(r"\.(?<=[\u4e00-\u9fff].)(?=[\u4e00-\u9fff\s]|$)")
CHINESE_MARK = str.maketrans(",;:!?", "，；：！？")
WIDE_MARK = re.compile("[，。！？：；（）、]")
ENGLISH_MARK = str.maketrans("，。！？：；（）、", ",.!?:;(),")
SPACED_HAN = re.compile(r" (?<=[\u4e00-\u9fff，。！？：；、] )(?=[\u4e00-\u9fff，。！？：；、])")

MOJIBAKE = re.compile("[ÃÂâåäæçèéï][\x80-\xbf€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ]")
NOT_ASCII = re.compile("[^\x00-\x7f]+")


# What a text must hold for a pattern to be worth a search: one character, or two side by side. HAN_MARKS stands for
# what ASCII marks and spaces are improper behind.
HAN_MARKS = "[\u4e00-\u9fff，。！？：；、]"
SEARCHES = {
    "line ends": ("[\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029]", ""),
    "control": (CONTROL.pattern.removesuffix("+"), ""),
    "symbols": (SYMBOLS.pattern.removesuffix("+"), ""),
    "western faces": ("[:;]", r"[-~^')(DPp\]\[|]"),
    "eastern faces": (r"\(", r"[ \^T>•ಠ]"),
    "other faces": ("[_^]", ""),
    "wide": (WIDE.pattern.removesuffix("+"), ""),
    "spaces": (f"[{ODD_SPACES}]", ""),
    "two spaces": (f"[ {ODD_SPACES}]", f"[ {ODD_SPACES}]"),
    "mojibake": (
        MOJIBAKE.pattern[: MOJIBAKE.pattern.index("]") + 1],
        MOJIBAKE.pattern[MOJIBAKE.pattern.index("]") + 1 :],
    ),
    "marks in Chinese": (HAN_MARKS, "[,;:!?. ]"),
    "marks in English": (WIDE_MARK.pattern, ""),
}
BIT = {name: 1 << at for at, name in enumerate(SEARCHES)}
EVERYTHING = (1 << len(SEARCHES)) - 1


@cache
def scanner() -> Scanner:
    """Each set is asked of the pattern itself, so that the two cannot differ."""

    everything = "".join(map(chr, range(0x10000)))

    def members(pattern: str) -> list[int]:
        return [match.start() for match in re.finditer(pattern, everything)] if pattern else []

    return Scanner([(members(first), members(second)) for first, second in SEARCHES.values()])


def scan(texts: list[str]) -> list[int]:
    """Of each text the BITs of what it holds."""
    found: list[int] = scanner()([text.encode("utf-8", "surrogatepass") for text in texts]).tolist()
    return found


@cache
def converter() -> Any:
    import opencc

    return opencc.OpenCC("t2s")


def preprocess(documents: list[Document], settings: Preprocess) -> list[str]:
    """Cleans a batch in place and returns one reason a document, `""` when it stays."""
    for document, holds in zip(documents, scan([document.text for document in documents]), strict=True):
        if holds & BIT["mojibake"]:
            document.text, holds = repair_encoding(document.text), EVERYTHING
        document.text = tidy(document.text, document.kind, holds)
    found = identify([document.text for document in documents], settings.confidence)
    reasons = [finish(document, *pair, settings) for document, pair in zip(documents, found, strict=True)]
    marks = scan([document.text for document in documents])
    for document, reason, holds in zip(documents, reasons, marks, strict=True):
        if not reason and document.kind != "code":
            document.text = punctuation(document.text, document.language, holds)
    return reasons


def finish(document: Document, language: str, confidence: float, settings: Preprocess) -> str:
    """Set the document's language. Returns the reason to drop it, or ""."""
    if reason := unread(document):
        return reason
    if document.kind == "code":
        document.language = ""
        return "" if document.text.strip() else "preprocess.empty"
    # A supervised item may be one formula; whoever made it knows its language better than a guess does.
    trusted = document.kind == "supervised" and document.language in settings.languages
    if not trusted:
        document.language = language
    if not document.text.strip():
        return "preprocess.empty"
    if document.language not in settings.languages:
        document.metadata["why"] = f"{language}, confidence {confidence:.2f}"
        return "preprocess.language"
    if document.language == "zh" and settings.simplify:
        simplified = converter().convert(document.text)
        if simplified != document.text:
            document.metadata["simplified"] = True
            document.text = simplified
    return ""


def unread(document: Document) -> str:
    """Why there is nothing to preprocess, or ""."""
    for reason in ("broken", "not_a_page"):
        if reason in document.metadata:
            document.metadata["why"] = document.metadata[reason]
            return f"read.{reason}"
    return ""


def repair_encoding(text: str) -> str:
    """Undoes UTF-8 that was read as Windows-1252 ("CafÃ©" -> "Café"), stretch by stretch where that is certain."""
    if not MOJIBAKE.search(text):
        return text

    def undo(match: re.Match[str]) -> str:
        stretch = match.group()
        try:
            return bytes(to_byte(character) for character in stretch).decode("utf-8")
        except (UnicodeError, ValueError):
            return stretch

    return NOT_ASCII.sub(undo, text)


def to_byte(character: str) -> int:
    """The byte that Windows-1252, or Latin-1 where that has a hole, reads as this character."""
    return ord(character) if ord(character) < 256 else character.encode("cp1252")[0]


def tidy(text: str, kind: str = "text", holds: int = EVERYTHING) -> str:
    """One form for what means the same. Code keeps its white space and its symbols.

    `holds` says what there may be to do (`scan`); once something was done, everything is looked for.
    """
    before = text
    if holds & BIT["line ends"]:
        text = LINE_END.sub("\n", text)
    if holds & BIT["control"]:
        text = CONTROL.sub("", text)
    if kind == "code":
        return text.strip("\n")
    if holds & BIT["symbols"]:
        text = SYMBOLS.sub("", text)
    holds = EVERYTHING if text != before else holds
    if holds & (BIT["western faces"] | BIT["eastern faces"] | BIT["other faces"]):
        text = EMOTICONS.sub("", text)
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
        if holds & BIT["wide"]:
            text = WIDE.sub(lambda match: unicodedata.normalize("NFKC", match.group()), text)
    if text != before or holds & BIT["spaces"]:
        text = single_spaces(text)
    elif holds & BIT["two spaces"]:
        text = single_spaces(text, "")
    text = text.replace(" \n", "\n").replace("\n ", "\n")
    return (BLANK_LINES.sub("\n\n", text) if "\n\n\n" in text else text).strip()


def single_spaces(text: str, odd: str = ODD_SPACES) -> str:
    """One plain space for each run of spaces, of `odd` ones too. A pattern takes 1.6 to 5 times as long."""
    for space in odd:
        text = text.replace(space, " ")
    while "  " in text:
        text = text.replace("  ", " ")
    return text


def punctuation(text: str, language: str, holds: int = EVERYTHING) -> str:
    """Improper marks: ASCII ones between Chinese characters, full-width ones in English; spaces inside Chinese."""
    if language == "zh":
        if holds & BIT["marks in Chinese"]:
            text = ASCII_MARK.sub(lambda match: match.group().translate(CHINESE_MARK), text)
            text = SPACED_HAN.sub("", ASCII_STOP.sub("。", text))
    elif holds & BIT["marks in English"] and WIDE_MARK.search(text):
        text = text.translate(ENGLISH_MARK)
    return text
