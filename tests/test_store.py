import json
from pathlib import Path

import dask
import numpy as np
import pytest
import xarray as xr
import zarr

from xreg import store

N, SIDE = 6, 8


def raw_tables(**changes):
    ds = xr.Dataset(
        {"flat_energy": ("flat", np.array([8300.0, 8350.0])), "exposure": ("frame", np.full(N, 0.5))},
        coords={"energy": ("frame", np.tile([8300.0, 8350.0], 3)), "scan": ("frame", np.repeat([0, 1, 2], 2))},
        attrs={"pixel_size_nm": np.float64(31.2), "element": "Ni"},
    )
    return ds.assign({k: v for k, v in changes.items() if v is not None}).drop_vars(
        [k for k, v in changes.items() if v is None])


def make_raw(path, tables=None, n_flats=2):
    tables = raw_tables() if tables is None else tables
    pictures = {"counts": (N, SIDE, SIDE), "flats": (n_flats, SIDE, SIDE), "darks": (0, SIDE, SIDE)}
    store.create_group(path, tables.attrs)
    store.create_raw(path, tables, pictures, "uint16", 2)
    frames = np.arange(N * SIDE * SIDE, dtype=np.uint16).reshape(N, SIDE, SIDE)
    for start in range(0, N, 2):
        store.write_block(path, "counts", (start, 0, 0), frames[start : start + 2])
    if n_flats:
        store.write_block(path, "flats", (0, 0, 0), np.full((n_flats, SIDE, SIDE), 1000, np.uint16))
    return frames


@pytest.fixture
def raw(tmp_path):
    make_raw(tmp_path / "raw.zarr")
    return tmp_path / "raw.zarr"


def flip_a_bit(place: Path):
    data = bytearray(place.read_bytes())
    data[len(data) // 3] ^= 4
    place.write_bytes(data)


# -- attributes ----------------------------------------------------------------------------------------------


def test_to_plain_gives_what_json_holds():
    value = {"a": np.float32(0.5), "b": (1, np.int64(2)), "c": np.array([[1.5]]), "d": Path("/x"), "e": None,
             "f": {"g": True, 3: np.bool_(False)}, "h": float("nan")}
    plain = store.to_plain(value)
    assert plain == {"a": 0.5, "b": [1, 2], "c": [[1.5]], "d": "/x", "e": None, "f": {"g": True, "3": False},
                     "h": "nan"}
    json.dumps(plain, allow_nan=False)


# -- raw stores ----------------------------------------------------------------------------------------------


def test_raw_round_trip_is_lazy_unscaled_and_in_blocks(raw, no_compute):
    ds = store.open_frames(raw)
    assert dask.is_dask_collection(ds.counts.data)
    assert ds.counts.dtype == np.uint16
    assert ds.counts.data.chunks[0] == (1,) * N
    assert not dask.is_dask_collection(ds.energy.data)
    assert set(ds.coords) == {"energy", "scan"}
    assert ds.attrs["pixel_size_nm"] == 31.2
    assert "_FillValue" not in ds.energy.attrs


def test_zero_counts_stay_zero(raw):
    first = store.open_frames(raw, block=3).counts
    assert first.data.chunks[0] == (3, 3)
    assert first.values[0, 0, 0] == 0
    np.testing.assert_array_equal(first.values.ravel(), np.arange(N * SIDE * SIDE))


def test_plain_xarray_reads_a_raw_store(raw):
    ds = xr.open_zarr(raw, consolidated=False)
    assert ds.counts.dtype == np.uint16
    assert ds.flats.shape == (2, SIDE, SIDE)


def test_times_survive(tmp_path):
    times = np.array(["2016-11-04T22:00:00", "2016-11-04T22:00:01"] * 3, "datetime64[ns]")
    times[2] = np.datetime64("NaT")
    make_raw(tmp_path / "raw.zarr", raw_tables(time=("frame", times, {"units": "s", "long_name": "time"})))
    np.testing.assert_array_equal(store.open_frames(tmp_path / "raw.zarr").time.values, times)


def test_whole_numbers_of_ev_are_energies(tmp_path):
    tables = raw_tables(energy=("frame", np.arange(8330, 8336, dtype=np.uint16), {"units": "eV"}))
    make_raw(tmp_path / "raw.zarr", tables)
    energy = store.open_frames(tmp_path / "raw.zarr").energy
    assert energy.dtype == np.float64
    assert energy.attrs["units"] == "eV"
    assert "energy" in store.open_frames(tmp_path / "raw.zarr").coords
    np.testing.assert_array_equal(energy.values, np.arange(8330.0, 8336.0))


@pytest.mark.parametrize(("changes", "words"), [
    ({"energy": None}, "energy is missing; need energy with dims"),
    ({"scan": None}, "scan is missing"),
    ({"scan": ("frame", np.array([0.5, 0] * 3))}, "scan has dtype float64; need a dtype of kind i/u"),
    ({"energy": ("other", np.arange(5.0))}, "energy has dims .'other',.; need .'frame',."),
])
def test_bad_tables_are_refused_in_one_sentence(tmp_path, changes, words):
    make_raw(tmp_path / "raw.zarr", raw_tables(**changes))
    with pytest.raises(ValueError, match=words):
        store.open_frames(tmp_path / "raw.zarr")


def test_mismatched_lengths_are_refused(raw):
    group = zarr.open_group(raw)
    del group["energy"]
    group.create_array("energy", data=np.full(N + 1, 8300.0), dimension_names=("frame",))
    with pytest.raises(ValueError, match=r"not a readable raw store: conflicting sizes for dimension 'frame'"):
        store.open_frames(raw)


def test_no_frames_are_refused(tmp_path):
    store.create_group(tmp_path / "raw.zarr")
    store.create_arrays(tmp_path / "raw.zarr", {
        "counts": store.Spec(("frame", "y", "x"), (0, 4, 4), "uint16", (1, 4, 4))})
    store.write_tables(tmp_path / "raw.zarr", raw_tables().isel(frame=slice(0)))
    with pytest.raises(ValueError, match="there are no frames to register"):
        store.open_frames(tmp_path / "raw.zarr")


def test_a_forgiving_look_reads_damaged_pictures_as_zeros(raw):
    flip_a_bit(raw / "counts/c/1/0/0")
    ds = store.open_frames(raw, forgiving=True)
    frames = ds.counts.isel(frame=[1, 2, 3, 4]).values
    assert frames[0].any()
    assert frames[3].any()
    assert sorted([frames[1].any(), frames[2].any()]) == [False, True]


def test_a_missing_place_and_a_place_without_a_store_are_refused(tmp_path):
    with pytest.raises(ValueError, match="there is no Zarr store at"):
        store.open_frames(tmp_path / "nothing")
    with pytest.raises(ValueError, match="is not a Zarr group"):
        store.open_frames(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="is not a Zarr group"):
        store.open_frames(tmp_path / "file")


@pytest.mark.parametrize("content", ["null", "[]", '{"zarr_format": 3, "node_type": "group", "attributes": 5}'])
def test_a_group_that_is_none_is_refused(tmp_path, content):
    (tmp_path / "zarr.json").write_text(content)
    with pytest.raises(ValueError, match=r"is not a Zarr group .*; give a store that xreg ingest or simulate wrote"):
        store.open_frames(tmp_path)


def test_an_array_half_copied_is_refused(tmp_path):
    store.write_tables(tmp_path, xr.Dataset({"energy": ("frame", [8333.0])}))
    (tmp_path / "energy" / "zarr.json").write_text("")
    with pytest.raises(ValueError, match="declares arrays that cannot be understood"):
        store.open_frames(tmp_path)


def test_monstrous_shapes_are_refused_before_dask_sees_them(tmp_path, no_compute):
    group = zarr.open_group(tmp_path / "bomb.zarr", mode="w", zarr_format=3)
    group.create_array("counts", shape=(10, 10**6, 10**6), chunks=(1, 1000, 1000), dtype="u2",
                       dimension_names=("frame", "y", "x"))
    with pytest.raises(ValueError, match="beyond the limits"):
        store.open_frames(tmp_path / "bomb.zarr")


# -- blocks --------------------------------------------------------------------------------------------------


def test_a_misaligned_write_is_our_own_mistake(raw):
    two = np.zeros((2, SIDE, SIDE), np.uint16)
    with pytest.raises(AssertionError, match="not on the write grid"):
        store.write_block(raw, "counts", (1, 0, 0), two)
    with pytest.raises(AssertionError, match="not on the write grid"):
        store.write_block(raw, "counts", (0, 0, 0), two[:1])
    with pytest.raises(AssertionError, match="dtype"):
        store.write_block(raw, "counts", (0, 0, 0), two.astype("f4"))


def test_rows_are_read_in_runs(raw):
    rows = store.read_rows(raw, "counts", [0, 1, 4])
    np.testing.assert_array_equal(rows[:, 0, 0], np.array([0, 1, 4]) * SIDE * SIDE)
    assert store.read_rows(raw, "counts", []).shape == (0, SIDE, SIDE)


def test_a_flipped_bit_is_found_and_named(raw):
    flip_a_bit(raw / "counts/c/1/0/0")
    np.testing.assert_array_equal(store.read_block(raw, "counts", slice(0, 2))[0, 0, :3], [0, 1, 2])
    with pytest.raises(OSError, match=r"counts\[2:4\] of .*raw.zarr cannot be read, its data are damaged"):
        store.read_block(raw, "counts", slice(2, 4))


def test_a_truncated_chunk_is_found(raw):
    place = raw / "counts/c/1/0/0"
    place.write_bytes(place.read_bytes()[:-40])
    with pytest.raises(OSError, match="data are damaged"):
        store.read_block(raw, "counts", slice(2, 4))


def test_empty_chunks_are_not_stored(tmp_path):
    store.create_group(tmp_path / "out")
    store.create_arrays(tmp_path / "out", {
        "aligned": store.Spec(("particle", "frame", "y", "x"), (2, 4, 3, 3), "float32", (1, 2, 3, 3), fill=np.nan)})
    block = np.full((2, 2, 3, 3), np.nan, np.float32)
    block[1] = 1
    store.write_block(tmp_path / "out", "aligned", (0, 2, 0, 0), block)
    assert [p.relative_to(tmp_path / "out/aligned").as_posix() for p in (tmp_path / "out/aligned/c").rglob("*")
            if p.is_file()] == ["c/1/1/0/0"]
    assert np.isnan(store.read_block(tmp_path / "out", "aligned", slice(0, 1))).all()


def test_a_result_without_particles_can_be_stored(tmp_path):
    store.create_group(tmp_path / "out")
    store.create_arrays(tmp_path / "out", {
        "aligned": store.Spec(("particle", "frame", "y", "x"), (0, 4, 3, 3), "float32", (1, 2, 3, 3), fill=np.nan)})
    assert store.open_store(tmp_path / "out").aligned.shape == (0, 4, 3, 3)


def test_tables_can_be_written_read_and_replaced(tmp_path):
    store.create_group(tmp_path / "out", {"a": 1})
    table = xr.Dataset({"position": (("frame", "axis"), np.ones((3, 2)))}, coords={"axis": ["y", "x"]},
                       attrs={"b": np.arange(2)})
    store.write_tables(tmp_path / "out", table)
    store.write_tables(tmp_path / "out", table * 2)
    found = store.open_store(tmp_path / "out")
    np.testing.assert_array_equal(found.position.sel(axis="x"), [2, 2, 2])
    assert found.attrs["b"] == [0, 1]


# -- fingerprints --------------------------------------------------------------------------------------------


def test_a_copy_has_the_same_content(raw, tmp_path):
    make_raw(tmp_path / "copy.zarr")
    one, two = store.fingerprint(raw), store.fingerprint(tmp_path / "copy.zarr")
    assert one["content"] == two["content"]
    assert one["files"] != two["files"]
    assert store.fingerprint(raw) == one


@pytest.mark.parametrize("name", ["counts", "energy"])
def test_packed_numbers_are_refused(raw, name):
    zarr.open_group(raw)[name].attrs.update(scale_factor=0.1, add_offset=3.0)
    with pytest.raises(ValueError, match=rf"{name} is packed \(scale_factor 0.1, add_offset 3.0\); need plain numbers"):
        store.open_frames(raw)


def test_times_of_the_users_own(raw):
    own = {"when": ("frame", np.arange(N), {"units": "hours since 2020-01-01"}),
           "odd": ("frame", np.arange(N), {"units": "fortnights since the war"})}
    store.write_tables(raw, xr.Dataset(own))
    ds = store.open_frames(raw)
    assert ds["when"].values[1] == np.datetime64("2020-01-01T01")
    np.testing.assert_array_equal(ds["odd"], np.arange(N))
    store.write_tables(raw, xr.Dataset({"time": own["odd"]}))
    with pytest.raises(ValueError, match="is not a readable raw store"):
        store.open_frames(raw)


def test_a_store_without_frames(raw):
    del zarr.open_group(raw)["counts"]
    with pytest.raises(ValueError, match=r"counts is missing; need counts \(or optical_density\)"):
        store.open_frames(raw)


def test_a_change_in_place_is_seen(raw):
    before = store.fingerprint(raw)
    store.write_block(raw, "counts", (2, 0, 0), np.ones((2, SIDE, SIDE), np.uint16))
    assert store.fingerprint(raw) != before


def test_a_damaged_frame_does_not_hinder_the_fingerprint(raw):
    before = store.fingerprint(raw)
    flip_a_bit(raw / "counts/c/0/0/0")
    assert store.fingerprint(raw)["content"] != before["content"]


def test_digest_tells_dtypes_and_shapes_apart():
    a = np.zeros(4, "f4")
    assert store.digest(a) == store.digest(a.copy())
    assert len({store.digest(a), store.digest(a.view("i4")), store.digest(a.reshape(2, 2)), store.digest([0] * 4)}) == 4
