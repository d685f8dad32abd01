"""LaTeX: what is escaped, what becomes mathematics, captions and figures that need no other signs than ASCII."""

import re

import pytest

from varlab.analysis import captions, latex
from varlab.studies.claims import catalogue


@pytest.mark.parametrize(
    ("plain", "source"),
    [
        ("5 % & #1 a_b $x$ ~", r"5 \% \& \#1 $a_{b}$ \$x\$ \textasciitilde{}"),
        ("su_map {x} \\y", r"su\_map \{x\} \textbackslash{}y"),
        ("π_θ ≥ 0 & ‖g‖²", r"$\pi_{\theta}$ $\ge$ 0 \& $\|$g$\|^{2}$"),
        ("‖∇J_γ‖²", r"$\|\nabla J_{\gamma}\|^{2}$"),
        ("10⁻¹² – 2·10⁶", r"10$^{-12}$ -- 2$\cdot$10$^{6}$"),
        ("V^{π,γ} and n^(−1/2), 2π_a", r"$V^{\pi ,\gamma}$ and $n^{-1/2}$, 2$\pi_{a}$"),
        ("γ^t; |x| < 1", r"$\gamma^{t}$; $|$x$|$ $<$ 1"),
        ("x₀ + ĝ", r"x$_{0}$ + $\hat{g}$"),
        ("", ""),
    ],
)
def test_plain_text_becomes_latex(plain, source):
    assert latex.text(plain) == source


def balanced(source):
    """Return whether braces and dollars close, and mathematics has no double index."""
    bare = re.sub(r"\\[\\{}$]", "", source)
    depth = 0
    for c in bare:
        depth += {"{": 1, "}": -1}.get(c, 0)
        if depth < 0:
            return False
    return depth == 0 and bare.count("$") % 2 == 0 and "$$" not in bare and not re.search(r"\^\{[^{}]*\}\^", bare)


def test_every_caption_and_statistic_of_varlab_is_latex():
    catalogue.load()
    texts = [s.caption for s in catalogue.STUDIES.values()] + [*captions.DRAWN.values(), captions.INTERVAL]
    texts += [t for c in catalogue.CLAIMS.values() for t in (c.statistic, c.sentence, c.condition)]
    assert len(texts) > 300
    for plain in texts:
        source = latex.text(plain)
        assert source.isascii() and balanced(source), source
    assert not balanced("$x") and not balanced("{x") and not balanced("$$x$") and not balanced("$a^{1}^{2}$")


CAPTION = f"{captions.MARK}\nRatio at 5 %.\n\n- one `a_b`\n- two\n\nCommand: `python scripts/figures.py study=su_map`\n"


@pytest.mark.parametrize("wide", [False, True])
def test_a_figure_has_its_caption_label_and_command(wide):
    source = latex.figure("su_map", CAPTION, wide)
    star = "*" if wide else ""
    lines = source.splitlines()
    assert f"\\begin{{figure{star}}}[t]" in lines and lines[-1] == f"\\end{{figure{star}}}"
    assert r"  \includegraphics{su_map.pdf}" in lines and r"  \label{fig:su-map}" in lines
    assert r"  \caption{Ratio at 5 \%. one \texttt{a\_b} two}" in lines
    assert lines[1] == "% Command: `python scripts/figures.py study=su_map`" and "<!--" not in source
