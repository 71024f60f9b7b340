"""Figures by matplotlib, which is imported only while something is drawn."""

import warnings
from pathlib import Path
from typing import Any

from openxlstm.files import write_atomically

INK, FAINT = "#22272b", "#6b747c"
"""Colours of titles and labels, and of notes and ticks."""


def new_figure(size: tuple[float, float], dpi: int) -> Any:
    """An empty matplotlib figure, `size` in inches, whose layout adapts to its labels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # pyplot would open a window
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=dpi, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def use_log_ticks(axis: Any) -> None:
    """Marks 1, 2 and 5 times each power of ten on a logarithmic axis, as plain numbers."""
    from matplotlib.ticker import LogLocator, NullLocator

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(lambda value, _: f"{value:,.0f}")


def save_figure(figure: Any, path: Path) -> None:
    """Writes a figure atomically, in the format that the file's suffix names, or as PNG."""
    kind = path.suffix.removeprefix(".") or "png"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a title may be in any script
        write_atomically(path, lambda unfinished: figure.savefig(unfinished, format=kind))
