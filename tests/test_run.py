"""The driver, on a tiny measurement, in threads of this process, with thresholds in place of networks."""

import errno
import shutil

import dask
import numpy as np
import pytest
import xarray as xr
import zarr
from stand_in import ENERGIES, STACKS, TINY, assert_same, flip_a_bit

import xreg
from xreg import record, run, schema, store, tasks
from xreg.journal import Journal
from xreg.models.weights import shipped
from xreg.result import failures, open_raw_of, open_result, rigid_part
from xreg.schema import FitStatus, FrameStatus
from xreg.synthetic import Phantom, PhantomConfig

FRAMES, BLOCK = 16, 4


@pytest.fixture(scope="module", autouse=True)
def blocks(thresholds):
    """Blocks of 4 frames."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("xreg.chunks.BLOCK_FRAMES", BLOCK)
        patch.setattr("xreg.chunks.FEWEST_BLOCKS", 1)
        yield


@pytest.fixture(scope="module")
def raw(blocks, tmp_path_factory):
    place = tmp_path_factory.mktemp("measured") / "raw.zarr"
    record.simulate(PhantomConfig(**TINY), place)
    return place


@pytest.fixture(scope="module")
def whole(raw, tmp_path_factory):
    """The result of an undisturbed run."""
    out = tmp_path_factory.mktemp("whole") / "out.zarr"
    run.register(raw, out)
    return out


@pytest.fixture
def own_raw(raw, tmp_path):
    """A copy of the raw store that a test may spoil."""
    return shutil.copytree(raw, tmp_path / "raw.zarr")


def rechunked(source, target, chunk, shard=None):
    """Copy a raw store with other chunks of its pictures."""
    with xr.open_zarr(source, consolidated=False, chunks=None, mask_and_scale=False) as ds:
        ds = ds.load().drop_encoding()
    encoding = {}
    for name in store.PICTURES:
        if name in ds:
            encoding[name] = {"chunks": (min(chunk, len(ds[name])), *ds[name].shape[1:])}
            if shard:
                encoding[name]["shards"] = (shard, *ds[name].shape[1:])
    ds.to_zarr(target, consolidated=False, zarr_format=3, encoding=encoding)
    return target


# -- the result ----------------------------------------------------------------------------------------------


def test_the_result_is_the_contract(whole, raw):
    ds = open_result(whole)
    schema.validate(ds, schema.RESULT, *schema.RESULT)
    assert ds.sizes["particle"] == 2
    assert ds.sizes["frame"] == FRAMES
    assert np.isfinite(ds.position).all()
    for name in ("energy", "scan", "time"):
        assert name in ds.coords
    for name in ds.data_vars:
        assert {"units", "long_name"} <= set(ds[name].attrs), name
        if ds[name].dtype.kind == "f" and name != "scale":
            assert "comment" in ds[name].attrs, name
    assert ds.attrs["raw"]["path"] == str(raw)
    assert ds.attrs["weights"] == {"detector": "0" * 64, "refiner": "0" * 64}
    assert ds.attrs["settings"]["fit"]["e0"] == 8333.0
    assert ds.edge_energy.attrs["definition"] == "half_step"
    assert failures(ds) == []
    assert not whole.with_name("out.zarr.partial").exists()


def test_plain_xarray_reads_the_result(whole):
    ds = xr.open_zarr(whole, consolidated=False)
    assert ds.aligned.encoding["chunks"] == (1, BLOCK, ds.sizes["y"], ds.sizes["x"])
    assert ds.edge_energy.encoding["chunks"][:2] == (1, 1)


@pytest.mark.parametrize(("chunk", "shard"), [(1, None), (16, None), (5, 10)])
def test_the_answer_does_not_depend_on_the_chunks_of_the_raw_store(raw, whole, tmp_path, monkeypatch, chunk, shard):
    monkeypatch.setattr("xreg.chunks.BLOCK_FRAMES", {1: 5, 16: 3, 5: 16}[chunk])
    other = rechunked(raw, tmp_path / "raw.zarr", chunk, shard)
    run.register(other, tmp_path / "out.zarr")
    assert_same(whole, tmp_path / "out.zarr")


def test_a_part_of_the_frames_gives_what_it_gives_within_the_whole(raw, whole, tmp_path):
    part = run.register(raw, tmp_path / "out.zarr", frames="8:")
    np.testing.assert_array_equal(part.frame, np.arange(8, 16))
    np.testing.assert_array_equal(part.scan, np.ones(8))
    assert part.edge_energy.sizes["scan"] == 1
    regions, all_regions = (store.open_store(p / "rois") for p in (tmp_path / "out.zarr", whole))
    for name in schema.ROIS:
        np.testing.assert_array_equal(regions[name], all_regions[name][8:])
    np.testing.assert_array_equal(open_raw_of(part).counts[0], store.open_frames(raw).counts[8])


def test_frames_before_the_edge_alone_are_registered_and_not_fitted(raw, tmp_path):
    for lazy in (False, True):
        part = run.register(raw, tmp_path / f"{lazy}.zarr", frames=":4", lazy=lazy)
        assert part.sizes["particle"] == 2
        assert np.isfinite(part.position).all()
        assert np.isnan(part.edge_energy).all()
        assert not (part.fit_status == FitStatus.OK).any()


def test_energies_beside_the_edge_are_refused_before_anything_is_made(own_raw, tmp_path):
    zarr.open_group(own_raw).attrs["element"] = "Fe"
    with pytest.raises(ValueError, match="e0 is 7112 eV but the energies run from 8200 to 8550 eV"):
        run.register(own_raw, tmp_path / "out.zarr")
    assert [p.name for p in tmp_path.iterdir()] == ["raw.zarr"]


def test_a_frame_of_unknown_energy(own_raw, tmp_path):
    group = zarr.open_group(own_raw)
    group["energy"][3] = np.nan
    with pytest.raises(ValueError, match="energy holds values that are missing"):
        run.register(own_raw, tmp_path / "out.zarr")
    status = np.zeros(FRAMES, np.int8)
    status[3] = FrameStatus.CORRUPT
    store.write_tables(own_raw, xr.Dataset({"frame_status": ("frame", status)}))
    ds = run.register(own_raw, tmp_path / "out.zarr")
    assert failures(ds) == ["frame 3: corrupt"]
    assert np.isfinite(np.delete(ds.position.values, 3, axis=1)).all()
    assert not (ds.fit_status == FitStatus.FAILED).any()
    lazy = run.register(own_raw, tmp_path / "lazy.zarr", lazy=True)
    for name in STACKS:
        np.testing.assert_array_equal(lazy[name], ds[name])


def test_the_reference_energy_is_that_of_the_whole_measurement(own_raw, tmp_path):
    """Where the store does not say at which energy its pixel size holds."""
    group = zarr.open_group(own_raw)
    group.attrs["magnification"] = "proportional-to-energy"
    del group.attrs["pixel_size_energy_ev"]
    ds = run.register(own_raw, tmp_path / "out.zarr", frames=":6")
    assert ds.attrs["pixel_size_energy_ev"] == np.median(ENERGIES)
    np.testing.assert_allclose(ds.scale, ds.energy / np.median(ENERGIES))
    lazy = run.register(own_raw, tmp_path / "lazy.zarr", frames=":6", lazy=True)
    np.testing.assert_array_equal(lazy.aligned, ds.aligned)


def test_what_else_a_raw_store_knows_goes_along(own_raw, tmp_path):
    voltage, label = np.linspace(3, 4.2, FRAMES), np.array([f"frame {k}" for k in range(FRAMES)])
    own = xr.Dataset({"voltage": ("frame", voltage, {"units": "V"}), "label": ("frame", label),
                      "odd": ("frame", voltage, {"units": "fortnights since the war"})},
                     attrs={"operator": {"name": "A"}})
    store.write_tables(own_raw, own)
    ds = run.register(own_raw, tmp_path / "out.zarr", frames="4:8", lazy=True)
    np.testing.assert_array_equal(ds.voltage, voltage[4:8])
    assert ds.voltage.attrs["units"] == "V"
    assert ds.label.values.tolist() == label[4:8].tolist()
    assert ds.attrs["operator"] == {"name": "A"}
    # Plain xarray cannot read it, so that it would keep the result from being read at all.
    assert "odd" not in ds


@pytest.mark.parametrize(("frames", "wanted"), [(None, (0, 9)), (":", (0, 9)), ("2:", (2, 9)), (" 2 : 5", (2, 5))])
def test_frame_range(frames, wanted):
    assert run.frame_range(frames, 9) == wanted


@pytest.mark.parametrize(("frames", "words"), [
    ("3", "need A:B, two whole numbers"), ("a:b", "need A:B"), ("1:2:3", "need A:B"), ("5:5", "need 0 <= A < B <= 9"),
    ("0:10", "the raw store has frames 0 to 8"), ("-3:", "need 0 <= A < B"),
])
def test_impossible_frames_are_refused(frames, words):
    with pytest.raises(ValueError, match=words):
        run.frame_range(frames, 9)


def test_nothing_to_find_is_a_valid_empty_result(own_raw, tmp_path):
    group = zarr.open_group(own_raw)
    group["counts"][:] = np.random.default_rng(0).poisson(3000, group["counts"].shape)
    group["flats"][:] = np.random.default_rng(1).poisson(1800, group["flats"].shape)
    ds = run.register(own_raw, tmp_path / "out.zarr")
    assert ds.sizes["particle"] == 0
    assert ds.aligned.shape[:2] == (0, FRAMES)
    assert failures(ds) == []
    lazy = run.register(own_raw, tmp_path / "lazy.zarr", lazy=True)
    assert lazy.edge_energy.compute().shape == ds.edge_energy.shape


def test_a_blurred_frame_is_recorded_and_has_no_positions(own_raw, whole, tmp_path):
    phantom = Phantom(PhantomConfig(**TINY))
    phantom.frame_status[5] = FrameStatus.BLURRED
    zarr.open_group(own_raw)["counts"][5] = phantom.counts(5)
    ds = run.register(own_raw, tmp_path / "out.zarr", lazy=True)
    assert ds.frame_status.values.tolist() == [0] * 5 + [FrameStatus.BLURRED] + [0] * 10
    assert failures(ds) == ["frame 5: blurred"]
    assert np.isnan(ds.position[:, 5]).all()
    assert np.isnan(ds.aligned[:, 5].compute()).all()
    assert np.isnan(ds.rigid[5]).all()
    # The tracks go on across the gap.
    sound = np.delete(np.arange(FRAMES), 5)
    assert np.isfinite(ds.position[:, sound]).all()
    # Pictures made from other frames: a particle's place has another constant offset, its motion is the same.
    apart = (ds.position[:, sound] - open_result(whole).position[:, sound]).values
    np.testing.assert_allclose(apart - apart.mean(axis=1, keepdims=True), 0, atol=0.02)
    # The same by hand, as `reject_blurred` says.
    normalized = xreg.normalize_frames(store.open_frames(own_raw))
    rois = xreg.refine_rois(normalized, xreg.detect_rois(normalized, device="cpu"), device="cpu")
    rois = rois.assign(sharpness=xreg.measure_sharpness(normalized), frame_status=normalized["frame_status"])
    rois = xreg.reject_blurred(rois.compute())
    sharp = rois["frame_status"] == FrameStatus.OK
    normalized = normalized.assign(optical_density=normalized["optical_density"].where(sharp))
    links = xreg.link_rois(rois)
    candidates = xreg.propose_particles(xreg.gather_tracks(rois, links), xreg.outline_particles(rois, links))
    located = xreg.locate_particles(normalized, candidates).compute()
    tracks = xreg.smooth_tracks(xreg.confirm_particles(candidates, located))
    np.testing.assert_allclose(tracks["position"], ds.position, atol=1e-6)


# -- the reference particle ----------------------------------------------------------------------------------


def test_the_reference_particle_can_be_chosen_after_a_run(raw, whole, tmp_path):
    out = shutil.copytree(whole, tmp_path / "out.zarr")
    before = open_result(whole)
    with pytest.raises(ValueError, match="reference particle 2 is not there, particles 0 to 1 were found; choose one"):
        run.register(raw, out, resume=True, reference_particle=2)
    stamp = (out / "aligned" / "zarr.json").stat().st_mtime_ns
    ds = run.register(raw, out, resume=True, reference_particle=1)
    np.testing.assert_allclose(ds.rigid, before.displacement[1])
    np.testing.assert_allclose(ds.nonrigid[1], 0, atol=1e-12)
    np.testing.assert_allclose(ds.rigid + ds.nonrigid[0], before.displacement[0])
    assert ds.rigid.attrs["particles"] == [1]
    assert ds.rigid.attrs["definition"] == "reference particle"
    assert ds.attrs["settings"]["reference_particle"] == 1
    assert rigid_part(ds) == "The rigid part is the motion of particle 1, which was chosen as the reference."
    # Nothing else was done again.
    assert (out / "aligned" / "zarr.json").stat().st_mtime_ns == stamp
    assert_same(whole, out, [n for n in before.variables if n not in ("rigid", "nonrigid")])
    run.register(raw, out, resume=True)
    assert_same(whole, out)


def test_a_run_survives_the_number_of_a_particle_that_is_not_there(raw, tmp_path):
    out = tmp_path / "out.zarr"
    with pytest.raises(ValueError, match="reference particle 9 is not there"):
        run.register(raw, out, lazy=True, frames=":8", reference_particle=9)
    ds = run.register(raw, out, lazy=True, frames=":8", resume=True, reference_particle=0)
    np.testing.assert_array_equal(ds.rigid, ds.displacement[0])


# -- the lazy face -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lazy(raw, tmp_path_factory):
    out = tmp_path_factory.mktemp("lazy") / "out.zarr"
    run.register(raw, out, lazy=True)
    return out


@pytest.fixture
def reads(monkeypatch):
    """Keys of all chunks that are read."""
    keys = set()
    original = zarr.storage.LocalStore.get

    async def get(self, key, *args, **kwargs):
        if "/c/" in key:
            keys.add(f"{self.root.name}/{key}")
        return await original(self, key, *args, **kwargs)

    monkeypatch.setattr(zarr.storage.LocalStore, "get", get)
    return keys


def test_a_lazy_run_gives_the_same_without_storing_it(whole, lazy):
    assert "aligned" not in store.open_store(lazy)
    assert_same(whole, lazy)
    one, other = open_result(whole), open_result(lazy)
    for name in STACKS:
        assert one[name].attrs == other[name].attrs, name
        assert one[name].dims == other[name].dims


def test_opening_computes_nothing(whole, lazy, no_compute):
    for place in (whole, lazy):
        ds = open_result(place)
        for name in STACKS:
            if name != "contour" or place == whole:
                assert dask.is_dask_collection(ds[name].data), name


def test_one_particle_of_one_scan_of_a_written_result_reads_its_chunks_only(whole, reads):
    ds = open_result(whole)
    reads.clear()
    ds.aligned.isel(particle=1, frame=np.flatnonzero(ds.scan.values == 1)).compute(scheduler="synchronous")
    assert reads == {"out.zarr/aligned/c/1/2/0/0", "out.zarr/aligned/c/1/3/0/0"}
    reads.clear()
    ds.edge_energy.isel(particle=1, scan=1).compute(scheduler="synchronous")
    assert reads == {"out.zarr/edge_energy/c/1/1/0/0"}


def test_one_particle_of_one_scan_of_a_lazy_result_reads_the_scans_frames_only(lazy, reads):
    ds = open_result(lazy)
    reads.clear()
    ds.edge_energy.isel(particle=1, scan=1).compute(scheduler="synchronous")
    frames = {key for key in reads if "/counts/" in key}
    assert frames == {f"raw.zarr/counts/c/{k}/0/0" for k in (2, 3)}
    assert {key for key in reads if "/flats/" in key} == {f"raw.zarr/flats/c/{k}/0/0" for k in (2, 3)}


def test_a_lazy_result_needs_its_raw_store(own_raw, tmp_path):
    run.register(own_raw, tmp_path / "out.zarr", lazy=True)
    kept = open_result(tmp_path / "out.zarr").aligned[0, 2].values
    shutil.copytree(own_raw, tmp_path / "copy.zarr")
    shutil.rmtree(own_raw)
    (tmp_path / "copy.zarr").rename(own_raw)
    np.testing.assert_array_equal(open_result(tmp_path / "out.zarr").aligned[0, 2], kept)
    group, changed = zarr.open_group(own_raw), r"made with --lazy, and its raw store .* has changed; put that back"
    magnification = group.attrs["magnification"]
    group.attrs["magnification"] = "proportional-to-energy"
    with pytest.raises(ValueError, match=changed):
        open_result(tmp_path / "out.zarr")
    group.attrs["magnification"] = magnification
    open_result(tmp_path / "out.zarr")
    group["counts"][7] = np.roll(group["counts"][7], 3, axis=1)
    with pytest.raises(ValueError, match=changed):
        open_result(tmp_path / "out.zarr")
    shutil.rmtree(own_raw)
    with pytest.raises(ValueError, match="is not there; put that back"):
        open_result(tmp_path / "out.zarr")


# -- refusals ------------------------------------------------------------------------------------------------


def test_a_second_run_into_the_same_place_is_refused(raw, whole):
    with pytest.raises(ValueError, match=r"out.zarr exists already; choose another name"):
        run.register(raw, whole)


def test_a_run_that_another_one_is_writing_is_refused(raw, tmp_path):
    part = tmp_path / "out.zarr.partial"
    store.create_group(part / "run")
    with Journal.of(part).lock(), pytest.raises(ValueError, match="another run is writing"):
        run.register(raw, tmp_path / "out.zarr")
    with pytest.raises(ValueError, match="was left by a run that was interrupted; go on with --resume"):
        run.register(raw, tmp_path / "out.zarr")


@pytest.mark.parametrize(("change", "words"), [
    ({"energy": np.full(FRAMES, 8.3)}, "looks like keV"),
    ({"energy": None}, "energy is missing"),
    ({"flat_energy": None}, "flat_energy is missing"),
    ({"flats": None}, "flats is missing"),
])
def test_bad_input_is_refused_before_anything_is_created(own_raw, tmp_path, change, words):
    group = zarr.open_group(own_raw)
    for name, values in change.items():
        if values is None:
            del group[name]
        else:
            group[name][:] = values
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError, match=words):
        run.register(own_raw, tmp_path / "out.zarr")
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(("options", "words"), [
    ({"device": "tpu"}, "device is 'tpu'; need one of"),
    ({"fit": {"colour": 1}}, "fit settings have no colour"),
    ({"frames": "7"}, "need A:B"),
    ({"link": {"max_gapp": 3}}, "link settings have no max_gapp; choose from max_gap, reach"),
    ({"link": {"max_gap": -3}}, "max_gap is -3; need a number of frames"),
    ({"detector": "nothing.safetensors"}, "there are no weights at nothing.safetensors"),
    ({"detector": shipped("refiner").path}, "are those of a dual_unet; need those of a detector, a generator"),
    ({"workers": -1}, "workers is -1"),
])
def test_bad_options_are_refused(raw, tmp_path, options, words):
    with pytest.raises(ValueError, match=words):
        run.register(raw, tmp_path / "out.zarr", **options)
    assert not (tmp_path / "out.zarr").exists()


def test_a_url_of_an_unknown_kind_is_refused(raw):
    with pytest.raises(ValueError, match=r"nowhere://bucket/out.zarr/zarr.json cannot be reached"):
        run.register(raw, "nowhere://bucket/out.zarr")


# -- faults and going on -------------------------------------------------------------------------------------


class Power(BaseException):
    """As if the plug were pulled: no task may record it as a failure of its own."""


@pytest.fixture
def executions(monkeypatch):
    """How often each piece of work is done; work listed in `fail` raises instead."""

    class Record(list):
        """Keys of the work that was done."""

    done = Record()
    originals = dict(tasks._WORK)

    def wrap(stage):
        def work(job, task):
            key = (stage, tasks.key_of(task))
            if key in done.fail:
                raise done.fail[key]
            done.append(key)
            yield from originals[stage](job, task)

        return work

    for stage in originals:
        monkeypatch.setitem(tasks._WORK, stage, wrap(stage))
    done.fail = {}
    return done


@pytest.mark.parametrize("key", [("observe", "3"), ("align", "2"), ("fit", "1-0")])
def test_an_interrupted_run_goes_on_and_redoes_nothing(raw, whole, tmp_path, executions, monkeypatch, key):
    out = tmp_path / "out.zarr"
    executions.fail = {key: Power()}
    with pytest.raises(Power):
        run.register(raw, out)
    assert not out.exists()
    executions.fail = {}
    run.register(raw, out, resume=True)
    assert len(executions) == len(set(executions))
    assert_same(whole, out)


def test_data_that_went_missing_behind_a_marker_are_made_again(raw, whole, tmp_path, executions):
    out = tmp_path / "out.zarr"
    executions.fail = {("fit", "0-0"): Power()}
    with pytest.raises(Power):
        run.register(raw, out)
    part = tmp_path / "out.zarr.partial"
    flip_a_bit(part / "aligned/c/0/1/0/0")
    (part / "rois/roi_contour/c/2/0/0/0").unlink()
    executions.fail = {}
    executions.clear()
    run.register(raw, out, resume=True)
    assert executions.count(("observe", "2")) == 1
    assert ("observe", "0") not in executions
    assert_same(whole, out)


def test_a_poison_block_is_recorded_and_the_run_goes_on(raw, whole, tmp_path, executions):
    out = tmp_path / "out.zarr"
    executions.fail = {("observe", "1"): ValueError("poison"), ("fit", "1-1"): ZeroDivisionError("bad luck")}
    ds = run.register(raw, out)
    assert (ds.frame_status[4:8] == FrameStatus.FAILED).all()
    assert np.isnan(ds.position[:, 4:8]).all()
    assert np.isnan(ds.aligned[:, 4:8]).all()
    lines = failures(ds)
    assert "frame 4: failed" in lines
    assert "observe 1: ValueError: poison" in lines
    assert "fit 1-1: ZeroDivisionError: bad luck" in lines
    executions.fail = {}
    healed = run.register(raw, out, resume=True)
    assert failures(healed) == []
    assert_same(whole, out)


@pytest.mark.parametrize("stage", ["observe", "locate", "align"])
def test_what_was_made_of_all_blocks_is_made_anew_though_the_healing_run_is_interrupted(
        raw, whole, tmp_path, executions, monkeypatch, stage):
    out = tmp_path / "out.zarr"
    executions.fail = {(stage, "1"): ValueError("poison")}
    assert (run.register(raw, out).frame_status[4:8] == FrameStatus.FAILED).all()
    executions.fail = {}
    with monkeypatch.context() as patch:

        def stopped(self, pool, name, *rest, original=run._Run._pass):
            original(self, pool, name, *rest)
            if name == stage:
                raise Power

        patch.setattr(run._Run, "_pass", stopped)
        with pytest.raises(Power):
            run.register(raw, out, resume=True)
    assert failures(run.register(raw, out, resume=True)) == []
    assert_same(whole, out)


def test_stacks_that_were_begun_are_finished_though_the_run_goes_on_lazily(raw, whole, tmp_path, executions):
    executions.fail = {("align", "2"): Power()}
    with pytest.raises(Power):
        run.register(raw, tmp_path / "out.zarr")
    executions.fail = {}
    run.register(raw, tmp_path / "out.zarr", resume=True, lazy=True)
    assert_same(whole, tmp_path / "out.zarr")


def test_pixels_of_a_fit_that_failed_are_not_called_ok(raw, whole, tmp_path, executions):
    executions.fail = {("fit", "0-0"): ZeroDivisionError("bad luck")}
    ds = run.register(raw, tmp_path / "out.zarr").isel(particle=0, scan=0)
    np.testing.assert_array_equal(ds.fit_status, np.where(ds.contour, FitStatus.FAILED, FitStatus.OUTSIDE))


def test_a_lazy_result_shows_what_could_not_be_located_as_a_written_one_does(raw, tmp_path, executions):
    executions.fail = {("locate", "1"): ValueError("poison")}
    found = [run.register(raw, tmp_path / f"{lazy}.zarr", lazy=lazy).aligned.values for lazy in (False, True)]
    np.testing.assert_array_equal(*found)
    assert np.isfinite(found[0][:, 4:8]).any()


def test_workers_that_are_not_there_cost_neither_a_result_nor_a_name(raw, whole, tmp_path):
    with pytest.raises(ValueError, match="no Dask scheduler answers"):
        run.register(raw, whole, resume=True, scheduler="tcp://127.0.0.1:9")
    open_result(whole)
    with pytest.raises(ValueError, match="came together"):
        run.register(raw, tmp_path / "out.zarr", workers=2, scheduler="tcp://127.0.0.1:9")
    assert not any(tmp_path.iterdir())


def test_a_result_and_an_interrupted_run_of_one_name(raw, whole):
    (whole.parent / f"{whole.name}.partial").mkdir()
    with pytest.raises(ValueError, match=r"are both there; delete the one"):
        run.register(raw, whole, resume=True)
    (whole.parent / f"{whole.name}.partial").rmdir()


def test_a_mistake_of_the_program_stops_the_run(raw, tmp_path, executions):
    executions.fail = {("align", "1"): TypeError("a bug")}
    with pytest.raises(TypeError, match="a bug"):
        run.register(raw, tmp_path / "out.zarr")


def test_a_full_disk_stops_the_run_with_a_sentence(raw, whole, tmp_path, executions):
    executions.fail = {("align", "2"): OSError(errno.ENOSPC, "No space left on device")}
    with pytest.raises(OSError, match=r"cannot be written \(No space left on device\); .* --resume"):
        run.register(raw, tmp_path / "out.zarr")
    executions.fail = {}
    run.register(raw, tmp_path / "out.zarr", resume=True)
    assert_same(whole, tmp_path / "out.zarr")


def test_damaged_frames_and_flats_are_named_and_the_others_used(own_raw, whole, tmp_path):
    place = own_raw / "counts/c/1/0/0"
    data = bytearray(place.read_bytes())
    data[len(data) // 2] ^= 4
    place.write_bytes(data)
    ds = run.register(own_raw, tmp_path / "out.zarr")
    bad = np.flatnonzero(ds.frame_status)
    assert len(bad) == 1
    assert 4 <= bad[0] < 8
    assert failures(ds) == [f"frame {bad[0]}: corrupt"]
    good = np.delete(np.arange(FRAMES), bad)
    np.testing.assert_allclose(ds.position[:, good], open_result(whole).position[:, good], atol=0.1)


def test_not_one_readable_block_is_an_error(own_raw, tmp_path, executions):
    executions.fail = {("observe", str(k)): ValueError("rubbish") for k in range(FRAMES)}
    with pytest.raises(ValueError, match="not one block of frames could be worked through: ValueError: rubbish"):
        run.register(own_raw, tmp_path / "out.zarr")


@pytest.mark.parametrize(("options", "words"), [
    ({"link": {"max_gap": 3}}, r"settings changed since \(link.max_gap was None, is 3\)"),
    ({"fit": {"nnorm": 1}}, "settings changed since"),
    ({"frames": "0:8"}, "the choice of frames changed"),
    ({"device": "cpu"}, r"the device changed since \(was auto, is cpu\)"),
])
def test_a_resume_with_other_settings_is_refused(raw, tmp_path, executions, options, words):
    executions.fail = {("observe", "0"): TypeError("stop")}
    with pytest.raises(TypeError):
        run.register(raw, tmp_path / "out.zarr")
    with pytest.raises(ValueError, match=words):
        run.register(raw, tmp_path / "out.zarr", resume=True, **options)


def test_a_resume_with_another_input_or_other_weights_is_refused(own_raw, tmp_path, executions, monkeypatch):
    from xreg.models import weights

    executions.fail = {("observe", "0"): TypeError("stop")}
    with pytest.raises(TypeError):
        run.register(own_raw, tmp_path / "out.zarr")
    with monkeypatch.context() as patch:
        patch.setattr("xreg.models.weights.shipped", lambda name: weights.Weights(name, "1" * 64))
        with pytest.raises(ValueError, match=r"weights changed since \(detector was 000000000000..., is 1111"):
            run.register(own_raw, tmp_path / "out.zarr", resume=True)
    zarr.open_group(own_raw)["counts"][5] = 8
    with pytest.raises(ValueError, match="cannot be resumed: the raw store changed since"):
        run.register(own_raw, tmp_path / "out.zarr", resume=True)


def test_resuming_what_is_complete_does_nothing(raw, whole, executions):
    run.register(raw, whole, resume=True)
    assert executions == []


def test_a_lazy_result_can_be_filled_later(raw, whole, tmp_path):
    run.register(raw, tmp_path / "out.zarr", lazy=True)
    ds = run.register(raw, tmp_path / "out.zarr", resume=True)
    assert not ds.attrs["lazy"]
    assert_same(whole, tmp_path / "out.zarr")


def test_there_must_be_something_to_resume(raw, tmp_path):
    run.register(raw, tmp_path / "new.zarr", resume=True, lazy=True, frames=":4")
    (tmp_path / "strange.zarr.partial").mkdir()
    with pytest.raises(ValueError, match="holds no plan of an interrupted run"):
        run.register(raw, tmp_path / "strange.zarr", resume=True)
    (tmp_path / "notes.txt").touch()
    for other in (raw, tmp_path / "notes.txt"):
        place = shutil.copytree(other, tmp_path / "copy.zarr") if other.is_dir() else other
        with pytest.raises(ValueError, match=r"is no result of xreg run; choose another name"):
            run.register(raw, place, resume=True)


def test_a_result_inside_of_its_raw_store_is_refused(own_raw):
    with pytest.raises(ValueError, match=r"out.zarr lies inside of the raw store .*; choose a place outside"):
        run.register(own_raw, own_raw / "out.zarr")
    assert not list(own_raw.glob("out*"))


def test_a_range_of_frames_is_a_text(raw, tmp_path):
    with pytest.raises(ValueError, match=r"frames is \(0, 3\); need A:B"):
        run.register(raw, tmp_path / "out.zarr", frames=(0, 3))


def test_a_part_of_a_result_is_refused(whole, tmp_path):
    copied = shutil.copytree(whole, tmp_path / "copied.zarr")
    shutil.rmtree(copied / "frame_status")
    with pytest.raises(ValueError, match=r"copied.zarr has no frame_status; give what xreg run wrote, and all of it"):
        open_result(copied)


def test_a_raw_store_that_does_not_answer_is_not_called_gone(raw, tmp_path, monkeypatch):
    ds = run.register(raw, tmp_path / "out.zarr", lazy=True, frames=":4")

    def silent(*args, **kwargs):
        raise ConnectionError("the server is silent")

    monkeypatch.setattr(store, "open_frames", silent)
    assert open_raw_of(ds) is None
    with pytest.raises(ConnectionError, match="the server is silent"):
        open_result(tmp_path / "out.zarr")


@pytest.mark.parametrize("missing", ["raw", "settings"])
def test_a_lazy_result_needs_its_record(raw, tmp_path, missing):
    run.register(raw, tmp_path / "out.zarr", lazy=True, frames=":4")
    del zarr.open_group(tmp_path / "out.zarr").attrs[missing]
    with pytest.raises(ValueError, match=f"out.zarr has no {missing}; give what xreg run wrote"):
        open_result(tmp_path / "out.zarr")


def test_a_run_says_how_far_it_is(raw, tmp_path):
    told = []
    run.register(raw, tmp_path / "out.zarr", lazy=True, progress=lambda *step: told.append(step))
    stages = list(dict.fromkeys(stage for stage, _, _ in told))
    assert stages == ["observe", "link", "locate"]
    for stage in stages:
        share = [done / total for name, done, total in told if name == stage]
        assert share == sorted(share)
        assert (share[0], share[-1]) == (0, 1)
    # It takes minutes, whatever the number of frames.
    assert sum(stage == "link" for stage, _, _ in told) > 3


def test_a_truth_is_no_result(tmp_path):
    record.simulate(PhantomConfig(**TINY), tmp_path / "raw.zarr", tmp_path / "truth.zarr")
    with pytest.raises(ValueError, match=r"truth.zarr has no raw, no settings; give what xreg run wrote"):
        open_result(tmp_path / "truth.zarr")
