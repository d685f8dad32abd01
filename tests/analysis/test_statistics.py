"""Statistics of block moments: brute force over every trajectory, invariances, edge cases, and calibration by simulation."""

import math

import numpy as np
import pytest

from varlab.analysis import bias
from varlab.analysis.blocks import CentredBlocks, effective_directions, pooled_variance
from varlab.analysis.intervals import FISHER, LINEAR, degrees_of_freedom, jackknife_interval, student
from varlab.analysis.statistics import equality_test, equivalent, holm, summarise
from varlab.checks import InputError
from varlab.types import Moments, Reference

BLOCKS = 50


def split(x, blocks=BLOCKS):
    """Blocks of rows whose sizes differ by at most one."""
    return np.array_split(x, blocks)


def moments_of(g, blocks=BLOCKS, centre=None, comparator=0):
    """Moments of gradients g [n, K, P], written out block by block."""
    centre = np.zeros(g.shape[1:]) if centre is None else centre
    parts = split(g, blocks)
    mean = np.stack([p.mean(0) for p in parts])
    around = [p - m for p, m in zip(parts, mean, strict=True)]
    from_pilot = [np.square(p - centre).sum(2) for p in parts]
    return Moments(
        block_id=np.arange(blocks),
        count=np.array([len(p) for p in parts]),
        mean=mean,
        trace_m2=np.stack([np.square(a).sum((0, 2)) for a in around]),
        m2=None,
        cross=np.stack([(a * a[:, [comparator]]).sum((0, 2)) for a in around]),
        m4=np.stack([np.square(s).sum(0) for s in from_pilot]),
        m2c=np.stack([s.sum(0) for s in from_pilot]),
        steps=np.array([len(p) for p in parts]),
        names=tuple(f"phi{k}" for k in range(g.shape[1])),
        comparator=comparator,
    )


def reference_of(h, blocks=BLOCKS):
    """A sampled reference from gradients h [n, P]."""
    parts = split(h, blocks)
    count = np.array([len(p) for p in parts])
    return Reference(h.mean(0), np.stack([p.mean(0) for p in parts]), count, 0.0, "sampled", len(h), "J_1")


def exact(grad):
    return Reference(np.asarray(grad, dtype=float), None, None, 0.0, "exact", 0, "J_1")


def run(moments, reference, batch_size=7, seed=0, **kwargs):
    return summarise(moments, reference, batch_size=batch_size, rng=np.random.default_rng(seed), **kwargs)


# brute force: every statistic from lists of blocks of trajectories, nothing centred, nothing shared


def total_variance(parts):
    g = np.concatenate(parts)
    return sum(np.square(x - g.mean(0)).sum() for x in g) / (len(g) - 1)


def pairs(means, weight):
    """Σ_{b≠c} w_b w_c ⟨d_b, d_c⟩ / Σ_{b≠c} w_b w_c by two loops."""
    top = bottom = 0.0
    for b in range(len(means)):
        for c in range(len(means)):
            if b != c:
                top += weight[b] * weight[c] * means[b] @ means[c]
                bottom += weight[b] * weight[c]
    return top / bottom


def noise_of_mean(parts):
    """Tr Cov of the mean, from the spread of block means alone."""
    if parts is None:
        return 0.0
    n = sum(map(len, parts))
    mean = np.concatenate(parts).mean(0)
    return sum(len(p) * np.square(p.mean(0) - mean).sum() for p in parts) / (len(parts) - 1) / n


def brute(parts, comparator, truth, grad, batch_size):
    """Every point estimate from blocks of trajectories and blocks of the reference (None: exact)."""
    grad = grad if truth is None else np.concatenate(truth).mean(0)
    n = sum(map(len, parts))
    variance = total_variance(parts)
    deviations = [p.mean(0) - grad for p in parts]
    noise = noise_of_mean(truth)
    bias_sq = pairs(deviations, [len(p) / n for p in parts]) - noise
    square = grad @ grad - noise
    mean = np.concatenate(parts).mean(0)
    length = mean @ mean - variance / n
    return {
        "variance": variance,
        "variance_ratio": variance / total_variance(comparator),
        "bias_sq": bias_sq,
        "mse": bias_sq + variance / batch_size,
        "nsr": variance / square,
        "cosine": mean @ grad / math.sqrt(square * (length + variance / batch_size)),
    }


def without(parts, b):
    return None if parts is None else [p for c, p in enumerate(parts) if c != b]


@pytest.fixture(scope="module")
def small():
    """61 trajectories in 9 blocks of unequal size, two choices, a reference of 45 in 8 blocks."""
    rng = np.random.default_rng(11)
    g = rng.standard_normal((61, 2, 4)) * np.exp(0.4 * rng.standard_normal((61, 1, 1))) + [[[2, 1, 0, 1]], [[1.5, 1, 0.5, 1]]][0]
    g[:, 1] += 0.5 * g[:, 0] + 0.4
    h = 0.5 * rng.standard_normal((45, 4)) + [2, 1, 0, 1]
    return g, h


@pytest.mark.parametrize("sampled", [False, True])
def test_every_statistic_and_interval_equals_brute_force(small, sampled):
    g, h = small
    grad = np.array([2.0, 1, 0, 1])
    reference = reference_of(h, 8) if sampled else exact(grad)
    truth = split(h, 8) if sampled else None
    rows = run(moments_of(g, 9), reference)
    for k, row in enumerate(rows):
        parts, comparator = split(g[:, k], 9), split(g[:, 0], 9)
        point = brute(parts, comparator, truth, grad, 7)
        mine = [brute(without(parts, b), without(comparator, b), truth, grad, 7) for b in range(9)]
        theirs = [brute(parts, comparator, without(truth, c), grad, 7) for c in range(8)] if sampled else []
        for name, value in point.items():
            assert row[name] == pytest.approx(value, rel=1e-10), name
            if name == "bias_sq" or (name == "variance_ratio" and k == 0):
                continue
            sources = [np.array([x[name] for x in mine])]
            if theirs and name in ("mse", "nsr", "cosine"):
                sources.append(np.array([x[name] for x in theirs]))
            scale = {"scale": FISHER} if name == "cosine" else {}
            if name == "variance_ratio":
                both = ([np.log(total_variance(without(x, b))) for b in range(9)] for x in (parts, comparator))
                degrees = degrees_of_freedom(np.log(sources[0])), min(degrees_of_freedom(x) for x in both)
                scale = {"inward": 0.5, "degrees": 2 / (1 / degrees[0] + 1 / degrees[1])}
            expected = jackknife_interval(value, sources, **scale)
            np.testing.assert_allclose((row[f"{name}_low"], row[f"{name}_high"]), expected, rtol=1e-8, err_msg=name)


def test_variance_equals_numpy_and_stays_exact_far_from_zero(small):
    g, _ = small
    parts = split(g[:, 0], 9)
    for shift, rtol in ((0.0, 1e-13), (1e6, 1e-9)):
        moments = moments_of(g + shift, 9)
        blocks = CentredBlocks.of(moments.count, moments.mean[:, 0])
        value, loo = pooled_variance(blocks.count, moments.trace_m2[:, 0], blocks.dev_sq)
        np.testing.assert_allclose(value, g[:, 0].var(0, ddof=1).sum(), rtol=rtol)
        np.testing.assert_allclose(loo, [np.concatenate(without(parts, b)).var(0, ddof=1).sum() for b in range(9)], rtol=rtol)


def test_pair_square_and_its_leave_one_out_equal_double_loops(small):
    g, _ = small
    blocks = CentredBlocks.of(*(lambda m: (m.count, m.mean[:, 1]))(moments_of(g, 9)))
    d = blocks.mean - [1.0, 2, 3, 4]
    each = blocks.dev + d
    args = (d @ d, blocks.dev @ d, blocks.dev_sq, blocks.weight)
    assert bias.pair_square(*args) == pytest.approx(pairs(each, blocks.weight), rel=1e-12)
    expected = [pairs(np.delete(each, b, 0), np.delete(blocks.weight, b)) for b in range(9)]
    np.testing.assert_allclose(bias.pair_square_leave_one_out(*args), expected, rtol=1e-12)


def test_sign_test_and_interval_equal_loops_over_vectors():
    rng = np.random.default_rng(12)
    errors, d = rng.standard_normal((12, 3)), np.array([2.0, 1.0, -1.0])
    signs = bias.random_signs(rng, 400, 12)
    drawn = [s @ errors for s in signs]
    exceed = sum(e @ e >= d @ d for e in drawn)
    covariance = errors.T @ errors
    u = d / np.linalg.norm(d)
    v = u @ covariance @ u
    tilt = covariance @ u - v * u
    enlarge = math.sqrt(1 + 2 * math.sqrt(tilt @ covariance @ tilt) / np.linalg.norm(d) / v)
    median = np.median([e @ e for e in drawn])

    def roots(square):
        out = []
        for j, e in enumerate(drawn):
            direction = d + drawn[j - 1]
            direction = direction / np.linalg.norm(direction)
            x = direction @ e
            across = e @ e - x * x
            x *= enlarge * student(0.95, 11) / student(0.95, np.inf)
            out.append(max(math.sqrt(square - across) - x, 0.0) if square >= across else 0.0)
        return np.array(out)

    p_value, (low, high) = bias.sign_multiplier(d @ d, errors @ d, errors @ errors.T, signs, 11)
    assert p_value == pytest.approx((1 + exceed) / 401)
    assert low == pytest.approx(np.quantile(roots(d @ d), 0.025) ** 2)
    assert high == pytest.approx(np.quantile(roots(max(d @ d, median)), 0.975) ** 2)


def test_contributions_have_the_covariance_of_the_mean():
    rng = np.random.default_rng(13)
    count = np.array([3, 4, 4, 5, 4, 3, 4, 4])
    weight = count / count.sum()
    total = []
    for _ in range(2000):
        blocks = CentredBlocks.of(count, rng.standard_normal((8, 2)) / np.sqrt(count)[:, None])
        total.append((np.square(bias.contribution(weight)) * blocks.dev_sq).sum())
    assert np.mean(total) == pytest.approx(2 / count.sum(), rel=0.03)


def test_effective_directions_of_a_known_covariance():
    # heavy-tailed blocks: the estimate of tr Σ² has no bias whatever the distribution
    rng = np.random.default_rng(14)
    eigenvalues = np.array([4.0, 2.0, 1.0, 1.0, 0.5, 0.5])
    count = np.full(20, 3)
    inverse = []
    naive = []
    for _ in range(3000):
        scale = np.sqrt(6.0 / rng.chisquare(8, (20, 1)))  # E scale² = 1, kurtosis 1.5 of the Gaussian
        blocks = CentredBlocks.of(count, 5.0 + scale * rng.standard_normal((20, 6)) * np.sqrt(eigenvalues / 3))
        inverse.append(1.0 / (effective_directions(blocks, 9.0)))
        gram = 3 * blocks.gram
        naive.append((np.square(gram).sum() - np.square(np.diag(gram)).sum()) / (20 * 19) / 81.0)
    truth = np.square(eigenvalues).sum() / 81.0
    error = np.std(inverse) / math.sqrt(3000)
    assert abs(np.mean(inverse) - truth) < 3 * error
    assert abs(np.mean(naive) - truth) > 4 * error  # off-diagonal squares without the correction for centring


def test_kurtosis_about_the_pilot_centre(small):
    g, _ = small
    centre = np.full((2, 4), 0.5)
    rows = run(moments_of(g, 9, centre), exact(np.ones(4)))
    for k, row in enumerate(rows):
        square = np.square(g[:, k] - 0.5).sum(1)
        assert row["kurtosis"] == pytest.approx(np.mean(square**2) / np.mean(square) ** 2, rel=1e-12)


def test_gradient_norm_is_debiased_and_exact_where_the_reference_is():
    row = run(moments_of(np.random.default_rng(15).standard_normal((100, 1, 3))), exact([3.0, 4.0, 0.0]))[0]
    assert (row["grad_norm"], row["grad_norm_low"], row["grad_norm_high"]) == (5.0, 5.0, 5.0)
    rng = np.random.default_rng(16)
    squares = []
    for _ in range(300):
        reference = reference_of(rng.standard_normal((100, 40)) + 0.1)
        squares.append(reference.grad @ reference.grad - noise_of_mean([*reference.block_mean[:, None]]))
        got = run(moments_of(rng.standard_normal((50, 1, 40))), reference)[0]["grad_norm"] if len(squares) <= 3 else None
        assert got is None or got == pytest.approx(math.sqrt(max(squares[-1], 0.0)), rel=1e-10)
    assert np.mean(squares) == pytest.approx(0.4, abs=4 * np.std(squares) / math.sqrt(300))


def test_rotation_scale_and_order_of_blocks_change_nothing(small):
    g, h = small
    rows = run(moments_of(g, 9), reference_of(h, 8))
    rotation = np.linalg.qr(np.random.default_rng(17).standard_normal((4, 4)))[0]
    for row, other in zip(rows, run(moments_of(-10 * g @ rotation, 9), reference_of(-10 * h @ rotation, 8)), strict=True):
        for name, value in row.items():
            power = {"grad_norm": 10, "variance": 100, "bias_sq": 100, "mse": 100}
            stem = name.removesuffix("_low").removesuffix("_high")
            expected = value if isinstance(value, str) else pytest.approx(value * power.get(stem, 1), rel=1e-9)
            assert other[name] == expected, name


def test_constant_gradient_has_zero_variance_and_no_warning():
    rng = np.random.default_rng(18)
    g = np.stack([rng.standard_normal((200, 3)) + 1, np.zeros((200, 3)), np.full((200, 3), 0.1)], 1)
    rows = run(moments_of(g), exact(np.ones(3)))
    for row in rows[1:]:
        for name in ("variance", "variance_ratio", "nsr"):
            assert (row[name], row[f"{name}_low"], row[f"{name}_high"]) == (0.0, 0.0, 0.0)
        assert math.isnan(row["kurtosis"])
        assert math.isnan(row["effective_directions"])
        assert "zero-variance" in row["flag"]
        assert row["bias_p_value"] == 1 / 2000
    assert rows[1]["bias_sq"] == pytest.approx(3.0, rel=1e-12)
    assert (rows[1]["mse_low"], rows[1]["mse_high"]) == pytest.approx((3.0, 3.0))
    assert math.isnan(rows[1]["cosine"])
    assert "cosine-undefined" in rows[1]["flag"]
    assert rows[2]["cosine"] == pytest.approx(1.0)
    assert (rows[0]["variance_ratio"], rows[0]["variance_ratio_low"], rows[0]["variance_ratio_high"]) == (1.0, 1.0, 1.0)
    assert rows[0]["flag"] == ""


def test_a_choice_that_is_the_truth_is_not_called_biased():
    grad = np.array([0.1, 0.7, -0.3])
    row = run(moments_of(np.tile(grad, (333, 1, 1))), exact(grad))[0]
    assert row["bias_p_value"] == 1.0
    assert row["bias_sq"] == pytest.approx(0.0, abs=1e-30)


def test_comparator_without_variance_gives_no_ratio():
    g = np.stack([np.ones((100, 2)), np.random.default_rng(19).standard_normal((100, 2))], 1)
    row = run(moments_of(g), exact(np.ones(2)))[1]
    assert math.isnan(row["variance_ratio"])
    assert "comparator-zero-variance" in row["flag"]


def test_comparator_is_the_one_named():
    g = np.random.default_rng(20).standard_normal((100, 3, 2)) * np.array([1.0, 2.0, 3.0])[:, None]
    rows = run(moments_of(g, comparator=2), exact(np.ones(2)))
    assert rows[2]["variance_ratio"] == rows[2]["variance_ratio_low"] == rows[2]["variance_ratio_high"] == 1.0
    assert rows[0]["variance_ratio"] == pytest.approx(rows[0]["variance"] / rows[2]["variance"])


def test_unresolved_gradient_is_flagged_and_keeps_a_meaningful_lower_end():
    rng = np.random.default_rng(121)
    row = run(moments_of(rng.standard_normal((500, 1, 10))), reference_of(rng.standard_normal((500, 10))))[0]
    assert "gradient-not-resolved" in row["flag"]
    assert row["nsr_high"] == math.inf
    assert 0 < row["nsr_low"] <= row["variance_low"] / row["grad_norm_high"] ** 2 * (1 + 1e-12)
    assert (row["cosine_low"], row["cosine_high"]) == (-1.0, 1.0)


def test_reference_limited_is_a_matter_of_the_references_error():
    rng = np.random.default_rng(22)
    moments = moments_of(rng.standard_normal((500, 1, 10)) + 1)
    for n, limited in ((500, True), (20_000, False)):
        row = run(moments, reference_of(rng.standard_normal((n, 10)) + 1))[0]
        assert ("reference-limited" in row["flag"]) is limited
    assert run(moments, exact(np.ones(10)))[0]["flag"] == ""


@pytest.mark.parametrize("batch_size", [1, 1000, 100_000])
def test_cosine_keeps_within_the_circle_at_every_batch_size(batch_size):
    rng = np.random.default_rng(23)
    for _ in range(10):
        row = run(
            moments_of(rng.standard_normal((500, 1, 10)) + 1), reference_of(rng.standard_normal((9000, 10)) + 1), batch_size
        )[0]
        assert -1 <= row["cosine_low"] <= row["cosine"] <= row["cosine_high"] <= 1
        assert 0 <= row["mse_low"] <= row["mse_high"]
        assert row["mse"] <= row["mse_high"]  # a negative estimate lies below its interval


def test_equality_is_paired():
    rng = np.random.default_rng(24)
    shared = 30 * rng.standard_normal((1000, 5))
    g = np.stack([shared, shared + 0.3 * rng.standard_normal((1000, 5)), shared + 0.05 + 0.3 * rng.standard_normal((1000, 5))], 1)
    moments = moments_of(g)
    same, other = (equality_test(moments, 0, k, np.random.default_rng(0)) for k in (1, 2))
    assert same.p_value > 0.05
    assert same.low == 0.0
    assert other.p_value == 1 / 2000
    assert other.low < 5 * 0.05**2 < other.high
    # unpaired, the difference drowns in the shared noise
    unpaired = moments_of(np.stack([g[:, 0], np.roll(g[:, 2], 300, 0)], 1))
    assert equality_test(unpaired, 0, 1, np.random.default_rng(0)).p_value > 0.05
    assert equality_test(moments, 1, 1, np.random.default_rng(0)).p_value == 1.0


def test_equivalence_needs_proof():
    rng = np.random.default_rng(25)
    for n, proven in ((500, False), (200_000, True)):
        row = run(moments_of(rng.standard_normal((n, 1, 3)) + 1), exact(np.ones(3)))[0]
        assert equivalent(row) is proven
        assert equivalent(row, margin=2.0)
    assert not equivalent({"bias_sq_high": math.nan, "grad_norm": 1.0, "grad_norm_low": 1.0})


def test_holm_on_a_worked_example():
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.9, np.nan, 0.8, 0.01]), [1.0, np.nan, 1.0, 0.03])
    assert holm([]).size == 0


def test_same_seed_same_row(small):
    g, h = small
    assert run(moments_of(g, 9), reference_of(h, 8), seed=3) == run(moments_of(g, 9), reference_of(h, 8), seed=3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, "batch_size must be a whole number"),
        ({"draws": 100}, "draws must be a whole number of at least 1999"),
        ({"level": 95}, "level must lie"),
        ({"reference": exact(np.ones(7))}, "shape"),
        ({"blocks": 4}, "number of blocks of the measurement"),
        ({"poison": True}, "NaN or infinity"),
    ],
)
def test_bad_input_is_one_sentence(change, message):
    g = np.random.default_rng(26).standard_normal((100, 1, 3))
    if change.pop("poison", False):
        g[5, 0, 1] = np.nan
    moments = moments_of(g, change.pop("blocks", BLOCKS))
    with pytest.raises(InputError, match=message):
        run(moments, change.pop("reference", exact(np.ones(3))), **change)


# calibration: repeated experiments with a known answer

REPEATS = 160
DIMENSION = 60
EIGENVALUES = np.linspace(0.2, 1.8, DIMENSION) / DIMENSION
TRUE_VARIANCE = np.array([500.0, 125.0, 125.0])
OFFSET = 3.0 * math.sqrt(125.0 / 500)  # of the third choice, three standard errors of its mean


@pytest.fixture(scope="module")
def calibration():
    """Rows of repeated measurements, heavy-tailed, with a sampled reference; and the naive estimates of negative controls."""
    rng = np.random.default_rng(27)
    grad = np.zeros(DIMENSION)
    grad[0] = 1.0
    direction = rng.standard_normal(DIMENSION)
    direction *= OFFSET / np.linalg.norm(direction)
    out = []
    for r in range(REPEATS):
        scale = np.exp(0.5 * rng.standard_normal((500, 2, 1)) - 0.25)
        own, other = np.moveaxis(scale * rng.standard_normal((500, 2, DIMENSION)) * np.sqrt(EIGENVALUES), 1, 0)
        noise = np.stack([own + other, own / 2 + other / 2, (own + 0.0) / math.sqrt(2)], 1) * math.sqrt(250)
        g = grad + noise
        g[:, 2] += direction
        means = grad + rng.standard_normal((BLOCKS, DIMENSION)) * np.sqrt(EIGENVALUES * 500 / 10)
        reference = Reference(means.mean(0), means, np.full(BLOCKS, 10), 0.0, "sampled", 500, "J_1")
        moments = moments_of(g)
        with_sampled = run(moments, reference, 20, seed=r)
        with_exact = run(moments, exact(grad), 20, seed=r)
        out.append((moments, with_sampled, with_exact))
    return out, grad, direction


def covers(rows, name, truth):
    return np.mean([r[f"{name}_low"] <= truth <= r[f"{name}_high"] for r in rows])


@pytest.mark.parametrize("kind", ["sampled", "exact"])
@pytest.mark.parametrize("k", [0, 1, 2])
def test_intervals_cover(calibration, kind, k):
    experiments, grad, direction = calibration
    rows = [e[1 if kind == "sampled" else 2][k] for e in experiments]
    shift = direction if k == 2 else np.zeros_like(grad)
    mean = grad + shift
    variance = TRUE_VARIANCE[k]
    truth = {
        "variance": variance,
        "variance_ratio": variance / TRUE_VARIANCE[0],
        "bias_sq": shift @ shift,
        "mse": shift @ shift + variance / 20,
        "nsr": variance,
        "cosine": mean @ grad / math.sqrt(mean @ mean + variance / 20),
        "grad_norm": 1.0,
    }
    for name, value in truth.items():
        assert covers(rows, name, value) >= 0.9, name


def test_bias_test_has_its_size_and_power_and_the_naive_jackknife_has_not(calibration):
    experiments, grad, _ = calibration
    sampled, known = ([np.array([e[i][k]["bias_p_value"] for e in experiments]) for k in range(3)] for i in (1, 2))
    for p in (sampled[0], known[0]):
        assert 0.015 <= np.mean(p <= 0.05) <= 0.095
    assert np.mean(known[2] <= 0.05) >= 0.8
    alarms = []
    for moments, _, _ in experiments:
        blocks = CentredBlocks.of(moments.count, moments.mean[:, 0])
        d = blocks.mean - grad
        args = (d @ d, blocks.dev @ d, blocks.dev_sq, blocks.weight)
        low, _ = jackknife_interval(bias.pair_square(*args), [bias.pair_square_leave_one_out(*args)], 0.9, LINEAR, skew=False)
        alarms.append(low > 0)
    assert np.mean(alarms) < 0.015


def test_without_correction_for_the_references_error_nsr_is_not_covered(calibration):
    experiments, _, _ = calibration
    naive = []
    for moments, rows, _ in experiments:
        reference_error = 500 / 500  # tr Cov of the reference gradient, as large as ‖∇J‖² itself
        square = rows[0]["grad_norm"] ** 2
        naive.append({f"nsr{end}": rows[0][f"nsr{end}"] * square / (square + reference_error) for end in ("_low", "_high")})
        assert moments.n == 500
    assert covers([e[1][0] for e in experiments], "nsr", TRUE_VARIANCE[0]) >= 0.9
    assert covers(naive, "nsr", TRUE_VARIANCE[0]) < 0.6
