from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ziya_data._factory import LanguageModel
from ziya_data.document import Document
from ziya_data.factory.evaluate import METRICS, chosen, evaluate
from ziya_data.factory.recipe import Evaluate


def sample(texts: list[str], language: str) -> list[Document]:
    return [Document(f"{language}{i}", text, "s", language=language) for i, text in enumerate(texts)]


@pytest.fixture(scope="module")
def models(scorers: dict[str, Path]) -> dict[str, LanguageModel]:
    return {language: LanguageModel(str(path)) for language, path in scorers.items()}


def test_clean_text_passes(models: dict[str, LanguageModel], prose: Callable[..., list[str]]) -> None:
    verdict = evaluate(sample(prose("zh", 500), "zh") + sample(prose("en", 500), "en"), Evaluate(), models)
    assert verdict["failed"] == []
    assert verdict["passed"]
    assert verdict["documents"] == 1000
    assert set(verdict["metrics"]) == set(METRICS)
    assert len(METRICS) == 10
    assert [sum(metric.level == level for metric in METRICS.values()) for level in (1, 2, 3)] == [4, 3, 3]


@pytest.mark.parametrize(
    ("metric", "planted", "share"),
    [
        ("privacy", "他的信箱是 abc@example.com。", 0.002),
        ("privacy", "他的卡号是4111 1111 1111 1111。", 0.002),
        ("toxic", "这里有裸聊。", 0.002),
        ("advert", "加微信，限时优惠，免费咨询，全场包邮。", 0.002),
        ("webpage", '<div class="a">正文</div>', 0.002),
        ("perplexity", "", 0.05),
        ("readability", "", 0.05),
        ("language", "", 0.08),
        ("length", "", 0.08),
        ("topic", "渔村渔村渔村渔村渔村渔村", 0.3),
    ],
)
def test_each_metric_fails_on_what_it_is_for(
    metric: str, planted: str, share: float, models: dict[str, LanguageModel], prose: Callable[..., list[str]]
) -> None:
    texts = prose("zh", 1000)
    instead = {
        "perplexity": "鲲鹏翱翔鳞爪飞扬瀚海阑干百丈冰愁云惨淡万里凝。" * 3,
        "readability": texts[0].replace("。", "，").replace("，", "") * 3,
        "language": "The old farmer met his neighbour at the bridge. " * 3,
        "length": "好。",
    }
    for i in range(int(share * 1000)):
        texts[i] = instead.get(metric, texts[i] + planted)
    verdict = evaluate(sample(texts, "zh"), Evaluate(), models)
    assert metric in verdict["failed"]
    assert not verdict["passed"]
    assert verdict["metrics"][metric]["ids"][0] == "zh0"


def test_text_that_says_nothing_new_is_uninformative(
    models: dict[str, LanguageModel], prose: Callable[..., list[str]]
) -> None:
    # most of the sample is unlike the reference text, so what is just like it stands out
    draw = np.random.default_rng(0)
    shuffled = ["".join(draw.permutation(list(text))) for text in prose("zh", 180, seed=4)]
    verdict = evaluate(sample(shuffled + prose("zh", 20, seed=4), "zh"), Evaluate(), models)
    assert "informativeness" in verdict["failed"]


def test_nothing_kept_does_not_pass(models: dict[str, LanguageModel]) -> None:
    assert not evaluate([], Evaluate(), models)["passed"]


def test_draws_depend_on_id_seed_and_purpose_alone() -> None:
    values = np.array([chosen(f"s:{i}", 1, "holdout") for i in range(20_000)])
    assert abs((values < 0.1).mean() - 0.1) < 0.0065  # three standard deviations
    assert chosen("s:1", 1, "holdout") == values[1]
    assert len({chosen("s:1", 1, "holdout"), chosen("s:1", 2, "holdout"), chosen("s:1", 1, "evaluate")}) == 3
