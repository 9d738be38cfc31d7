import re
import unicodedata
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ziya_data.document import Document
from ziya_data.factory.language import identify
from ziya_data.factory.preprocess import (
    BIT,
    ODD_SPACES,
    preprocess,
    punctuation,
    repair_encoding,
    scan,
    single_spaces,
    tidy,
)
from ziya_data.factory.recipe import Preprocess

SAMPLES = {
    "zh": ["这个时候，他们还没有离开学校。", "這個時候，他們還沒有離開學校。", "iPhone 手机很好用，我喜欢。"],
    "en": [
        "The old farmer met his neighbour at the bridge in the morning.",
        "There is no doubt that Beijing (北京) is the capital of China and a very old city.",
    ],
    "other": [
        "これは日本語の文章です。",
        "学校へ行きます。明日も行くでしょう。",
        "이것은 한국어 문장입니다.",
        "Это предложение написано на русском языке.",
        "Le vieux fermier a rencontré son voisin sur le pont ce matin.",
        "12345 --- 678",
        "",
    ],
}


@pytest.mark.parametrize(("language", "text"), [(name, text) for name, texts in SAMPLES.items() for text in texts])
def test_language(language: str, text: str) -> None:
    assert identify([text])[0][0] == language


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("a\u200bb\x00c\ufeff\ue123", "abc"),
        ("ＡＢＣ１２３，你好！（一）", "ABC123，你好！（一）"),
        ("好看😀👍🏽★★★", "好看"),
        ("真好笑 (^_^) 哈 T_T", "真好笑 哈"),
        ("Nice :-) really ;)", "Nice really"),
        ("see (figure 8) and http://x.org/: yes", "see (figure 8) and http://x.org/: yes"),
        ("如下：(1)苹果;(2)梨", "如下：(1)苹果;(2)梨"),
        ("a  b\t c\u3000d \r\n e\n\n\n\nf", "a b c d\ne\n\nf"),
        ("ﬁnal e\u0301", "final é"),
        ("3 × 4 → 12 €", "3 × 4 → 12 €"),
    ],
)
def test_tidy(before: str, after: str) -> None:
    assert tidy(before) == after


def test_punctuation_fits_the_language() -> None:
    assert punctuation("你好,世界.他说:好! Hello, world. 3.14", "zh") == "你好，世界。他说：好！ Hello, world. 3.14"
    assert punctuation("中 文 字 A B", "zh") == "中文字 A B"
    assert punctuation("He said：yes，no。", "en") == "He said:yes,no."


@pytest.mark.parametrize("text", ["Café déjà “quoted” — €5", "naïve 中文 façade"])
def test_mojibake_is_undone(text: str) -> None:
    wrong = text.encode("utf-8").decode("latin-1")
    assert repair_encoding(wrong) == text
    assert repair_encoding(text) == text


@given(st.text())
def test_tidy_leaves_nothing_invisible(text: str) -> None:
    once = tidy(text)
    assert not any(unicodedata.category(character) in ("Cs", "Co") for character in once)
    assert "\r" not in once
    assert "\x00" not in once


@given(st.text(alphabet=st.characters(min_codepoint=32, max_codepoint=0xD7FF)))
def test_no_text_makes_it_fail(text: str) -> None:
    document = Document("a", text, "s")
    reasons = preprocess([document], Preprocess())
    assert reasons[0] in ("", "preprocess.empty", "preprocess.language")


def test_traditional_becomes_simplified_by_phrases() -> None:
    documents = [Document("a", "頭髮發財，乾坤乾淨，皇后在後面。", "s")]
    assert preprocess(documents, Preprocess()) == [""]
    assert documents[0].text == "头发发财，乾坤干净，皇后在后面。"
    kept = [Document("a", "這個時候。", "s")]
    preprocess(kept, Preprocess(simplify=False))
    assert kept[0].text == "這個時候。"


def test_kinds_are_treated_as_they_need(prose: Callable[..., list[str]]) -> None:
    code = Document("a", "\tif (a)  {\r\n\t\tb(); // ★\n\t}", "s", kind="code")
    supervised = Document("b", "1+1=2", "s", kind="supervised", language="zh")
    broken = Document("c", "x", "s", metadata={"broken": "not JSON"})
    assert preprocess([code, supervised, broken], Preprocess()) == ["", "", "read.broken"]
    assert code.text == "\tif (a)  {\n\t\tb(); // ★\n\t}"
    assert (code.language, supervised.language) == ("", "zh")
    clean = [Document(str(i), text, "s") for i, text in enumerate(prose("zh", 20) + prose("en", 20))]
    texts = [document.text for document in clean]
    assert preprocess(clean, Preprocess()) == [""] * 40
    assert [document.text for document in clean] == texts


NASTY = "ab中国，。 :;)(^_T-D.,!?\t\r\n\u2028\u3000\xa0\u200b\ufeff★😀１Ａ％Ãâ\x80€\u0301\ue000"


@given(st.lists(st.text(NASTY, max_size=30), max_size=20))
def test_what_is_not_searched_for_is_not_there(texts: list[str]) -> None:
    for text, holds in zip(texts, scan(texts), strict=True):
        assert tidy(text, holds=holds) == tidy(text)
        assert tidy(text, "code", holds) == tidy(text, "code")
        assert holds & BIT["mojibake"] or repair_encoding(text) == text
        for language in ("zh", "en"):
            assert punctuation(text, language, holds) == punctuation(text, language)


@pytest.mark.parametrize(
    "text", ["so :\u200b) it is", "so (\u200b^\u200b^) it is", "a \u200b b", "a★ b", "中\u200b,文", "a \u2028 b"]
)
def test_what_comes_together_when_something_is_taken_out_is_found(text: str) -> None:
    assert tidy(text, holds=scan([text])[0]) == tidy(text)


def test_lone_surrogates_are_taken_out_like_other_control_characters() -> None:
    document = Document("1", "The old \ud800farmer met his neighbour at the bridge in the morning.", "s")
    assert preprocess([document], Preprocess()) == [""]
    assert document.text == "The old farmer met his neighbour at the bridge in the morning."


def test_english_is_known_by_its_words_and_nothing_else_is_taken_for_it() -> None:
    english = (
        "The old farmer said that he would not be there, and they were all of one mind about what to do with his cow."
    )
    dutch = (
        "De oude boer zei dat hij er niet bij zou zijn, en zij waren het eens over wat er met de koe moest gebeuren."
    )
    french = "Le vieux fermier a dit qu'il n'y serait pas, mais « the show must go on », comme ils disent tous là-bas."
    assert identify([english, dutch, french]) == [("en", 1.0), identify([dutch])[0], identify([french])[0]]
    assert [language for language, _ in identify([english, dutch, french])] == ["en", "other", "other"]


@given(st.text(alphabet=f"ab \n{ODD_SPACES}", max_size=30))
def test_a_run_of_spaces_becomes_one(text: str) -> None:
    assert single_spaces(text) == re.sub(f"[ {ODD_SPACES}]+", " ", text)
    assert single_spaces(text, "") == re.sub("  +", " ", text)
