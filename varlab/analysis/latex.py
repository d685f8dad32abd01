"""LaTeX of plain text, of its cells and of a figure with its caption; nothing here needs a LaTeX installation."""

from __future__ import annotations

import re

_TEXT = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "&": r"\&", "%": r"\%", "#": r"\#", "_": r"\_", "$": r"\$",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "–": "--", "—": "---", "…": r"\dots{}", "\u202f": r"\,", "\u00a0": "~",
    "’": "'", "“": "``", "”": "''",
}  # fmt: skip
_GREEK = {
    "α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "Δ": "Delta", "ε": "varepsilon", "ζ": "zeta", "η": "eta", "θ": "theta",
    "κ": "kappa", "λ": "lambda", "μ": "mu", "ν": "nu", "ξ": "xi", "π": "pi", "Π": "Pi", "ρ": "rho", "σ": "sigma", "Σ": "Sigma",
    "τ": "tau", "φ": "varphi", "Φ": "Phi", "χ": "chi", "ψ": "psi", "ω": "omega", "Ω": "Omega", "∇": "nabla", "∂": "partial",
    "∞": "infty", "√": "surd", "→": "to", "≈": "approx", "×": "times", "∝": "propto", "∑": "sum", "∏": "prod", "∈": "in",
    "≤": "le", "≥": "ge", "≠": "ne", "±": "pm", "·": "cdot", "⟨": "langle", "⟩": "rangle",
}  # fmt: skip
_MATH = {sign: rf"\{name} " for sign, name in _GREEK.items()} | {
    "<": "<", ">": ">", "|": "|", "−": "-", "‖": r"\|", "½": r"\frac{1}{2}", "ĝ": r"\hat{g}", "ᵀ": r"^{\top}",
}  # fmt: skip
_RAISED, _LOWERED = "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "₀₁₂₃₄₅₆₇₈₉₊₋"
_PLAIN = "0123456789+-"
# A single letter before an index in plain text is a symbol: γ^t, Φ_t, V^{π,γ}, n^(−1/2).
_TOKEN = re.compile(
    r"(?P<base>(?<![^\W\d_])[^\W\d_])(?P<sign>[_^])(?P<index>\{[^{}]*\}|\([^()\s]*\)|[^\W_⁰¹²³⁴⁵⁶⁷⁸⁹₀₁₂₃₄₅₆₇₈₉]+)"
    rf"|(?P<raised>[{_RAISED}]+)|(?P<lowered>[{_LOWERED}]+)|(?P<one>.)",
    re.DOTALL,
)


def text(plain: str) -> str:
    """Return plain text as LaTeX: special characters escaped, Greek letters, signs and indices as mathematics.

    Args:
        plain: text with Unicode signs, without mark-up.

    Returns:
        LaTeX source, ASCII but for accented letters.
    """
    parts: list[list] = []  # (whether mathematics, source)
    for token in _TOKEN.finditer(plain):
        math, source = _token(token)
        if parts and parts[-1][0] == math:
            parts[-1][1] += source
        else:
            parts.append([math, source])
    return "".join(f"${source.strip()}$" if math else source for math, source in parts)


def _token(token: re.Match[str]) -> tuple[bool, str]:
    if token["base"]:
        index = token["index"].strip("{}()")
        return True, f"{_symbols(token['base'])}{token['sign']}{{{_symbols(index)}}}"
    for kind, sign, digits in (("raised", "^", _RAISED), ("lowered", "_", _LOWERED)):
        if token[kind]:
            return True, f"{sign}{{{''.join(_PLAIN[digits.index(c)] for c in token[kind])}}}"
    one = token["one"]
    return (True, _MATH[one]) if one in _MATH else (False, _TEXT.get(one, one))


def _escaped(code: str) -> str:
    """Return code: an underscore in it is no index."""
    return "".join(_TEXT.get(c, c) for c in code)


def _symbols(plain: str) -> str:
    """Return symbols as they stand inside mathematics."""
    return "".join(_MATH.get(c, c) for c in plain).strip()


def caption(markdown: str) -> str:
    """Return a caption of Markdown (see :mod:`varlab.analysis.captions`) as LaTeX, without its mark and its command.

    Args:
        markdown: paragraphs and lists.

    Returns:
        LaTeX source, one paragraph.
    """
    lines = [x.removeprefix("- ") for x in markdown.splitlines() if x and not x.startswith(("<!--", "Command:"))]
    pieces = " ".join(lines).split("`")
    return "".join(rf"\texttt{{{_escaped(p)}}}" if i % 2 else text(p) for i, p in enumerate(pieces))


def figure(name: str, markdown: str, wide: bool = False) -> str:
    r"""Return a figure environment that shows a PDF with its caption and a label; the command stands in a comment.

    Args:
        name: of the PDF without its ending, and of the label.
        markdown: the caption.
        wide: whether it spans both columns of a page.

    Returns:
        LaTeX source that needs the package graphicx.
    """
    star = "*" if wide else ""
    commands = [f"% {line}" for line in markdown.splitlines() if line.startswith("Command:")]
    return "\n".join([
        "% drawn by varlab; needs the package graphicx",
        *commands,
        rf"\begin{{figure{star}}}[t]",
        r"  \centering",
        # The PDF has its size: scaling it would change the size of its type.
        rf"  \includegraphics{{{name}.pdf}}",
        rf"  \caption{{{caption(markdown)}}}",
        rf"  \label{{fig:{name.replace('_', '-')}}}",
        rf"\end{{figure{star}}}",
    ]) + "\n"  # fmt: skip
