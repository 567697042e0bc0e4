"""Xradia .xrm series of SSRL beamline 6-2C.

Every exposure is one file, an OLE container (Version 4 or 5). The header's energy is zero, so the energy, the
number of the scan ("rep") and the kind of exposure are read from the file name::

    rep01_sample_08324.0_eV_001of003.xrm               a frame
    rep01_000051_ref_sample_08324.0_eV_001of010.xrm    an open-beam reference
"""

import logging
import re
import struct
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import olefile
import xarray as xr

from xreg.readers import Source, as_ev, find_edge
from xreg.schema import FrameStatus

NAME = re.compile(
    r"rep(?P<rep>\d+)_(?:(?P<sequence>\d+)_(?P<ref>ref)_)?.*?_?(?P<energy>\d+(?:\.\d+)?)_(?P<unit>k?eV)"
    r"_(?P<number>\d+)of\d+\.xrm",
    re.IGNORECASE,
)
FRAME = "ImageData1/Image1"
UINT16 = np.dtype("<u2")
NEVER = np.datetime64("NaT", "ns")
DTYPES = {3: np.dtype("u1"), 5: UINT16, 10: np.dtype("<f4")}
_UNTIMED = "some files do not say how long they were exposed; frames and references are taken as equally long"
#: A declared frame with more pixels than this is taken for a damaged header.
MOST_PIXELS = 2**27
#: Pixel size of the 6-2C microscope at 9 keV and binning 1, nm: 35.54 nm at binning 2, and proportional to
#: the energy. The header's own value is a constant of the set-up (31.2 nm in 2016) that is right at no energy
#: near the Ni K edge.
PIXEL_SIZE_NM_AT_9_KEV = 17.77


@dataclass(frozen=True)
class Exposure:
    """One file of the series; `fault` says why it cannot be read, and is empty when it can."""

    path: Path
    reference: bool
    scan: int
    energy: float
    number: int
    shape: tuple[int, int] = (0, 0)
    dtype: np.dtype = UINT16
    exposure: float = np.nan
    time: np.datetime64 = NEVER
    pixel_size_um: float = np.nan
    binning: int = 0
    fault: str = ""


@dataclass(frozen=True)
class Series:
    """A folder of exposures: frames and references in order of acquisition, the faulty ones among them."""

    folder: Path
    frames: tuple[Exposure, ...]
    references: tuple[Exposure, ...]
    notices: tuple[str, ...] = ()
    shape: tuple[int, int] = (0, 0)
    dtype: np.dtype = UINT16

    @property
    def corrupt_files(self) -> dict[str, str]:
        """Reason by name of every file that cannot be read."""
        return {e.path.name: e.fault for e in (*self.frames, *self.references) if e.fault}


def read_ssrl_xrm(folder: str | Path) -> Series:
    """Describe a folder of SSRL .xrm files from their names and headers; no pixel is read.

    Files whose name does not follow the series' grammar are passed over. A file that cannot be read
    (truncated, without a frame, of another shape than the rest) stays in its place in the series with the
    reason in `fault`.

    Parameters
    ----------
    folder : path

    Returns
    -------
    series : Series
        Energies in eV; `scan` counts from 0, as the smallest "rep" number among the frames is taken for the
        first.

    Raises
    ------
    ValueError
        If no file in the folder follows the grammar, or no frame or no reference can be read.
    """
    folder = Path(folder)
    named = [(path, match) for path in sorted(folder.glob("*.xrm")) if (match := NAME.fullmatch(path.name))]
    if not named:
        msg = f"{folder} holds no SSRL .xrm file; need names such as rep01_name_08324.0_eV_001of003.xrm."
        raise ValueError(msg)
    energies, notices = _energies([match for _, match in named])
    first = min((int(m["rep"]) for _, m in named if not m["ref"]), default=0)
    exposures = [_describe(path, match, energy, first) for (path, match), energy in zip(named, energies, strict=True)]
    good = [e for e in exposures if not e.fault]
    for kind, wanted in (("frame of a sample", False), ("open-beam reference", True)):
        if not any(e.reference is wanted for e in good):
            msg = f"{folder} holds {len(exposures)} .xrm files but no {kind} that can be read{_reasons(exposures)}."
            raise ValueError(msg)
    (shape, dtype), _ = Counter((e.shape, e.dtype) for e in good if not e.reference).most_common(1)[0]
    exposures = [_same_kind(e, shape, dtype) for e in exposures]
    frames = _in_order([e for e in exposures if not e.reference])
    references = _in_order([e for e in exposures if e.reference])
    return Series(folder, frames, references, notices, shape, dtype)


def read_frame(path: str | Path) -> np.ndarray:
    """Read the frame of one .xrm file.

    Parameters
    ----------
    path : path of an .xrm file, OLE Version 4 or 5

    Returns
    -------
    counts : ndarray, shape (ny, nx)
        In the file's own dtype (uint8, uint16 or float32), first row at the top.

    Raises
    ------
    ValueError
        If the file is no OLE container, holds no frame, or holds fewer bytes than its header declares. The
        size is checked before anything is allocated.
    """
    with _open(Path(path)) as ole:
        shape, dtype = _frame_kind(ole)
        data = ole.openstream(FRAME).read()
        wanted = shape[0] * shape[1] * dtype.itemsize
        if len(data) != wanted:
            msg = f"the frame holds {len(data)} bytes of {wanted} (truncated)"
            raise ValueError(msg)
        return np.frombuffer(data, dtype).reshape(shape)


def open_ssrl_xrm(path: Path) -> Source | None:
    """Open a folder as a `Source` when it holds an SSRL .xrm series, else return None."""
    if not path.is_dir() or not any(NAME.fullmatch(p.name) for p in path.glob("*.xrm")):
        return None
    series = read_ssrl_xrm(path)
    return Source(
        format="SSRL .xrm series",
        table=_table(series),
        frame_shape=series.shape,
        dtype=series.dtype,
        read_counts=partial(_read, series.frames, series.shape, series.dtype),
        read_flat=partial(_read, tuple(e for e in series.references if not e.fault), series.shape, series.dtype),
        corrupt_files=series.corrupt_files,
        notices=(*series.notices, *([] if _timed(series) else [_UNTIMED])),
    )


def _read(exposures: tuple[Exposure, ...], shape: tuple[int, int], dtype: np.dtype, index: int) -> np.ndarray:
    """Pixels of one exposure; zeros when it is known to be corrupt."""
    exposure = exposures[index]
    if exposure.fault:
        return np.zeros(shape, dtype)
    counts = read_frame(exposure.path)
    if counts.shape != shape:
        msg = f"{exposure.path.name} now holds a frame of {counts.shape} px; it was {shape} when the series was opened."
        raise ValueError(msg)
    return counts.astype(dtype, copy=False)


def _table(series: Series) -> xr.Dataset:
    """The raw store's small variables and attributes; corrupt references are left out, corrupt frames are not."""
    frames, flats = series.frames, [e for e in series.references if not e.fault]
    status = [FrameStatus.CORRUPT if e.fault else FrameStatus.OK for e in frames]
    energy = np.array([e.energy for e in frames])
    variables = {
        "energy": ("frame", energy),
        "scan": ("frame", np.array([e.scan for e in frames], dtype=np.int64)),
        "exposure": ("frame", np.array([e.exposure for e in frames])),
        "frame_status": ("frame", np.array(status, dtype=np.uint8)),
        "flat_energy": ("flat", np.array([e.energy for e in flats])),
        "flat_scan": ("flat", np.array([e.scan for e in flats], dtype=np.int64)),
        "flat_exposure": ("flat", np.array([e.exposure for e in flats])),
        "time": ("frame", np.array([e.time for e in frames], dtype="datetime64[ns]")),
        "flat_time": ("flat", np.array([e.time for e in flats], dtype="datetime64[ns]")),
    }
    for name in ("time", "flat_time"):
        if np.isnat(variables[name][1]).all():
            del variables[name]
    if not _timed(series):
        del variables["exposure"], variables["flat_exposure"]
    coords = {name: variables.pop(name) for name in ("energy", "scan", "time") if name in variables}
    return xr.Dataset(variables, coords, _attributes(series, energy))


def _timed(series: Series) -> bool:
    """Whether every file that can be read says for how long it was exposed."""
    return all(e.exposure > 0 for e in (*series.frames, *series.references) if not e.fault)


def _attributes(series: Series, energy: np.ndarray) -> dict[str, object]:
    """Contract's attributes, and what the headers say beside them."""
    # An energy of the series itself, so that motion is given in pixels that somebody measured.
    at = float(np.sort(energy)[(len(energy) - 1) // 2])
    header = next(e for e in series.frames if not e.fault)
    return {
        **find_edge(energy),
        "pixel_size_nm": PIXEL_SIZE_NM_AT_9_KEV * (header.binning or 2) * at / 9000.0,
        "pixel_size_energy_ev": at,
        "pixel_size_header_nm": header.pixel_size_um * 1000.0,
        "magnification": "proportional-to-energy",
        "source_format": "SSRL .xrm series",
        "source_files": [e.path.name for e in series.frames],
        "corrupt_files": [f"{name}: {fault}" for name, fault in series.corrupt_files.items()],
    }


def _energies(matches: list[re.Match]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Energies of the names in eV; the unit in the name is believed, unless it says eV of a value in keV."""
    energy = np.array([float(m["energy"]) * (1000.0 if m["unit"].lower() == "kev" else 1.0) for m in matches])
    return as_ev(energy, "the energy in the file names")


def _describe(path: Path, match: re.Match, energy: float, first: int) -> Exposure:
    """Read one file's header; what is wrong with it goes into `fault`."""
    known = {
        "path": path, "reference": bool(match["ref"]), "scan": max(0, int(match["rep"]) - first),
        "energy": float(energy), "number": int(match["sequence"] or 0) * 1000 + int(match["number"]),
    }  # fmt: skip
    try:
        with _open(path) as ole:
            known |= {
                "exposure": float(_entry(ole, "ExpTimes", "<f4", np.nan)),
                "pixel_size_um": float(_entry(ole, "PixelSize", "<f4", np.nan)),
                "binning": int(_entry(ole, "HorizontalBin", "<i4", 0)),
                "time": _time(ole),
            }
            shape, dtype = _frame_kind(ole)
            return Exposure(**known, shape=shape, dtype=dtype)
    except (OSError, ValueError) as error:
        return Exposure(**known, fault=str(error).rstrip("."))


@contextmanager
def _open(path: Path) -> Iterator[olefile.OleFileIO]:
    """Open an OLE container quietly; ValueError if it, or what is read from it, is damaged."""
    # olefile's faults are re-raised here with a sentence; its own log lines would only repeat them.
    logging.getLogger("olefile").addHandler(logging.NullHandler())
    try:
        with olefile.OleFileIO(path, raise_defects=olefile.DEFECT_INCORRECT) as ole:
            yield ole
    except (OSError, IndexError, KeyError, OverflowError, struct.error) as error:
        msg = f"not a whole OLE container ({error})"
        raise ValueError(msg) from error


def _entry(ole: olefile.OleFileIO, name: str, dtype: str, default: float | None = None) -> np.generic:
    """First value of a header entry; array-valued entries are padded, so that the rest is of no interest."""
    where, wanted = f"ImageInfo/{name}", np.dtype(dtype)
    if ole.exists(where) and ole.get_size(where) >= wanted.itemsize:
        data = ole.openstream(where).read(wanted.itemsize)
        if len(data) == wanted.itemsize:
            return np.frombuffer(data, wanted)[0]
    if default is None:
        msg = f"the header lacks {name}"
        raise ValueError(msg)
    return wanted.type(default)


def _time(ole: olefile.OleFileIO) -> np.datetime64:
    """Date of the exposure ("MM/DD/YY HH:MM:SS", the beamline's own clock), NaT when it is absent."""
    where = "ImageInfo/Date"
    text = ole.openstream(where).read(24) if ole.exists(where) else b""
    parts = re.match(rb"(\d\d)/(\d\d)/(\d\d|\d{4}) (\d\d:\d\d:\d\d(?:\.\d+)?)", text)
    if not parts:
        return NEVER
    month, day, year, clock = (p.decode() for p in parts.groups())
    try:
        return np.datetime64(f"{year if len(year) == 4 else '20' + year}-{month}-{day}T{clock}", "ns")
    except ValueError:
        return NEVER


def _frame_kind(ole: olefile.OleFileIO) -> tuple[tuple[int, int], np.dtype]:
    """Shape and dtype that the header declares, after checking that the file can hold such a frame."""
    if int(_entry(ole, "ImagesTaken", "<i4", 0)) < 1 or not ole.exists(FRAME):
        msg = "the file holds no frame (the exposure was not taken)"
        raise ValueError(msg)
    shape = int(_entry(ole, "ImageHeight", "<i4")), int(_entry(ole, "ImageWidth", "<i4"))
    code = int(_entry(ole, "DataType", "<i4"))
    if code not in DTYPES:
        msg = f"the frame has data type {code}; need one of {sorted(DTYPES)}"
        raise ValueError(msg)
    if min(shape) < 1 or shape[0] * shape[1] > MOST_PIXELS:
        msg = f"the header declares a frame of {shape[0]} x {shape[1]} px; need 1 to {MOST_PIXELS} px"
        raise ValueError(msg)
    wanted, size = shape[0] * shape[1] * DTYPES[code].itemsize, ole.get_size(FRAME)
    if size != wanted:
        msg = f"the frame's stream has {size} bytes; a frame of {shape[0]} x {shape[1]} px needs {wanted}"
        raise ValueError(msg)
    _check_whole(ole, wanted)
    return shape, DTYPES[code]


def _check_whole(ole: olefile.OleFileIO, size: int) -> None:
    """Follow the frame's chain of sectors, without reading them: all of them must lie inside the file."""
    if size < ole.minisectorcutoff:
        return  # kept in another table, and so small that reading it is no loss
    sector = ole.root.kids_dict["imagedata1"].kids_dict["image1"].isectStart
    count = -(-size // ole.sectorsize)
    for done in range(count):
        if not 0 <= sector < min(ole.nb_sect, len(ole.fat)):
            msg = f"the file ends after {done} of the frame's {count} sectors (truncated)"
            raise ValueError(msg)
        sector = ole.fat[sector]


def _same_kind(exposure: Exposure, shape: tuple[int, int], dtype: np.dtype) -> Exposure:
    """Mark an exposure of another shape or dtype than the series' as faulty."""
    if exposure.fault or (exposure.shape == shape and exposure.dtype == dtype):
        return exposure
    fault = f"the frame is {exposure.shape} {exposure.dtype}; the series has {shape} {dtype}"
    return replace(exposure, fault=fault)


def _in_order(exposures: list[Exposure]) -> tuple[Exposure, ...]:
    """Sort by time; an exposure without one follows its neighbour by name (scan, energy, number)."""
    by_name = sorted(exposures, key=lambda e: (e.scan, e.energy, e.number))
    known = [e.time for e in by_name if not np.isnat(e.time)]
    last = known[0] if known else np.datetime64(0, "ns")
    keys = []
    for exposure in by_name:
        last = last if np.isnat(exposure.time) else exposure.time
        keys.append((exposure.scan, last))
    order = sorted(range(len(by_name)), key=keys.__getitem__)
    return tuple(by_name[i] for i in order)


def _reasons(exposures: list[Exposure], most: int = 3) -> str:
    """First few faults, as the end of a sentence."""
    faults = [f"{e.path.name}: {e.fault}" for e in exposures if e.fault]
    more = f" and {len(faults) - most} more" if len(faults) > most else ""
    return f" ({'; '.join(faults[:most])}{more})" if faults else ""
