"""The benchmarks of registration run, on something tiny, and their bound and their truth are right."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from scipy import ndimage

from xreg import record
from xreg.synthetic import Phantom, PhantomConfig

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def program(name):
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


registration, known_motion = program("registration"), program("known_motion")
TINY = {"shape": (128, 128), "energies": (8200.0, 8260.0, 8345.0, 8352.0, 8400.0, 8500.0), "n_particles": 1,
        "radius": (11.0, 13.0), "touching": 0, "n_darks": 1, "jumps": 0.0}


def test_no_known_picture_is_located_better_than_the_bound():
    config = PhantomConfig.only("noise", "blur", counts=800.0, shape=(72, 72), n_scans=1, energies=(8200.0, 8400.0),
                                n_particles=1, radius=(11.0, 13.0), touching=0)
    phantom = Phantom(config)
    beam = np.full(config.shape, 800.0)
    bound = registration.position_bounds(phantom, beam)
    assert bound.shape == (1, 2)
    assert bound[0, 0] > 1.5 * bound[0, 1]  # before the edge there is less to see
    # A least-squares fit of the picture itself, which only its place is unknown of, reaches the bound.
    rng = np.random.default_rng(0)
    clean = phantom.transmission(1)
    density = -np.log(clean)
    slopes = np.stack([(ndimage.shift(density, s, order=5) - ndimage.shift(density, [-v for v in s], order=5)) / 0.2
                       for s in ([0.1, 0], [0, 0.1])])[:, 8:-8, 8:-8]
    found = []
    for _ in range(400):
        sample = rng.poisson(800 * clean) + 3 * rng.standard_normal(clean.shape)
        flat = (rng.poisson(480.0, (2, *clean.shape)) + 3 * rng.standard_normal((2, *clean.shape))).mean(0)
        left = (-np.log(sample / flat * 0.6) - density)[8:-8, 8:-8]
        weight = 1 / (1 / (800 * clean) + 1 / 960)[8:-8, 8:-8]
        normal = np.einsum("aij,bij,ij->ab", slopes, slopes, weight)
        found.append(np.linalg.solve(normal, np.einsum("aij,ij,ij->a", slopes, left, weight)))
    spread = np.sqrt((np.std(found, axis=0) ** 2).sum())
    assert 0.9 < spread / bound[0, 1] < 1.12


def test_errors_are_those_that_were_made():
    truth = Phantom(PhantomConfig(**TINY, n_scans=1)).truth()
    frames = np.arange(0, 6, 2)
    true = truth["position"].values[:, frames]
    numbers = registration.score(true + np.array([[3.0, -1.0], [3.0, -1.0], [3.3, -0.6]]), truth, frames)
    assert numbers["rms"] == pytest.approx(0.5 / np.sqrt(3))
    assert numbers["pre_edge"] == pytest.approx(0)
    assert numbers["tracked"] == 1
    assert registration.score(true + 40 * np.arange(3)[:, None], truth, frames)["tracked"] == pytest.approx(1 / 3)


def test_cases():
    found = registration.cases([9000, 300], ["all", "jitter"], [0, 1])
    assert list(found) == ["all-9000-seed0", "all-300-seed0", "jitter-9000-seed0", "all-9000-seed1", "all-300-seed1",
                           "jitter-9000-seed1"]
    alone = found["jitter-9000-seed1"]
    assert (alone.noise, alone.jitter, alone.walk, alone.texture, alone.counts, alone.seed) == (
        True, 0.5, 0, 0, 9000, 1)


@pytest.mark.slow
def test_registration_goes_on_where_it_stopped(tmp_path, capsys, monkeypatch):
    chosen = registration.cases([9000], ["all"], [0], **TINY)
    registration.main(tmp_path, chosen, ["xreg", "absolute-template"], every=2)
    table = tmp_path / "all-9000-seed0.csv"
    first = registration.read(table)
    assert [(r["method"], r["where"]) for r in first] == [
        ("xreg", "particle"), ("oracle", "particle"), ("absolute-template", "frame"), ("absolute-template", "roi")]
    assert [r.get("frames") for r in first] == [6, None, 3, 3]
    assert first[0]["ssim"] > 0.97 * first[1]["ssim"]
    assert 0.3 < first[0]["bound_ratio"] < 20
    assert not list(tmp_path.glob("*.zarr*"))
    shown = capsys.readouterr().out
    for words in ("Cramer-Rao bound", "RMS / best (absolute-template", "error / sigma", "ssim / oracle's", "<= 0.06"):
        assert words in shown, words
    other = {"method": "orb", "where": "frame", "frames": 6.0, "rms": 1.0, "tracked": 0.5}
    monkeypatch.setattr(registration, "conventional", lambda *_: [other])
    registration.main(tmp_path, chosen, ["xreg", "absolute-template", "orb"])
    assert str(registration.read(table)) == str([*first, other])  # as text, since a NaN is not equal to itself


def scene(density):
    moved = known_motion.Motion.draw(5, density.shape, 0)
    return known_motion.Scene(density, np.ones(density.shape), 8400.0, (20, 20), (100, 110), moved,
                              np.array([8200.0, 8300.0, 8345.0, 8400.0, 8400.0]), 1e4, 0)


def two_blobs():
    """Particles at (70, 60) and (60, 110) over a slope and a gap without values."""
    y, x = np.mgrid[:140, :160]
    density = 0.02 + 0.0002 * y + sum(0.8 / (1 + np.exp(np.hypot(y - a, x - b) - 14)) for a, b in ((70, 60), (60, 110)))
    density[:5] = np.nan
    return density


def test_layers_add_up_and_the_background_goes_on_behind():
    density = two_blobs()
    background, particles = known_motion.divide(density)
    inner = ndimage.gaussian_filter(np.nan_to_num(density), known_motion.SMOOTHING_PX)[20:-20, 20:-20]
    np.testing.assert_allclose((background + particles)[20:-20, 20:-20], inner, atol=1e-6)
    assert np.isfinite(background).all()
    assert abs(background[70, 60] - 0.034) < 0.01
    assert abs(particles[100, 110]) < 1e-6


def test_matter_is_where_the_path_says():
    made = scene(two_blobs())
    for frame in (3, 4):
        place = made.motion.path(np.array([70.0, 60.0]))[frame]
        np.testing.assert_allclose(made.motion.origin(frame, *place), [70, 60], atol=1e-5)
        seen = made.optical_density(frame)
        excess = np.maximum(seen - 0.3 * seen.max(), 0)[:, :65]
        centre = np.array(ndimage.center_of_mass(excess)) + made.corner
        assert np.abs(centre - place).max() < 0.05
        assert np.hypot(*(place - [70, 60])) > 0.2
    assert made.optical_density(0).max() < 0.45 * made.optical_density(3).max()


def test_tracks_are_scored_against_the_field():
    made = scene(two_blobs())
    paths = np.stack([made.motion.path(np.array(p)) - made.corner for p in ([70.0, 60.0], [60.0, 110.0])])
    paths[1, 2] += [0.3, 0.4]
    paths[1, 4] = np.nan
    y, x = np.mgrid[-16:17, -16:17]
    result = xr.Dataset({"position": (("particle", "frame", "axis"), paths),
                         "position_sigma": (("particle", "frame", "axis"), np.full(paths.shape, 0.1)),
                         "contour": (("particle", "y", "x"), np.stack([np.hypot(y, x) < 14] * 2))})
    good, bad = known_motion.score(result, made)
    assert good["rms"] < 1e-6
    assert (good["seen"], good["lost"], good["whole"]) == (1, 0, True)
    assert bad["rms"] == pytest.approx(0.25, rel=1e-3)
    assert (bad["seen"], bad["lost"]) == (0.8, 1)


def test_what_the_background_holds_moves_with_the_stage():
    made = scene(two_blobs())
    y, x = np.mgrid[:200, :200]
    made.background = ndimage.spline_filter(0.2 * np.exp(-(np.hypot(y - 100, x - 90) / 5) ** 4))
    outline = np.hypot(*np.mgrid[-16:17, -16:17]) < 5
    for place, still in (([100.0, 90.0], True), ([70.0, 60.0], False)):
        path = (np.array(place) + made.motion.stage if still else made.motion.path(np.array(place))) - made.corner
        result = xr.Dataset({"position": (("particle", "frame", "axis"), path[None]),
                             "position_sigma": (("particle", "frame", "axis"), np.full((1, *path.shape), 0.1)),
                             "contour": (("particle", "y", "x"), outline[None])})
        row, = known_motion.score(result, made)
        assert row["substrate"] is still
        assert row["rms"] < 1e-6
        assert np.isnan(row["pull"]) == still


@pytest.mark.slow
def test_known_motion_runs(tmp_path, capsys):
    record.simulate(PhantomConfig(**{**TINY, "energies": (8400.0,), "shape": (160, 160)}, n_scans=1,
                                  flats_per_energy=1), tmp_path / "measured.zarr")
    reached = known_motion.main(tmp_path / "measured.zarr", tmp_path / "made", energies=6)
    assert reached["particles in every frame"] == 1
    assert reached["rms"] < 0.2
    assert "goal >= 6: NOT MET" in capsys.readouterr().out
