"""Every dimension and variable that xreg stores, declared once.

Three groups of variables exist. RAW is what a beamline (or the simulator) gives, ROIS is what detection and refinement
say about each frame, and RESULT is what a run gives back. A stage checks its input with `validate` and explains its
output with `describe`, so that a saved store tells a reader what every number means.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import xarray as xr

#: Side of the square grid (in samples) on which a region of interest is refined.
CONTOUR_SIZE = 96
#: Side of the square picture (in samples) by which regions are compared between frames.
THUMBNAIL_SIZE = 32
#: Order of the two spatial axes wherever a vector is stored.
AXES = ("y", "x")


class FrameStatus(IntEnum):
    """Why a frame was, or was not, used."""

    OK = 0
    BLANK = 1
    BLURRED = 2
    CORRUPT = 3
    NO_REFERENCE = 4
    FAILED = 5


class FitStatus(IntEnum):
    """Why a pixel has, or has not, an edge energy."""

    OK = 0
    OUTSIDE = 1
    THIN = 2
    NO_EDGE = 3
    OUT_OF_RANGE = 4
    TOO_FEW_ENERGIES = 5
    BAD_FRAMES = 6
    FAILED = 7


@dataclass(frozen=True)
class Variable:
    """One stored variable: its name, dimensions, dtype kinds ("u", "i", "f", "b", "M"), CF unit and meaning."""

    name: str
    dims: tuple[str, ...]
    kinds: str
    units: str
    long_name: str
    comment: str = ""

    @property
    def attrs(self) -> dict[str, str]:
        """CF-style attributes; empty ones are left out."""
        named = {"units": self.units, "long_name": self.long_name, "comment": self.comment}
        return {key: text for key, text in named.items() if text}


def _table(*variables: Variable) -> dict[str, Variable]:
    return {v.name: v for v in variables}


def flag_attrs(flags: type[IntEnum]) -> dict[str, object]:
    """CF attributes `flag_values` and `flag_meanings` of a flag variable."""
    return {
        "flag_values": [int(f) for f in flags],
        "flag_meanings": " ".join(f.name.lower() for f in flags),
    }


COORDINATES = _table(
    Variable("energy", ("frame",), "f", "eV", "photon energy"),
    Variable("scan", ("frame",), "iu", "1", "number of the XANES scan that the frame belongs to"),
    Variable("time", ("frame",), "fM", "s", "time of the exposure"),
)

RAW = _table(
    Variable("counts", ("frame", "y", "x"), "uif", "1", "detector counts"),
    Variable("optical_density", ("frame", "y", "x"), "f", "1", "optical density", "natural logarithm"),
    Variable("flats", ("flat", "y", "x"), "uif", "1", "open-beam detector counts"),
    Variable("darks", ("dark", "y", "x"), "uif", "1", "detector counts without beam"),
    *COORDINATES.values(),
    Variable("exposure", ("frame",), "f", "s", "exposure time"),
    Variable("flat_exposure", ("flat",), "f", "s", "exposure time of the open-beam reference"),
    Variable("dark_exposure", ("dark",), "f", "s", "exposure time of the dark"),
    Variable("flat_energy", ("flat",), "f", "eV", "photon energy of the open-beam reference"),
    Variable("flat_scan", ("flat",), "iu", "1", "number of the XANES scan that the open-beam reference belongs to"),
    Variable("flat_time", ("flat",), "fM", "s", "time of the open-beam reference"),
    Variable("frame_status", ("frame",), "iu", "1", "whether the frame can be used", "0 is ok"),
)

NORMALIZED = _table(
    Variable("optical_density", ("frame", "y", "x"), "f", "1", "optical density above the background",
             "natural logarithm; negative values are kept; NaN where the detector gave no valid value"),
    Variable("noise", ("frame",), "f", "1", "standard deviation of the optical density in the open background",
             "NaN for a bad frame"),
    Variable("background", ("frame", "coefficient"), "f", "1", "offset and tilt that were taken off",
             "offset at the frame's centre, slopes along y and x; optical density per frame height or width"),
    Variable("frame_status", ("frame",), "iu", "1", "whether the frame can be used", "0 is ok"),
)

SHARPNESS = Variable(
    "sharpness", ("frame", "band"), "f", "px2", "spatial power spectral density of the optical density, less the noise",
    "coarse structure; fine structure along y, and at 45, 90 and 135 degrees to it; standard error of the latter four")

ROIS = _table(
    Variable("roi_position", ("frame", "roi", "axis"), "f", "px", "centre of mass of the soft contour",
             "raw frame's pixel coordinates, y down; NaN in an empty slot"),
    Variable("roi_area", ("frame", "roi"), "f", "px2", "area of the soft contour (moment M00)"),
    Variable("roi_contrast", ("frame", "roi"), "f", "1", "optical density inside the contour less that around it"),
    Variable("roi_significance", ("frame", "roi"), "f", "1", "contrast over its standard error",
             "a low value marks a particle that the detector may have invented"),
    Variable("roi_cut", ("frame", "roi"), "b", "1", "whether the field of view cuts the region"),
    Variable("roi_window", ("frame", "roi", "window"), "f", "px", "square in which the contour is sampled",
             "centre y, centre x and sample spacing; sample (i, j) of roi_contour lies at "
             "centre + ((i, j) - (n - 1) / 2) * spacing"),
    Variable("roi_contour", ("frame", "roi", "contour_y", "contour_x"), "u", "1", "soft contour, 0 to 255"),
    Variable("roi_thumbnail", ("frame", "roi", "thumbnail_y", "thumbnail_x"), "u", "1",
             "picture of the region for comparison between frames",
             "optical density inside the contour about the centre of mass, scaled to the region's size and to 0...255"),
)

_UNSEEN = "NaN where the particle is not seen"
_UNTIMED = "NaN where the particle is not seen or the time is unknown"
_UNFITTED = "NaN outside the contour or where the fit fails"
_PARTICLE_FRAME = ("particle", "frame")
_VECTOR = ("particle", "frame", "axis")
_MAP = ("particle", "scan", "y", "x")

RESULT = _table(
    Variable("position", _VECTOR, "f", "px", "centre of mass",
             "raw frame's pixel coordinates, y down, pixel centres at integers; NaN where the particle is not seen"),
    Variable("position_sigma", _VECTOR, "f", "px", "standard error of the position",
             _UNSEEN + "; of the scatter from frame to frame, not of an offset that all frames share"),
    Variable("measured_position", _VECTOR, "f", "px", "centre of mass as measured in this frame alone",
             "as position, which is the path through these"),
    Variable("measured_position_sigma", _VECTOR, "f", "px", "standard error of measured_position", _UNSEEN),
    Variable("similarity", _PARTICLE_FRAME, "f", "1", "structural similarity with the previous sighting",
             "Wang et al. 2004, doi:10.1109/TIP.2003.819861; NaN at the first sighting"),
    Variable("displacement", _VECTOR, "f", "px", "displacement since the first sighting", _UNSEEN),
    Variable("velocity", _VECTOR, "f", "px/frame", "velocity", _UNSEEN),
    Variable("acceleration", _VECTOR, "f", "px/frame2", "acceleration", _UNSEEN),
    Variable("distance", _PARTICLE_FRAME, "f", "px", "length of the path since the first sighting", _UNSEEN),
    Variable("velocity_nm_s", _VECTOR, "f", "nm/s", "velocity", _UNTIMED),
    Variable("acceleration_nm_s2", _VECTOR, "f", "nm/s2", "acceleration", _UNTIMED),
    Variable("distance_nm", _PARTICLE_FRAME, "f", "nm", "length of the path since the first sighting", _UNSEEN),
    Variable("rigid", ("frame", "axis"), "f", "px", "motion common to all particles (stage and optics)",
             "NaN in frames that could not be used"),
    Variable("nonrigid", _VECTOR, "f", "px", "motion of the particle less the rigid part (deformation)", _UNSEEN),
    Variable("aligned", ("particle", "frame", "y", "x"), "f", "1", "registered optical density",
             "y and x are offsets from the centre of mass; NaN outside the field of view"),
    Variable("contour", ("particle", "y", "x"), "b", "1", "outline of the particle"),
    Variable("edge_jump", ("particle",), "f", "1", "share of the particle's contrast that the absorption edge gives",
             "about 0 where it holds nothing of the element; NaN where the energies do not say"),
    Variable("edge_jump_sigma", ("particle",), "f", "1", "standard error of edge_jump",
             "NaN where edge_jump is"),
    Variable("edge_energy", _MAP, "f", "eV", "edge energy", _UNFITTED),
    Variable("edge_energy_sigma", _MAP, "f", "eV", "standard error of the edge energy", _UNFITTED),
    Variable("edge_step", _MAP, "f", "1", "height of the absorption edge", "NaN outside the contour"),
    Variable("whiteline_energy", _MAP, "f", "eV", "energy of the white line", _UNFITTED),
    Variable("fit_status", _MAP, "iu", "1", "why a pixel has, or has not, an edge energy"),
    Variable("frame_status", ("frame",), "iu", "1", "why a frame was, or was not, used"),
)


def frames_name(raw: "xr.Dataset") -> str:
    """Name of the variable of a raw dataset that holds the frames.

    Raises
    ------
    ValueError
        If there is none.
    """
    for name in ("counts", "optical_density"):
        if name in raw:
            return name
    here = ", ".join(sorted(map(str, raw.variables))) or "nothing"
    msg = f"counts is missing; need counts (or optical_density) with dims ('frame', 'y', 'x'), got only: {here}."
    raise ValueError(msg)


def validate(ds: "xr.Dataset", group: dict[str, Variable], *names: str) -> None:
    """Check that `ds` holds the named variables of `group` with the declared dims and kind of dtype.

    Raises
    ------
    ValueError
        If a variable is missing, has other dims or another kind of dtype. The sentence says what came and what was
        wanted.
    """
    for name in names:
        wanted = group[name]
        if name not in ds.variables:
            here = ", ".join(sorted(map(str, ds.variables))) or "nothing"
            msg = f"{name} is missing; need {name} with dims {wanted.dims}, got only: {here}."
            raise ValueError(msg)
        check_variable(ds[name], wanted)


def check_variable(array: "xr.DataArray", wanted: Variable) -> None:
    """Check one variable's dims and kind of dtype; raise ValueError with what came and what was wanted."""
    if tuple(array.dims) != wanted.dims:
        msg = f"{wanted.name} has dims {tuple(array.dims)}; need {wanted.dims}."
        raise ValueError(msg)
    if array.dtype.kind not in wanted.kinds:
        msg = f"{wanted.name} has dtype {array.dtype}; need a dtype of kind {'/'.join(wanted.kinds)}."
        raise ValueError(msg)


def check_alike(one: "xr.Dataset | xr.DataArray", other: "xr.Dataset | xr.DataArray", *dims: str) -> None:
    """Check that two arrays or datasets have the same lengths, and labels where both have them, along some dims.

    Arrays are put together by place, so that whoever selects frames of one must select the same of the other.

    Raises
    ------
    ValueError
        If they have not.
    """
    for dim in dims:
        if one.sizes[dim] != other.sizes[dim]:
            msg = f"there are {one.sizes[dim]} and {other.sizes[dim]} along {dim}; need the same: select both alike."
            raise ValueError(msg)
        if dim in one.indexes and dim in other.indexes and not one.indexes[dim].equals(other.indexes[dim]):
            msg = f"labels differ along {dim}; select the same of both."
            raise ValueError(msg)


def describe(ds: "xr.Dataset", group: dict[str, Variable]) -> "xr.Dataset":
    """Return `ds` with the declared units, long names and comments on every variable that `group` knows."""
    ds = ds.copy()
    for name in ds.variables:
        known = group.get(str(name)) or COORDINATES.get(str(name))
        if known is not None:
            ds[name].attrs = {**known.attrs, **ds[name].attrs}
    return ds
