"""`openxlstm train --list-presets`: the recipes, and what they reached."""

from openxlstm.lm.presets import PRESETS


def list_presets() -> None:
    """Prints a table of the presets to standard output."""
    from rich.console import Console
    from rich.table import Table

    console, table = Console(), Table(box=None)
    for name in ("preset", "layers", "width", "text", "minutes", "64", "256", "stream", "seeds"):
        table.add_column(name, justify="left" if name in ("preset", "text") else "right")
    for name, preset in PRESETS.items():
        model, measured = preset.model, preset.measured
        figures = ["–"] * 5  # not run here
        if measured is not None:
            losses = measured.windows_of_64, measured.windows_of_256, measured.stream
            figures = [f"{measured.minutes:.1f}", *map("{:.3f}".format, losses)]
            figures.append(str(measured.seeds))
        table.add_row(
            name, short(model.layers), str(model.embedding_dim),
            ", ".join(preset.data.sources), *figures,
        )  # fmt: skip
    console.print(table)
    console.print()
    for name, preset in PRESETS.items():
        console.print(f" {name:<10}{preset.about}", soft_wrap=True, highlight=False)
    console.print(
        "\n Minutes and losses are as measured on two cores of a Zen 5: nats a token on the "
        "held-out tenth,\n in windows of 64 and 256 tokens and as one stream, the median over some "
        "seeds.",
        soft_wrap=True, highlight=False,
    )  # fmt: skip


def short(layers: str) -> str:
    """The letters of a stack's layers; those of a deep one of a single kind as 32 × m."""
    is_deep = len(layers) > 8 and len(set(layers)) == 1
    return f"{len(layers)} × {layers[0]}" if is_deep else layers
