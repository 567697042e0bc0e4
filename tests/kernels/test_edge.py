"""Edge energies of many spectra against planted ones."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import brentq

from xreg.kernels import operators
from xreg.kernels.baseline import particle_baseline, pixel_baseline
from xreg.kernels.edge import drift_variance, edge_energies, normalize_spectra
from xreg.kernels.localfit import crossing, gains, local_polynomial, maximum, slopes, slow_noise, top_curvature
from xreg.kernels.operators import DEFINITIONS, SLOW_REACH, EdgeSettings
from xreg.kernels.preedge import normalize_spectrum, resolve_ranges
from xreg.schema import FitStatus

#: 143 energies over the Ni K-edge, 0.6 eV apart in the edge.
GRID = np.concatenate([np.linspace(8200, 8320, 22, endpoint=False), np.linspace(8320, 8374, 90, endpoint=False),
                       np.linspace(8374, 8700, 31)])
COUNTS = 9000.0
EVERY = tuple(name for name in DEFINITIONS if name != "half_step")


def edge_shape(de):
    """Edge without background, de in eV from the foot of its arctangent."""
    return 0.5 + np.arctan(de / 1.4) / np.pi + 0.55 * np.exp(-0.5 * ((de - 7.0) / 2.8) ** 2)


def nickel(energy, shift):
    """Analytic spectra (energies, pixels) of unit edge step, moved by `shift` (pixels,) eV."""
    return 0.4 * (8333.0 / energy[:, None]) ** 3 + edge_shape(energy[:, None] - 8341.0 - np.asarray(shift))


def half_step_of(shift):
    """Where the planted spectrum passes half of its asymptotic step."""
    return brentq(lambda de: edge_shape(de) - 0.5, -5, 3) + 8341.0 + np.asarray(shift)


def measured(pixels, seed=0, step=(0.3, 0.6), spread=1.5, counts=COUNTS):
    """Noisy optical densities, planted shifts and steps."""
    rng = np.random.default_rng(seed)
    shift, thickness = rng.uniform(-spread, spread, pixels), rng.uniform(*step, pixels)
    clean = thickness * nickel(GRID, shift)
    return clean + rng.normal(size=clean.shape) * np.sqrt(np.exp(clean) / counts), shift, thickness


def robust_std(values):
    return 1.4826 * np.median(np.abs(values - np.median(values)))


def test_statuses_are_those_of_the_schema():
    # That a fit failed is for the driver to say.
    for status in set(FitStatus) - {FitStatus.FAILED}:
        assert getattr(operators, status.name) == status


@pytest.mark.parametrize("e0", [8333.0, 8345.0, None])
def test_half_step_error_and_its_error_bar(e0):
    mu, shift, _ = measured(8000)
    maps = edge_energies(GRID, mu.astype(np.float32), EdgeSettings(e0=e0))
    error = maps["edge_energy"] - half_step_of(shift)
    assert np.mean(maps["fit_status"] == 0) >= 0.98
    offset = np.nanmedian(error)
    assert abs(offset) <= 0.10
    assert np.nanmedian(np.abs(error - offset)) <= 0.08
    good = np.isfinite(error)
    assert 0.8 <= robust_std((error[good] - offset) / maps["edge_energy_sigma"][good]) <= 1.25
    assert np.nanmax(np.abs(error)) < 2.0  # no jump to a false crossing


def test_slow_disturbances_are_in_the_error_bar():
    """A background that passes under the pixels moves many neighbouring energies together."""
    mu, shift, _ = measured(4000)
    settings = EdgeSettings(e0=8343.0, pre1=-140.0, pre2=-40.0, norm1=30.0, norm2=350.0, nnorm=1)
    rng = np.random.default_rng(5)
    passing = 0.012 * slow_noise(tuple(GRID.tolist()), SLOW_REACH) @ rng.normal(size=(len(GRID), 4000))
    clean = drift_variance(GRID, mu, mu.mean(axis=1), settings)
    drift = drift_variance(GRID, mu + passing, mu.mean(axis=1), settings)
    assert clean < 0.1 * drift
    assert drift == pytest.approx(0.012**2, rel=0.1)
    maps = edge_energies(GRID, mu + passing, settings, mu.mean(axis=1), 4000, drift)
    error = maps["edge_energy"] - half_step_of(shift)
    blind = edge_energies(GRID, mu + passing, settings, mu.mean(axis=1), 4000)
    assert robust_std((error - np.nanmedian(error)) / blind["edge_energy_sigma"]) > 1.25
    assert 0.8 <= robust_std((error - np.nanmedian(error)) / maps["edge_energy_sigma"]) <= 1.15


def test_slow_disturbances_that_cannot_be_measured():
    mu, _, _ = measured(100)
    mean, settings = mu.mean(axis=1), EdgeSettings(e0=8343.0, pre1=-140.0, pre2=-40.0, norm1=30.0, norm2=350.0, nnorm=1)
    assert drift_variance(GRID, mu[:, :20], mean, settings) == 0  # too few pixels
    assert drift_variance(GRID, -mu, -mean, settings) == 0  # no edge
    keep = (GRID < 8322) | (GRID > 8335)
    assert drift_variance(GRID[keep], mu[keep], mean[keep], settings) == 0  # no energies just below it
    assert drift_variance(GRID, mu, mean, replace(settings, e0=7112.0)) == 0


def test_pixel_slopes_are_fair_but_noisier():
    mu, shift, _ = measured(4000)
    both = {}
    for slope in ("particle", "pixel"):
        maps = edge_energies(GRID, mu, EdgeSettings(e0=8343.0, slope=slope))
        error = maps["edge_energy"] - half_step_of(shift)
        both[slope] = robust_std(error)
        assert 0.8 <= robust_std(error / maps["edge_energy_sigma"]) <= 1.25
    assert both["particle"] < both["pixel"]


def test_pixel_lines_equal_the_single_spectrum_fit():
    mu, _, _ = measured(5)
    settings = EdgeSettings(e0=8343.0, slope="pixel", nvict=1)
    for flat in (False, True):
        norm, step = normalize_spectra(GRID, mu, settings, flat=flat)
        for k in range(5):
            s = normalize_spectrum(GRID, mu[:, k], e0=8343.0, nvict=1)
            np.testing.assert_allclose(norm[:, k], s.flat if flat else s.norm, rtol=1e-9, atol=1e-10)
            assert step[k] == pytest.approx(s.edge_step, rel=1e-9)


def test_particle_lines_follow_the_mean_of_any_mixture():
    mu, _, thickness = measured(200, counts=np.inf)
    ranges = resolve_ranges(GRID, 8343.0)
    mean = mu.mean(axis=1)
    baseline = particle_baseline(GRID, ranges, mean)
    step = baseline.step @ baseline.coefficients @ mu
    own = pixel_baseline(GRID, ranges)
    np.testing.assert_allclose(step.mean(), own.step @ own.coefficients @ mean, rtol=1e-9)
    assert np.abs(step / thickness - np.mean(step / thickness)).max() < 0.02
    assert particle_baseline(GRID, ranges, -mean) is None


def test_template_shift_is_near_its_cramer_rao_bound():
    mu, shift, thickness = measured(6000, spread=0.6)
    maps = edge_energies(GRID, mu, EdgeSettings(definition="template_shift", e0=8343.0))
    error = maps["edge_energy"] - half_step_of(shift)
    step = 1e-3
    bounds = []
    for k in range(0, 6000, 300):  # unknowns: shift, thickness and offset of each pixel
        one = nickel(GRID, [shift[k] - step, shift[k], shift[k] + step]) * thickness[k]
        slopes = np.stack([(one[:, 2] - one[:, 0]) / (2 * step), one[:, 1] / thickness[k], np.ones(len(GRID))])
        information = slopes @ (slopes * COUNTS * np.exp(-one[:, 1])).T
        bounds.append(np.sqrt(np.linalg.inv(information)[0, 0]))
    assert robust_std(error) < 1.5 * np.median(bounds)
    assert np.median(np.abs(error - np.median(error))) <= 0.06
    assert 0.8 <= robust_std((error - np.median(error)) / maps["edge_energy_sigma"]) <= 1.25


@pytest.mark.parametrize("slope", ["particle", "pixel"])
def test_every_energy_moves_with_the_spectrum(slope):
    mu, _, _ = measured(60)
    settings = EdgeSettings(also=EVERY, slope=slope, max_sigma=10.0, e0=8343.0)
    here = edge_energies(GRID, mu, settings)
    there = edge_energies(GRID + 1.0, mu, replace(settings, e0=8344.0))
    for name in EVERY:
        moved = there[f"{name}_energy"] - here[f"{name}_energy"]
        assert np.isfinite(moved).mean() > 0.9
        np.testing.assert_allclose(moved[np.isfinite(moved)], 1.0, atol=1e-6)
    np.testing.assert_allclose(there["edge_energy"] - here["edge_energy"], 1.0, atol=1e-6)


def test_definitions_differ_by_electronvolts_on_one_spectrum():
    one = edge_energies(GRID, nickel(GRID, [0.0]), EdgeSettings(also=EVERY, e0=8341.0))
    energy = {name: one[f"{name}_energy"][0] for name in EVERY} | {"half_step": one["edge_energy"][0]}
    assert energy["half_step"] == pytest.approx(half_step_of(0.0), abs=0.08)
    assert energy["template_shift"] == pytest.approx(energy["half_step"], abs=0.01)
    assert 0.3 < energy["half_whiteline"] - energy["half_step"] < 1.5
    assert energy["whiteline"] - energy["half_step"] == pytest.approx(7.3, abs=0.5)
    assert abs(energy["whiteline_raw"] - energy["whiteline"]) < 0.1
    assert energy["centroid"] < energy["half_step"] - 1


def test_scale_and_offset_do_not_matter():
    mu, _, _ = measured(100)
    settings = EdgeSettings(e0=8343.0, also=("e0", "half_whiteline", "whiteline_raw", "centroid"))
    here, there = edge_energies(GRID, mu, settings), edge_energies(GRID, 2.5 * mu + 0.4, settings)
    for name in ("edge_energy", "edge_energy_sigma", "whiteline_energy", "centroid_energy", "e0_energy"):
        np.testing.assert_allclose(there[name], here[name], rtol=1e-9)
    np.testing.assert_allclose(there["edge_step"], 2.5 * here["edge_step"], rtol=1e-9)
    template = [edge_energies(GRID, m, EdgeSettings(e0=8343.0, definition="template_shift"))["edge_energy"]
                for m in (mu, mu + 0.4, 1.2 * mu)]
    np.testing.assert_allclose(template[1], template[0], rtol=1e-9)
    assert np.abs(template[2] - template[0]).max() < 0.02  # its weights follow from the counts that a thickness leaves


def test_batches_do_not_matter(monkeypatch):
    mu, _, _ = measured(50)
    whole = edge_energies(GRID, mu)
    monkeypatch.setattr("xreg.kernels.edge._BATCH", 7)
    for name, values in edge_energies(GRID, mu).items():
        np.testing.assert_allclose(values, whole[name], rtol=1e-12)


def test_reasons_for_no_edge_energy():
    rng = np.random.default_rng(0)
    mu, _, _ = measured(300)
    noise = np.sqrt(1 / COUNTS) * rng.normal(size=(len(GRID), 3))
    thin = 0.014 * nickel(GRID, [0.0])[:, 0] + noise[:, 1]
    odd = np.column_stack([noise[:, 0] + 0.4, thin, -mu[:, 2], np.full(143, 0.5)])
    maps = edge_energies(GRID, np.hstack([mu, odd]), EdgeSettings(e0=8343.0), mean=mu.mean(axis=1))
    no = FitStatus.NO_EDGE
    assert maps["fit_status"][300:].tolist() == [no, FitStatus.THIN, no, no]
    assert np.isnan(maps["edge_energy"][300:]).all()
    far = edge_energies(GRID, nickel(GRID, [0.0]), EdgeSettings(e0=8333.0, search=(-20.0, 4.0)))
    assert far["fit_status"][0] == FitStatus.OUT_OF_RANGE
    assert edge_energies(GRID, mu, EdgeSettings(e0=7112.0))["fit_status"].tolist() == [FitStatus.OUT_OF_RANGE] * 300


def test_energies_that_support_no_fit():
    holed = GRID[(GRID < 8320) | (GRID > 8364)]
    for energy in (np.array([8324.0, 8354.0]), GRID[GRID < 8338], GRID[GRID > 8337.5], holed):
        maps = edge_energies(energy, nickel(energy, [0.0, 0.5]), EdgeSettings(e0=8338.0))
        assert set(maps["fit_status"].tolist()) <= {FitStatus.TOO_FEW_ENERGIES, FitStatus.OUT_OF_RANGE}
        assert np.isnan(maps["edge_energy"]).all()


def test_an_edge_in_a_gap_is_not_invented():
    keep = (GRID < 8338) | (GRID > 8345)
    maps = edge_energies(GRID[keep], nickel(GRID[keep], [0.0]), EdgeSettings(e0=8341.0))
    assert maps["fit_status"][0] == FitStatus.TOO_FEW_ENERGIES


def test_dropped_energies_hardly_move_the_edge():
    mu, shift, _ = measured(2000)
    keep = np.ones(len(GRID), dtype=bool)
    keep[[5, 40, 61, 62, 63, 100, 130]] = False
    keep[18:26] = False  # a gap at the lower end of the window
    error = edge_energies(GRID[keep], mu[keep], EdgeSettings(e0=8333.0))["edge_energy"] - half_step_of(shift)
    assert np.isfinite(error).mean() > 0.98
    assert np.nanmedian(np.abs(error - np.nanmedian(error))) < 0.1


def test_coarse_scans_still_fit():
    energy = np.concatenate([np.arange(8250, 8330, 15.0), np.arange(8330, 8362, 2.0), np.arange(8365, 8641, 25.0)])
    shift = np.linspace(-1, 1, 21)
    maps = edge_energies(energy, 0.5 * nickel(energy, shift), EdgeSettings(e0=8343.0))
    error = maps["edge_energy"] - half_step_of(shift)
    assert np.abs(error).max() < 0.3


def test_local_polynomials_keep_cubics_and_do_not_amplify():
    energy = np.linspace(0, 40, 60) + np.random.default_rng(1).uniform(-0.2, 0.2, 60)
    nodes = np.linspace(-1, 41, 85)
    rows = local_polynomial(energy, nodes, 3.0)
    assert np.square(rows).sum(axis=1).max() <= 1.02
    inner = (nodes > energy[4]) & (nodes < energy[-5])
    np.testing.assert_allclose((rows @ energy**3)[inner], nodes[inner] ** 3, rtol=1e-8)
    np.testing.assert_allclose(rows.sum(axis=1), 1.0, atol=1e-9)


def test_crossing_is_the_change_point_not_the_first():
    nodes = np.arange(0, 40, 0.5)
    curve = np.tanh((nodes - 20.3) / 2)
    curve[10] = 0.2  # a false passage long before
    energy, spread = crossing(np.cumsum(curve)[None], np.ones((1, len(nodes))), nodes)
    assert energy[0] == pytest.approx(20.3, abs=0.01)
    assert spread[0, 0] == pytest.approx(2.0, rel=0.05)
    nothing, _ = crossing(np.cumsum([curve - 3, curve + 3], axis=1), np.ones((1, len(nodes))), nodes)
    assert np.isnan(nothing).all()


def test_maximum_between_uneven_nodes():
    nodes = np.array([0.0, 1.0, 2.5, 3.0, 5.0])
    parabola = 2.0 - (nodes - 2.2) ** 2
    energy, spread, height = maximum(np.stack([parabola, nodes]), np.ones((1, 3)), nodes)
    assert energy[0] == pytest.approx(2.2, abs=1e-9)
    assert height[0] == pytest.approx(2.0, abs=1e-9)
    assert spread[0, 0] == pytest.approx(0.5, abs=1e-9)
    assert np.isnan(energy[1])
    assert np.isnan(spread[0, 1])


def test_answers_to_noise():
    rows = np.array([[1.0, 2.0, 2.0], [0.0, 1.0, -1.0]])
    common = np.array([[0.0, 0, 0], [1, 0, 0], [1, 0, 0]])
    np.testing.assert_allclose(gains(rows, common), [[3.0, np.sqrt(2)], [4.0, 0.0]])
    np.testing.assert_allclose(slopes(np.eye(3), np.array([0.0, 1.0, 3.0])), [[-1 / 3, 0, 1 / 3]])
    root = slow_noise((0.0, 5.0, 20.0), 15.0)
    np.testing.assert_allclose(root @ root.T, np.exp(-np.abs(np.subtract.outer([0, 5, 20], [0, 5, 20])) / 15.0))


def test_curvature_of_the_top():
    nodes = np.array([0.0, 1.0, 2.5, 3.0, 5.0])
    assert top_curvature(2.0 - (nodes - 2.2) ** 2, nodes) == pytest.approx(-2.0)
    assert np.isnan(top_curvature(nodes, nodes))


def test_an_edge_above_the_post_edge_range_has_too_few_energies():
    mu = nickel(GRID, [0.0, 0.3])
    maps = edge_energies(GRID, mu, EdgeSettings(e0=8325.0, norm1=15.0))
    assert (maps["fit_status"] == FitStatus.TOO_FEW_ENERGIES).all()


def test_unknown_settings():
    with pytest.raises(ValueError, match="definition 'inflection' is unknown; choose from half_step"):
        EdgeSettings(definition="inflection")
    with pytest.raises(ValueError, match="need 'particle' or 'pixel'"):
        EdgeSettings(slope="both")
    with pytest.raises(ValueError, match="with below < 0 < above"):
        EdgeSettings(search=(5.0, 30.0))


def test_no_pixels():
    nothing = edge_energies(GRID, np.empty((143, 0)), EdgeSettings(), mean=nickel(GRID, [0.0])[:, 0])
    assert nothing["edge_energy"].shape == (0,)
