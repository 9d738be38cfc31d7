"""A pipeline schedule as a picture: a row a stage, a box an action."""

from pathlib import Path

from megatron_ziya.parallel.schedule import Schedule, verify


def draw(schedule: Schedule, virtual: int, path: Path, title: str) -> None:
    """Write the picture (PNG or SVG by the name) with forward 1 and backward 2 units long."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    forward, backward = 1 / virtual, 2 / virtual
    verdict = verify(schedule, virtual, forward, backward)
    figure, axes = pyplot.subplots(figsize=(min(24, 2 + 0.25 * verdict.length * virtual), 1.2 + 0.45 * len(schedule)))
    small = verdict.length * virtual > 150
    for stage, (actions, starts) in enumerate(zip(schedule, verdict.starts, strict=True)):
        for action, start in zip(actions, starts, strict=True):
            length = forward if action.kind == "F" else backward
            shade = 0.35 + 0.5 * action.chunk / virtual
            color = pyplot.get_cmap("Blues" if action.kind == "F" else "Greens")(shade)
            axes.barh(stage, length, left=start, height=0.9, color=color, edgecolor="white", linewidth=0.5)
            if not small:
                axes.text(start + length / 2, stage, str(action.micro_batch), ha="center", va="center", fontsize=7)
    axes.set_yticks(range(len(schedule)), [f"stage {s}" for s in range(len(schedule))])
    axes.invert_yaxis()
    axes.set_xlim(0, verdict.length)
    axes.set_xlabel("time (forward of a stage = 1, backward = 2)")
    axes.set_title(f"{title}: bubble {verdict.bubble:.1%}; blue forward, green backward, darker = later chunk")
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    figure.tight_layout()
    temporary = path.with_name("." + path.name)
    figure.savefig(temporary, dpi=130)
    temporary.replace(path)
    pyplot.close(figure)
