"""Create stores, give them their tables, and say whether they are whole."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec

from xreg import files, schema

#: Attribute of a store that is still being made.
UNFINISHED = "unfinished"


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


def refuse_unfinished(attrs: Mapping[str, object], path: str | Path) -> None:
    """Raise ValueError for a store that is still being made."""
    if UNFINISHED in attrs:
        msg = f"{path} is not finished; let the command that makes it end, or run that again."
        raise ValueError(msg)
