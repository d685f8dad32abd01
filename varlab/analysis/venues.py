"""Widths and sizes of type of the venues that tueplots knows, as fields of a style."""

from __future__ import annotations

from varlab import checks


def known() -> list[str]:
    """Return the venues with a bundle and a width, such as ``icml2024``."""
    from tueplots import bundles, figsizes

    return [v for v in dir(bundles) if not v.startswith("_") and (hasattr(figsizes, v) or hasattr(figsizes, f"{v}_half"))]


def settings(venue: str) -> dict[str, float]:
    """Return what a venue asks of figures.

    Widths are those of its style file: ``column`` and ``text`` differ at a venue with two columns and agree at one with a single
    column. ``font_size`` is that of labels and titles, ``small_size`` that of ticks and legends. What tueplots says of typefaces
    is left aside: it names fonts of a LaTeX installation or of the system, and figures should be the same on every machine.

    Args:
        venue: a name of :func:`known`.

    Returns:
        ``column`` and ``text`` in inches, ``font_size`` and ``small_size`` in points.

    Raises:
        InputError: if tueplots has no such venue.
    """  # noqa: DOC502
    # Imported here so that other styles do without it.
    from tueplots import bundles, figsizes

    checks.one_of("venue", venue, known())
    halves = hasattr(figsizes, f"{venue}_half")
    column, text = (
        float(getattr(figsizes, f"{venue}{part}")()["figure.figsize"][0]) for part in (("_half", "_full") if halves else ("", ""))
    )
    sizes = getattr(bundles, venue)()
    return {
        "column": column,
        "text": text,
        "font_size": float(sizes["font.size"]),
        "small_size": float(sizes["xtick.labelsize"]),
    }
