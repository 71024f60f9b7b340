"""`openxlstm train --list-presets`: the recipes, and what they reached."""

from openxlstm.lm.presets import PRESETS


def list_presets() -> None:
    """Prints a table of the presets to standard output."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None)
    for name in ("preset", "layers", "width", "text", "minutes"):
        table.add_column(name)
    for name in ("windows of 64", "windows of 256", "stream"):
        table.add_column(name, justify="right")
    table.add_column("for")
    for name, preset in PRESETS.items():
        measured = preset.measured
        losses = measured.windows_of_64, measured.windows_of_256, measured.stream
        table.add_row(
            name,
            preset.model.layers,
            str(preset.model.embedding_dim),
            preset.data.source,
            f"{measured.minutes:.1f}",
            *(f"{loss:.3f}" for loss in losses),
            preset.about,
        )
    console = Console()
    console.print(table)
    console.print(
        "\nminutes and losses (nats a token, on the held-out tenth) as measured: medians of three "
        "seeds on two cores of a Zen 5"
    )
