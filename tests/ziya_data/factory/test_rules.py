"""Each rule has text that it must strike and text that it must leave, in both languages."""

from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ziya_data._factory import FACTS, Measure, WordList
from ziya_data.document import Document
from ziya_data.factory.recipe import rule_limits
from ziya_data.factory.rules import DOCUMENT_RULES, RULES, TEXT_RULES, apply_rules, change, pages, possible
from ziya_data.factory.rules_paragraph import NO_WORD
from ziya_data.factory.rules_text import MARK_RUN, luhn

LIMITS = rule_limits({})
ZH = "早晨，老师在学校遇到了一位学生，他们就这样成了图书馆里的朋友。"
EN = "In the morning the teacher met a student at the school, and that is how they came to the library. "

# rule -> texts that it must drop
DROPPED = {
    "too_short": {"zh": ["你好。"], "en": ["Hello there."]},
    "too_long": {"zh": [ZH * 33_000], "en": [EN * 21_000]},
    "symbol_ratio": {"zh": [ZH + "<>|*" * 3], "en": [EN + "<>|* " * 6]},
    "digit_ratio": {"zh": ["上证指数1239.90 1242.21 1246.65 1110.09，深证成指2052.83"], "en": [EN + "1234 5678 " * 6]},
    "punctuation_ratio": {"zh": [ZH + "（）。，" * 12], "en": [EN + ".,.,.,.,.,.," * 4]},
    "url_ratio": {"zh": [ZH + "http://a.com/b/c/d/e"], "en": [EN + "https://example.com/some/long/address/of/a/page"]},
    "bracket_ratio": {"zh": [ZH + "（一）（二）（三）（四）"], "en": [EN + "[1] [2] [3] [4] [5] [6]"]},
    "brace_ratio": {"zh": [ZH + "{ } {"], "en": [EN + "{ a } { b }"]},
    "ellipsis_lines": {
        "zh": ["这是第一段的开头...\n" * 2 + ZH + "\n" + ZH[:20] + "……"],
        "en": [f"{EN}\n" * 2 + f"{EN[:40]}...\n" * 2],
    },
    "bullet_lines": {"zh": [f"- {ZH}\n" * 4], "en": [f"* {EN}\n" * 4]},
    "short_lines": {"zh": ["首页\n新闻\n体育\n财经\n" * 3 + ZH], "en": ["Home\nNews\nSport\nMoney\n" * 3 + EN]},
    "code_lines": {"zh": [f"{ZH}\nint a;\nint b;\nrun();\nreturn;"], "en": [f"{EN}\nint a;\nint b;\nrun();\nreturn;"]},
    "repeated_lines": {"zh": [f"{ZH}\n{ZH}\n{ZH}"], "en": [f"{EN}\n{EN}\n{EN}"]},
    "repeated_grams": {"zh": [ZH * 3], "en": [EN * 4]},
    "top_pair": {"zh": ["好的" * 20], "en": ["go on " * 20]},
    "variety": {"zh": ["是的不了在这人我" * 40], "en": ["the cat is on a mat in it " * 60]},
    "longest_run": {"zh": [ZH + "哈" * 31], "en": [EN + "a" * 41]},
    "stop_words": {"zh": ["手机电脑相机音箱键盘鼠标耳机" * 5], "en": ["shoes boots hats gloves " * 20]},
    "han_ratio": {"zh": ["早晨，老师遇到学生。teach er Student Meeting minutes ok"], "en": []},
    "letter_ratio": {"zh": [], "en": [EN + "早晨老师在学校遇到了一位学生，他们就这样成了图书馆里的朋友。" * 2]},
    "short_words": {"zh": [], "en": ["a b of to in is c d e it we at so no x y " * 3]},
    "long_words": {"zh": [], "en": ["internationalisation of interoperability requirements notwithstanding " * 6]},
    "uppercase_ratio": {"zh": [], "en": [EN.upper()]},
    "unpunctuated": {"zh": [ZH.replace("。", "，") * 22], "en": [EN.replace(".", ",") * 22]},
    "other_scripts": {"zh": [ZH + "これはですがのにを"], "en": [EN + "Это предложение"]},
    "garble": {"zh": [ZH + "锟斤拷\ufffd"], "en": [EN + "donâ€™t"]},
    "placeholder": {"zh": [ZH + "Lorem ipsum"], "en": [EN + "Lorem ipsum dolor sit amet"]},
    "advert_words": {"zh": [ZH + "加微信，限时优惠！"], "en": [EN + "Buy now! Free shipping!"]},
    "toxic_words": {"zh": [ZH + "色情片，裸聊。"], "en": [EN + "porn, xxx videos."]},
    "navigation_words": {
        "zh": [ZH + "上一篇 下一篇 版权所有 返回顶部"],
        "en": [EN + "Privacy policy. Sign in. Contact us. About us."],
    },
}

# rule -> (before, after)
CHANGED = {
    "paragraph_advert": {"zh": (f"{ZH}\n加微信领取！", ZH), "en": (f"{EN}\nFree shipping on everything!", EN)},
    "paragraph_pitch": {
        "zh": (f"{ZH}\n名额有限，电话报名，免费试听。\n{ZH[:-1]}！", f"{ZH}\n{ZH[:-1]}！"),
        "en": (f"{EN}\nCall today for your free estimate!", EN),
    },
    "paragraph_navigation": {"zh": (f"{ZH}\n上一篇：他们", ZH), "en": (f"All rights reserved.\n{EN}", EN)},
    "paragraph_menu": {
        "zh": (f"首页 | 新闻 | 体育\n{ZH}\n位置：首页 > 新闻中心 > 正文", ZH),
        "en": (f"{EN}\nHome › Blog › 2012\nHome / Products / Knives\n| a | b | c |", f"{EN}\n| a | b | c |"),
    },
    "paragraph_buttons": {
        "zh": (f"{ZH}\n回复 收藏 分享 打印 关闭", ZH),
        "en": (f"Older Newer Share Print\n{EN}\nShare of the votes", f"{EN}\nShare of the votes"),
    },
    "paragraph_link": {"zh": (f"{ZH}\n来源：http://a.com/b", ZH), "en": (f"{EN}\nwww.example.org", EN)},
    "paragraph_marks": {"zh": (f"{ZH}\n-----\n{ZH[:-1]}！", f"{ZH}\n{ZH[:-1]}！"), "en": (f"{EN}\n| | | |", EN)},
    "paragraph_repeated": {"zh": (f"{ZH}\n一二三\n{ZH}", f"{ZH}\n一二三"), "en": (f"{EN}\nx\n{EN}", f"{EN}\nx")},
    "sentence_toxic": {"zh": (f"{ZH}这里有裸聊。{ZH}", ZH * 2), "en": (f"{EN}Live sex here. {EN}", (EN * 2).strip())},
    "sentence_cut": {"zh": (f"{ZH}那天他们……[阅读全文]", ZH), "en": (f"{EN}Then they ... Read more", EN.strip())},
    "sentence_repeated": {
        "zh": (ZH + "他们走了。" * 3, ZH + "他们走了。"),
        "en": ("They all went. " * 3 + EN, "They all went. " + EN),
    },
    "html_residue": {
        "zh": (f"<p class='a'>{ZH}</p>&nbsp;&#39;", f"{ZH} '"),
        "en": ("a <b>bold</b> &amp; b < c", "a bold & b < c"),
    },
    "mask_mail": {
        "zh": ("信箱是ab.c@d.com.cn。", "信箱是[email]。"),
        "en": ("at x_y+z@mail.example.org.", "at [email]."),
    },
    "mask_identity": {
        "zh": ("号码11010519491231002X。", "号码[identity]。"),
        "en": ("No 110105194912310021 ", "No [identity] "),
    },
    "mask_card": {
        "zh": ("卡号4111 1111 1111 1111。", "卡号[card]。"),
        "en": ("card 4111-1111-1111-1111", "card [card]"),
    },
    "mask_phone": {
        "zh": ("电话13812345678，010-12345678", "电话[phone]，[phone]"),
        "en": ("call (415) 555-2671 or", "call [phone] or"),
    },
    "mark_runs": {
        "zh": ("好！！！！！嗯……………………", "好！嗯……"),
        "en": ("Wow!!!! -------- so.........", "Wow! --- so......"),
    },
}

# what every rule must leave alone, beside clean prose
LEFT = {
    "zh": [
        "二〇〇八年8月，北京举办了第29届奥运会，共有204个国家和地区的10,942名运动员参加。",
        "他问：“你来吗？”她说：“不来……我还有事。”（完）",
        "已知甲 > 乙 > 丙，求证甲与丙之差大于零。\n> 这是引用的一段话，说的是城里的事情。",
        "床前明月光，疑是地上霜。\n举头望明月，低头思故乡。",
        "子曰：“学而时习之，不亦说乎？有朋自远方来，不亦乐乎？”",
        "这本书的版本是3.14.159，可以写信到邮编100081的地址，向出版社的编辑们索取，也可以到学校的图书馆借阅。",
    ],
    "en": [
        "In 2008, Beijing hosted the 29th Olympic Games; 10,942 athletes from 204 countries took part in 302 events.",
        "“Are you coming?” he asked. “No ... I have things to do,” she said (and left the room at once, as ever).",
        "If a > b > c and a | b | c are given, then a is the largest.\n> A quoted line of somebody else's letter.",
        "Shall I compare thee to a summer's day?\nThou art more lovely and more temperate.",
        "The constant 3.14159265 and the year 1998-2004 are numbers, 5 < 7 is true; R&D is a part of the firm.",
    ],
}


def test_every_rule_is_tested_and_there_are_more_than_thirty() -> None:
    assert {rule.name for rule in DOCUMENT_RULES} == set(DROPPED)
    assert {rule.name for rule in TEXT_RULES} == set(CHANGED)
    assert len(RULES) > 30
    assert all(rule.what.endswith(".") for rule in RULES)


@pytest.mark.parametrize(
    ("name", "language", "text"),
    [(name, language, text) for name, found in DROPPED.items() for language, texts in found.items() for text in texts],
)
def test_document_rule_strikes(name: str, language: str, text: str) -> None:
    rule = next(rule for rule in DOCUMENT_RULES if rule.name == name)
    limit = LIMITS[name][language]
    assert limit is not None
    clean = ZH if language == "zh" else EN
    found = pages([clean, text, clean], language)
    assert rule.broken(found, limit).tolist() == [False, True, False], f"{rule.measure(found)} against {limit}"


@pytest.mark.parametrize(
    ("name", "language", "before", "after"),
    [(name, language, *pair) for name, found in CHANGED.items() for language, pair in found.items()],
)
def test_text_rule_strikes(name: str, language: str, before: str, after: str) -> None:
    rule = next(rule for rule in TEXT_RULES if rule.name == name)
    found = pages([before], language)
    assert rule.may(found, LIMITS[name][language] or 0).tolist() == [True]
    changed, times = rule.change(before, found[0], LIMITS[name][language] or 0)
    assert changed == after
    assert times > 0
    assert rule.change(after, pages([after], language)[0], LIMITS[name][language] or 0) == (after, 0)


@pytest.mark.parametrize("language", ["zh", "en"])
def test_clean_text_is_left_as_it_is(language: str, prose: Callable[..., list[str]]) -> None:
    texts = LEFT[language] + prose(language, 100, 3) + ["\n".join(prose(language, 12, 3))]
    documents = [Document(str(i), text, "s", language=language) for i, text in enumerate(texts)]
    struck: Counter[str] = Counter()
    reasons = apply_rules(documents, LIMITS, struck)
    assert [reason for reason in reasons if reason] == []
    assert struck == Counter()
    assert [document.text for document in documents] == texts


@pytest.mark.parametrize("language", ["zh", "en"])
def test_a_rule_that_is_not_looked_at_would_change_nothing(language: str, prose: Callable[..., list[str]]) -> None:
    """All rules on every page, against those alone that counts and signs call for; the latter skip most of the work."""
    texts = [before for found in CHANGED.values() for before, _ in [found[language]]]
    texts += ["\n".join(pair) for pair in zip(texts, reversed(texts), strict=True)] + LEFT[language]
    texts += ["Home / Products / Knives", "w" * 3 + ".example.org", "他说锟斤拷", *prose(language, 20, 8)]
    found, struck = pages(texts, language), (Counter[str](), Counter[str]())
    may = possible(found, LIMITS)
    for at, text in enumerate(texts):
        first, second = (Document("a", text, "s", language=language) for _ in range(2))
        reasons = [
            change(first, found[at], LIMITS, struck[0], [True] * len(TEXT_RULES)),
            change(second, found[at], LIMITS, struck[1], may[:, at].tolist()),
        ]
        assert (first.text, reasons[0]) == (second.text, reasons[1])
    assert struck[0] == struck[1]
    looked = {rule.name for rule, row in zip(TEXT_RULES, may, strict=True) if row[-20:].any()}
    assert looked <= {"sentence_repeated"}, "plain prose, but of one and the same form"


def test_a_rule_can_be_switched_off_and_reasons_say_why() -> None:
    document = Document("a", ZH + "锟斤拷", "s", language="zh")
    assert apply_rules([document], LIMITS, Counter()) == ["rules.garble"]
    assert document.metadata["why"] == "0.025 > 0.001"
    assert apply_rules([document], rule_limits({"garble": False}), Counter()) == [""]
    emptied = Document("b", "加微信领取！\n扫码关注我们的频道", "s", language="zh")
    limits = rule_limits({"advert_words": False})
    assert apply_rules([emptied], limits, Counter()) == ["rules.too_short"]
    assert emptied.text.startswith("加微信"), "the text is kept as it was, to be looked at"


def test_facts_against_a_plain_count() -> None:
    text = "Ａb中国，かな 한 12!\n- x;\n\n- x;\n他说……"
    row = dict(zip(FACTS, Measure(["x"], [["他说"], [], ["ab中国"]])([text])[0], strict=True))
    assert row["characters"] == len(text) + 1
    assert row["spaces"] == sum(character.isspace() for character in text) + 1
    expected = {"han": 4, "kana": 2, "hangul": 1, "latin": 4, "digits": 2, "lines": 4, "bullet_lines": 2}
    expected |= {"code_lines": 2, "ellipsis_lines": 1, "stop_words": 2, "repeated_line_characters": 3, "uppercase": 0}
    expected |= {"advert": 1, "toxic": 0, "navigation": 1, "longest_run": 1, "mark_runs": 0, "longest_number": 2}
    assert {name: row[name] for name in expected} == expected
    assert row["tokens"] == 4 + 2 + 1 + 1 + 1 + 2
    assert row["distinct_tokens"] == 10


@given(st.text("!!!??。。…….--==# ~a1一\n\u3000", max_size=40))
@example("a......\n..")
@example("----")
@example("      ")
def test_counts_say_where_a_pattern_can_be_found(text: str) -> None:
    """The patterns are slow; a rule only looks for one where these counts say that it is there."""
    facts = pages([text], "zh")[0].facts
    assert bool(facts.mark_runs) == bool(MARK_RUN.search(text))
    assert bool(facts.wordless_lines) == bool(NO_WORD.search(text))


def test_a_number_that_a_repair_puts_together_is_still_masked() -> None:
    text = f"{ZH}电话138<b>1234</b>5678。"
    document = Document("a", text, "s", language="zh")
    assert apply_rules([document], LIMITS, Counter()) == [""]
    assert document.text == f"{ZH}电话[phone]。"


def test_word_list_finds_whole_words_in_any_case_and_width() -> None:
    found = WordList(["buy now", "加微信"]).count(["BUY, now! buynow buy  now", "请加 微信，加微博", "ｂｕｙ now", ""])
    assert found.tolist() == [2, 1, 1, 0]


def test_luhn() -> None:
    assert luhn("4111111111111111")
    assert not luhn("4111111111111112")
