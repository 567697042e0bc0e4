"""The phantom: its truth agrees with its pictures, its distortions come alone, and frames do not depend on order."""

import numpy as np
import pytest

from xreg.schema import FrameStatus
from xreg.synthetic import DISTORTIONS, Phantom, PhantomConfig, edge_spectrum, ni_energies, particles

SMALL = {"shape": (200, 220), "energies": (8250.0, 8330.0, 8345.0, 8360.0, 8600.0), "n_particles": 4,
         "radius": (14.0, 24.0), "n_scans": 2}


def test_equal_settings_give_equal_counts_in_any_order():
    one, two = Phantom(**SMALL), Phantom(**SMALL)
    backwards = [two.counts(f) for f in (3, 0)]
    np.testing.assert_array_equal(one.counts(0), backwards[1])
    np.testing.assert_array_equal(one.counts(3), backwards[0])
    assert not np.array_equal(one.counts(0), Phantom(**SMALL, seed=1).counts(0))
    assert one.counts(0).dtype == np.uint16


def test_position_is_the_centre_of_mass_of_the_coverage():
    phantom = Phantom(**SMALL, touching=0, magnification=True)
    for frame in (0, 7):
        for (window, share), centre in zip(phantom.coverage(frame), phantom.position(frame), strict=True):
            y, x = np.mgrid[window]
            measured = [(share * y).sum() / share.sum(), (share * x).sum() / share.sum()]
            assert measured == pytest.approx(centre, abs=0.05)


def test_elongated_particles_are_longer_for_their_width_and_as_large():
    settings = {"n_particles": 4, "touching": 0, "irregularity": 0.0, "facets": 0.0, "n_scans": 1,
                "energies": (8333.0,)}
    for p in Phantom(**settings, elongation=(3.0, 3.0)).particles:
        assert p.outline.max() / p.outline.min() == pytest.approx(3, rel=1e-3)
        grid = np.mgrid[-160:161, -160:161].astype(float)
        share = p.coverage(*grid)
        np.testing.assert_allclose((grid * share).sum((1, 2)) / share.sum(), 0, atol=0.05)
        assert share.sum() == pytest.approx(np.pi * p.radius**2, rel=0.01)


def test_truth_has_the_motion_that_positions_show():
    phantom = Phantom(**SMALL)
    truth = phantom.truth()
    moved = truth["position"] - truth["position"].isel(frame=0)
    np.testing.assert_allclose(moved, truth["displacement"], atol=1e-9)
    np.testing.assert_allclose(truth["displacement"], truth["nonrigid"] + truth["rigid"], atol=1e-9)
    assert (truth["nonrigid"].isel(particle=0) == 0).all()
    assert float(abs(truth["nonrigid"]).max()) > 0.5


def test_magnification_shrinks_particles_as_energy_grows():
    phantom = Phantom(**{**SMALL, "energies": (8000.0, 9000.0)}, magnification=True, jitter=0.0, walk=0.0, jumps=0.0,
                      deformation=0.0)
    middle = (np.array(SMALL["shape"]) - 1) / 2
    low, high = (phantom.position(f) - middle for f in (0, 1))
    np.testing.assert_allclose(low * 8000, high * 9000)


def test_edge_energy_is_where_the_mixture_crosses_half_its_step():
    truth = Phantom(**SMALL).truth()
    energies = truth["edge_energy"].values
    assert np.isfinite(energies).sum() == 2 * truth["contour"].values.sum()
    assert 8340.5 < np.nanmin(energies) < np.nanmax(energies) < 8344.5
    later = truth["edge_energy"].isel(scan=1) - truth["edge_energy"].isel(scan=0)
    assert float(later.median()) > 0.2
    grid = np.linspace(8335, 8345, 10001)
    half = grid[np.argmax(edge_spectrum(grid, False) > 0.5)]
    assert half <= np.nanmin(energies) + 1e-3


def test_noise_is_that_of_the_counts():
    quiet = PhantomConfig.only("noise", shape=(200, 200), n_particles=0, counts=2500.0, energies=(8300.0,), n_scans=1)
    phantom = Phantom(quiet)
    density = phantom.noisy_optical_density(0)
    assert density.std() == pytest.approx(1 / 50, rel=0.05)
    assert density.mean() == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("name", [n for n in DISTORTIONS if n != "noise"])
def test_each_distortion_alone_changes_the_picture(name):
    # Bad frames are so rare that ten may hold none.
    settings = {**SMALL, "n_darks": 1, "read_noise": 0.0, "n_scans": 20 if name == "bad_frames" else 2}
    clean = Phantom(PhantomConfig.only(**settings))
    bent = Phantom(PhantomConfig.only(name, **settings, seed=0))
    assert any(not np.array_equal(clean.counts(f), bent.counts(f)) for f in range(clean.config.n_frames))


def test_bad_frames_are_marked_and_look_bad():
    phantom = Phantom(**{**SMALL, "energies": tuple(ni_energies(60))}, bad_frames=0.3)
    truth = phantom.truth()
    assert phantom.frame_status[0] == FrameStatus.OK
    for status in (FrameStatus.BLANK, FrameStatus.CORRUPT, FrameStatus.BLURRED):
        frames = np.nonzero(phantom.frame_status == status)[0]
        assert len(frames)
        assert np.isnan(truth["position"].isel(frame=int(frames[0]))).all()
    blank = phantom.counts(int(np.nonzero(phantom.frame_status == FrameStatus.BLANK)[0][0]))
    assert np.median(blank) < 120


def test_a_strong_fringe_leaves_no_less_than_no_light():
    phantom = Phantom(shape=(96, 96), n_scans=1, energies=(8360.0,), n_particles=1, touching=0, radius=(14, 16),
                      edge_step=(6.0, 6.0), profile=(0.08, 0.1), fringe=0.6, blur=0.0)
    assert phantom.transmission(0).min() == 0
    phantom.counts(0)


def test_143_energies_rise_over_the_edge():
    energies = ni_energies()
    assert len(energies) == 143
    assert (np.diff(energies) > 0).all()
    assert ((energies > 8330) & (energies < 8360)).sum() > 40


def test_errors_say_what_came():
    with pytest.raises(ValueError, match=r"unknown distortions \['wind'\]; choose from jitter"):
        PhantomConfig.only("wind")
    for settings, sentence in [
        ({"n_scans": 0}, "0 scans of 143 energies; need at least one of each"),
        ({"energies": ()}, "2 scans of 0 energies; need at least one of each"),
        ({"radius": (20.0, 10.0)}, "radius is from 20 to 10; need the smaller number first"),
        ({"radius": (-5.0, 10.0)}, r"radius is \(-5.0, 10.0\); need a number that is not below zero"),
        ({"elongation": (0.0, 2.0)}, r"elongation is \(0.0, 2.0\); need more than zero"),
        ({"counts": float("nan")}, "counts is nan; need a number that is not below zero"),
        ({"counts": 0.0}, "counts is 0.0; need more than zero"),
        ({"counts": 1e9}, r"counts 1e\+09 and dark_level 100 are more than the simulated detector counts to"),
        ({"seed": -1}, "seed is -1; need a number that is not below zero"),
        ({"counts": "9000"}, "counts is '9000'; need a number that is not below zero"),
        ({"counts": (1, 2)}, r"counts is \(1, 2\); need a number that is not below zero"),
        ({"flats_per_energy": 0}, "flats_per_energy is 0; need more than zero"),
        ({"hot_pixels": 2}, "hot_pixels is 2; need a share from 0 to 1"),
        ({"bad_frames": 2}, "bad_frames is 2; need a share from 0 to 1"),
        ({"facets": 3}, "facets is 3; need a share from 0 to 1"),
        ({"radius": 5}, r"radius is \(5,\); need two numbers, such as \(18.0, 42.0\)"),
        ({"shape": 5}, r"shape is \(5,\); need two numbers, such as \(460, 460\)"),
        ({"shape": (460,)}, r"shape is \(460,\); need two numbers"),
        ({"n_particles": 1.5}, "n_particles is 1.5; need whole numbers"),
        ({"n_scans": 1.5}, "n_scans is 1.5; need whole numbers"),
        ({"seed": 1.5}, "seed is 1.5; need whole numbers"),
        ({"energies": (8.3, 8.4)}, r"energies is \(8.3, 8.4\); need eV, at least 100: multiply keV by 1000"),
        ({"reference_energy": 8.3}, "reference_energy is 8.3; need eV, at least 100"),
        ({"config": {}}, r"config is \{\}; need a PhantomConfig, or settings by name such as Phantom\(seed=1\)"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            Phantom(**settings)


def test_lists_and_arrays_are_settings_too():
    given = PhantomConfig(energies=np.array([8300.0, 8400.0]), radius=[10.0, 12.0])
    assert hash(given) == hash(PhantomConfig(energies=(8300.0, 8400.0), radius=(10.0, 12.0)))
    assert PhantomConfig(energies=8300.0).n_frames == 2


def test_placing_ends_once_the_field_is_full(monkeypatch):
    draw, drawn = particles._draw_particle, []
    monkeypatch.setattr(particles, "_draw_particle", lambda *given: drawn.append(1) or draw(*given))
    crowd = Phantom(n_scans=1, energies=(8300.0,), shape=(200, 200), n_particles=60, touching=0)
    assert len(crowd.particles) >= 3
    assert len(drawn) < 14_000


def test_seeds_give_what_they_gave_where_a_few_find_no_place():
    phantom = Phantom(n_scans=1, energies=(8300.0, 8400.0), shape=(300, 300), n_particles=18, cut=3, touching=4)
    assert len(phantom.particles) == 16
    assert phantom.particles[-1].centre == pytest.approx((0.9704017056672243, 177.2034094033989))
    assert phantom.rigid[1] == pytest.approx([-0.79757735, -0.36405176])
