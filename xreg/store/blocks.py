"""Write whole blocks, read any, as numbers or lazily; what is damaged is said in a sentence, or marked."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import dask.array as da
import numpy as np
import xarray as xr
import zarr
from zarr.errors import BaseZarrError

from xreg import chunks, files
from xreg.guard import guarded, open_reader


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
        refuse_outage(path, error)
        shape, dtype = declared(path, name)
    pictures = np.zeros((len(rows), *shape[1:]), dtype)
    for k, row in enumerate(rows):
        try:
            pictures[k] = read_block(path, name, int(row))
        except OSError as error:
            refuse_outage(path, error)
            damaged[k] = True
    return pictures, damaged


def refuse_outage(path: str | Path, error: OSError) -> None:
    """Raise errors of a connection on; those of `read_block` and of disks are damage."""
    if files.is_url(path) and error.errno is not None:
        raise error


def _brackets(region: slice | tuple) -> str:
    parts = region if isinstance(region, tuple) else (region,)
    shown = [f"{p.start or 0}:{'' if p.stop is None else p.stop}" if isinstance(p, slice) else str(p) for p in parts]
    return f"[{', '.join(shown)}]"


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
