"""Open raw stores, results and tables lazily; what is no such store is refused in a sentence."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr
from zarr.errors import BaseZarrError

from xreg import chunks, files, schema
from xreg.guard import open_reader, product
from xreg.store.blocks import Stored, read_block
from xreg.store.create import refuse_unfinished

#: Pictures: the only variables of a raw store that are not read whole.
PICTURES = ("counts", "optical_density", "flats", "darks")


def open_frames(path: str | Path, *, block: int | None = None, forgiving: bool = False) -> xr.Dataset:
    """Open a raw store lazily.

    Parameters
    ----------
    path : str or Path
        A Zarr group as `xreg ingest` or `xreg simulate` writes it (also v2, also a URL that fsspec knows).
    block : int, optional
        Frames per dask chunk; by default a number that suits the scans and 50 MB of float32 frames.
    forgiving : bool
        Whether a damaged picture reads as zeros instead of raising.

    Returns
    -------
    Dataset
        `counts` (frame, y, x), `flats`, `darks` as dask arrays of unscaled numbers, everything else in memory.

    Raises
    ------
    ValueError
        If there is no such store, or it is no raw store: without frames, energies or scans, with other dims or dtypes
        than the schema's, with lengths that differ, numbers that are packed, or shapes beyond all limits.
        `normalize_frames` checks the rest.
    """
    group = open_group(path)
    _refuse_beyond_limits(group, path)
    refuse_unfinished(group.attrs, path)
    try:
        ds = xr.open_zarr(open_reader(str(path)), chunks=None, consolidated=False, mask_and_scale=False,
                          decode_times=False)
        ds = _with_times(ds)
    except (ValueError, KeyError) as error:
        msg = f"{path} is not a readable raw store: {error}"
        raise ValueError(msg) from error
    _refuse_packed(ds, path)
    small = [n for n in ds.variables if n not in PICTURES]
    for name in small:
        # xarray reads them without looking first.
        read_block(path, str(name), ...)
    for name in ds.variables:
        ds[name].attrs.pop("_FillValue", None)
    ds = ds.assign({n: ds[n].load() for n in small if n in ds.data_vars})
    ds = ds.set_coords([n for n in ("energy", "scan", "time") if n in ds])
    ds = ds.assign_coords({n: ds[n].load() for n in small if n in ds.coords})
    # Whole numbers of eV or seconds are numbers, too.
    whole = [n for n in small if n in schema.RAW and "f" in schema.RAW[n].kinds and ds[n].dtype.kind in "iu"]
    ds = ds.assign({n: ds[n].astype(np.float64) for n in whole})
    try:
        pictures = schema.frames_name(ds)
        schema.validate(ds, schema.RAW, pictures, "energy", "scan", *(n for n in schema.RAW if n in ds.variables))
    except ValueError as error:
        msg = f"{path}: {error}"
        raise ValueError(msg) from None
    n_frames, *frame = ds[pictures].shape
    if 0 in ds[pictures].shape:
        msg = f"{path}: {pictures} has shape {ds[pictures].shape}; there are no frames to register."
        raise ValueError(msg)
    read_chunk = group[pictures].chunks[0]
    block = block or chunks.block_length(
        n_frames, int(np.prod(frame)), scan_length=chunks.scan_length(ds.scan.values.tolist()), read_chunk=read_chunk)
    for name in PICTURES:
        if name in ds:
            grid = (block, *ds[name].shape[1:])
            ds[name] = ds[name].copy(data=Stored.of(path, name, ds[name], forgiving).lazy(grid))
    ds.attrs["source"] = str(path)
    return ds


def is_time(attrs: Mapping[str, Any]) -> bool:
    """Whether numbers count from a date."""
    return " since " in str(attrs.get("units", ""))


def _with_times(ds: xr.Dataset) -> xr.Dataset:
    """Decode times; a variable of the user's own may have units that nobody understands, and stays as it is."""
    for name in [n for n in ds.variables if is_time(ds[n].attrs)]:
        try:
            ds = ds.assign({name: xr.decode_cf(ds[[name]], mask_and_scale=False)[name].variable})
        except ValueError:
            if name in schema.RAW:
                raise
    return ds


def _refuse_packed(ds: xr.Dataset, path: str | Path) -> None:
    """Raise ValueError where numbers of the schema are stored as others; xreg takes them as they are."""
    for name in set(schema.RAW) & set(ds.variables):
        packed = {k: ds[name].attrs[k] for k in ("scale_factor", "add_offset") if k in ds[name].attrs}
        if packed:
            how = ", ".join(f"{k} {v}" for k, v in packed.items())
            msg = f"{path}: {name} is packed ({how}); need plain numbers: write it without scale_factor and add_offset."
            raise ValueError(msg)


def open_store(path: str | Path) -> xr.Dataset:
    """Open a result, a truth or a group of working tables.

    Pictures, stacks, maps and tables of regions are dask-backed in their stored chunks, of which tables of long
    measurements join several; the rest is in memory.
    """
    _refuse_beyond_limits(open_group(path), path)
    ds = xr.open_zarr(open_reader(str(path)), chunks=None, consolidated=False, mask_and_scale=False)
    read = {}
    for name, array in ds.variables.items():
        array.attrs.pop("_FillValue", None)
        if {"y", "x"} <= set(array.dims) or "roi" in array.dims:
            grid = [array.encoding["preferred_chunks"].get(dim, 1) for dim in array.dims]
            if "roi" in array.dims:
                grid[0] *= chunks.joined(array.shape[0], grid[0], product(array.shape[1:]) * array.dtype.itemsize)
            read[name] = array.copy(data=Stored.of(path, str(name), array).lazy(tuple(grid)))
        elif name not in ds.indexes:
            read_block(path, str(name), ...)
            read[name] = array.load()
    ds = ds.assign(read).set_coords([n for n in ("energy", "scan", "time") if n in ds])
    if "axis" in ds.coords:
        ds = ds.assign_coords(axis=[str(a) for a in ds["axis"].values])
    return ds


def open_group(path: str | Path) -> zarr.Group:
    """The group at a path; a sentence instead of Zarr's exceptions where there is none."""
    if not files.is_url(path) and not Path(path).exists():
        msg = f"there is no Zarr store at {path}."
        raise ValueError(msg)
    if files.is_url(path):
        files.names(str(path))  # says it in one sentence where nothing answers
    try:
        return zarr.open_group(open_reader(str(path)), mode="r")
    except (BaseZarrError, FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError,
            AttributeError) as error:
        msg = f"{path} is not a Zarr group ({type(error).__name__}); give a store that xreg ingest or simulate wrote."
        raise ValueError(msg) from error


def _refuse_beyond_limits(group: zarr.Group, path: str | Path) -> None:
    """Refuse shapes and chunks beyond all limits before anything builds on them."""
    try:
        arrays = list(group.arrays())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        msg = f"{path} declares arrays that cannot be understood ({error}); copy or make it anew."
        raise ValueError(msg) from error
    for name, array in arrays:
        size = array.dtype.itemsize
        pixels = product(array.shape[-2:]) if array.ndim > 2 else 1
        whole = product(array.shape) * size if name in ("darks",) or array.ndim < 3 else 0
        if (pixels > chunks.MAX_FRAME_PIXELS or max(array.shape, default=0) > chunks.MAX_FRAMES
                or product(array.chunks) * size > chunks.MAX_CHUNK_BYTES or whole > chunks.MAX_TABLE_BYTES):
            msg = (f"{name} in {path} declares shape {array.shape} in chunks of {array.chunks}, beyond the limits "
                   f"({chunks.MAX_FRAME_PIXELS} pixels per frame, {chunks.MAX_CHUNK_BYTES // 2**20} MiB per chunk, "
                   f"{chunks.MAX_TABLE_BYTES // 2**20} MiB of darks or of a table).")
            raise ValueError(msg)
