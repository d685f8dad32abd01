"""How many episodes an answer needs: closed forms in n, the noise-to-signal ratio (NSR = tr Cov/‖∇J‖²) and the kurtosis."""

from __future__ import annotations

import math

from scipy import optimize, special

from varlab import checks


def _number(what: str, value: float, low: float, high: float = math.inf) -> float:
    """Return ``value`` if low < value < high."""
    number = checks.in_range(what, value, low, high)
    if number in (low, high):
        raise checks.InputError(f"{what} must lie strictly between {low:g} and {high:g}, but it is {value!r}; move it inside.")
    return number


def trajectories_for_variance(relative_error: float, kurtosis: float) -> int:
    """Trajectories n for which two standard errors of tr Cov are ``relative_error`` of it: n = 4(κ − 1)/e².

    Var(tr Cov)/(tr Cov)² ≈ (κ − 1)/n with κ = E‖g−ḡ‖⁴/(E‖g−ḡ‖²)².

    Args:
        relative_error: e, for example 0.1 for ± 10 % at two standard errors.
        kurtosis: κ ≥ 1, from a pilot or a published table.

    Returns:
        n, rounded up, at least 1.
    """
    e = _number("relative_error", relative_error, 0.0)
    kappa = checks.in_range("kurtosis", kurtosis, 1.0, math.inf)
    return max(1, math.ceil(4.0 * (kappa - 1.0) / e**2))


def cosine_to_truth(nsr: float, batch_size: float) -> float:
    """Cosine between the mean of N unbiased gradients and ∇J, (1 + NSR/N)^{−1/2}.

    Args:
        nsr: tr Cov/‖∇J‖², 0 or more.
        batch_size: N.

    Returns:
        A number in (0, 1]; 0 for an infinite NSR.
    """
    return 1.0 / math.sqrt(1.0 + checks.in_range("nsr", nsr, 0.0, math.inf) / _number("batch_size", batch_size, 0.0))


def cosine_between(nsr: float, batch_size: float) -> float:
    """Cosine between two independent means of N unbiased gradients, 1/(1 + NSR/N).

    Args:
        nsr: tr Cov/‖∇J‖², 0 or more.
        batch_size: N.

    Returns:
        A number in (0, 1]; 0 for an infinite NSR.
    """
    return 1.0 / (1.0 + checks.in_range("nsr", nsr, 0.0, math.inf) / _number("batch_size", batch_size, 0.0))


def expected_cosine(nsr: float, batch_size: float, directions: float) -> float:
    """Expected cosine between ∇J and the mean of N unbiased gradients whose noise is normal and alike in D directions.

    With κ = D N/NSR the mean length of a projected normal vector,

        E cos = Γ((D + 1)/2)/Γ(D/2 + 1) √(κ/2) ₁F₁(1/2; D/2 + 1; −κ/2),

    which nears (1 + NSR/N)^−1/2 as D grows and is 2 Φ(√(N/NSR)) − 1 for D = 1; between two such means it is the square.

    References:
        | Directional Statistics (Mardia and Jupp, 2000), section 9.3, on the projected normal distribution

    Args:
        nsr: tr Cov/‖∇J‖², more than 0.
        batch_size: N.
        directions: D, 1 or more; (tr Σ)²/tr Σ² where the noise is not alike in all of them.

    Returns:
        A number in (0, 1).
    """
    d = checks.in_range("directions", directions, 1.0, math.inf)
    kappa = d * _number("batch_size", batch_size, 0.0) / _number("nsr", nsr, 0.0)
    log_front = special.gammaln((d + 1) / 2) - special.gammaln(d / 2 + 1) + 0.5 * math.log(kappa / 2)
    return float(math.exp(log_front) * special.hyp1f1(0.5, d / 2 + 1, -kappa / 2))


def episodes_for_cosine(cosine: float, nsr: float, bias_ratio: float = 0.0, alignment: float = 1.0) -> float:
    """Episodes N at which the cosine to ∇J reaches ``cosine``.

    In general ρ_N = a/√(1 + NSR/(N m²)) with m = ‖E g‖/‖∇J‖ and a the cosine of E g itself, so
    N = NSR / (m² ((a/ρ)² − 1)); for an unbiased Φ, N = NSR ρ²/(1 − ρ²).

    Args:
        cosine: ρ, strictly between 0 and 1.
        nsr: tr Cov/‖∇J‖², 0 or more.
        bias_ratio: m − 1, how much longer E g is than ∇J; 0 for an unbiased Φ.
        alignment: a, 1 for an unbiased Φ.

    Returns:
        N (not rounded); inf where no batch reaches the cosine.
    """
    rho = _number("cosine", cosine, 0.0, 1.0)
    nsr = checks.in_range("nsr", nsr, 0.0, math.inf)
    m = 1.0 + _number("bias_ratio", bias_ratio, -1.0)
    a = checks.in_range("alignment", alignment, -1.0, 1.0)
    if a <= rho:
        return math.inf
    return nsr / (m**2 * ((a / rho) ** 2 - 1.0))


def episodes_for_mse(mse: float, variance: float, bias_sq: float = 0.0) -> float:
    """Episodes N at which bias² + variance/N falls to ``mse``: N = variance/(mse − bias²).

    For a mean squared error relative to ‖∇J‖² give everything in units of ‖∇J‖²: N = NSR/(mse − bias²).

    Args:
        mse: target, more than 0.
        variance: tr Cov of one gradient, 0 or more.
        bias_sq: squared bias; a negative estimate counts as 0.

    Returns:
        N (not rounded); inf where the bias alone exceeds the target.
    """
    target = _number("mse", mse, 0.0)
    variance = checks.in_range("variance", variance, 0.0, math.inf)
    room = target - max(checks.in_range("bias_sq", bias_sq, -math.inf, math.inf), 0.0)
    return variance / room if room > 0 else math.inf


def trajectories_for_ratio(width: float, n: int, ratio: float, low: float, high: float) -> float:
    """Trajectories at which the interval of a ratio of variances becomes ``width`` wide.

    Half widths of log ratio shrink as n^−½ while the ratio r stays, so that n' = n/s² where s solves
    r (high/r)^s − r (low/r)^s = width.

    Args:
        width: high − low that is wanted, more than 0.
        n: trajectories behind the interval that is known.
        ratio: r, positive.
        low: lower end of its interval.
        high: upper end.

    Returns:
        n' (not rounded); 0 for an interval without width, inf where it is unbounded.
    """
    width, r = _number("width", width, 0.0), _number("ratio", ratio, 0.0)
    low, high = checks.in_range("low", low, 0.0, r), checks.in_range("high", high, r, math.inf)
    if low == high:
        return 0.0
    if low == 0 or math.isinf(high):
        return math.inf
    up, down = math.log(high / r), math.log(low / r)

    def excess(log_s: float) -> float:
        s = math.exp(log_s)
        return r * (math.exp(min(up * s, 700.0)) - math.exp(down * s)) - width

    span = math.log(width / (high - low))
    return n * math.exp(-2.0 * optimize.brentq(excess, min(span, 0.0) - 40.0, max(span, 0.0) + 40.0, xtol=1e-13))
