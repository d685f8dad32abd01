"""How a Φ looks in every figure: one colour, one marker, one label by name. The page it stands on is of ``layout.py``.

The eleven Φ of the source text have colours taken from the sets of Okabe and Ito ("Color Universal Design", 2008) and of Tol
("Colour Schemes", SRON technical note, 2021), chosen together so that every pair stays apart under simulated deuteranopia,
protanopia and tritanopia (Machado, Oliveira and Fernandes, 2009); the markers keep them apart in grey.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

from varlab.analysis.layout import PAPER, Style, axes, context, make, wrap

__all__ = [
    "FAMILIES", "FURTHER", "PAPER", "QUANTITIES", "SETTINGS", "SOURCE_TEXT", "SYMBOLS", "Axes", "Figure", "Look", "Style", "axes",
    "context", "label", "look", "make", "order", "parse", "readable", "wrap",
]  # fmt: skip

# family: colour, marker, label. The order is that of the source text, and is the order of every list and legend.
SOURCE_TEXT = {
    "total_return": ("#000000", "o", r"total return $R_\gamma$"),
    "reward_to_go": ("#332288", "s", "reward-to-go $G_t$"),
    "constant_baseline": ("#56B4E9", "^", "constant baseline $b$"),
    "time_baseline": ("#117733", "v", "time baseline $b_t$"),
    "value_baseline": ("#997700", "D", "value baseline $V_t(s_t)$"),
    "baseline": ("#CC6677", "p", "user baseline $b(s_t)$"),
    "q_value": ("#E69F00", "P", "action value $Q_t$"),
    "advantage": ("#661100", "X", "advantage $Q_t - V_t$"),
    "td_residual": ("#CC79A7", "<", r"TD residual $\delta_t$"),
    "n_step": ("#AA4499", ">", "n-step"),
    "gae": ("#882255", "*", "GAE"),
}
# Hollow markers, so that a colour near one above is still told apart.
FURTHER = {
    "optimal_baseline": ("#0072B2", "o", "optimal baseline"),
    "all_action": ("#D55E00", "s", "all-action"),
    "leave_one_out": ("#009E73", "^", "leave-one-out"),
    "group_mean": ("#44AA99", "v", "group mean"),
    "group_normalised": ("#999933", "D", "group-normalised"),
    "normalised_advantage": ("#CC3311", "P", "normalised advantage"),
    "in_sample_baseline": ("#777777", "X", "in-sample baseline"),
    "state_action_control_variate": ("#AA3377", "<", "state-action control variate"),
    "trajectory_control_variate": ("#4477AA", ">", "trajectory-wise control variate"),
    "doubly_robust": ("#228833", "p", "doubly robust"),
    "factorised_baseline": ("#EE7733", "h", "factorised baseline"),
    "q_prop": ("#660099", "d", "Q-Prop"),
    "james_stein": ("#009988", "*", "James–Stein"),
    "importance_weighted": ("#6699CC", "8", "importance-weighted"),
    "natural_gradient": ("#BB5566", "H", r"natural gradient $F^+ g$"),
}
FAMILIES = {**SOURCE_TEXT, **FURTHER}
SYMBOLS = {"lam": "λ", "gamma": "γ", "k": "k"}
SETTINGS = {
    "gamma": r"discount factor $\gamma$",
    "horizon": "horizon $H$",
    "cut": "cut $L$",
    "n": "trajectories $n$",
    "seed": "seed",
    "env": "environment",
    "policy": "policy",
    "theta": r"parameters $\theta$",
    "batch_size": "batch size $N$",
    "discount_weighting": r"weighting by $\gamma^t$",
    "values_source": "source of values",
    "at_cut": "value at the cut",
}
QUANTITIES = {
    "variance": r"variance  tr Cov $\hat{g}$",
    "variance_ratio": "variance ratio",
    "bias_sq": r"bias$^2$",
    "mse": "mean squared error at $N$",
    "nsr": "noise-to-signal ratio",
    "efficiency": "efficiency",
    "cosine": "cosine at $N$",
}


@dataclass(frozen=True)
class Look:
    """How one Φ is drawn.

    Attributes:
        color: hex colour.
        marker: matplotlib marker.
        hollow: whether the marker's face is white.
        label: text for a legend or a tick (mathtext, no LaTeX).
    """

    color: str
    marker: str
    hollow: bool
    label: str

    @property
    def face(self) -> str:
        """Colour of the marker's face."""
        return "white" if self.hollow else self.color


def parse(phi: str) -> tuple[str, tuple[str, ...]]:
    """Split a name of Φ into family and arguments.

    Args:
        phi: such as ``gae(lam=0.95)``.

    Returns:
        The family and its arguments as written, such as ``("gae", ("lam=0.95",))``.
    """
    found = re.fullmatch(r"\s*([^()]+?)\s*(?:\((.*)\))?\s*", phi)
    if found is None:
        return phi, ()
    return found[1], tuple(a.strip() for a in (found[2] or "").split(",") if a.strip())


def look(phi: str) -> Look:
    r"""Return colour, marker and label of a Φ; a function of the name alone.

    A family has one hue and one marker. An argument sets the lightness through the reach h in steps (h = k for ``n_step(k)``,
    1/(1 − λ) for ``gae(lam)``): the share u = 1 − h^{−1/2} runs from light (one step) to dark (the whole return), and the colour
    of the table is that of u = 0.7, about h = 11. Arguments that are not numbers get a u from their checksum. A family that is in
    no table gets colour and marker from the checksum of its name, with a hollow marker.

    Args:
        phi: name of a Φ.

    Returns:
        The look.
    """
    family, arguments = parse(phi)
    if family in FAMILIES:
        color, marker, _ = FAMILIES[family]
    else:
        code = zlib.crc32(family.encode())
        color = [c for c, _, _ in FAMILIES.values()][1:][code % (len(FAMILIES) - 1)]
        marker = "ov^<>spDdPXhH8*"[(code >> 8) % 15]
    if arguments:
        u = _share(arguments)
        toward, amount = (1.0, 0.55 * (1 - u / 0.7)) if u < 0.7 else (0.0, 0.5 * (u - 0.7) / 0.3)
        color = to_hex([(1 - amount) * c + amount * toward for c in to_rgb(color)])
    return Look(color, marker, family not in SOURCE_TEXT, label(phi))


def _share(arguments: tuple[str, ...]) -> float:
    """Return u in [0, 1] of the arguments (see :func:`look`)."""
    try:
        number = float(arguments[0].split("=")[-1])
    except ValueError:
        return 0.1 + 0.8 * (zlib.crc32(",".join(arguments).encode()) % 997) / 996
    if 0 <= number < 1:
        return 1 - (1 - number) ** 0.5
    # λ = 1 is the whole return, k = 1 a single step: the name of the argument tells which is meant.
    if number == 1 and arguments[0].startswith("lam"):
        return 1.0
    return 1 - abs(number) ** -0.5 if abs(number) >= 1 else 0.0


def label(phi: str) -> str:
    """Return the readable name of a Φ, such as ``GAE(λ = 0.95)``.

    Args:
        phi: name of a Φ.

    Returns:
        Text with mathtext, no LaTeX.
    """
    family, arguments = parse(phi)
    text = FAMILIES[family][2] if family in FAMILIES else family.replace("_", " ")
    if not arguments:
        return text
    said = []
    for a in arguments:
        key, _, value = a.rpartition("=")
        said.append(f"{SYMBOLS.get(key.strip(), key.strip())} = {value.strip()}" if key else value)
    if family == "n_step" and len(said) == 1:
        return f"{said[0].split()[-1]}-step"
    return f"{text}{' ' if ' ' in text else ''}({', '.join(said)})".replace("_", " ")


def readable(text: str) -> str:
    """Return a text of rows as a figure shows it: Φ by their labels, an index (σ_a) as one; what is mathtext stays.

    Args:
        text: of a title, a label or a legend.

    Returns:
        Text with mathtext.
    """
    names, index = r"[a-z]{2,}_[a-z_]*[a-z]", r"(?<![^\W\d_])([^\W\d_])_(\w+)"
    for pattern, said in ((names, lambda m: label(m[0])), (index, lambda m: f"${m[1]}_{{{m[2]}}}$")):
        parts = re.split(r"(\$[^$]*\$)", text)  # odd ones are mathtext
        text = "".join(p if i % 2 else re.sub(pattern, said, p) for i, p in enumerate(parts))
    return text


def order(names: Iterable[str]) -> list[str]:
    """Return the distinct names in the order of the source text; families it does not know follow by name.

    Args:
        names: names of Φ.

    Returns:
        The ordered names.
    """
    rank = {f: i for i, f in enumerate(FAMILIES)}

    def key(phi: str) -> tuple[int, str, float, str]:
        family, arguments = parse(phi)
        return rank.get(family, len(rank)), family, _share(arguments) if arguments else -1.0, phi

    return sorted(dict.fromkeys(names), key=key)
