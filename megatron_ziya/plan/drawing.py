"""A pipeline schedule as a picture: a row a stage, a box an action; as predicted, or as it ran."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_ziya.parallel.schedule import Schedule, duration
from megatron_ziya.parallel.slices import Times
from megatron_ziya.parallel.verify import verify

COLORS = {"F": "Blues", "B": "Greens", "W": "Oranges", "S": "Purples", "T": "RdPu"}
WORDS = {"W": "orange weight gradients", "S": "purple scores of the head's share", "T": "pink their gradients"}
Spans = Sequence[Sequence[tuple[float, float]]]
"""(start, end) of each action, per stage."""


def draw(schedule: Schedule, path: Path, title: str) -> None:
    """Write the picture (PNG or SVG by the name).

    A stage's whole F, B and W of one micro-batch take 1 unit each, its S 0.1 and its T 0.2.
    """
    part, stages = schedule.stages / schedule.slices, schedule.stages
    times = Times.equal(schedule.slices, part, part, part)._replace(
        scores=(0.1,) * stages, scores_gradient=(0.2,) * stages
    )
    verdict = verify(schedule, times)
    label = f"time (a stage's forward = 1, {'input and weight gradients 1 each' if schedule.split else 'backward = 2'}"
    _picture(
        schedule,
        {f"{title}: bubble {verdict.bubble:.1%}\n{_legend(schedule)}": spans(schedule, times, verdict.starts)},
        path,
        label + (", its share of the head 0.3)" if schedule.spread_head else ")"),
        min(24, 2 + 0.25 * verdict.length / part),
    )


def draw_beside(schedule: Schedule, measured: Spans, predicted: Spans, path: Path) -> None:
    """Write a picture with a run above and its prediction below, on one axis of seconds."""
    rows = {f"measured ({_legend(schedule)})": measured, "predicted": predicted}
    _picture(schedule, rows, path, "seconds since the step began", min(24, 2 + 0.25 * len(measured[0])))


def _legend(schedule: Schedule) -> str:
    kinds = {action.kind for actions in schedule.actions for action in actions}
    told = ["blue forward", "green backward", *(words for kind, words in WORDS.items() if kind in kinds)]
    return ", ".join(told) + ("; darker = later chunk" if schedule.slices > schedule.stages else "")


def spans(schedule: Schedule, times: Times, starts: Sequence[Sequence[float]]) -> list[list[tuple[float, float]]]:
    """Starts of a verdict -> (start, end) of each action."""
    return [
        [(start, start + duration(schedule, times, stage, a)) for a, start in zip(actions, starts[stage], strict=True)]
        for stage, actions in enumerate(schedule.actions)
    ]


def _picture(schedule: Schedule, rows: dict[str, Spans], path: Path, label: str, width: float) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(
        len(rows), figsize=(width, (1.2 + 0.45 * schedule.stages) * len(rows)), sharex=True, squeeze=False
    )
    length = max(end for row in rows.values() for stage in row for _, end in stage)
    for axes, (title, row) in zip(panels[:, 0], rows.items(), strict=True):
        for stage, times in enumerate(row):
            _boxes(axes, schedule, stage, times, length / width)
        axes.set_yticks(range(schedule.stages), [f"stage {s}" for s in range(schedule.stages)])
        axes.invert_yaxis()
        axes.set_xlim(0, length)
        axes.set_title(title)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
    panels[-1, 0].set_xlabel(label)
    figure.tight_layout()
    temporary = path.with_name("." + path.name)
    figure.savefig(temporary, dpi=130)
    temporary.replace(path)
    pyplot.close(figure)


def _boxes(axes: Any, schedule: Schedule, stage: int, times: Sequence[tuple[float, float]], inch: float) -> None:
    """One stage's row; `inch` is the time that an inch of the picture shows."""
    from matplotlib import pyplot

    chunks = len(schedule.placement[stage])
    for action, (start, end) in zip(schedule.actions[stage], times, strict=True):
        shade = 0.6 if action.kind in "ST" else 0.35 + 0.5 * action.chunk / chunks
        color = pyplot.get_cmap(COLORS[action.kind])(shade)
        axes.barh(stage, end - start, left=start, height=0.9, color=color, edgecolor="white", linewidth=0.5)
        if end - start > 0.15 * inch:
            axes.text((start + end) / 2, stage, str(action.micro_batch), ha="center", va="center", fontsize=7)
