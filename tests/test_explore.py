"""Principal components and clusters of a stack's spectra."""

import numpy as np
import pytest
import xarray as xr

from xreg.explore import cluster_spectra, decompose_spectra

ENERGY = np.linspace(8320, 8380, 40)


@pytest.fixture(scope="module")
def made():
    """Two particles, two scans: mixtures of two shapes in two sharply different halves."""
    rng = np.random.default_rng(0)
    a, b = np.tanh((ENERGY - 8341) / 3), np.exp(-0.5 * ((ENERGY - 8350) / 3) ** 2)
    share = np.where(np.arange(14) < 5, -1.0, 1.0) * np.ones((2, 2, 12, 1)) + 0.1 * rng.normal(size=(2, 2, 12, 14))
    cube = a[:, None, None] + share[:, :, None] * b[:, None, None]
    cube += 0.01 * rng.normal(size=cube.shape)
    cube[0, 0, 3, 0, 0] = np.nan
    stack = xr.DataArray(cube.reshape(2, 80, 12, 14).astype(np.float32), dims=("particle", "frame", "y", "x"),
                         coords={"energy": ("frame", np.tile(ENERGY, 2)), "scan": ("frame", np.repeat([0, 1], 40))})
    contour = np.ones((2, 12, 14), dtype=bool)
    contour[:, -1] = False
    return stack, xr.DataArray(contour, dims=("particle", "y", "x")), share, b


def test_components_equal_those_of_the_whole_matrix(made):
    stack, contour, share, b = made
    d = decompose_spectra(stack, contour, n_components=2).compute()
    rows = np.moveaxis(stack.values.reshape(2, 2, 40, 12, 14), 2, -1)
    keep = np.broadcast_to(contour.values[:, None], (2, 2, 12, 14)) & np.isfinite(rows).all(axis=-1)
    assert not keep[0, 0, 0, 0]
    keep[0, 0, 0, 0] = True  # its one missing value is interpolated
    rows[0, 0, 0, 0, 3] = (rows[0, 0, 0, 0, 2] + rows[0, 0, 0, 0, 4]) / 2
    np.testing.assert_array_equal(np.isfinite(d["score"].values[..., 0]), keep)
    centred = rows[keep] - rows[keep].mean(axis=0, dtype=float)
    _, size, right = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(np.abs(d["component"].values), np.abs(right[:2]), atol=1e-5)
    np.testing.assert_allclose(d["explained"], (size**2 / (size**2).sum())[:2], rtol=1e-5)
    first = d["component"].values[0]
    assert first @ b / np.linalg.norm(b) == pytest.approx(1.0, abs=1e-3)
    assert np.corrcoef(d["score"].values[..., 0][keep], share[keep])[0, 1] > 0.99


def test_chunks_and_laziness(made, no_compute):
    stack, contour, _, _ = made
    d = decompose_spectra(stack.chunk({"frame": 7, "y": 5}), contour)
    assert d["score"].data.chunks[:2] == ((1, 1), (1, 1))


def test_clusters_are_the_halves(made):
    stack, contour, share, _ = made
    c = cluster_spectra(decompose_spectra(stack, contour), n_clusters=2).compute()
    label = c["cluster"].values
    assert set(np.unique(label)) == {-1, 0, 1}
    assert (label[:, :, -1] == -1).all()
    keep = label >= 0
    np.testing.assert_array_equal(label[keep], (share[keep] < 0).astype(int))
    assert c["spectrum"].dims == ("cluster_number", "energy")


def test_order_repeats_and_missing_frames_hardly_matter(made):
    stack, contour, _, _ = made
    whole = decompose_spectra(stack, contour, n_components=2).compute()
    order = np.random.default_rng(1).permutation(stack.sizes["frame"])
    mixed = decompose_spectra(stack.isel(frame=order), contour, n_components=2).compute()
    np.testing.assert_allclose(mixed["score"], whole["score"], atol=1e-9)
    twice = decompose_spectra(xr.concat([stack, stack], dim="frame"), contour, n_components=2).compute()
    np.testing.assert_allclose(twice["score"], whole["score"], atol=1e-6)
    holed = stack.copy(data=stack.values.copy())
    holed[1, 20] = np.nan  # a frame in which a particle is not seen
    holed[1, 40:48, 2, 2] = np.nan  # a pixel that lacks a fifth of a scan
    fewer = decompose_spectra(holed.isel(frame=np.delete(np.arange(80), [50, 70])), contour, n_components=2).compute()
    score, wanted = fewer["score"].values[..., 0], whole["score"].values[..., 0]
    assert np.isnan(score[1, 1, 2, 2])
    assert np.isfinite(score).sum() == np.isfinite(wanted).sum() - 1
    assert np.nanmax(np.abs(score - wanted)) < 0.1 * np.nanstd(wanted)


def test_fewer_pixels_than_components_and_energies_a_little_off(made):
    stack, _, _, _ = made
    few = decompose_spectra(stack.isel(particle=[0], y=[3], x=[4]), n_components=3).compute()
    assert few["score"].shape == (1, 2, 1, 1, 3)
    energy = stack["energy"].values + np.random.default_rng(1).normal(0, 2e-3, 80)
    off = decompose_spectra(stack.assign_coords(energy=("frame", energy)), n_components=2).compute()
    np.testing.assert_allclose(off["explained"], decompose_spectra(stack, n_components=2)["explained"], rtol=1e-2)


def test_wrong_input(made):
    stack, contour, _, _ = made
    with pytest.raises(ValueError, match="scan 1 has 34 of the 40 energies of the fullest scan"):
        decompose_spectra(stack.isel(frame=slice(0, 74)), contour)
    with pytest.raises(ValueError, match="need 1 to 40, the number of energies"):
        decompose_spectra(stack, contour, n_components=41)
    with pytest.raises(ValueError, match=r"n_components is 2\.5; need a whole number"):
        decompose_spectra(stack, contour, n_components=2.5)
    with pytest.raises(ValueError, match="there is no particle; need at least one"):
        decompose_spectra(stack[:0])
    with pytest.raises(ValueError, match="norm is a ndarray; need a DataArray"):
        decompose_spectra(stack.values)
    for n_clusters in (0, -1, 1.5):
        with pytest.raises(ValueError, match=r"n_clusters is .*; need a whole number, 1 or more"):
            cluster_spectra(decompose_spectra(stack, contour), n_clusters=n_clusters)
    with pytest.raises(ValueError, match="got a DataArray; need a Dataset with what decompose_spectra gives"):
        cluster_spectra(stack)
