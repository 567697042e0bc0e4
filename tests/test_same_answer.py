"""The same bits whatever the chunks of the raw store, whoever works, and however linking is cut into tasks."""

import pytest
from stand_in import StandIn, assert_same
from test_run import rechunked

from xreg import record, run
from xreg.result import open_result
from xreg.synthetic import PhantomConfig, ni_energies
from xreg.workers import open_pool

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("thresholds")]


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    place = tmp_path_factory.mktemp("measured") / "raw.zarr"
    record.simulate(PhantomConfig(shape=(64, 72), n_scans=1, energies=tuple(ni_energies(143)), n_particles=1,
                                  radius=(10.0, 12.0), touching=0, flats_per_energy=1, n_darks=2, jumps=0.0), place)
    return place


@pytest.fixture(scope="module")
def whole(raw, tmp_path_factory):
    """The result of threads on the raw store as it was made."""
    out = tmp_path_factory.mktemp("whole") / "out.zarr"
    run.register(raw, out)
    assert open_result(out).sizes["particle"] == 1
    return out


@pytest.mark.parametrize("chunk", [1, 7, 32, 143])
def test_chunks_of_the_raw_store(raw, whole, tmp_path, chunk):
    run.register(rechunked(raw, tmp_path / "raw.zarr", chunk), tmp_path / "out.zarr")
    assert_same(whole, tmp_path / "out.zarr")


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_worker_processes(raw, whole, tmp_path, workers):
    with open_pool(workers) as pool:
        pool.client.register_plugin(StandIn(tmp_path))
        run.register(raw, tmp_path / "out.zarr", scheduler=pool.client)
    assert_same(whole, tmp_path / "out.zarr")


@pytest.mark.parametrize("split_every", [2, 5])
def test_branches_of_linking(raw, whole, tmp_path, split_every):
    run.register(raw, tmp_path / "out.zarr", link={"split_every": split_every})
    assert_same(whole, tmp_path / "out.zarr")
