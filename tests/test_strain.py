"""Strain and rotation of planted deformations come out, with errors that say how well."""

import numpy as np
import pytest
import xarray as xr

from xreg.kernels.geometry import to_raw
from xreg.motion import measure_strain

STRETCH = np.array([[0.04, 0.015], [0.015, -0.02]])


def cloud(particles=25, seed=0):
    """Places on a jittered grid, px."""
    side = int(np.ceil(np.sqrt(particles)))
    grid = np.stack(np.divmod(np.arange(particles), side), axis=-1) * 60.0 + 40
    return grid + np.random.default_rng(seed).uniform(-15, 15, grid.shape)


def turned(angle):
    """Rotation matrix on (y, x), from y towards x."""
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def tracks_of(home, maps, noise=0.0, sigma=0.02, seed=1):
    """Tracks of particles that affine maps (frames, 2, 2) carry, with shifts of the whole frame."""
    rng = np.random.default_rng(seed)
    position = np.einsum("fij,pj->pfi", maps, home) + rng.normal(0, 5, (1, len(maps), 2))
    position += rng.normal(0, noise, position.shape) if noise else 0
    dims = ("particle", "frame", "axis")
    return xr.Dataset({"position": (dims, position), "position_sigma": (dims, np.full(position.shape, sigma))},
                      {"particle": np.arange(10, 10 + len(home)), "frame": np.arange(3, 3 + len(maps))})


ANGLES = np.array([0.0, 0.1, -0.5, 2.0])
MAPS = np.array([turned(a) @ (np.eye(2) + k * STRETCH) for k, a in enumerate(ANGLES)])


@pytest.mark.parametrize("neighbours", [None, 6])
def test_homogeneous_strain_and_any_rotation_are_exact(neighbours):
    strain = measure_strain(tracks_of(cloud(), MAPS), neighbours=neighbours)
    green = (np.einsum("fki,fkj->fij", MAPS, MAPS) - np.eye(2)) / 2
    for name, i, j in (("yy", 0, 0), ("xx", 1, 1), ("yx", 0, 1)):
        np.testing.assert_allclose(strain["strain"].sel(component=name), np.tile(green[:, i, j], (25, 1)), atol=1e-10)
    np.testing.assert_allclose(strain["rotation"], np.tile(ANGLES, (25, 1)), atol=1e-10)
    np.testing.assert_allclose(strain["area_change"], np.tile(np.linalg.det(MAPS) - 1, (25, 1)), atol=1e-10)
    np.testing.assert_allclose(strain["nonaffine"], 0, atol=1e-9)
    np.testing.assert_array_equal(strain["particle"], np.arange(10, 35))
    np.testing.assert_array_equal(strain["frame"], np.arange(3, 7))


def test_errors_are_those_of_the_positions():
    """Errors in units of the stated ones are standard normal, turned and stretched as the cloud may be."""
    maps = np.repeat(MAPS[[0, 3]], [1, 400], axis=0)
    strain = measure_strain(tracks_of(cloud(), maps, noise=0.05, sigma=0.05), reference=0)
    exact = measure_strain(tracks_of(cloud(), maps), reference=0)
    for name in ("strain", "rotation", "area_change"):
        pull = ((strain[name] - exact[name]) / strain[f"{name}_sigma"]).values[:, 1:]
        # The reference frame's error is common to all frames, so that each particle's mean is off by 0.7 of an error.
        assert np.sqrt(np.mean(pull**2)) == pytest.approx(1, abs=0.2), name
        spread = pull.reshape(25, 400, -1).std(axis=1)
        np.testing.assert_allclose(spread, np.sqrt(0.5), rtol=0.12)
    # n points, 2 n numbers, of which six parameters are fitted; twice the error, as both frames have it.
    n = strain["points"].values[:, 1:]
    mean_square = (strain["nonaffine"].values[:, 1:] ** 2).mean()
    assert mean_square == pytest.approx(np.mean(2 * 0.05**2 * (2 * n - 6) / n), rel=0.2)


def test_uncertain_particles_count_little():
    tracks = tracks_of(cloud(), MAPS)
    tracks["position"][6, 1] += 5.0
    tracks["position_sigma"][6, 1] = 1e4
    np.testing.assert_allclose(measure_strain(tracks)["rotation"][:6, 1], 0.1, atol=1e-4)


def test_one_displaced_particle_is_non_affine():
    tracks = tracks_of(cloud(), MAPS)
    tracks["position"][12, 2] += 3.0
    strain = measure_strain(tracks)
    assert int(strain["nonaffine"][:, 2].values.argmax()) == 12
    assert float(strain["nonaffine"][12, 2]) > 1.0
    assert float(strain["nonaffine"][12, 1]) < 1e-9


def test_too_few_or_collinear_neighbours_are_not_known():
    line = np.stack([np.linspace(0, 200, 6), np.linspace(0, 100, 6)], axis=-1)
    for home in (line, cloud(2), cloud(1), cloud(0)):
        strain = measure_strain(tracks_of(home, MAPS))
        for name in ("strain", "strain_sigma", "rotation", "area_change", "nonaffine"):
            assert np.isnan(strain[name]).all(), name
    three = measure_strain(tracks_of(np.array([[0.0, 0], [0, 50], [40, 10]]), MAPS))
    np.testing.assert_allclose(three["rotation"], np.tile(ANGLES, (3, 1)), atol=1e-10)
    assert np.isnan(three["nonaffine"]).all()


def test_gaps():
    tracks = tracks_of(cloud(), MAPS)
    tracks["position"][7, 2] = np.nan
    tracks["position"][3, 0] = np.nan
    strain = measure_strain(tracks)
    assert strain.attrs["reference"] == 1
    assert np.isnan(strain["rotation"][7, 2])
    assert np.isnan(strain["rotation"][3, 0])
    assert np.isfinite(strain["rotation"]).sum() == 25 * 4 - 2
    assert int(strain["points"][7, 2]) == 0
    np.testing.assert_allclose(strain["rotation"][8], ANGLES - 0.1, atol=1e-9)
    # In the reference frame itself nothing has moved.
    assert float(np.abs(strain["strain"][:, 1]).max()) < 1e-12
    assert float(strain["strain_sigma"][:, 1].max()) == 0


def test_magnification_is_no_strain():
    home, scale = cloud(), np.array([1.0, 1.01, 1.02, 1.03])
    tracks = tracks_of(home, np.repeat(np.eye(2)[None], 4, axis=0))
    raw = tracks.assign(position=tracks["position"].copy(data=to_raw(tracks["position"].values, scale, (400, 400))))
    raw = raw.assign_coords(energy=("frame", 8000.0 * scale)).assign_attrs(
        magnification="proportional-to-energy", pixel_size_energy_ev=8000.0, frame_shape=[400, 400])
    assert float(np.abs(measure_strain(raw)["strain"]).max()) < 1e-9


def test_bad_input_is_refused():
    tracks = tracks_of(cloud(), MAPS)
    with pytest.raises(ValueError, match="position is missing; need position with dims"):
        measure_strain(tracks.drop_vars("position"))
    with pytest.raises(ValueError, match="the reference frame is 4; need one of 0 to 3"):
        measure_strain(tracks, reference=4)
    with pytest.raises(ValueError, match="neighbours is 1; need at least 2"):
        measure_strain(tracks, neighbours=1)
    for settings in ({"reference": 1.5}, {"neighbours": np.nan}, {"neighbours": 3.0}):
        with pytest.raises(ValueError, match=r"(reference|neighbours) is .*; need"):
            measure_strain(tracks, **settings)
