r"""Joint cumulants of quadratic forms in a standard normal vector: exact covariances of z_t Φ_t and z_u Φ_u for all t, u.

For X_i = ξᵀ A_i ξ + b_iᵀ ξ + c_i, A_i symmetric, ξ ~ N(0, I), the cumulant generating function of Σ s_i X_i is

    s·c − ½ log det(I − 2 A(s)) + ½ b(s)ᵀ (I − 2 A(s))⁻¹ b(s),    A(s) = Σ s_i A_i,  b(s) = Σ s_i b_i,

so that κ(X_1) = c_1 + tr A_1 and, for k ≥ 2,

    κ(X_1, …, X_k) = 2^{k−1} Σ_{orders of 2…k} tr(A_1 A_σ2 ⋯ A_σk) + 2^{k−3} Σ_{orders of 1…k} b_σ1ᵀ A_σ2 ⋯ A_σ(k−1) b_σk.

Nothing is truncated: moments of polynomials of degree eight follow from cumulants up to the fourth. Source: Quadratic Forms in
Random Variables: Theory and Applications (Mathai and Provost, 1992).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations

import torch
from torch import Tensor


@dataclass(frozen=True)
class Forms:
    """T quadratic forms ξᵀ A_t ξ + b_tᵀ ξ + c_t in one standard normal vector ξ of length n; float64.

    Attributes:
        a: [T, n, n] symmetric A_t.
        b: [T, n] b_t.
        c: [T] c_t.
    """

    a: Tensor
    b: Tensor
    c: Tensor

    def __add__(self, other: Forms) -> Forms:
        """Return the sums, form by form."""
        return Forms(self.a + other.a, self.b + other.b, self.c + other.c)

    def __sub__(self, other: Forms) -> Forms:
        """Return the differences, form by form."""
        return Forms(self.a - other.a, self.b - other.b, self.c - other.c)

    def shifted(self, constant: Tensor) -> Forms:
        """Return the forms plus ``constant`` [T]."""
        return Forms(self.a, self.b, self.c + constant)

    def discounted(self, factor: float, terms: int | None = None) -> Forms:
        """Return y_t = Σ_l factor^l x_{t+l}, of the first ``terms`` terms only if given; the sums stop after the last form."""
        return Forms(*(_sums(x, factor, terms) for x in (self.a, self.b, self.c)))

    def ahead(self) -> Forms:
        """Return x_{t+1} in place of x_t, and 0 in the last place."""
        return Forms(*(torch.cat([x[1:], torch.zeros_like(x[:1])]) for x in (self.a, self.b, self.c)))

    def repeat_first(self) -> Forms:
        """Return x_0 in every place."""
        return Forms(*(x[:1].expand_as(x) for x in (self.a, self.b, self.c)))

    @property
    def mean(self) -> Tensor:
        """[T] E X_t = c_t + tr A_t."""
        return self.c + self.a.diagonal(dim1=1, dim2=2).sum(-1)


def _sums(x: Tensor, factor: float, terms: int | None) -> Tensor:
    out = x.clone()
    for _ in range((len(x) if terms is None else min(terms, len(x))) - 1):
        out[:-1] = x[:-1] + factor * out[1:]  # Horner
    return out


@dataclass(frozen=True)
class Scores:
    """One parameter's scores z_t = (e_tᵀ ξ)(f_tᵀ ξ + h_t) − e_tᵀ f_t at T steps: quadratic forms of rank two and mean zero.

    Attributes:
        e: [T, n].
        f: [T, n].
        h: [T].
    """

    e: Tensor
    f: Tensor
    h: Tensor


class _Table:
    """Forms indexed by pairs (t, u): their b as [T, T, n] and their A as a map of such tables; [T, 1, n] where u = t alone."""

    def __init__(self, form: Forms | Scores, first: bool, pairs: bool = True) -> None:
        """Index ``form`` by t if ``first``, else by u; without ``pairs`` u is t."""
        self.form, self.first, self.pairs = form, first or not pairs, pairs
        b = form.h[:, None] * form.e if isinstance(form, Scores) else form.b
        self.b = self._spread(b)

    def _spread(self, x: Tensor) -> Tensor:
        if not self.pairs:
            return x[:, None]
        return (x[:, None] if self.first else x[None]).expand(len(x), len(x), x.shape[1])

    def apply(self, x: Tensor) -> Tensor:
        """Return A x for every pair, [T, T, n]."""
        if isinstance(self.form, Scores):
            e, f = self._spread(self.form.e), self._spread(self.form.f)
            return (e * (f * x).sum(-1, keepdim=True) + f * (e * x).sum(-1, keepdim=True)) / 2
        if self.first:
            return x @ self.form.a  # symmetric: rows times A_t
        return (x.transpose(0, 1) @ self.form.a).transpose(0, 1)


def cumulant(score: _Table, *others: _Table) -> Tensor:
    """Return the joint cumulants [T, T] (or [T, 1], as the tables are) of z and k − 1 other forms for every pair (t, u), k ≥ 2.

    Args:
        score: scores, whose rank makes traces into scalar products.
        *others: one to three tables.

    Returns:
        The cumulants.
    """
    e, f = score._spread(score.form.e), score._spread(score.form.f)
    k = 1 + len(others)
    trace = 0.0
    for order in permutations(range(k - 1)):
        if order[0] > order[-1]:
            continue  # the reversed product has the same trace
        x, y = e, f
        for i in reversed(order):
            x, y = others[i].apply(x), others[i].apply(y)
        trace = trace + (1 if k == 2 else 2) * ((f * x).sum(-1) + (e * y).sum(-1)) / 2
    linear = 0.0
    everyone = (score, *others)
    for order in permutations(range(k)):
        if order[0] > order[-1]:
            continue
        x = everyone[order[-1]].b
        for i in reversed(order[1:-1]):
            x = everyone[i].apply(x)
        linear = linear + 2 * (everyone[order[0]].b * x).sum(-1)
    return 2 ** (k - 1) * trace + 2.0 ** (k - 3) * linear


def mean_products(scores: Scores, phi: Forms) -> Tensor:
    """Return E z_t Φ_t [T] (E z_t = 0, so that it is a covariance)."""
    own = torch.einsum("tn,tnm,tm->t", scores.e, phi.a, scores.f)
    return 2 * own + scores.h * (scores.e * phi.b).sum(-1)


def covariance(scores: Scores, phi: Forms) -> Tensor:
    """Return Cov(z_t Φ_t, z_u Φ_u) for all t and u.

    The moment E z_t Φ_t z_u Φ_u is a sum over partitions of products of cumulants; partitions that do not link t with u make
    the product of means and are left out before anything is summed, and κ(z) = 0 removes others.

    Args:
        scores: of one parameter.
        phi: Φ_t.

    Returns:
        [T, T] covariances.
    """
    z, z2, g, g2 = _Table(scores, True), _Table(scores, False), _Table(phi, True), _Table(phi, False)
    m = phi.mean
    flat = phi.a.flatten(1)
    forms = 2 * flat @ flat.T + phi.b @ phi.b.T  # κ(Φ_t, Φ_u)
    across = cumulant(z, g2)  # κ(z_t, Φ_u)
    third = cumulant(z, z2, g2)  # κ(z_t, z_u, Φ_u)
    links = third * m[:, None]
    return cumulant(z, g, z2, g2) + links + links.T + cumulant(z, z2) * (forms + torch.outer(m, m)) + across * across.T


def variance(scores: Scores, phi: Forms) -> Tensor:
    """Return Var(z_t Φ_t) [T], the diagonal of :func:`covariance` at 1/T of its cost.

    Args:
        scores: of one parameter.
        phi: Φ_t.

    Returns:
        The variances.
    """
    z, g = _Table(scores, True, pairs=False), _Table(phi, True, pairs=False)
    m, own = phi.mean[:, None], (2 * phi.a.square().sum((1, 2)) + phi.b.square().sum(1))[:, None]
    return (cumulant(z, g, z, g) + 2 * cumulant(z, z, g) * m + cumulant(z, z) * (own + m**2) + cumulant(z, g) ** 2)[:, 0]


def square_products(scores: Scores, phi: Forms) -> Tensor:
    """Return E[z_t² Φ_t] [T].

    Args:
        scores: of one parameter.
        phi: Φ_t.

    Returns:
        The means.
    """
    z, g = _Table(scores, True, pairs=False), _Table(phi, True, pairs=False)
    return (cumulant(z, z, g) + cumulant(z, z) * phi.mean[:, None])[:, 0]


def baseline_products(scores: Scores, phi: Forms) -> tuple[Tensor, Tensor]:
    """Return E[z_t z_u Φ_u] for all t and u, and E[z_t²]: what baselines of least variance are made of.

    Args:
        scores: of one parameter.
        phi: Φ_u.

    Returns:
        [T, T] and [T].
    """
    z, z2 = _Table(scores, True), _Table(scores, False)
    spread = cumulant(z, z2)
    return cumulant(z, z2, _Table(phi, False)) + spread * phi.mean, spread.diagonal()
