"""Small text of our own: nothing that others wrote is in the repository."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from factory_run import Make, write

from ziya_data.factory import recipe, score

ZH = {
    "name": ["老师", "学生", "农民", "工人", "医生", "司机", "邻居", "记者", "船长", "画家", "校长", "木匠", "渔夫"],
    "place": ["城里", "山下", "河边", "学校", "工厂", "医院", "车站", "码头", "村口", "图书馆", "公园", "市场", "桥头"],
    "act": ["看见", "遇到", "帮助", "等候", "寻找", "认识", "感谢", "拜访", "提醒", "陪伴"],
    "time": ["早晨", "傍晚", "昨天", "去年", "春天", "下雨的时候", "放学以后", "过节那天", "天亮之前", "收获的季节"],
}
EN = {
    "name": ["teacher", "student", "farmer", "worker", "doctor", "driver", "neighbour", "captain", "painter"],
    "place": ["village", "river", "school", "factory", "hospital", "station", "harbour", "library", "garden"],
    "act": ["saw", "met", "helped", "followed", "remembered", "thanked", "visited", "reminded", "joined"],
    "time": ["morning", "evening", "spring", "autumn", "holiday", "storm", "harvest", "winter", "journey"],
}
ZH_SENTENCE = "{time}，{name}在{place}{act}了一位{other}，他们就这样成了{there}的朋友。"
EN_SENTENCE = "In the {time} the {name} {act} a {other} at the {place}, and that is how they came to the {there}."


def sentence(draw: random.Random, language: str) -> str:
    words, form = (ZH, ZH_SENTENCE) if language == "zh" else (EN, EN_SENTENCE)
    chosen = {kind: draw.choice(found) for kind, found in words.items()}
    return form.format(**chosen, other=draw.choice(words["name"]), there=draw.choice(words["place"]))


@pytest.fixture(scope="session")
def prose() -> Callable[..., list[str]]:
    """prose(language, documents, sentences=8, seed=0) -> clean documents, all different."""

    def make(language: str, documents: int, sentences: int = 8, seed: int = 0) -> list[str]:
        draw = random.Random(f"{language}{seed}")
        glue = "" if language == "zh" else " "
        return [glue.join(sentence(draw, language) for _ in range(sentences)) for _ in range(documents)]

    return make


@pytest.fixture(scope="session")
def scorers(tmp_path_factory: pytest.TempPathFactory, prose: Callable[..., list[str]]) -> dict[str, Path]:
    """Language -> a scorer trained on prose of this language."""
    folder = tmp_path_factory.mktemp("scorers")
    for language in ("zh", "en"):
        text = folder / f"{language}.txt"
        text.write_text("\n".join(prose(language, 300, 4, seed=99)), encoding="utf-8")
        score.train(language, text, folder / f"{language}.bin")
    return {language: folder / f"{language}.bin" for language in ("zh", "en")}


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory, prose: Callable[..., list[str]]) -> Path:
    folder = tmp_path_factory.mktemp("raw")
    clean = [
        {"text": text, "url": f"http://a.com/{i}"} for i, text in enumerate(prose("zh", 120, 6) + prose("en", 120, 6))
    ]
    draw = random.Random(0)
    letters = [chr(0x4E00 + 7 * i) for i in range(900)]
    junk = ["".join(draw.choices(letters, k=80)) + "的了是在不。" for _ in range(120)]
    planted: list[dict[str, Any]] = [
        {"id": "url", "text": "新" + clean[0]["text"], "url": "https://www.a.com/0/#top"},
        {"id": "content", "text": clean[1]["text"].replace("，", " ") + "!!"},
        {"id": "french", "text": "Le vieux fermier a rencontré son voisin sur le pont ce matin, et ils ont parlé."},
        {"id": "empty", "text": " \n\u200b"},
        {"id": "garble", "text": clean[2]["text"] + "锟斤拷烫烫烫"},
        {"id": "number", "text": 5},
    ]
    write(folder / "web-0.jsonl.zst", [*clean, *planted])
    write(folder / "web-1.jsonl.zst", [{"text": text} for text in junk])
    write(folder / "code.jsonl.zst", [{"text": f"int a{i};\n\treturn {i};", "language_name": "c"} for i in range(5)])
    write(folder / "qa.jsonl.zst", [{"text": f"问题:{i}+1=? 回答:{i + 1}", "language": "zh"} for i in range(5)])
    return folder


@pytest.fixture
def make(tmp_path: Path, corpus: Path, scorers: dict[str, Path]) -> Make:
    def settings(name: str = "out", **sections: Any) -> recipe.Recipe:
        return recipe.parse(
            {
                "run": {"output": str(tmp_path / name), "holdout": 0.1},
                "source": [
                    {"name": "web", "paths": [str(corpus / "web-*.jsonl.zst")], "skip": ["deduplicate.near"]},
                    {
                        "name": "code",
                        "paths": [str(corpus / "code.jsonl.zst")],
                        "kind": "code",
                        "skip": ["score", "rules"],
                    },
                    {
                        "name": "qa",
                        "paths": [str(corpus / "qa.jsonl.zst")],
                        "kind": "supervised",
                        "skip": ["score", "rules"],
                    },
                ],
                "score": {"models": {name: str(path) for name, path in scorers.items()}},
                **sections,
            }
        )

    return settings
