"""Stores made to harm: each is refused before anything is allocated on its word."""

import json
import os
import subprocess
import sys

import numcodecs
import numpy as np
import pytest
import xarray as xr
import zarr
from numcodecs import LZ4, Blosc, GZip, Zlib, Zstd
from zarr.codecs import BloscCodec, GzipCodec, ZstdCodec

from xreg import guard, record, store
from xreg.synthetic import PhantomConfig

SHAPE = (4, 8, 8)
BYTES = 8 * 8 * 2


def raw_store(path, *, zarr_format=3, shards=None, **options):
    """A raw store of four small frames."""
    group = zarr.open_group(path, mode="w", zarr_format=zarr_format)
    if zarr_format == 3:
        options |= {"dimension_names": ("frame", "y", "x"), "shards": shards}
    counts = group.create_array("counts", shape=SHAPE, chunks=(1, 8, 8), dtype="u2", **options)
    counts[:] = np.arange(np.prod(SHAPE)).reshape(SHAPE)
    if zarr_format == 2:
        counts.attrs["_ARRAY_DIMENSIONS"] = ["frame", "y", "x"]
    tables = xr.Dataset(coords={"energy": ("frame", np.full(4, 8300.0)), "scan": ("frame", np.zeros(4, int))})
    tables.to_zarr(path, mode="a", consolidated=False, zarr_format=zarr_format)
    return path


HONEST = {
    "blosc": {"compressors": BloscCodec()}, "zstd": {"compressors": ZstdCodec()}, "gzip": {"compressors": GzipCodec()},
    "none": {"compressors": None}, "sharded": {"shards": (2, 8, 8)},
    "v2 blosc": {"zarr_format": 2, "compressors": Blosc()}, "v2 zstd": {"zarr_format": 2, "compressors": Zstd()},
    "v2 gzip": {"zarr_format": 2, "compressors": GZip()}, "v2 zlib": {"zarr_format": 2, "compressors": Zlib()},
    "v2 lz4": {"zarr_format": 2, "compressors": LZ4()}, "v2 none": {"zarr_format": 2, "compressors": None},
}


@pytest.mark.parametrize("options", HONEST.values(), ids=HONEST)
def test_honest_stores_are_read(tmp_path, options):
    path = raw_store(tmp_path / "raw.zarr", **options)
    np.testing.assert_array_equal(store.open_frames(path).counts.values.ravel(), np.arange(np.prod(SHAPE)))


@pytest.mark.parametrize("codec", [Blosc(cname="zstd"), Zstd(), GZip(9), Zlib(9), LZ4()], ids=lambda c: c.codec_id)
def test_a_claim_is_compared_with_what_belongs_there(codec):
    for size in (1, 100, 255, 256, 300, 65_791, 65_792, 70_000):
        guard.check_claim(codec.codec_id, codec.encode(np.zeros(size, np.uint8)), size)
    bomb = codec.encode(np.zeros(2**22, np.uint8))
    with pytest.raises(ValueError, match=f"a chunk of {len(bomb)} bytes claims to hold .* where 128 bytes belong"):
        guard.check_claim(codec.codec_id, bomb, BYTES)
    with pytest.raises(ValueError, match="does not say how much it holds"):
        guard.check_claim(codec.codec_id, b"\xff\xff", BYTES)


def bomb_in(path, codec, size):
    (path / "counts/c/1/0").mkdir(exist_ok=True, parents=True)
    (path / "counts/c/1/0/0").write_bytes(codec.encode(np.zeros(size, np.uint8)))


def test_a_small_chunk_that_unpacks_to_gigabytes_is_a_damaged_frame(tmp_path):
    paths = []
    for kind, codec in (("blosc", Blosc(cname="zstd")), ("zstd", Zstd()), ("gzip", GZip(9))):
        paths.append(raw_store(tmp_path / f"{kind}.zarr", **HONEST[kind]))
        bomb_in(paths[-1], codec, 2**27)
    # A process that has not the memory for it reads the other frames, and names this one.
    code = ("import sys, resource; from xreg import store\n"
            "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
            "resource.setrlimit(resource.RLIMIT_AS, (used + 2**26, used + 2**26))\n"
            "for path in sys.argv[1:]:\n"
            "    print(store.read_block(path, 'counts', 0)[0, 1])\n"
            "    try: store.read_block(path, 'counts', 1)\n"
            "    except OSError as error: print(error)")
    answer = subprocess.run([sys.executable, "-c", code, *map(str, paths)], capture_output=True, text=True, check=True)
    lines = answer.stdout.splitlines()
    assert lines[::2] == ["1"] * 3
    for line, path in zip(lines[1::2], paths, strict=True):
        assert line.startswith(f"counts[1] of {path} cannot be read, its data are damaged (a chunk of")


def test_a_bomb_among_the_small_variables_is_refused_too(tmp_path):
    path = raw_store(tmp_path / "raw.zarr")
    (path / "energy/c/0").write_bytes(Zstd().encode(np.zeros(2**24, np.uint8)))
    with pytest.raises(OSError, match=r"energy.* its data are damaged \(a chunk of"):
        store.open_frames(path)


@pytest.mark.parametrize(("name", "shape", "chunk"), [
    ("counts", (10, 10**6, 10**6), (1, 1000, 1000)), ("counts", (10**12, 8, 8), (1, 8, 8)),
    ("counts", (4, 4096, 4096), (10**4, 4096, 4096)), ("energy", (10**11,), (10**11,)),
    ("darks", (10**6, 4096, 4096), (1, 8, 8)),
])
def test_declared_sizes_beyond_the_limits_are_refused(tmp_path, name, shape, chunk, no_compute):
    path = raw_store(tmp_path / "raw.zarr")
    group = zarr.open_group(path)
    if name in group:
        place = path / name / "zarr.json"
        words = json.loads(place.read_text())
        words["shape"], words["chunk_grid"]["configuration"]["chunk_shape"] = shape, chunk
        place.write_text(json.dumps(words))
    else:
        group.create_array(name, shape=shape, chunks=chunk, dtype="u2", dimension_names=("dark", "y", "x"))
    with pytest.raises(ValueError, match=f"{name} in .* declares shape .* beyond the limits"):
        store.open_frames(path)


@pytest.mark.parametrize("link", ["counts/c/1/0/0", "counts/c/1", "energy"])
def test_links_that_leave_the_store_are_refused(tmp_path, link):
    path = raw_store(tmp_path / "raw.zarr")
    outside = tmp_path / "outside"
    (path / link).rename(outside)
    (path / link).symlink_to(outside)

    def look():
        store.open_frames(path)
        store.read_block(path, "counts", 1)

    with pytest.raises((OSError, ValueError), match="leads out of the store"):
        look()


def test_links_within_a_store_and_to_a_store_are_followed(tmp_path):
    path = raw_store(tmp_path / "raw.zarr")
    (path / "counts/c/1/0/0").unlink()
    os.symlink("../../0/0/0", path / "counts/c/1/0/0")
    (tmp_path / "link.zarr").symlink_to(path)
    np.testing.assert_array_equal(store.read_block(tmp_path / "link.zarr", "counts", 1),
                                  store.read_block(path, "counts", 0))


def test_codecs_that_could_run_code_or_hide_their_size_are_refused(tmp_path):
    path = raw_store(tmp_path / "raw.zarr", zarr_format=2, compressors=numcodecs.BZ2())
    with pytest.raises((OSError, ValueError), match="counts is encoded with bz2, which xreg does not read"):
        store.read_block(path, "counts", 0)
    path = raw_store(tmp_path / "other.zarr", zarr_format=2, filters=[numcodecs.Delta("u2")])
    assert store.read_block(path, "counts", 0)[0, 1] == 1


def test_names_of_samples_never_become_paths(tmp_path, monkeypatch):
    """Whatever a file says about itself stays an attribute; everything is written at the place that was asked for."""
    from tests.test_record import Files

    class Evil(Files):
        def __init__(self):
            super().__init__()
            self.corrupt_files = {"../../escaped": "truncated"}
            names = ["/etc/escaped", "../x", "a", "b", "c"]
            self.table = self.table.assign_attrs(sample="../../escaped", source_files=names)

    monkeypatch.setattr("xreg.readers.open_source", lambda path: Evil())
    record._beamline.cache_clear()
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    record.ingest("somewhere", inner / "raw.zarr")
    record._beamline.cache_clear()
    assert [p.name for p in inner.iterdir()] == ["raw.zarr"]
    assert not list(tmp_path.rglob("*escaped*"))
    assert store.open_frames(inner / "raw.zarr").attrs["sample"] == "../../escaped"


def test_simulated_stores_pass(tmp_path):
    record.simulate(PhantomConfig(shape=(64, 64), n_scans=1, energies=(8300.0,), n_particles=1, radius=(9.0, 10.0),
                                  touching=0, flats_per_energy=1, n_darks=1), tmp_path / "raw.zarr")
    assert store.open_frames(tmp_path / "raw.zarr").counts.values.any()
