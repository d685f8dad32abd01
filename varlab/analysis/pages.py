"""One self-contained page: figures, tables, settings and provenance in a single HTML file that opens without a network."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import jinja2
import pandas as pd


@dataclass(frozen=True)
class Section:
    """One part of a page.

    Attributes:
        title: its heading.
        text: paragraphs above what is shown.
        tables: (caption, frame of text) each; cells are escaped.
        figures: (caption, PNG) each.
        facts: name → value, shown as a list (settings, provenance).
    """

    title: str
    text: Sequence[str] = ()
    tables: Sequence[tuple[str, pd.DataFrame]] = ()
    figures: Sequence[tuple[str, bytes]] = ()
    facts: Mapping[str, object] = field(default_factory=dict)


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
body { font: 16px/1.5 Georgia, "Times New Roman", serif; color: #1b1b1b; background: #fdfdfb; max-width: 1080px;
  margin: 2rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.7rem; margin-bottom: .2rem; } h2 { font-size: 1.2rem; margin-top: 2.4rem; border-bottom: 1px solid #ddd; }
nav a { margin-right: 1rem; color: #332288; } p.lead { color: #555; margin-top: 0; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font: 13px/1.35 system-ui, sans-serif; margin: .6rem 0 1.2rem; }
caption { text-align: left; font-style: italic; padding-bottom: .3rem; }
th { border-top: 2px solid #333; border-bottom: 1px solid #333; text-align: left; padding: .25rem .6rem; vertical-align: bottom; }
td { padding: .25rem .6rem; vertical-align: top; border-bottom: 1px solid #eee; }
tr:last-child td { border-bottom: 2px solid #333; } td.number { text-align: right; white-space: nowrap; }
td.violated { background: #fbe9e7; } td.holds { background: #e8f3ea; } td.undecided { background: #fff6dd; }
figure { margin: 1rem 0 1.8rem; } figure img { max-width: 100%; height: auto; } figcaption { font-size: .9rem; color: #444; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; font: 13px/1.4 system-ui, sans-serif; }
dt { color: #666; } dd { margin: 0; overflow-wrap: anywhere; } code { font-size: .85em; }
</style>
</head>
<body>
<h1>{{ title }}</h1>
<p class="lead">{{ lead }}</p>
<nav>{% for s in sections %}<a href="#s{{ loop.index }}">{{ s.title }}</a>{% endfor %}</nav>
{% for s in sections %}
<section id="s{{ loop.index }}">
<h2>{{ s.title }}</h2>
{% for p in s.text %}<p>{{ p }}</p>{% endfor %}
{% for caption, frame in s.tables %}
<div class="wide"><table><caption>{{ caption }}</caption>
<thead><tr>{% for c in frame.columns %}<th>{{ c }}</th>{% endfor %}</tr></thead>
<tbody>{% for row in frame.itertuples(index=False) %}
<tr>{% for cell in row %}<td class="{{ kind(cell) }}">{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table></div>
{% endfor %}
{% for caption, picture in s.figures %}
<figure><img alt="{{ caption }}" src="data:image/png;base64,{{ picture }}"><figcaption>{{ caption }}</figcaption></figure>
{% endfor %}
{% if s.facts %}<dl>{% for k, v in s.facts.items() %}<dt>{{ k }}</dt><dd>{{ v }}</dd>{% endfor %}</dl>{% endif %}
</section>
{% endfor %}
</body>
</html>
"""


def page(title: str, lead: str, sections: Sequence[Section]) -> str:
    """Return the page; everything written is escaped, pictures are inside.

    Args:
        title: of the page.
        lead: one sentence below it.
        sections: its parts, in order.

    Returns:
        HTML.
    """
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    parts = [{**vars(s), "figures": [(said, base64.b64encode(png).decode()) for said, png in s.figures]} for s in sections]
    return environment.from_string(_PAGE).render(title=title, lead=lead, sections=parts, kind=_kind)


def _kind(cell: object) -> str:
    """Return the class of a cell: an outcome's own, or that of a number."""
    text = str(cell)
    if text.split(" ")[0] in ("holds", "violated", "undecided"):
        return html.escape(text.split(" ")[0])
    return "number" if text[:1] in set("-−0123456789") and len(text) < 40 else ""
