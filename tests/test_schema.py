"""Whatever a stage is given is checked in one place, and what is refused is refused in a sentence."""

from functools import partial

import dask.array as da
import numpy as np
import pytest
import xarray as xr

from xreg.schema import (
    NORMALIZED,
    POSITIVE,
    RESULT,
    TABLES,
    check_alike,
    check_array,
    check_attributes,
    check_number,
    check_some,
    check_variable,
    frames_name,
    validate,
)

STACK = xr.DataArray(np.zeros((1, 2, 3, 3), np.float32), dims=RESULT["aligned"].dims)
DS = xr.Dataset({"optical_density": (("frame", "y", "x"), np.zeros((2, 3, 3), np.float32)), "aligned": STACK})


@pytest.mark.parametrize(("call", "sentence"), [
    (partial(validate, DS["aligned"], NORMALIZED, "noise"), "got a DataArray; need a Dataset with noise: give the"),
    (partial(validate, "raw.zarr", NORMALIZED, "noise"), "got a str; need a Dataset with noise: open the store first"),
    (partial(validate, DS, NORMALIZED, "noise"), r"got only: aligned, optical_density\. It comes from normalize_fr"),
    (partial(validate, DS, TABLES, "track"), r"track is missing; need track .* It comes from link_rois\."),
    (partial(frames_name, np.zeros(3)), r"got a ndarray; need a Dataset with counts .* make one with xarray\.Dataset"),
    (partial(check_variable, DS, RESULT["aligned"]),
     r'aligned is a Dataset; need a DataArray with dims .*: take one of its variables, such as \["aligned"\]'),
    (partial(check_array, DS, "norm", STACK.dims), r'norm is a Dataset; .* such as \["aligned"\]'),
    (partial(check_array, DS["aligned"].values, "aligned", STACK.dims), r"aligned is a ndarray; .* make one with"),
    (partial(check_variable, STACK.astype(int), RESULT["aligned"]), "need a dtype of kind f, floating-point numbers"),
    (partial(check_variable, STACK[0], RESULT["aligned"]), r"aligned has dims .*\.isel\(particle=\[0\]\), which keeps"),
    (partial(check_alike, STACK, STACK[0], "particle"), "there is no dimension particle among"),
    (partial(check_some, STACK[:0], "particle"), "there is no particle; need at least one"),
    (partial(check_attributes, STACK, frame_shape="refine_rois"), "frame_shape is missing; it comes from refine_rois"),
    *((partial(check_number, "half", value, "this", least=1, whole=True), "half is .*; need this")
      for value in (0, 1.5, "x", True, None)),
    *((partial(check_number, "reach", value, "this", least=POSITIVE), "reach is .*; need this")
      for value in (0.0, -1, np.nan, np.inf, -np.inf, "x")),
])
def test_what_cannot_be_is_refused_in_a_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()


def test_numbers_of_all_kinds_are_numbers():
    for value in (1, np.int64(3), np.uint8(1)):
        check_number("half", value, "this", least=1, whole=True)
    for value in (1, 0.1, np.float32(2)):
        check_number("reach", value, "this", least=POSITIVE)
    check_number("norm2", -np.inf, "this", finite=False)


DAY = np.datetime64("2024-05-01", "ns")


@pytest.mark.parametrize(("name", "ours", "theirs"), [
    ("energy", [8300.0, 8310.0], [8300.0, 8320.0]), ("scan", [0, 0], [0, 1]), ("time", [0.0, 1.0], [0.0, 2.0]),
    ("time", [DAY, DAY], [DAY, DAY + 1])])
def test_frames_are_known_by_their_coordinates(name, ours, theirs, no_compute):
    one, other = (DS.assign_coords({name: ("frame", np.array(values))}) for values in (ours, theirs))
    check_alike(one, one.copy(), "frame")
    check_alike(one, DS, "frame")
    with pytest.raises(ValueError, match=f"{name} differs along frame; the two are of different frames"):
        check_alike(one, other, "frame")
    # Lazy tables are left alone, and so is what is not known.
    check_alike(one, other.assign_coords({name: ("frame", da.from_array(np.array(theirs)))}), "frame")
    unknown = np.array(theirs)
    if unknown.dtype.kind in "fM":
        unknown[1] = "NaT" if unknown.dtype.kind == "M" else np.nan
        check_alike(one, other.assign_coords({name: ("frame", unknown)}), "frame")


def test_energies_that_were_rounded_and_clocks_of_other_kinds_are_no_other_frames():
    one = DS.assign_coords(energy=("frame", [8300.0, 8310.123]), time=("frame", [0.0, 1.0]))
    check_alike(one, one.assign_coords(energy=one["energy"].astype(np.float32), time=("frame", [DAY, DAY])), "frame")
