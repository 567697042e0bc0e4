"""Whether a raw dataset can be normalised; nothing but its small variables is looked at."""

from numbers import Real

import numpy as np
import xarray as xr

from xreg.kernels.geometry import MAGNIFICATIONS
from xreg.schema import RAW, FrameStatus, frames_name, validate

#: Sides (px) that a frame must have at the least.
FEWEST_PIXELS = 16


def check_raw(raw: xr.Dataset) -> None:
    """Check that a raw dataset can be normalised; nothing but small variables is looked at.

    Parameters
    ----------
    raw : Dataset
        See schema.RAW.

    Raises
    ------
    ValueError
        If frames, energies, scans or references are missing, empty, of other dims or dtypes than the
        schema's; if energies are in keV, not positive, or missing for a frame that is not marked as bad; if
        exposures are not positive; if the references' energies are missing although there are several; if the
        magnification, a pixel size or a frame's status is none.
    """
    name = frames_name(raw)
    validate(raw, RAW, name, "energy", "scan")
    if 0 in raw[name].shape:
        msg = f"{name} is empty, its shape is {raw[name].shape}; need at least one frame."
        raise ValueError(msg)
    if min(raw[name].shape[1:]) < FEWEST_PIXELS:
        ny, nx = raw[name].shape[1:]
        msg = f"{name} has frames of {ny} x {nx} px; need at least {FEWEST_PIXELS} x {FEWEST_PIXELS}."
        raise ValueError(msg)
    status = given_status(raw)
    unknown = sorted(set(np.unique(status).tolist()) - set(FrameStatus))
    if unknown:
        named = ", ".join(f"{s.value} ({s.name.lower()})" for s in FrameStatus)
        msg = f"frame_status holds {unknown[0]}; need one of {named}."
        raise ValueError(msg)
    good = status == FrameStatus.OK
    _check_energy("energy", raw["energy"].values[good])
    if raw["scan"].values.min() < 0:
        msg = f"scan holds {raw['scan'].values.min()}; need scans numbered from 0."
        raise ValueError(msg)
    _check_attributes(raw.attrs)
    for exposure, chosen in (("exposure", good), ("flat_exposure", slice(None))):
        if exposure in raw:
            validate(raw, RAW, exposure)
            if not (raw[exposure].values[chosen] > 0).all():
                msg = f"{exposure} holds values that are not positive; need seconds, or leave {exposure} out."
                raise ValueError(msg)
    if name == "counts":
        _check_flats(raw)


def given_status(raw: xr.Dataset) -> np.ndarray:
    """Status of the frames as the reader gave it; ok where it gave none."""
    return raw["frame_status"].values.astype(int) if "frame_status" in raw else np.zeros(raw.sizes["frame"], int)


def _check_attributes(attrs: dict) -> None:
    """Check the attributes that numbers are made of."""
    magnification = attrs.get("magnification", "constant")
    if not isinstance(magnification, str) or magnification not in MAGNIFICATIONS:
        msg = f"the attribute magnification is {magnification!r}; need one of {', '.join(MAGNIFICATIONS)}."
        raise ValueError(msg)
    for name, unit in (("pixel_size_nm", "nm"), ("pixel_size_energy_ev", "eV")):
        value = attrs.get(name, 1000.0)
        if not isinstance(value, Real) or isinstance(value, bool) or not np.isfinite(value) or value <= 0:
            msg = f"the attribute {name} is {value!r}; need a positive number in {unit}, or leave it out."
            raise ValueError(msg)
    if attrs.get("pixel_size_energy_ev", 1000.0) < 100:
        msg = (f"the attribute pixel_size_energy_ev is {attrs['pixel_size_energy_ev']:g}, which looks like keV; need "
               "eV: multiply by 1000.")
        raise ValueError(msg)


def _check_energy(name: str, energy: np.ndarray) -> None:
    if not np.isfinite(energy).all() or (energy <= 0).any():
        msg = f"{name} holds values that are missing or not positive; need the photon energy of every frame in eV."
        raise ValueError(msg)
    if len(energy) and energy.min() < 100:
        msg = f"{name} runs from {energy.min():g} to {energy.max():g}, which looks like keV; need eV: multiply by 1000."
        raise ValueError(msg)


def _check_flats(raw: xr.Dataset) -> None:
    """Check the open-beam references of a dataset of counts."""
    if "flats" not in raw:
        msg = "flats is missing; counts need open-beam references with dims ('flat', 'y', 'x')."
        raise ValueError(msg)
    validate(raw, RAW, "flats")
    if raw.sizes["flat"] == 0:
        msg = "flats is empty; counts need at least one open-beam reference."
        raise ValueError(msg)
    if "darks" in raw:
        validate(raw, RAW, "darks")
    if "flat_energy" in raw:
        validate(raw, RAW, "flat_energy")
        _check_energy("flat_energy", raw["flat_energy"].values)
    elif len(np.unique(raw["energy"].values)) > 1:
        several = len(np.unique(raw["energy"].values))
        msg = f"flat_energy is missing, but there are {several} energies; need the energy of every flat."
        raise ValueError(msg)
