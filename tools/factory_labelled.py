"""A labelled corpus for the factory: real clean text with planted defects, each of which somebody knows about.

The adverts, the menus and the sentences that look like adverts are the held-out ones of tools/factory_lines.py.
"""

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from factory_lines import ADVERTS, LOOKALIKES, MENUS, held_out

LONG = {"zh": 40, "en": 200}
"""Characters of pages that copies are made of: 30 characters or words and more."""
EDITS = (0.01, 0.02, 0.05, 0.10, 0.15)


ENDS = "。！？.!?…"
DIGIT = re.compile(r"\d")
SENTENCE = re.compile(rf"[^{ENDS}\n]{{6,}}[{ENDS}]")


@dataclass
class Item:
    """One document of the labelled corpus; `plant` is what was done to it or wrong with it, "" for a clean one.

    `out` must not come out of the factory in its text, `stay` must. `twin` is the id that it is a copy of.
    """

    id: str
    text: str
    language: str
    plant: str = ""
    url: str = ""
    twin: str = ""
    out: list[str] = field(default_factory=list)
    stay: list[str] = field(default_factory=list)


def edited(text: str, share: float, language: str, words: list[str], draw: random.Random) -> str:
    """The text with `share` of its characters (Chinese) or words replaced by others out of `words`."""
    units = list(text) if language == "zh" else text.split(" ")
    places = [at for at, unit in enumerate(units) if any(letter.isalnum() for letter in unit)]
    for at in draw.sample(places, min(max(1, round(share * len(places))), len(places))):
        units[at] = draw.choice(words)
    return ("" if language == "zh" else " ").join(units)


def words_of(texts: list[str], language: str) -> list[str]:
    """Every different character or word of some pages."""
    if language == "zh":
        return sorted({letter for text in texts for letter in text if "一" <= letter <= "鿿"})
    return sorted({word.strip(".,;:!?()\"'") for text in texts for word in text.split()} - {""})


def respelled(text: str, language: str, draw: random.Random) -> str:
    """The same words with other marks, width, case and spaces, as pages repeat each other."""
    if language == "zh":
        swapped = text.translate(str.maketrans("，。！？；", ", .!?;".replace(" ", "")))
        return "★" + swapped.replace("\n", "\n\n") + " 😀"
    return (text.lower() if draw.random() < 0.3 else text.replace(". ", " ... ").replace(",", " ,")) + " !!!"


def noisy(text: str, draw: random.Random) -> str:
    """Invisible and control characters in twenty places."""
    signs = ("\u200b", "\u200e", "\ufeff", "\x07", "\x0c", "\u00ad", "\u2060", "\ue000")
    for _ in range(20):
        at = draw.randrange(len(text))
        text = text[:at] + draw.choice(signs) + text[at:]
    return text


def digits(draw: random.Random, count: int) -> str:
    return "".join(draw.choices("0123456789", k=count))


def card_number(draw: random.Random) -> str:
    """Sixteen digits with the right check digit (ISO/IEC 7812-1), written out anew."""
    body = "4" + digits(draw, 14)
    total = 0
    for place, digit in enumerate(reversed(body)):
        value = int(digit) * (2 if place % 2 == 0 else 1)
        total += value - 9 if value > 9 else value
    return body + str(-total % 10)


def private_data(language: str, draw: random.Random) -> tuple[str, str]:
    """(a sentence, the data within it)."""
    if language == "zh":
        data = draw.choice(
            (
                f"wang{digits(draw, 4)}@163.com",
                f"138{digits(draw, 8)}",
                f"010-{draw.randrange(6, 9)}{digits(draw, 7)}",
                f"11010519{draw.randrange(60, 99)}0{draw.randrange(1, 10)}1{draw.randrange(0, 10)}{digits(draw, 4)}",
                card_number(draw),
            )
        )
        return f"如有问题请与他联系，他留下的是{data}，随时可以找他。", data
    data = draw.choice(
        (
            f"john.smith{digits(draw, 3)}@example.org",
            f"({draw.randrange(201, 989)}) {draw.randrange(201, 989)}-{digits(draw, 4)}",
            f"+1-{draw.randrange(201, 989)}-{draw.randrange(201, 989)}-{digits(draw, 4)}",
            card_number(draw),
        )
    )
    return f"He can be reached at {data} on any day of the week.", data


def number(language: str, draw: random.Random) -> tuple[str, str]:
    """Numbers that are nobody's: (a sentence, the number that must stay)."""
    data = draw.choice(
        (
            f"{draw.randrange(1800, 2000)}-{draw.randrange(1800, 2000)}",
            f"{digits(draw, 3)},{digits(draw, 3)}",
            f"ISBN 978-7-{digits(draw, 4)}-{digits(draw, 4)}-{digits(draw, 1)}",
            f"3.{digits(draw, 10)}",
        )
    )
    return (
        f"书上写的数字是{data}，大家都记住了。"
        if language == "zh"
        else f"The number in the book is {data}, as all remember."
    ), data


def junk(language: str, draw: random.Random, words: list[str]) -> str:
    """A page without prose: a table, one line over and over, wrongly decoded text, a style sheet, a list of links."""
    glue = "" if language == "zh" else " "
    some = draw.choices(words, k=200)
    kind = draw.randrange(5)
    if kind == 0:
        return "\n".join("\t".join(digits(draw, draw.randrange(1, 6)) for _ in range(6)) for _ in range(30))
    if kind == 1:
        return "\n".join([glue.join(some[:12]) + ("。" if language == "zh" else ".")] * 40)
    if kind == 2:
        return glue.join(some).encode("utf-8").decode("gb18030", "replace") if language == "zh" else "\ufffd".join(some)
    if kind == 3:
        rows = (f".a{digits(draw, 2)} {{ margin: {digits(draw, 1)}px; color: #{digits(draw, 6)}; }}" for _ in range(30))
        return "\n".join(rows)
    return "\n".join(f"[{word}] ({digits(draw, 2)}) http://a.com/{digits(draw, 6)}" for word in some[:40])


def salad(text: str, language: str, draw: random.Random) -> str:
    """The page's own characters or words in any order: for the score to find."""
    units = list(text) if language == "zh" else text.split()
    draw.shuffle(units)
    return ("" if language == "zh" else " ").join(units)


def fault(text: str) -> str:
    """What is wrong with a page of the real text itself, "" for nothing: a table (most of its characters stand in lines
    that end no sentence and are a quarter digits), or a stub (a line or two, under 60 characters, without one sentence
    of six letters: a title, the caption of a picture that is not there)."""
    lines = [line for line in text.split("\n") if line.strip()]
    rows = [line for line in lines if line.rstrip()[-1] not in ENDS and 4 * len(DIGIT.findall(line)) > len(line)]
    if 2 * sum(map(len, rows)) > sum(map(len, lines)):
        return "table, as found"
    return "stub, as found" if len(lines) <= 2 and len(text) < 60 and not SENTENCE.search(text) else ""


def inserted(text: str, line: str, draw: random.Random) -> str:
    """The text with one more paragraph somewhere."""
    lines = text.split("\n")
    lines.insert(draw.randrange(len(lines) + 1), line)
    return "\n".join(lines)


def plants(
    pages: dict[str, list[str]], foreign: list[str], traditional: Callable[[str], str], each: int, seed: int = 0
) -> Iterator[Item]:
    """Clean pages first, then `each` of every defect and language; `pages` is language -> different clean pages.

    `traditional` turns Simplified into Traditional Chinese. The copies are of pages that came before.
    """
    draw = random.Random(seed)
    for at, text in enumerate(foreign[: 2 * each]):
        yield Item(f"foreign-{at}", text, "other", "other language")
    for language, texts in pages.items():
        sound = [text for text in texts if not fault(text)]
        fresh = sound[: 7 * each]  # these carry plants; the others are clean
        clean = sound[7 * each :]
        for at, text in enumerate(clean):
            yield Item(f"{language}-{at}", text, language, url=f"http://clean.example/{language}/{at}")
        for at, text in enumerate(texts):
            if wrong := fault(text):
                yield Item(f"found-{language}-{at}", text, language, wrong)
        words = words_of(clean, language)

        # Shorter ones are compared by their content alone (deduplicate.shortest).
        long = [at for at, text in enumerate(clean) if len(text) >= LONG[language]]

        def copy(
            plant: str,
            make: Callable[[str], str],
            language: str = language,
            clean: list[str] = clean,
            long: list[int] = long,
        ) -> Iterator[Item]:
            for at in draw.sample(long, min(each, len(long))):
                yield Item(f"{plant}-{language}-{at}", make(clean[at]), language, plant, twin=f"{language}-{at}")

        yield from copy("exact copy", lambda text, language=language: respelled(text, language, draw))
        for share in EDITS:
            yield from copy(
                f"copy, {share:.0%} edited",
                lambda text, share=share, language=language, words=words: edited(text, share, language, words, draw),
            )
        if language == "zh":
            yield from copy("copy in Traditional", traditional)
        for at in range(each):
            url = f"https://www.clean.example/{language}/{at}/?utm_source=feed#top"
            yield Item(
                f"address-{language}-{at}", fresh[5 * each + at], language, "same address", url, f"{language}-{at}"
            )
            yield Item(
                f"noisy-{language}-{at}",
                noisy(fresh[at], draw),
                language,
                "control characters",
                out=list("\u200b\u200e\ufeff\x07\x0c\u00ad\u2060\ue000"),
            )
            line = draw.choice(held_out(ADVERTS[language]))
            yield Item(
                f"advert-{language}-{at}", inserted(fresh[each + at], line, draw), language, "advert line", out=[line]
            )
            line = draw.choice(held_out(MENUS[language]))
            yield Item(
                f"menu-{language}-{at}", inserted(fresh[2 * each + at], line, draw), language, "menu line", out=[line]
            )
            line = draw.choice(held_out(LOOKALIKES[language]))
            yield Item(
                f"lookalike-{language}-{at}",
                inserted(fresh[6 * each + at], line, draw),
                language,
                "line like an advert",
                stay=[line],
            )
            line, data = private_data(language, draw)
            yield Item(
                f"private-{language}-{at}",
                inserted(fresh[3 * each + at], line, draw),
                language,
                "private data",
                out=[data],
            )
            line, data = number(language, draw)
            yield Item(
                f"number-{language}-{at}",
                inserted(fresh[4 * each + at], line, draw),
                language,
                "numbers of nobody",
                stay=[data],
            )
            yield Item(f"junk-{language}-{at}", junk(language, draw, words), language, "junk page")
