"""Beamline files in, one frame at a time.

A reader turns a folder or a file of some beamline into a `Source`: a frozen description of the whole dataset,
made from headers only, and two functions that read one frame and one open-beam reference. `xreg ingest`
streams a source into a raw store. A new format is one new file here with a function `open_<format>(path) ->
Source | None`, which returns None when the place holds none of its files, and one entry in `_openers`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from xreg.kernels.absorption import EDGES

if TYPE_CHECKING:
    import numpy as np
    import xarray as xr


@dataclass(frozen=True)
class Source:
    """Frames of a beamline, described but not read.

    Attributes
    ----------
    format : str
        Name of the format, for messages.
    table : xarray.Dataset
        Everything about the frames and references but their pixels: the raw store's coordinates and small
        variables, and its attributes.
    frame_shape : tuple = (ny, nx)
        Shape of every frame and reference, px.
    dtype : numpy.dtype
        Of the counts.
    read_counts, read_flat : callable (int) -> ndarray, shape (ny, nx)
        One frame, or one open-beam reference, by its number in order of acquisition. A frame that the table
        calls corrupt reads as zeros. OSError or ValueError if a file has changed since it was described.
    corrupt_files : dict
        Reason by file name, for every file of the series that cannot be read.
    notices : tuple of str
        What a user should be told, such as a conversion of units.
    """

    format: str
    table: "xr.Dataset"
    frame_shape: tuple[int, int]
    dtype: "np.dtype"
    read_counts: Callable[[int], "np.ndarray"]
    read_flat: Callable[[int], "np.ndarray"]
    corrupt_files: dict[str, str]
    notices: tuple[str, ...] = ()

    def dataset_template(self) -> "xr.Dataset":
        """Raw store to be filled: the table, with `counts` and `flats` of the right shapes, chunked by one frame.

        The pixels are dask arrays of zeros that cost no memory; only shapes, dtypes and attributes are meant
        to be used.
        """
        import dask.array as da
        import xarray as xr

        from xreg.schema import RAW, describe

        def empty(dim: str) -> "xr.DataArray":
            shape = (self.table.sizes[dim], *self.frame_shape)
            return xr.DataArray(da.zeros(shape, dtype=self.dtype, chunks=(1, -1, -1)), dims=(dim, "y", "x"))

        return describe(self.table.assign(counts=empty("frame"), flats=empty("flat")), RAW)


def open_source(path: str | Path) -> Source:
    """Describe the frames found at a place, whatever format they have.

    Only headers are read, so that this is cheap however long the series is.

    Parameters
    ----------
    path : path of a folder or file

    Returns
    -------
    source : Source

    Raises
    ------
    ValueError
        If nothing is there, if no reader knows the files, or if the reader that does finds no usable frame.
    """
    place = Path(path)
    if not place.exists():
        msg = f"{place} does not exist; need a folder of beamline files."
        raise ValueError(msg)
    openers = _openers()
    for opener in openers.values():
        source = opener(place)
        if source is not None:
            return source
    msg = f"{place} holds no frames that can be read; xreg reads: {'; '.join(openers)}."
    raise ValueError(msg)


def _openers() -> dict[str, Callable[[Path], Source | None]]:
    """Readers in the order in which they are asked; imported late, each may need a library of its own."""
    from xreg.readers.xrm import open_ssrl_xrm

    return {"a folder of SSRL .xrm files (rep01_name_08324.0_eV_001of003.xrm)": open_ssrl_xrm}


def find_edge(energy: "np.ndarray", margin: float = 30.0) -> dict[str, str]:
    """Attributes `element` and `edge` of the one K edge that the energies (eV) cover, or nothing when it is not one."""
    low, high = float(min(energy)) - margin, float(max(energy)) + margin
    inside = [element for (element, line), edge in EDGES.items() if line == "K" and low <= edge <= high]
    return {"element": inside[0], "edge": "K"} if len(inside) == 1 else {}


def as_ev(energy: "np.ndarray", name: str) -> tuple["np.ndarray", tuple[str, ...]]:
    """Energies in eV, and a notice when they came in keV (all values below 100)."""
    if len(energy) and max(energy) < 100:
        return energy * 1000.0, (f"{name} came in keV ({min(energy):g} to {max(energy):g}) and was converted to eV.",)
    return energy, ()
