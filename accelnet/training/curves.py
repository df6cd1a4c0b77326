"""curves.png: loss, metrics and learning rate against steps, for a person to look at."""

import io
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from accelnet.characters import visible
from accelnet.training.record import ROW_FIELDS

# Blue, orange and green of Okabe and Ito's palette, which differ for colour-blind people too.
_COLORS = {"train": "#0072B2", "validation": "#E69F00", "test": "#009E73"}
_INK, _WARNING = "#333333", "#B00020"
# More points than this are drawn thin, with a running mean over a fiftieth of them.
_MANY_POINTS = 200
# A ratio of largest to smallest above which a linear axis hides the small values.
_DECADES_RATIO = 30.0
_LOSS_ALONE: Mapping[str, bool | None] = {"loss": True}


def curves(
    rows: Sequence[Mapping[str, Any]], title: str = "", directions: Mapping[str, bool | None] = _LOSS_ALONE
) -> Any:
    """Draw the loss, every other metric and the learning rate against steps.

    Training and validation share a panel. The best value (of validation, where there is any) is marked and written down
    where the metric's direction is known; a test result is a star. Values that are None or not finite leave a gap and a
    mark.

    Args:
        rows: Rows as in metrics.jsonl, in order of steps.
        title: Title of the figure.
        directions: For each metric, whether lower is better, or None.

    Returns:
        A `matplotlib.figure.Figure`, which notebooks show and `savefig` saves. No window is opened.

    Example:
        >>> rows = [{"step": s, "split": "train", "loss": 1 / s, "learning_rate": 1e-3} for s in (1, 2, 3)]
        >>> [axes.get_title() for axes in curves(rows).axes]
        ['Loss', 'Learning rate']
    """
    # Figure alone: importing pyplot takes half a second and may look for a display. But it is pyplot that teaches
    # notebooks to show figures, so this one says itself how it looks.
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    class Curves(Figure):
        def _repr_png_(self) -> bytes:
            return to_png(self)

    engine = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1)
    every = dict.fromkeys(name for row in rows for name in row if name not in ROW_FIELDS)
    names = sorted(every, key=lambda name: name != "loss")
    rates = _series(rows, "learning_rate", None)
    num_panels = len(names) + bool(len(rates[0])) or 1
    num_columns = 1 if num_panels == 1 else 2
    num_lines = math.ceil(num_panels / num_columns)
    figure = Curves(figsize=(6.4 * num_columns, 3.6 * num_lines + 0.4), dpi=110, layout=engine)
    if title:
        figure.suptitle(visible(title), fontsize=13, color=_INK, parse_math=False)
    panels = figure.subplots(num_lines, num_columns, squeeze=False).flat
    for name in names:
        _draw_metric(next(panels), rows, name, directions.get(name))
    if len(rates[0]):
        axes, marker = next(panels), "o" if len(rates[0]) <= 30 else None
        axes.set_title("Learning rate", color=_INK)
        axes.plot(*rates, color=_INK, linewidth=1.5, marker=marker, markersize=4)
        axes.set_ylim(bottom=0)
        _finish(axes)
    for unused in panels:
        figure.delaxes(unused)
    return figure


def to_png(figure: Any) -> bytes:
    """Return a matplotlib figure as a PNG file. Characters that the font lacks are boxes, without a warning each.

    Example:
        >>> to_png(curves([{"step": 1, "split": "train", "loss": 2.0}], "数"))[1:4]
        b'PNG'
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    image = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        FigureCanvasAgg(figure).print_png(image)
    return image.getvalue()


def _series(rows: Sequence[Mapping[str, Any]], name: str, split: str | None) -> tuple[np.ndarray, np.ndarray]:
    """Return (steps, values) of the rows that have the field; what is None or infinite becomes NaN."""
    pairs = [(row["step"], row[name]) for row in rows if name in row and split in (None, row["split"])]
    if split is None:
        pairs = [(step, value) for step, value in pairs if value is not None]
    values = np.array([math.nan if value is None else value for _, value in pairs], float)
    values[~np.isfinite(values)] = math.nan
    return np.array([step for step, _ in pairs], float), values


def _draw_metric(axes: Any, rows: Sequence[Mapping[str, Any]], name: str, lower_is_better: bool | None) -> None:
    label = visible(name).replace("_", " ")
    axes.set_title(label[:1].upper() + label[1:] if name != "r2" else "R²", color=_INK, parse_math=False)
    series = {split: _series(rows, name, split) for split in _COLORS}
    for split in ("train", "validation"):
        _draw_split(axes, *series[split], split)
    for step, value in zip(*series["test"], strict=True):
        axes.plot(step, value, "*", color=_COLORS["test"], markersize=11, label=f"test: {value:.4g}", zorder=5)
    values = np.concatenate([values for _, values in series.values()])
    finite = values[np.isfinite(values)]
    if lower_is_better and len(finite) and finite.min() > 0:
        _use_decades_for(axes, finite.max() / finite.min())
    best_of = "validation" if np.isfinite(series["validation"][1]).any() else "train"
    if lower_is_better is not None:
        _mark_best(axes, *series[best_of], best_of, lower_is_better)
    if name == "loss":
        _mark_spikes(axes, rows)
    _mark_lost(axes, *(np.concatenate(parts) for parts in zip(*series.values(), strict=True)))
    _finish(axes)


def _use_decades_for(axes: Any, ratio: float) -> None:
    if ratio <= _DECADES_RATIO:
        return
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axes.set_yscale("log")
    # Up to three decades, powers of ten alone would leave an axis with a number or two.
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if ratio < 1000 else (1.0,)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _draw_split(axes: Any, steps: np.ndarray, values: np.ndarray, split: str) -> None:
    if not len(steps):
        return
    color = _COLORS[split]
    if len(steps) <= _MANY_POINTS:
        marker = "o" if len(steps) <= 30 else None
        axes.plot(steps, values, color=color, marker=marker, markersize=4, linewidth=1.5, label=split)
    else:
        axes.plot(steps, values, color=color, linewidth=0.5, alpha=0.35)
        axes.plot(steps, _running_mean(values), color=color, linewidth=1.8, label=f"{split} (running mean)")


def _running_mean(values: np.ndarray) -> np.ndarray:
    """Average over a centred window, shorter at the ends; NaN does not count, and stays NaN."""
    finite = np.isfinite(values)
    window = np.ones(max(3, len(values) // 50) | 1)
    totals = np.convolve(np.where(finite, values, 0.0), window, mode="same")
    counts = np.convolve(finite.astype(float), window, mode="same")
    return np.where(finite, totals / np.maximum(counts, 1.0), math.nan)


def _mark_best(axes: Any, steps: np.ndarray, values: np.ndarray, split: str, lower_is_better: bool) -> None:
    if not np.isfinite(values).any():
        return
    index = int(np.nanargmin(values) if lower_is_better else np.nanargmax(values))
    text = f"best {split}: {values[index]:.4g} at step {steps[index]:,.0f}"
    ring = {"marker": "o", "markersize": 9, "markerfacecolor": "none", "color": _INK, "linestyle": "none"}
    axes.plot(steps[index], values[index], label=text, zorder=6, **ring)


def _mark_spikes(axes: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    spikes = [(row["step"], row["loss"]) for row in rows if row.get("spike") is not None]
    if spikes:
        text = f"spike at step {spikes[0][0]:,}" + (f" and {len(spikes) - 1:,} more" if len(spikes) > 1 else "")
        steps, losses = zip(*spikes, strict=True)
        axes.plot(steps, losses, "v", color=_WARNING, markersize=7, linestyle="none", label=text, zorder=6)


def _mark_lost(axes: Any, steps: np.ndarray, values: np.ndarray) -> None:
    lost = np.sort(steps[~np.isfinite(values)])
    if len(lost):
        text = f"not finite at step {lost[0]:,.0f}" + (f" and {len(lost) - 1:,} more" if len(lost) > 1 else "")
        axes.axvline(lost[0], color=_WARNING, linestyle="--", linewidth=1, label=text)


def _finish(axes: Any) -> None:
    from matplotlib.ticker import EngFormatter, MaxNLocator

    axes.set_xlabel("step", color=_INK)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.grid(visible=True, which="major", color="#DDDDDD", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=_INK, labelsize=9)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8.5, framealpha=0.85, edgecolor="none", loc="best")
