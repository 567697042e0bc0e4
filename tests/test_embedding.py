"""xreg's functions inside somebody else's graph: lazy in, lazy out, small, and wherever that graph is computed."""

import functools
import pickle
import subprocess
import sys

import cloudpickle
import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr
from distributed import Client, LocalCluster
from stand_in import TINY

import xreg
from xreg import chunks, record, run, store, tasks
from xreg.align import align_block
from xreg.detect import detect_block
from xreg.refine import refine_block
from xreg.synthetic import PhantomConfig

pytestmark = pytest.mark.usefixtures("thresholds")


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    place = tmp_path_factory.mktemp("measured") / "raw.zarr"
    record.simulate(PhantomConfig(**{**TINY, "n_scans": 1}), place)
    return place


@pytest.fixture(scope="module")
def density(raw):
    """Normalised frames in memory, in chunks of three."""
    normalized = xreg.normalize_frames(xreg.open_frames(raw)).compute()
    return normalized.chunk(frame=3)


@pytest.fixture(scope="module")
def found(density):
    """What the functions on blocks give for all frames at once."""
    values = density.optical_density.values
    return detect_block(values, device="cpu")


def test_lazy_in_lazy_out_without_computing_anything(raw, no_compute):
    normalized = xreg.normalize_frames(xreg.open_frames(raw))
    rois = xreg.refine_rois(normalized, xreg.detect_rois(normalized))
    tracks = xr.Dataset({"position": (("particle", "frame", "axis"), np.full((2, 8, 2), 48.0))})
    aligned = xreg.align_stacks(normalized, tracks, half=4)["aligned"]
    maps = xreg.fit_edges(aligned)
    for made in (normalized.optical_density, rois.roi_position, aligned, maps.edge_energy):
        assert dask.is_dask_collection(made.data)


def test_a_graph_of_many_chunks_holds_neither_weights_nor_stores_and_stays_small(raw):
    many = 100_000
    normalized = xr.Dataset({"optical_density": (("frame", "y", "x"), da.zeros((many, 8, 8), "f4", chunks=(1, 8, 8))),
                             "noise": ("frame", da.zeros(many, chunks=1))})
    rois = xreg.refine_rois(normalized, xreg.detect_rois(normalized))
    assert len(cloudpickle.dumps(rois.roi_position.data.__dask_graph__())) < 2**20
    frames = store.Stored(str(raw), "counts", (many, 96, 96), np.dtype("uint16")).lazy((1, 96, 96))
    assert len(cloudpickle.dumps(frames.__dask_graph__())) < 2**20
    assert b"LocalStore" not in cloudpickle.dumps(store.open_frames(raw).counts.data.__dask_graph__())


def test_the_same_with_a_client_and_with_none(density, found):
    lazy = xreg.detect_rois(density, device="cpu")
    np.testing.assert_array_equal(lazy.compute(scheduler="threads"), found)
    with LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address="127.0.0.1:0") as cluster:
        with Client(cluster):
            np.testing.assert_array_equal(lazy.compute(), found)


def test_inside_dask_delayed(density, found):
    frame = dask.delayed(lambda ds: ds.isel(frame=2).load())(density)
    one = dask.delayed(detect_block)(frame["optical_density"].data[None], device="cpu")
    np.testing.assert_array_equal(one.compute(), found[2:3])
    # Functions that compute may also run inside a task.
    table = xreg.refine_rois(density, xreg.detect_rois(density, device="cpu"), device="cpu")
    links = dask.delayed(xreg.link_rois)(table.compute()).compute(scheduler="threads")
    np.testing.assert_array_equal(links["track"], xreg.link_rois(table.compute())["track"])


def test_inside_apply_ufunc(density, found):
    made = xr.apply_ufunc(
        detect_block, density.optical_density, kwargs={"device": "cpu"}, input_core_dims=[["y", "x"]],
        output_core_dims=[["y", "x"]], dask="parallelized", output_dtypes=[np.float32])
    assert dask.is_dask_collection(made.data)
    np.testing.assert_array_equal(made, found)


def test_inside_map_blocks(density, found):
    array = density.optical_density.data
    made = da.map_blocks(detect_block, array, device="cpu", dtype=np.float32, meta=np.empty((0, 0, 0), np.float32))
    particles = (made > 0.5).sum(axis=(1, 2))
    np.testing.assert_array_equal(particles, (found > 0.5).sum(axis=(1, 2)))
    records = refine_block(array[:2].compute(), found[:2], density.noise.values[:2], device="cpu")
    windows = da.map_blocks(
        align_block, array[:2].rechunk((1, -1, -1)), records["roi_position"][:1, :1].transpose(1, 0, 2), np.ones(1), 5,
        dtype=np.float32, chunks=((1,), (1, 1), (11,), (11,)), new_axis=[0], meta=np.empty((0,) * 4, np.float32))
    assert windows.compute().shape == (1, 2, 11, 11)


def test_a_scheduler_that_takes_a_task_apart_needs_no_torch(raw, tmp_path):
    job = run._Run.prepare(raw, tmp_path / "out.zarr", run.Settings(), frames=None, device="cpu", lazy=False).job
    task = pickle.dumps((functools.partial(tasks.perform, job, "observe"), chunks.Block(0, 0, 2)))
    assert len(task) < 2000
    code = "import pickle, sys; pickle.load(sys.stdin.buffer); assert 'torch' not in sys.modules, 'torch was imported'"
    subprocess.run([sys.executable, "-c", code], input=task, check=True)
