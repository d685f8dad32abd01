"""The page that a figure stands on: widths of a paper's columns, type, and how many panels go side by side.

A style is one file of ``conf/style``. What it leaves empty (null) is taken from its ``venue``, by tueplots, and where it names
none, or tueplots is silent, from the paper's own numbers below; a number that it gives wins over both.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont
from matplotlib.text import Text

from varlab import checks
from varlab.analysis import venues

#: What the axes of one panel need with their labels, in sizes of the type.
PANEL = 20.0
#: Shipped with matplotlib, so that a figure looks the same on every machine; both are TrueType, which Type 42 can embed.
SHIPPED = ("STIXGeneral", "DejaVu Sans")


@dataclass(frozen=True)
class Style:
    """The page that figures are made for; the default is a paper with two columns.

    Attributes:
        name: what the style is called.
        venue: whose widths and sizes of type are used (see :func:`varlab.analysis.venues.known`), or None.
        columns: 1 draws every figure that can be at the width of a column, 2 every one at that of the text; None leaves it to the
            figure: several panels side by side take the width of the text.
        column: width of a column, inches.
        text: width of the text, inches.
        font: a TrueType font; STIXGeneral (of the design of Times) and DejaVu Sans ship with matplotlib.
        font_size: points, of labels and titles.
        small_size: points, of ticks and legends; None for one less.
        line_width: points.
        marker_size: points.
        dpi: of the PNG, at least 200.
    """

    name: str = "paper"
    venue: str | None = None
    columns: int | None = None
    column: float = 3.3
    text: float = 6.75
    font: str = "STIXGeneral"
    font_size: float = 8.0
    small_size: float | None = None
    line_width: float = 0.9
    marker_size: float = 3.8
    dpi: int = 300

    def __post_init__(self) -> None:
        """Refuse what cannot be printed.

        Raises:
            InputError: if the resolution is too low for print, columns are neither 1 nor 2, or the font is not installed.
        """
        checks.positive_int("dpi", self.dpi, least=200)
        if self.columns not in (None, 1, 2):
            raise checks.InputError(
                f"columns of a style must be 1 (a column), 2 (the whole text) or null (the figure's own), but it is "
                f"{self.columns!r}; set style.columns to one of these."
            )
        if self.font not in SHIPPED:
            try:
                findfont(self.font, fallback_to_default=False)
            except ValueError as error:
                raise checks.InputError(
                    f"An installed font was expected, but '{self.font}' was not found; set style.font to {' or '.join(SHIPPED)}, "
                    "which come with matplotlib, or install it."
                ) from error

    def width(self, wide: bool) -> float:
        """Return a figure's width in inches.

        Args:
            wide: whether the figure wants the width of the text where ``columns`` leaves it the choice.

        Returns:
            ``text`` or ``column``.
        """
        return self.text if self.columns == 2 or (wide and self.columns != 1) else self.column

    def across(self, most: int, wide: bool = True, panel: float = PANEL) -> int:
        """Return how many panels stand side by side.

        Args:
            most: how many would do.
            wide: as for :meth:`width`.
            panel: what each needs, in sizes of the type.

        Returns:
            The number, at least 1.
        """
        return max(1, min(most, int(72 * self.width(wide) / (panel * self.font_size) + 1e-9)))

    def rc(self) -> dict[str, object]:
        """Return the matplotlib rc parameters."""
        small = self.small_size or self.font_size - 1
        return {
            # A glyph that a font of the user lacks is taken from the next one.
            "font.family": [self.font] if self.font in SHIPPED else [self.font, *SHIPPED],
            "mathtext.fontset": "dejavusans" if self.font.startswith("DejaVu") else "stix",
            "font.size": self.font_size,
            "axes.labelsize": self.font_size,
            "axes.titlesize": self.font_size,
            "xtick.labelsize": small,
            "ytick.labelsize": small,
            "legend.fontsize": small,
            "legend.frameon": False,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.linewidth": 0.6,
            "axes.axisbelow": True,
            "xtick.major.width": 0.6,
            "ytick.major.width": 0.6,
            "xtick.minor.width": 0.4,
            "ytick.minor.width": 0.4,
            "lines.linewidth": self.line_width,
            "lines.markersize": self.marker_size,
            "grid.color": "#e4e4e4",
            "grid.linewidth": 0.5,
            "savefig.dpi": self.dpi,
            "figure.dpi": 100,
            "text.usetex": False,
            # Type 42 keeps text selectable, and venues refuse matplotlib's default Type 3.
            "pdf.fonttype": 42,
            "ps.fonttype": 42,
            "axes.unicode_minus": True,
        }


PAPER = Style()


def make(settings: Style | Mapping[str, object] | None = None) -> Style:
    """Return a style from a configuration group.

    Args:
        settings: a style, a mapping of its fields (those left out or None are the venue's, else the paper's), or None for the
            paper.

    Returns:
        The style.

    Raises:
        InputError: if a key is not a field of :class:`Style`, or tueplots does not know the venue.
    """  # noqa: DOC502
    if settings is None or isinstance(settings, Style):
        return settings or PAPER
    known = [f.name for f in fields(Style)]
    for key in settings:
        checks.one_of("field of a style", str(key), known)
    given = {str(k): v for k, v in settings.items() if v is not None}
    asked = venues.settings(str(given["venue"])) if "venue" in given else {}
    return Style(**{**asdict(PAPER), **asked, **given})


@contextmanager
def context(settings: Style | Mapping[str, object] | None = None) -> Iterator[Style]:
    """Apply a style on top of matplotlib's own defaults, and put back what was there.

    Args:
        settings: as :func:`make` takes them.

    Yields:
        The style.
    """
    style = make(settings)
    with matplotlib.style.context(["default", style.rc()]):
        yield style


def axes(width: float, height: float) -> Axes:
    """Return the Axes of a new Figure that no global state knows of.

    Args:
        width: inches.
        height: inches.

    Returns:
        The Axes.
    """
    return Figure(figsize=(width, height), layout="constrained").add_subplot()


def wrap(figure: Figure) -> None:
    """Break a title or label in two lines where it is longer than its axes, or would leave the page.

    Args:
        figure: drawn in its style, whose context is still open.
    """
    figure.draw_without_rendering()
    page = figure.bbox
    for ax in figure.axes:
        box = ax.get_window_extent()
        for text, room in ((ax.title, 1.04 * box.width), (ax.xaxis.label, page.width), (ax.yaxis.label, 1.04 * box.height)):
            own = text.get_window_extent()
            outside = own.x0 < page.x0 or own.x1 > page.x1 or own.y0 < page.y0 or own.y1 > page.y1
            if outside or (own.height if text is ax.yaxis.label else own.width) > room:
                _halve(text)


def _halve(text: Text) -> None:
    """Put a line break at the space nearest to the middle; mathtext stays whole."""
    words = re.split(r" (?=[^$]*(?:\$[^$]*\$[^$]*)*$)", text.get_text())
    if len(words) > 1 and "\n" not in text.get_text():
        cuts = [(" ".join(words[:i]), " ".join(words[i:])) for i in range(1, len(words))]
        text.set_text("\n".join(min(cuts, key=lambda lines: max(map(len, lines)))))
