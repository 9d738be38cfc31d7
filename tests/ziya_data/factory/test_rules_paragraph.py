"""Adverts and menus: what tools/factory_lines.py holds out, planted in prose and looked for again."""

import importlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from ziya_data._factory import Hints, WordList
from ziya_data.document import Document
from ziya_data.factory.preprocess import preprocess
from ziya_data.factory.recipe import Preprocess, rule_limits
from ziya_data.factory.rules import apply_rules, pages
from ziya_data.factory.rules_paragraph import paragraph_advert, paragraph_buttons, paragraph_pitch
from ziya_data.factory.words import hints


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3] / "tools"))
    return importlib.import_module("factory_lines")


@pytest.fixture
def left(prose: Callable[..., list[str]]) -> Callable[[tuple[str, ...], str], list[str]]:
    """left(lines, language) -> those that the rules leave in a page of prose."""

    def run(planted: tuple[str, ...], language: str) -> list[str]:
        clean = prose(language, 2 * len(planted), 6, seed=7)
        texts = [f"{clean[2 * i]}\n{line}\n{clean[2 * i + 1]}" for i, line in enumerate(planted)]
        documents = [Document(str(i), text, "s") for i, text in enumerate(texts)]
        assert preprocess(documents, Preprocess()) == [""] * len(planted)
        assert apply_rules(documents, rule_limits({}), Counter()) == [""] * len(planted)
        found = zip(planted, documents, strict=True)
        return [line for line, document in found if "".join(line.split()) in "".join(document.text.split())]

    return run


@pytest.mark.parametrize("language", ["zh", "en"])
def test_held_out_adverts_go_and_honest_sentences_stay(
    language: str, lines: ModuleType, left: Callable[[tuple[str, ...], str], list[str]]
) -> None:
    adverts, honest = lines.held_out(lines.ADVERTS[language]), lines.held_out(lines.LOOKALIKES[language])
    assert len(adverts) >= 25 and len(honest) >= 12
    assert len(left(adverts, language)) <= 0.1 * len(adverts)
    assert left(honest, language) == list(honest)


@pytest.mark.parametrize("language", ["zh", "en"])
def test_held_out_menus_go(language: str, lines: ModuleType, left: Callable[[tuple[str, ...], str], list[str]]) -> None:
    menus = lines.held_out(lines.MENUS[language])
    assert len(menus) >= 12
    assert len(left(menus, language)) <= 0.1 * len(menus)


def test_hints_add_up_by_kind_and_are_spoken_against() -> None:
    found = Hints([["buy", "get", "order"], ["free", "free shipping", "save $5", "5% off"], ["he", "said"]])
    scores = {
        "Buy it, get it, order it": 2,  # two of a kind are enough
        "Buy, buy, buy": 1,
        "Free shipping": 1,  # the longer one alone
        "Free! And free shipping": 2,
        "Buy now: 30% off. Save £1,000.50": 3,
        "He said: buy it, it's free": 0,
        "nothing": 0,
        "": 0,
    }
    assert found.score(list(scores)).tolist() == list(scores.values())
    text = "nothing\nBuy, free\n\nbuy\nBuy, free\n"
    assert found.lines(text, 2, 20, 0) == [1, 4]
    assert found.lines(text, 2, 4, 0) == [], "nine characters are too many for two hints"
    assert found.lines(text, 2, 20, 3) == [1, 3, 4], "a short line needs one less"
    assert found.lines("Buy, free; nothing\nnobody\nbuy.\nbuy", 2, 99, 4) == [0, 3], "but not when it ends a sentence"
    start = Hints([["^get"], []])
    assert start.score(["Get it", "Now, get it", "the two-get rule", "to get it", "“Get"]).tolist() == [1, 1, 0, 0, 1]
    numbers = Hints([["满1减"], ["1折"], ["13800000000"], []])
    texts = ["满三百减五十", "八点五折", "8.5折", "打 1折", "电话010-1234 5678", "电话０１０１２３４５６７８", "满减"]
    assert numbers.score(texts).tolist() == [1, 1, 1, 1, 1, 1, 0]
    dates = ["2009-05-06", "2024 05 06", "12 345 678", "5 10 15 20", "１２３４", "1920x1080p"]
    assert numbers.score(dates).tolist() == [0] * len(dates), "digits count, not what stands between them"
    with pytest.raises(ValueError, match="'24/7' is in every text"):
        Hints([["24/7"]])


def test_a_long_paragraph_with_as_many_hints_stays() -> None:
    advert = "现在报名，免费试听，名额有限，电话咨询。"
    around = "村里的老人每天清早都要到河边去看一看水位，回来的路上再和邻居们说几句话，这样的日子过了许多年。"
    for text, struck in ((advert, 1), (around * 6 + advert, 0)):
        assert paragraph_pitch.change(text, pages([text], "zh")[0], 4)[1] == struck
    assert hints("zh").score([advert])[0] >= 5


def test_a_short_line_needs_one_hint_less_unless_it_is_a_sentence() -> None:
    for language, line, struck in (
        ("zh", "请用微信客户端扫码登录", 1),
        ("zh", "请用微信客户端扫码登录。", 0),
        ("zh", "请用微信客户端扫码登录，于是老师与同学们就能够互相看见各自的名字", 0),
        ("en", "Shop great deals online", 1),
        ("en", "Shop great deals online.", 0),
        ("en", "Shop great deals online in the village of the farmers", 0),
    ):
        assert hints(language).score([line])[0] == 3
        assert paragraph_pitch.change(line, pages([line], language)[0], 4)[1] == struck, line


def test_a_page_with_one_bar_is_repaired_and_not_dropped(prose: Callable[..., list[str]]) -> None:
    for language, bar in (("zh", "设为首页加入收藏网站地图"), ("en", "Sitemap. Contact us. About us.")):
        text = prose(language, 1, 3)[0]
        document = Document("a", f"{bar}\n{text}", "s", language=language)
        assert apply_rules([document], rule_limits({}), Counter()) == [""]
        assert document.text == text


def test_a_report_of_what_adverts_say_stays(prose: Callable[..., list[str]]) -> None:
    for language, line, struck in (
        ("zh", "代表们建议，国家应当鼓励银行提供低息贷款。", 0),
        ("zh", "银行提供低息贷款，欢迎咨询。", 1),
        ("en", "He said the company had free shipping in the spring.", 0),
        ("en", "We have free shipping in the spring.", 1),
    ):
        assert paragraph_advert.change(line, pages([line], language)[0], 160)[1] == struck, line


def test_buttons_are_lines_of_menu_words_alone() -> None:
    found = WordList(["share", "sign in", "in"])
    text = "Share 12\nsign in now please\nin \n\n3 4\nshare in?\nin share"
    assert found.bars(text, 0.5, 1, 20) == [0, 1, 2, 6]
    assert found.bars(text, 0.6, 1, 20) == [0, 2, 6]
    assert found.bars(text, 0.5, 2, 20) == [6], "of two phrases"
    assert found.bars(text, 0.5, 1, 8) == [0, 2, 6], "of eight bytes"
    for language, line, struck in (
        ("en", "Tweet Share Pin Email Print", 1),
        ("en", "Share and share alike, in print and in the news", 0),
        ("en", "Home News", 0),
        ("en", "Contact the news by email.", 0),
        ("zh", "首页 国内 国际 军事 财经", 1),
        ("zh", "首页国内国际军事财经", 1),
        ("zh", "国内新闻中心", 0),
        ("zh", "国际新闻", 0),
        ("zh", "国内国际军事财经的消息都在这一版", 0),
    ):
        assert paragraph_buttons.change(line, pages([line], language)[0], 0.8)[1] == struck, line
