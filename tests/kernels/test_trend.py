"""The recursions say what linear algebra says of all frames at once."""

import numpy as np

from xreg.kernels import trend


def test_the_recursions_are_what_linear_algebra_says(monkeypatch):
    rng = np.random.default_rng(5)
    n, level, slope, wide, share = 30, 0.02, 0.003, 100.0, 0.7
    variance, used = rng.uniform(0.5, 2, n), rng.random(n) < 0.8
    used[0] = True
    # Covariance of the path: place and speed of the first frame are unknown, then steps add up.
    step, state = np.array([[1.0, 1], [0, 1]]), np.diag([wide, wide])
    noise = np.array([[level + slope / 3, slope / 2], [slope / 2, slope]])
    covariance = np.empty((n, n))
    for i in range(n):
        forward = state.copy()
        for j in range(i, n):
            covariance[i, j] = covariance[j, i] = forward[0, 0]
            forward = step @ forward
        state = step @ state @ step.T + noise
    y = rng.multivariate_normal(np.zeros(n), covariance, method="cholesky") + rng.normal(0, np.sqrt(variance))
    y -= y[0]
    seen = np.flatnonzero(used)
    total = covariance[np.ix_(seen, seen)] + np.diag(variance[seen])
    inverse = np.linalg.inv(total)
    path = covariance[:, seen] @ inverse @ y[seen]
    error = np.diag(covariance - covariance[:, seen] @ inverse @ covariance[seen])

    def shaped(a):
        return np.repeat(a[None, None], 2, axis=1)

    masked = np.where(used, y, np.nan), np.where(used, variance, np.nan)
    rest = used[None], np.zeros((1, n), bool)
    monkeypatch.setattr(trend, "_ANY_PLACE", wide / np.median(variance[seen]))
    monkeypatch.setattr(trend, "_ANY_SPEED", wide / np.median(variance[seen]))
    models = np.full((1, 2), level), np.full((1, 2), slope)
    got = trend.smooth(*map(shaped, masked), *rest, *models, np.full(1, share))
    pull = rng.normal(size=n)
    found = trend.likelihood(shaped(masked[0]), pull[None], shaped(masked[1]), *rest, *(m[None] for m in models))
    np.testing.assert_allclose(got.place[0, 0], path, atol=1e-6)
    np.testing.assert_allclose(got.variance[0, 0], share * error, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(got.score[0, 0, seen], inverse @ y[seen] / share, atol=1e-6)
    np.testing.assert_allclose(got.weight[0, 0, seen], np.diag(inverse) / share, rtol=1e-6)
    # Two axes, alike; the first two positions are taken as they are.
    begun = np.ix_(range(2), range(2))
    two = np.linalg.inv(total[begun])
    x = pull - pull[0]

    def product(a, b):
        return a[seen] @ inverse @ b[seen] - a[seen[:2]] @ two @ b[seen[:2]]

    assert found.count.item() == 2 * (len(seen) - 2)
    np.testing.assert_allclose(found.squares.item(), 2 * product(y, y), rtol=1e-6)
    np.testing.assert_allclose(
        found.logs.item(), 2 * (np.linalg.slogdet(total)[1] - np.linalg.slogdet(total[begun])[1]), rtol=1e-6)
    np.testing.assert_allclose(found.products[0, 0], product(x, y), rtol=1e-5)
    np.testing.assert_allclose(found.pulls[0, 0], product(x, x), rtol=1e-5)


def test_an_unknown_multiple_of_the_pull_is_part_of_the_covariance():
    rng = np.random.default_rng(6)
    x, y, variance = rng.normal(size=12), rng.normal(size=12), 0.7
    found = trend.Likelihood(*(np.full((1, 1), v) for v in (2 * y @ y, 0.0, 24)),
                             *(np.full((1, 1, 2), v) for v in (x @ y, x @ x)))
    total = np.eye(12) + variance * np.outer(x, x)
    squares, logs = found.with_bias(np.full(2, variance))
    np.testing.assert_allclose(squares.item(), 2 * y @ np.linalg.solve(total, y))
    np.testing.assert_allclose(logs.item(), 2 * np.linalg.slogdet(total)[1])
    length, error = found.bias(np.full(2, variance))
    np.testing.assert_allclose(length[0, 0, 0], variance * x @ np.linalg.solve(total, y))
    np.testing.assert_allclose(error[0, 0, 0], variance - variance**2 * x @ np.linalg.solve(total, x))
