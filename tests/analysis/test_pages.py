"""Self-contained pages: everything inside, everything escaped, and what a run says of itself."""

import base64
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from synthetic_runs import make

from varlab.analysis.pages import Section, page
from varlab.analysis.run_page import run_page

PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256))


class Reader(HTMLParser):
    """Collects what a browser would fetch, the text, and whether tags are closed."""

    VOID = ("meta", "img", "br", "hr", "link")

    def __init__(self):
        super().__init__()
        self.sources, self.text, self.stack = [], [], []

    def handle_starttag(self, tag, attrs):
        self.sources += [v for k, v in attrs if k in ("src", "href") and not v.startswith("#")]
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def read(text):
    reader = Reader()
    reader.feed(text)
    assert not reader.stack
    return reader


def test_a_page_fetches_nothing_and_holds_its_pictures():
    frame = pd.DataFrame({"Φ": ["gae"], "outcome": ["violated"], "n": ["1,000"]})
    made = page("Title", "lead", [Section("One", ["words"], [("caption", frame)], [("picture", PNG)], {"seed": 3})])
    reader = read(made)
    assert len(reader.sources) == 1 and reader.sources[0].startswith("data:image/png;base64,")
    assert base64.b64decode(reader.sources[0].split(",")[1]) == PNG
    assert not re.search(r"https?://|@import|url\(", made)
    text = " ".join(reader.text)
    assert all(word in text for word in ("Title", "lead", "One", "words", "caption", "picture", "seed", "3", "gae"))
    assert '<td class="violated">violated</td>' in made and '<td class="number">1,000</td>' in made


@pytest.mark.parametrize("bad", ["<script>alert(1)</script>", "a & b < c", '"quoted"'])
def test_what_is_written_is_escaped(bad):
    frame = pd.DataFrame({bad: [bad]})
    made = page(bad, bad, [Section(bad, [bad], [(bad, frame)], [(bad, PNG)], {bad: bad})])
    reader = read(made)
    assert "script" not in reader.stack and "<script" not in made
    assert sum(bad in piece for piece in reader.text) >= 8


def test_the_page_of_a_run_says_what_was_measured():
    rows = make(n=200).summary
    rows["efficiency"], rows["steps"], rows["values_source"], rows["exact_variance"] = 1e-4, 12_345, "exact", np.nan
    record = {
        "digest": "abc", "command": ["scripts/measure.py", "n=7"], "seeds": {"rollout": 5}, "steps": {"rollout": 12_345},
        "versions": {"python": "3.11"}, "notes": ["A note."], "settings": {"gamma": 0.9, "theta": {"w": 1}},
    }  # fmt: skip
    made = run_page(rows, record, {"variance_by_phi": PNG, "unknown": PNG})
    text = " ".join(read(made).text)
    for word in (*rows["phi"].unique(), "A note.", "scripts/measure.py n=7", "seed of rollout", "12,345", "gamma", "3.11"):
        assert str(word) in text, word
    assert made.count("data:image/png") == 1  # a picture without a caption of its own is none of the run's figures
