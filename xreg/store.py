"""The only file that knows Zarr: create, open, read and write whole blocks, and say what has been done.

All stores are Zarr v3 groups without consolidated metadata (open them with ``xr.open_zarr(path, consolidated=False)``).
Every chunk carries a checksum, so that a flipped bit is an error and not a number. Writes are whole blocks of the write
grid, asserted, since two tasks that share a chunk overwrite each other without a word. A place is a path or a URL that
fsspec knows; every process opens it for itself, and no graph carries a store that is open.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.errors import BaseZarrError

from xreg import chunks, files, schema
from xreg.guard import guarded, open_reader, product

#: Pictures: the only variables of a raw store that are not read whole.
PICTURES = ("counts", "optical_density", "flats", "darks")
#: Attribute of a store that is still being made.
UNFINISHED = "unfinished"
#: Frames at most that are read to recognise a raw store again.
_SAMPLED = 6


# -- creating --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spec:
    """One array to create. `grid` is the write grid: a chunk, or a shard that holds several chunks of one frame."""

    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: Any
    grid: tuple[int, ...]
    fill: Any = 0
    attrs: Mapping[str, object] = field(default_factory=dict)
    sharded: bool = False


def to_plain(value: Any) -> Any:
    """Turn numpy scalars, arrays, tuples, paths and nested mappings into what JSON can hold, for attributes."""
    if isinstance(value, Mapping):
        return {str(k): to_plain(v) for k, v in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return to_plain(value.tolist())
    if isinstance(value, list | tuple | set | frozenset):
        return [to_plain(v) for v in value]
    if isinstance(value, float):
        return value if np.isfinite(value) else str(value)
    if value is None or isinstance(value, bool | int | str):
        return int(value) if isinstance(value, int) and not isinstance(value, bool) else value
    return str(value)


def growing(place: str | Path) -> str:
    """Where a store is made until it is whole: beside its place on a disk; in its place behind a URL.

    Nothing can be renamed behind a URL. The attribute `UNFINISHED` keeps a store from being read before it is whole.
    """
    return files.absolute(place) if files.is_url(place) else f"{files.absolute(place)}.partial"


def exists(place: str | Path) -> bool:
    """Whether there is anything on a disk, or a group behind a URL, that is not unfinished."""
    if not files.is_url(place):
        return Path(place).exists()
    return is_group(place) and UNFINISHED not in zarr.open_group(str(place), mode="r").attrs


def is_group(place: str | Path) -> bool:
    """Whether a Zarr v3 group is at a place."""
    try:
        files.stamp(f"{place}/zarr.json")
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def begin(place: str | Path, attrs: Mapping[str, object] | None = None) -> str:
    """Make an empty store that is unfinished; return where it grows."""
    create_group(growing(place), {**(attrs or {}), UNFINISHED: True})
    return growing(place)


def finish(place: str | Path) -> None:
    """Declare a store whole and give it its name; the last thing that is done."""
    del zarr.open_group(growing(place), mode="r+").attrs[UNFINISHED]
    if not files.is_url(place):
        os.replace(growing(place), place)


def reopen(place: str | Path) -> None:
    """Take up a store again that was whole: the first thing that is done."""
    if not files.is_url(place):
        os.replace(place, growing(place))
    create_group(growing(place), {UNFINISHED: True})


def create_group(path: str | Path, attrs: Mapping[str, object] | None = None) -> None:
    """Create an empty group (and its parents), or add attributes to one that exists."""
    group = zarr.open_group(str(path), mode="a", zarr_format=3)
    group.attrs.update(to_plain(attrs or {}))


def create_arrays(path: str | Path, specs: Mapping[str, Spec]) -> None:
    """Create arrays in a group that exists, all filled with their fill values; arrays of the same name are replaced."""
    group = zarr.open_group(str(path), mode="r+")
    for name, spec in specs.items():
        dtype = np.dtype(spec.dtype)
        grid = tuple(max(1, min(g, n)) if n else 1 for g, n in zip(spec.grid, spec.shape, strict=True))
        inner = (1, *grid[1:]) if spec.sharded else grid
        group.create_array(
            name, shape=spec.shape, dtype=dtype, chunks=inner, shards=grid if spec.sharded else None,
            fill_value=spec.fill, dimension_names=spec.dims, attributes=to_plain(spec.attrs), overwrite=True,
            # Bit-shuffled detector counts halve; Blosc has no checksum of its own.
            compressors=(BloscCodec(cname="zstd", clevel=1, shuffle="bitshuffle", typesize=dtype.itemsize),
                         Crc32cCodec()),
        )


def create_raw(path: str | Path, coordinates: xr.Dataset, pictures: Mapping[str, tuple[int, ...]], dtype: Any,
               block: int) -> None:
    """Fill a new group for a raw store: the small variables of `coordinates` written, the pictures empty.

    Parameters
    ----------
    path : str or Path
        Where the store grows; see `begin`.
    coordinates : Dataset
        Everything but the pictures, with the store's attributes.
    pictures : mapping of name to shape
        "counts", "flats" and so on, each (n, y, x); of those with n = 0 nothing is stored.
    dtype : dtype
        Of all pictures.
    block : int
        Frames per shard: the unit in which pictures must be written.
    """
    first = {"counts": "frame", "optical_density": "frame", "flats": "flat", "darks": "dark"}
    create_arrays(path, {
        name: Spec((first[name], "y", "x"), shape, dtype, (block, *shape[1:]), sharded=True,
                   attrs=schema.RAW[name].attrs)
        for name, shape in pictures.items() if shape[0]})
    write_tables(path, coordinates)


def write_tables(path: str | Path, tables: xr.Dataset) -> None:
    """Write (or replace) small variables and attributes of a group in one go."""
    group = zarr.open_group(str(path), mode="a", zarr_format=3)
    kept = set(map(str, tables.variables)) & set(group.array_keys())
    for name in list(kept):
        if group[name].shape != tables[name].shape:
            del group[name]
            kept.remove(name)
    plain = tables.drop_encoding()
    plain.attrs = {**group.attrs, **to_plain(tables.attrs)}
    for name in plain.variables:
        # Of dates xarray writes the unit itself.
        drop = ("units",) if plain[name].dtype.kind == "M" else ()
        plain[name].attrs = to_plain({k: v for k, v in plain[name].attrs.items() if k not in drop})
        if plain[name].dtype.kind in "UT":
            plain[name] = plain[name].astype(object)
    plain.load().to_zarr(str(path), mode="a", consolidated=False, zarr_format=3)
    # Of an array that is there already xarray writes the values alone.
    for name in kept:
        group[name].attrs.update(plain[name].attrs)


def clear_arrays(path: str | Path) -> None:
    """Delete all arrays of a group; its groups and attributes stay."""
    group = zarr.open_group(str(path), mode="a", zarr_format=3)
    for name in list(group.array_keys()):
        del group[name]


# -- reading and writing blocks --------------------------------------------------------------------------------------


def write_block(path: str | Path, name: str, start: tuple[int, ...], block: np.ndarray) -> None:
    """Write one whole block of the write grid; chunks that hold nothing but the fill value are not stored."""
    array = zarr.open_array(str(path), path=name, mode="r+", zarr_format=3)
    region = tuple(slice(s, s + n) for s, n in zip(start, block.shape, strict=True))
    grid = array.shards or array.chunks
    assert chunks.is_aligned(region, array.shape, grid), f"{name}: region {region} is not on the write grid {grid}"
    assert block.dtype == array.dtype, f"{name}: block has dtype {block.dtype}, the store {array.dtype}"
    array[region] = block


def read_block(path: str | Path, name: str, region: slice | tuple) -> np.ndarray:
    """Read a region of an array.

    Raises
    ------
    OSError
        If a chunk is damaged; the sentence names the array and the region.
    """
    try:
        return np.asarray(_open_array(path, name)[region])
    except (ValueError, RuntimeError, BaseZarrError) as error:
        msg = f"{name}{_brackets(region)} of {path} cannot be read, its data are damaged ({error})."
        raise OSError(msg) from error


def declared(path: str | Path, name: str) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and dtype of an array."""
    array = _open_array(path, name)
    return array.shape, array.dtype


def chunk_length(path: str | Path, name: str) -> int:
    """Rows along the first axis that are decoded together."""
    return _open_array(path, name).chunks[0]


def missing_chunks(path: str | Path, name: str) -> int:
    """Number of chunks that are not stored and so read as the fill value."""
    array = _open_array(path, name)
    return max(0, array.nchunks - array.nchunks_initialized)


def _open_array(path: str | Path, name: str) -> zarr.Array:
    """An array for reading, of either format, opened anew."""
    reader = open_reader(str(path))
    try:
        return guarded(zarr.open_array(reader, path=name, mode="r", zarr_format=3))
    except (BaseZarrError, FileNotFoundError):
        return guarded(zarr.open_array(reader, path=name, mode="r", zarr_format=2))


def read_rows(path: str | Path, name: str, rows: Iterable[int]) -> np.ndarray:
    """Read single rows along the first axis (ascending, each once), joining neighbours into one read."""
    parts = [read_block(path, name, slice(a, b)) for a, b in chunks.runs(list(rows))]
    if len(parts) == 1:
        return parts[0]
    return np.concatenate(parts) if parts else read_block(path, name, slice(0, 0))


def read_sound_rows(path: str | Path, name: str, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows as `read_rows` gives them, zeros for those that are damaged, and which those are.

    Raises
    ------
    OSError
        If a server does not answer: that is no damage, and another time it may.
    """
    damaged = np.zeros(len(rows), bool)
    try:
        return read_rows(path, name, rows), damaged
    except OSError as error:
        _refuse_outage(path, error)
        shape, dtype = declared(path, name)
    pictures = np.zeros((len(rows), *shape[1:]), dtype)
    for k, row in enumerate(rows):
        try:
            pictures[k] = read_block(path, name, int(row))
        except OSError as error:
            _refuse_outage(path, error)
            damaged[k] = True
    return pictures, damaged


def _refuse_outage(path: str | Path, error: OSError) -> None:
    """Raise errors of a connection on; those of `read_block` and of disks are damage."""
    if files.is_url(path) and error.errno is not None:
        raise error


def _brackets(region: slice | tuple) -> str:
    parts = region if isinstance(region, tuple) else (region,)
    shown = [f"{p.start or 0}:{'' if p.stop is None else p.stop}" if isinstance(p, slice) else str(p) for p in parts]
    return f"[{', '.join(shown)}]"


# -- opening ---------------------------------------------------------------------------------------------------------


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
    group = _open_group(path)
    _check_declared(group, path)
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


@dataclass(frozen=True)
class Stored:
    """An array known by its place, which every process opens for itself; a graph holds nothing but these names."""

    path: str
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    forgiving: bool = False

    @classmethod
    def of(cls, path: str | Path, name: str, like: xr.DataArray | xr.Variable, forgiving: bool = False) -> "Stored":
        """The stored array that `like` has been opened from."""
        return cls(files.absolute(path), str(name), like.shape, like.dtype, forgiving)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def __getitem__(self, key: tuple[slice | int, ...]) -> np.ndarray:
        if not self.forgiving:
            return read_block(self.path, self.name, key)
        first, *others = key if isinstance(key, tuple) else (key,)
        rows = np.arange(self.shape[0])[first]
        pictures, _ = read_sound_rows(self.path, self.name, np.sort(np.atleast_1d(rows)))
        pictures = pictures[0] if np.ndim(rows) == 0 else pictures[:: -1 if len(rows) > 1 and rows[0] > rows[1] else 1]
        return pictures[(*(() if np.ndim(rows) == 0 else (slice(None),)), *others)]

    def lazy(self, grid: tuple[int, ...]) -> da.Array:
        """Dask array in chunks of the given lengths."""
        return da.from_array(self, chunks=tuple(max(g, 1) for g in grid), name=False, lock=False, fancy=False,
                             meta=np.empty((0,) * self.ndim, self.dtype))


def open_store(path: str | Path) -> xr.Dataset:
    """Open a result, a truth or a group of working tables.

    Pictures, stacks, maps and tables of regions are dask-backed in their stored chunks, of which tables of long
    measurements join several; the rest is in memory.
    """
    _check_declared(_open_group(path), path)
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


def refuse_unfinished(attrs: Mapping[str, object], path: str | Path) -> None:
    """Raise ValueError for a store that is still being made."""
    if UNFINISHED in attrs:
        msg = f"{path} is not finished; let the command that makes it end, or run that again."
        raise ValueError(msg)


def _open_group(path: str | Path) -> zarr.Group:
    """The group at a path; a sentence instead of Zarr's exceptions where there is none."""
    if not files.is_url(path) and not Path(path).exists():
        msg = f"there is no Zarr store at {path}."
        raise ValueError(msg)
    if files.is_url(path):
        files.names(str(path))  # says it in one sentence where nothing answers
    try:
        return zarr.open_group(open_reader(str(path)), mode="r")
    except (BaseZarrError, FileNotFoundError, NotADirectoryError, ValueError, KeyError) as error:
        msg = f"{path} is not a Zarr group ({type(error).__name__}); give a store that xreg ingest or simulate wrote."
        raise ValueError(msg) from error


def _check_declared(group: zarr.Group, path: str | Path) -> None:
    """Refuse shapes and chunks beyond all limits before anything builds on them."""
    for name, array in group.arrays():
        size = array.dtype.itemsize
        pixels = product(array.shape[-2:]) if array.ndim > 2 else 1
        whole = product(array.shape) * size if name in ("darks",) or array.ndim < 3 else 0
        if (pixels > chunks.MAX_FRAME_PIXELS or max(array.shape, default=0) > chunks.MAX_FRAMES
                or product(array.chunks) * size > chunks.MAX_CHUNK_BYTES or whole > chunks.MAX_TABLE_BYTES):
            msg = (f"{name} in {path} declares shape {array.shape} in chunks of {array.chunks}, beyond the limits "
                   f"({chunks.MAX_FRAME_PIXELS} pixels per frame, {chunks.MAX_CHUNK_BYTES // 2**20} MiB per chunk, "
                   f"{chunks.MAX_TABLE_BYTES // 2**20} MiB of darks or of a table).")
            raise ValueError(msg)


# -- recognising a store again ---------------------------------------------------------------------------------------


def digest(*parts: Any) -> str:
    """Hash of arrays and plain values, the same in every process."""
    h = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            h.update(f"{part.dtype.str}{part.shape}".encode())
            h.update(np.ascontiguousarray(part).data if part.dtype.kind not in "OT" else str(part.tolist()).encode())
        else:
            h.update(json.dumps(to_plain(part), sort_keys=True).encode())
    return h.hexdigest()


def fingerprint(path: str | Path) -> dict[str, str]:
    """What a raw store is recognised by.

    `content` (attributes, all small variables, a few frames, and names and sizes of the arrays' files) stays the same
    when a store is copied elsewhere; `files` (the times of change, or entity tags, too) tells any change in place.
    """
    group = _open_group(path)
    found = files.listing(str(path))
    arrays = dict(group.arrays())
    # Disks and URLs list their files in different orders.
    sizes = sorted([name.lstrip("/"), size] for name, size, _ in found)
    parts: list[Any] = [dict(group.attrs), [entry for entry in sizes if entry[0].partition("/")[0] in arrays]]
    for name, array in sorted(arrays.items()):
        parts.append([name, array.shape, str(array.dtype)])
        if name not in PICTURES:
            parts.append(read_block(path, name, ...))
        elif array.shape[0]:
            rows = np.unique(np.linspace(0, array.shape[0] - 1, _SAMPLED).astype(int))
            parts.extend(_readable(path, name, row) for row in rows)
    return {"content": digest(*parts), "files": digest(found)}


def _readable(path: str | Path, name: str, row: int) -> Any:
    """One row, or a word for it where it is damaged: a damaged frame must not keep the others from being used."""
    try:
        return read_block(path, name, int(row))
    except OSError as error:
        _refuse_outage(path, error)
        return "damaged"
