"""Combinations, calibration, clusters and particle numbers against planted ones."""

import warnings

import numpy as np
import pytest
from scipy.interpolate import CubicSpline
from scipy.optimize import minimize

from xreg.kernels.spectra import (
    calibrate_energy,
    combine_references,
    combine_shifted,
    kmeans,
    nearest_centre,
    particle_chemistry,
)

GRID = np.concatenate([np.arange(8200, 8320, 6.0), np.arange(8320, 8380, 0.7), np.arange(8380, 8701, 10.0)])


def edge(energy, at, line):
    """Normalised analytic edge at `at` eV with a white line of height `line`."""
    de = energy - at
    return 0.5 + np.arctan(de / 1.4) / np.pi + line * np.exp(-0.5 * ((de - 7.0) / 2.8) ** 2)


def library(energy):
    return np.stack([edge(energy, 8341.0, 0.8), edge(energy, 8343.5, 0.5), edge(energy, 8338.0, 0.1)], axis=1)


def test_weights_and_their_errors():
    rng = np.random.default_rng(0)
    planted = rng.dirichlet([1, 1, 1], 3000).T
    norm = library(GRID) @ planted + 0.02 * rng.normal(size=(len(GRID), 3000))
    fit = combine_references(norm, library(GRID))
    np.testing.assert_allclose(fit["weight"].sum(axis=0), 1.0, atol=1e-9)
    assert fit["weight"].min() >= 0
    inner = planted.min(axis=0) > 0.15
    ratio = (fit["weight"] - planted)[:, inner] / fit["weight_sigma"][:, inner]
    assert 0.9 < np.std(ratio) < 1.1
    assert 1e-4 < np.median(fit["rfactor"]) < 1e-3


def test_bounded_weights_equal_a_general_optimiser():
    rng = np.random.default_rng(1)
    references = library(GRID)
    for k in range(6):
        y = references @ rng.dirichlet([0.3, 0.3, 0.3]) + 0.1 * rng.normal(size=len(GRID))
        best = minimize(lambda w, y=y: np.square(y - references @ w).sum(), np.full(3, 1 / 3), bounds=[(0, 1)] * 3,
                        constraints={"type": "eq", "fun": lambda w: w.sum() - 1}, tol=1e-14)
        np.testing.assert_allclose(combine_references(y[:, None], references)["weight"][:, 0], best.x, atol=2e-5), k


def test_weights_equal_larch():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("larch", reason="xraylarch is not installed")
        from larch import Group
        from larch.math import lincombo_fit

        energy = GRID[3:-3] + 0.2
        norm = library(energy) @ [0.5, 0.3, 0.2] + 0.01 * np.random.default_rng(2).normal(size=len(energy))
        parts = [Group(energy=GRID, norm=column, label=f"r{k}", groupname=f"r{k}", filename=f"r{k}")
                 for k, column in enumerate(library(GRID).T)]
        theirs = lincombo_fit(Group(energy=energy, norm=norm), parts)
    references = np.stack([CubicSpline(GRID, column)(energy) for column in library(GRID).T], axis=1)
    ours = combine_references(norm[:, None], references)
    np.testing.assert_allclose(ours["weight"][:, 0], list(theirs.weights.values()), atol=1e-6)
    assert ours["rfactor"][0] == pytest.approx(theirs.rfactor, rel=1e-6)


def test_shift_of_all_references():
    rng = np.random.default_rng(3)
    planted, shift = rng.dirichlet([3, 3], 200).T, rng.uniform(-0.8, 0.8, 200)
    splines = [CubicSpline(GRID, column) for column in library(GRID)[:, :2].T]
    moved = np.stack([sum(w * s(GRID - d) for w, s in zip(p, splines, strict=True)) for p, d in
                      zip(planted.T, shift, strict=True)], axis=1)
    fit = combine_shifted(GRID, moved, splines, 1.5)
    assert np.abs(fit["shift"] - shift).max() < 0.03
    assert np.abs(fit["weight"] - planted).max() < 0.03
    beyond = combine_shifted(GRID, edge(GRID, 8341.0 + 9, 0.8)[:, None], splines[:1] + splines[1:], 1.0)
    assert np.isnan(beyond["shift"][0])


def test_too_many_references():
    with pytest.raises(ValueError, match="9 references at 40 energies; need at most 8"):
        combine_references(np.zeros((40, 1)), np.zeros((40, 9)))


@pytest.mark.parametrize("stretch", [False, True])
def test_calibration_is_found_and_applied(stretch):
    scale, offset = (1.002, 1.3) if stretch else (1.0, 3.7)
    mu = 0.3 + 0.8 * edge(GRID, 8341.0, 0.8)
    wrong = 8341.0 + (GRID - 8341.0 - offset) / scale
    c = calibrate_energy(wrong, mu, GRID, 2.0 * mu + 0.4, stretch=stretch)
    assert np.abs(c.apply(wrong) - GRID)[30:-30].max() < 1e-3
    assert c.misfit < 1e-4
    noise = 0.01 * np.random.default_rng(0).normal(size=len(mu))
    noisy = calibrate_energy(wrong, mu + noise, GRID, mu, stretch=stretch)
    at_edge = noisy.apply(np.array([8341.0 - offset / scale]))[0]
    assert abs(at_edge - 8341.0) < 0.15
    assert 0 < noisy.offset_sigma < 0.2


def test_calibration_of_measured_scans(shared_data):
    """Three scans of one nickel oxide pellet lie about half an electronvolt apart."""
    scans = []
    for k in (1, 3):
        table = np.loadtxt(shared_data / "xasdatalibrary" / f"Ni2O3_rt_0{k}.xdi")
        scans.append((table[:, 0], np.log(table[:, 1] / table[:, 2])))
    c = calibrate_energy(*scans[1], *scans[0])
    assert c.offset == pytest.approx(0.54, abs=0.1)


def test_calibration_without_overlap():
    mu = edge(GRID, 8341.0, 0.5)
    with pytest.raises(ValueError, match=r"within \(-0.1, 0.1\) eV of its edge"):
        calibrate_energy(GRID, mu, GRID, mu, window=(-0.1, 0.1))


@pytest.mark.parametrize("mu", [
    np.ones(GRID.size), GRID / 8000, (8000 / GRID) ** 3, 0.01 * np.random.default_rng(0).normal(size=GRID.size)])
def test_spectra_without_an_edge_are_not_calibrated(mu):
    good = edge(GRID, 8341.0, 0.5)
    with pytest.raises(ValueError, match=r"the spectrum has no edge|need at least two energies on either side"):
        calibrate_energy(GRID, mu, GRID, good)
    with pytest.raises(ValueError, match=r"the reference has no edge|need at least two energies on either side"):
        calibrate_energy(GRID, good, GRID, mu)


def test_clusters_are_found_and_ordered_by_size():
    rng = np.random.default_rng(0)
    planted = np.array([[0.0, 0.0], [5.0, 0.0], [0.0, 7.0]])
    points = np.concatenate([planted[k] + rng.normal(size=(n, 2)) * 0.5 for k, n in enumerate((50, 200, 100))])
    centres = kmeans(points, 3, seed=1)
    np.testing.assert_allclose(centres, planted[[1, 2, 0]], atol=0.25)
    assert np.bincount(nearest_centre(points, centres)).tolist() == [200, 100, 50]
    np.testing.assert_array_equal(kmeans(points, 3, seed=1), centres)


def test_clusters_of_too_few_points():
    with pytest.raises(ValueError, match="2 points for 3 clusters"):
        kmeans(np.zeros((2, 1)), 3)
    with pytest.raises(ValueError, match="only 1 different values; need at least 2"):
        kmeans(np.zeros((9, 1)), 2)


def test_numbers_of_a_particle():
    y, x = np.mgrid[-30:31, -30:31].astype(float)
    contour = np.hypot(y, x) < 25
    plane = 8340.0 + 0.02 * y - 0.01 * x + 0.05 * np.random.default_rng(0).normal(size=y.shape)
    n = particle_chemistry(np.where(contour, plane, np.nan), contour)
    assert n["mean"] == pytest.approx(8340.0, abs=0.01)
    assert n["count"] == contour.sum()
    assert np.abs(n["gradient"] - [0.02, -0.01]).max() < 4 * n["gradient_sigma"].max()
    core = 8340.0 + 2 * np.exp(-((y - 6) ** 2 + (x + 4) ** 2) / 128)
    n = particle_chemistry(core, contour)
    np.testing.assert_allclose(n["core_offset"], [6, -4], atol=0.3)
    shell = particle_chemistry(8340.0 + np.hypot(y, x) / 25, contour)
    assert np.all(np.diff(shell["profile"]) < 0)
    assert np.isnan(particle_chemistry(np.full(y.shape, np.nan), contour)["mean"])
