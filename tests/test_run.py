"""The driver, on a tiny measurement. Networks are replaced by thresholds here, but for the tests with processes."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time

import dask
import numpy as np
import pytest
import xarray as xr
import zarr
from scipy import ndimage

from xreg import record, run, schema, store, tasks
from xreg.journal import Journal
from xreg.result import failures, open_raw_of, open_result
from xreg.schema import FrameStatus
from xreg.synthetic import PhantomConfig, ni_energies

TINY = {"shape": (128, 128), "n_scans": 2, "energies": tuple(ni_energies(24)), "n_particles": 2, "radius": (14.0, 20.0),
        "touching": 0, "flats_per_energy": 1, "n_darks": 2, "deformation": 2.0}
FRAMES, BLOCK = 48, 12


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    place = tmp_path_factory.mktemp("measured")
    record.simulate(PhantomConfig(**TINY), place / "raw.zarr", place / "truth.zarr")
    rechunked(place / "raw.zarr", place / "blocks.zarr", shards=BLOCK)
    return place / "blocks.zarr"


@pytest.fixture(autouse=True)
def thresholds(monkeypatch, request):
    """Networks that need no weights; the choice of blocks of 12 frames."""
    monkeypatch.setattr("xreg.chunks.BLOCK_FRAMES", BLOCK)
    if "processes" in request.keywords:
        return
    from xreg.models import weights

    def particle_map(density, _weights, _device):
        return np.clip(ndimage.gaussian_filter(np.nan_to_num(density), 2) / 0.25, 0, 1).astype(np.float32)

    def soft_contours(pictures, _weights, _device):
        return (1 / (1 + np.exp(-(pictures[:, 0] - 0.5) * 12))).astype(np.float32)

    monkeypatch.setattr("xreg.models.infer.particle_map", particle_map)
    monkeypatch.setattr("xreg.models.infer.soft_contours", soft_contours)
    monkeypatch.setattr("xreg.models.weights.shipped", lambda name: weights.Weights(name, "0" * 64))


@pytest.fixture(scope="module")
def whole(raw, tmp_path_factory):
    """The result of an undisturbed run."""
    out = tmp_path_factory.mktemp("whole") / "out.zarr"
    with pytest.MonkeyPatch.context() as patch:
        thresholds.__wrapped__(patch, type("R", (), {"keywords": ()})) if hasattr(thresholds, "__wrapped__") else None
        run.register(raw, out)
    return out


def rechunked(source, target, *, chunk=1, shards=None):
    """Copy a raw store with other chunks of its pictures."""
    with xr.open_zarr(source, consolidated=False, chunks=None) as ds:
        ds = ds.load().drop_encoding()
    encoding = {n: {"chunks": (min(chunk, len(ds[n])), *ds[n].shape[1:])} for n in store.PICTURES if n in ds}
    if shards:
        for name, layout in encoding.items():
            layout["shards"] = (min(shards, len(ds[name])), *ds[name].shape[1:])
    ds.to_zarr(target, consolidated=False, zarr_format=3, encoding=encoding)
