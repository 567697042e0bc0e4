"""The README's chain of lazy functions gives what the out-of-core driver gives."""

import numpy as np
import pytest
import xarray as xr

import xreg
from xreg import record
from xreg.synthetic import PhantomConfig, ni_energies


@pytest.mark.filterwarnings("ignore:Sending large graph")
def test_the_chain_of_functions_gives_what_register_gives(tmp_path):
    config = PhantomConfig(shape=(200, 210), energies=tuple(ni_energies(24)), n_scans=1, n_particles=2, radius=(16, 24),
                           touching=0, jumps=0.0, seed=4)
    record.simulate(config, tmp_path / "raw.zarr", tmp_path / "truth.zarr", workers=0)

    raw = xreg.open_frames(tmp_path / "raw.zarr")
    normalized = xreg.normalize_frames(raw)
    particle_map = xreg.detect_rois(normalized, device="cpu")
    rois = xreg.refine_rois(normalized, particle_map, device="cpu").compute()
    links = xreg.link_rois(rois)
    # Regions that were saved and opened again are the same regions.
    rois.drop_vars("axis").chunk(frame=5).drop_encoding().to_zarr(tmp_path / "rois.zarr", consolidated=False)
    stored = xr.open_zarr(tmp_path / "rois.zarr", consolidated=False)
    xr.testing.assert_identical(xreg.link_rois(stored)["track"].variable, links["track"].variable)
    xr.testing.assert_identical(xreg.outline_particles(stored, links).variable,
                                xreg.outline_particles(rois, links).variable)
    candidates = xreg.propose_particles(xreg.gather_tracks(rois, links), xreg.outline_particles(rois, links))
    located = xreg.locate_particles(normalized, candidates).compute()
    tracks = xreg.smooth_tracks(xreg.confirm_particles(candidates, located))
    contour = tracks["contour"]
    motion = xreg.measure_motion(tracks)
    aligned = xreg.align_stacks(normalized, tracks, half=contour.sizes["y"] // 2)["aligned"]
    maps = xreg.fit_edges(aligned, contour)

    result = xreg.register(tmp_path / "raw.zarr", tmp_path / "out.zarr", device="cpu")
    assert result.sizes["particle"] == 2
    np.testing.assert_allclose(tracks["position"], result["position"], atol=1e-6)
    np.testing.assert_array_equal(contour, result["contour"])
    np.testing.assert_allclose(motion["nonrigid"], result["nonrigid"], atol=1e-6)
    np.testing.assert_allclose(aligned.isel(frame=slice(0, 3)), result["aligned"].isel(frame=slice(0, 3)), atol=1e-4)
    one = {"particle": 1, "scan": 0}
    np.testing.assert_allclose(maps["edge_energy"].isel(one), result["edge_energy"].isel(one), atol=1e-3)


@pytest.mark.parametrize("name", xreg.__all__)
def test_every_public_name_is_there(name):
    assert callable(getattr(xreg, name))
