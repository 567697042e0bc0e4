import shutil

import numpy as np
import pytest
import xarray as xr

from xreg import record, store
from xreg.schema import FrameStatus
from xreg.synthetic import Phantom, PhantomConfig

CONFIG = PhantomConfig(shape=(64, 72), n_scans=2, energies=(8300.0, 8340.0, 8400.0), n_particles=1, radius=(9.0, 10.0),
                       touching=0, flats_per_energy=1, n_darks=1, jumps=0.0, deformation=0.5)


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    place = tmp_path_factory.mktemp("simulated")
    record.simulate(CONFIG, place / "raw.zarr", place / "truth.zarr")
    return place


def test_a_simulated_store_holds_the_phantoms_pictures(simulated):
    phantom, ds = Phantom(CONFIG), store.open_frames(simulated / "raw.zarr")
    assert ds.counts.dtype == np.uint16
    np.testing.assert_array_equal(ds.counts[4], phantom.counts(4))
    np.testing.assert_array_equal(ds.flats[5], phantom.flat(5))
    np.testing.assert_array_equal(ds.darks[0], phantom.dark(0))
    np.testing.assert_array_equal(ds.energy, phantom.energy)
    np.testing.assert_array_equal(ds.scan, [0, 0, 0, 1, 1, 1])
    assert ds.attrs["element"] == "Ni"
    assert not list(simulated.glob("*.partial"))


def test_of_two_commands_into_one_name_the_second_is_refused(tmp_path):
    left = tmp_path / "raw.zarr.partial/counts/c"
    left.mkdir(parents=True)
    with record._held(str(tmp_path / "raw.zarr.partial")):
        with pytest.raises(ValueError, match=r"another command is writing .*raw.zarr.partial; wait for it or stop it"):
            record.simulate(CONFIG, tmp_path / "raw.zarr")
        assert left.exists()
    record.simulate(CONFIG, tmp_path / "raw.zarr")
    assert [p.name for p in tmp_path.iterdir()] == ["raw.zarr"]


def test_what_an_interrupted_run_left_is_not_cleared_away(tmp_path):
    plan = tmp_path / "raw.zarr.partial/run/plan.json"
    plan.parent.mkdir(parents=True)
    plan.write_text("{}")
    with pytest.raises(ValueError, match=r"raw.zarr.partial was left by xreg run; go on with that, delete it"):
        record.simulate(CONFIG, tmp_path / "raw.zarr")
    assert plan.exists()


def test_the_truth_has_the_results_names(simulated):
    truth, wanted = store.open_store(simulated / "truth.zarr"), Phantom(CONFIG).truth()
    np.testing.assert_array_equal(truth.position, wanted.position)
    np.testing.assert_array_equal(truth.edge_energy, wanted.edge_energy)
    assert truth.edge_energy.dims == ("particle", "scan", "y", "x")


def test_existing_stores_are_refused(simulated, tmp_path):
    with pytest.raises(ValueError, match=r"raw.zarr exists already; choose another name or delete it"):
        record.simulate(CONFIG, simulated / "raw.zarr")
    with pytest.raises(ValueError, match="exists already"):
        record.ingest(tmp_path, simulated / "raw.zarr")


def test_progress_is_told(tmp_path):
    told = []
    record.simulate(CONFIG, tmp_path / "raw.zarr", progress=lambda *news: told.append(news))
    assert told[-1][0] == "simulate"
    assert told[-1][1] == told[-1][2] == len(told)


def test_a_failed_recording_leaves_nothing(tmp_path, monkeypatch):
    def broken(self, frame):
        msg = "the detector is gone"
        raise RuntimeError(msg)

    monkeypatch.setattr(Phantom, "flat", broken)
    record._phantom.cache_clear()
    with pytest.raises(RuntimeError, match="the detector is gone"):
        record.simulate(CONFIG, tmp_path / "raw.zarr")
    assert list(tmp_path.iterdir()) == []
    record._phantom.cache_clear()


class Files:
    """A beamline's files of which one changes after it was described."""

    def __init__(self):
        self.format, self.frame_shape, self.dtype = "made up", (8, 8), np.dtype("uint16")
        self.corrupt_files, self.notices = {"flat_3.xrm": "truncated"}, ("energies came in keV",)
        self.table = xr.Dataset(
            {"flat_energy": ("flat", np.full(2, 8300.0))},
            coords={"energy": ("frame", np.full(5, 8300.0)), "scan": ("frame", np.zeros(5, int))},
            attrs={"source_files": [f"frame_{i}.xrm" for i in range(5)]})

    def read_counts(self, index):
        if index == 3:
            msg = "frame_3.xrm ends early"
            raise OSError(msg)
        return np.full((8, 8), index + 1, np.uint16)

    def read_flat(self, index):
        return np.full((8, 8), 100, np.uint16)


def test_ingesting_goes_on_past_files_that_cannot_be_read(tmp_path, monkeypatch):
    monkeypatch.setattr("xreg.readers.open_source", lambda path: Files())
    record._beamline.cache_clear()
    faults = record.ingest("somewhere", tmp_path / "raw.zarr")
    record._beamline.cache_clear()
    assert faults == {"flat_3.xrm": "truncated", "counts 3": "frame_3.xrm ends early"}
    ds = store.open_frames(tmp_path / "raw.zarr")
    np.testing.assert_array_equal(ds.counts[:, 0, 0], [1, 2, 3, 0, 5])
    assert ds.frame_status.values.tolist() == [0, 0, 0, FrameStatus.CORRUPT, 0]
    assert ds.attrs["notices"] == ["energies came in keV"]


def test_ingesting_real_files(shared_data, tmp_path):
    for name in ("rep02_000072*", "*08324.0_eV_00[12]of003.xrm", "*08324.0_eV_001of010.xrm"):
        for file in (shared_data / "ssrl62c").glob(name):
            shutil.copy(file, tmp_path)
    faults = record.ingest(tmp_path, tmp_path / "raw.zarr")
    assert [name[:12] for name in faults] == ["rep02_000072"]
    ds = store.open_frames(tmp_path / "raw.zarr")
    assert ds.counts.shape == (2, 1024, 1024)
    assert (ds.energy == 8324).all()


def test_a_place_without_files_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no frames that can be read"):
        record.ingest(tmp_path, tmp_path / "raw.zarr")
