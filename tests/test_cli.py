"""Commands in this process, with thresholds in place of networks where a run is needed."""

import functools
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import xarray as xr
import zarr
from click.testing import CliRunner

from xreg import cli, store, synthetic
from xreg.models.weights import shipped
from xreg.result import open_result
from xreg.schema import FrameStatus

pytestmark = pytest.mark.usefixtures("thresholds")

TINY = {"shape": (96, 96), "n_particles": 2, "radius": (10.0, 13.0), "touching": 0, "flats_per_energy": 1, "n_darks": 1,
        "deformation": 1.0, "jumps": 0.0}


def xreg(*arguments):
    """Exit code, standard output and standard error of a command."""
    result = CliRunner().invoke(cli.main, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture(scope="module")
def demo(thresholds, tmp_path_factory):
    """A demo of a tiny phantom: its folder, and what it printed."""
    place = tmp_path_factory.mktemp("demo") / "demo"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synthetic, "PhantomConfig", functools.partial(synthetic.PhantomConfig, **TINY))
        return place, xreg("demo", place, "--scans", 1, "--energies", 12, "--workers", 0, "--device", "cpu")


def test_help_is_quick_and_lists_the_commands():
    code = "import sys; import xreg.cli; print([m for m in ('torch', 'dask', 'zarr', 'xarray') if m in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
    code, out, _ = xreg("--help")
    assert code == 0
    for name in ("demo", "simulate", "ingest", "check", "run", "train", "evaluate", "report"):
        assert name in out


def test_demo_does_everything(demo):
    place, (code, out, err) = demo
    assert code == 0, err
    assert "particles found" in out
    assert "2 of 2" in out
    assert "observe" in err
    assert {p.name for p in place.iterdir()} == {"raw.zarr", "truth.zarr", "result.zarr", "report.html"}


def test_demo_does_not_overwrite(demo):
    code, _, err = xreg("demo", demo[0])
    assert code == 2
    assert "exists already; choose another name or delete it" in err


def test_evaluate_and_report(demo, tmp_path):
    place, _ = demo
    code, out, _ = xreg("evaluate", place / "result.zarr", place / "truth.zarr", "--particles")
    assert code == 0
    assert "position RMS" in out
    code, out, _ = xreg("report", place / "result.zarr", tmp_path / "page.html")
    assert code == 0
    assert (tmp_path / "page.html").stat().st_size > 1000


def test_simulate_with_options(tmp_path):
    code, _, err = xreg("simulate", tmp_path / "raw.zarr", "--truth", tmp_path / "truth.zarr", "--scans", 1,
                        "--energies", 6, "--size", 64, 80, "--particles", 1, "--radius", 9, 10, "--touching", 0,
                        "--elongation", 1.5, 2, "--only", "noise", "--seed", 3, "--workers", 0)
    assert code == 0, err
    ds = store.open_frames(tmp_path / "raw.zarr")
    assert ds.counts.shape == (6, 64, 80)
    assert ds.attrs["simulation"]["seed"] == 3
    assert ds.attrs["simulation"]["crackle"] == 0
    assert ds.attrs["simulation"]["elongation"] == [1.5, 2.0]
    assert store.open_store(tmp_path / "truth.zarr").sizes["frame"] == 6


def test_simulate_says_how_many_particles_found_a_place(tmp_path):
    code, out, err = xreg("simulate", tmp_path / "raw.zarr", "--scans", 1, "--energies", 2, "--size", 96, 96,
                          "--particles", 60, "--radius", 9, 10, "--only", "noise", "--workers", 0)
    assert code == 0, err
    assert re.match(r"note: only \d+ of 60 particles found a place; a larger field of view or smaller", out)


def test_run_and_its_exit_codes(demo, tmp_path):
    raw, out = demo[0] / "raw.zarr", tmp_path / "out.zarr"
    code, text, _ = xreg("run", raw, out, "--lazy", "--workers", 0, "--frames", "0:6", "--device", "cpu")
    assert code == 0
    assert "2 particles in 6 frames" in text
    assert open_result(out).sizes["frame"] == 6
    code, _, err = xreg("run", raw, out, "--workers", 0)
    assert code == 2
    assert err.startswith("xreg: ")
    assert "exists already" in err
    assert "Traceback" not in err
    code, _, err = xreg("run", raw, out, "--workers", 0, "--resume", "--device", "cpu")
    assert code == 2
    assert "the choice of frames changed" in err


def test_report_of_a_part_of_the_frames(demo, tmp_path):
    raw, out = demo[0] / "raw.zarr", tmp_path / "out.zarr"
    xreg("run", raw, out, "--workers", 0, "--frames", "3:11", "--device", "cpu")
    code, text, err = xreg("report", out, tmp_path, "--truth", demo[0] / "truth.zarr")
    assert code == 0, err
    assert f"report: {tmp_path / 'out.html'}" in text
    assert (tmp_path / "out.html").stat().st_size > 1000


def test_the_reference_particle_is_chosen_on_the_command_line(demo, tmp_path):
    raw, out = demo[0] / "raw.zarr", shutil.copytree(demo[0] / "result.zarr", tmp_path / "out.zarr")
    common = ("run", raw, out, "--workers", 0, "--resume", "--device", "cpu", "--reference-particle")
    code, text, err = xreg(*common, 1)
    assert code == 0, err
    said = "The rigid part is the motion of particle 1, which was chosen as the reference."
    assert said in text
    assert said in xreg("evaluate", out, demo[0] / "truth.zarr")[1]
    xreg("report", out, tmp_path / "page.html")
    assert said.rstrip(".") in (tmp_path / "page.html").read_text()
    code, _, err = xreg(*common, 7)
    assert code == 2
    assert "reference particle 7 is not there, particles 0 to 1 were found" in err


def test_bad_frames_are_listed_and_give_exit_code_3(demo, tmp_path):
    raw = shutil.copytree(demo[0] / "raw.zarr", tmp_path / "raw.zarr")
    zarr.open_group(raw)["counts"][3] = 0
    code, _, err = xreg("run", raw, tmp_path / "out.zarr", "--workers", 0, "--lazy", "--device", "cpu")
    assert code == 3
    assert "frames and blocks that failed: 1" in err
    assert "frame 3: " in err


def test_check_says_what_is_in_a_store(demo):
    code, out, err = xreg("check", demo[0] / "raw.zarr", "--device", "cpu")
    assert code == 0, err
    for words in ("12 of 96 x 96 pixels", "Ni K", "memory per process", "time of a run", "nothing wrong found"):
        assert words in out


def test_check_names_a_bad_frame_once(demo, tmp_path):
    raw = shutil.copytree(demo[0] / "raw.zarr", tmp_path / "raw.zarr")
    status = np.zeros(12, np.int8)
    status[5] = FrameStatus.CORRUPT
    names = [f"f{k}.xrm" for k in range(12)]
    lost = ["f5.xrm: truncated", "ref_1.xrm: truncated"]
    store.write_tables(raw, xr.Dataset({"frame_status": ("frame", status)},
                                       attrs={"source_files": names, "corrupt_files": lost, "element": "Fe"}))
    code, _, err = xreg("check", raw, "--device", "cpu")
    assert code == 3
    assert "problems: 3" in err
    assert err.count("f5.xrm") == 1
    assert "file ref_1.xrm: truncated" in err
    assert "edge energies cannot be fitted: e0 is 7112 eV" in err


def test_check_says_what_is_wrong(demo, tmp_path):
    raw = shutil.copytree(demo[0] / "raw.zarr", tmp_path / "raw.zarr")
    group = zarr.open_group(raw)
    del group.attrs["pixel_size_nm"], group["flat_exposure"]
    group["counts"][5] = 0
    group["scan"][:] = np.r_[np.zeros(8, int), np.ones(4, int)]
    shard = next((raw / "counts/c/0/0").iterdir())
    data = bytearray(shard.read_bytes())
    data[100] ^= 4
    shard.write_bytes(data)
    code, _, err = xreg("check", raw, "--device", "cpu")
    assert code == 3
    for words in ("attribute pixel_size_nm is missing", "there is only exposure of exposure and flat_exposure",
                  "scans have 4 to 8 frames", "frame 5 is ", "data are damaged"):
        assert words in err


@pytest.mark.parametrize(("arguments", "words"), [
    (("run", "nothing", "out"), "there is no Zarr store at nothing"),
    (("check", "nothing"), "there is no Zarr store at nothing"),
    (("ingest", "nothing", "out"), "nothing does not exist"),
    (("evaluate", "nothing", "nothing"), "there is no Zarr store at nothing"),
    (("report", "nothing"), "there is no Zarr store at nothing"),
    (("simulate", "out", "--only", "magic"), "unknown distortions"),
    (("simulate", "out", "--radius", "20", "10"), "need the smaller number first"),
    (("simulate", "out", "--only", "jitter", "--bad-frames", "0.5"), "--only switches on the named distortions alone"),
    (("simulate", "out", "--truth", "out"), "the truth is to be written to out, into the raw store out"),
    (("simulate", "out", "--truth", "out/truth"), "the truth is to be written to out/truth, into the raw store out"),
    (("simulate", "/proc/xreg/out", "--workers", "0"), "/proc/xreg cannot be used (No such file or directory); check"),
    (("train", "refine", "folder", "--detector", "nothing"), "there are no weights at nothing"),
    (("train", "refine", "folder", "--start", shipped("detector").path),
     "are those of a generator; need those of a refiner, a dual_unet or unet"),
    (("train", "refine", "folder", "--frames", "raw"), "--frames is for xreg train detect, not for xreg train refine"),
    (("train", "detect", "folder", "--detector", "weights"), "--detector is for xreg train refine, not for"),
])
def test_bad_input_is_one_sentence_and_exit_code_2(tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    code, _, err = xreg(*arguments)
    assert code == 2
    assert err.startswith("xreg: ")
    assert words in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [
    ("run",), ("run", "a", "b", "--workers", "-1"), ("paint",), ("train", "draw", "x"),
    ("simulate", "a", "--seed", "-1"), ("report", "a", "s3://bucket/page.html"), ("ingest", "s3://bucket/files", "a"),
])
def test_bad_usage_is_exit_code_2(arguments):
    code, _, err = xreg(*arguments)
    assert code == 2
    assert "Traceback" not in err


def test_an_address_where_nothing_answers_is_one_sentence():
    code, _, err = xreg("check", "http://localhost:1/raw.zarr")
    assert code == 2
    assert err.count("\n") == 1
    assert "check the address" in err


def test_report_takes_the_place_of_nothing_but_a_page(demo, tmp_path):
    result, notes, page = demo[0] / "result.zarr", tmp_path / "notes.txt", tmp_path / "page.html"
    notes.write_text("three months of work")
    for place, words in ((notes, "exists already and is no page of xreg's"),
                         (demo[0] / "raw.zarr" / "zarr.json", "lies inside of a Zarr store; choose a place outside"),
                         (demo[0] / "raw.zarr", "lies inside of a Zarr store")):
        code, _, err = xreg("report", result, place)
        assert code == 2
        assert words in err
    assert notes.read_text() == "three months of work"
    for _ in range(2):
        code, _, err = xreg("report", result, page)
        assert code == 0, err


def test_report_shows_no_frames_of_another_measurement(demo, tmp_path):
    place = shutil.copytree(demo[0], tmp_path / "demo")
    group = zarr.open_group(place / "result.zarr")
    group.attrs["raw"] = {**group.attrs["raw"], "path": str(place / "raw.zarr")}
    code, out, _ = xreg("report", place / "result.zarr")
    assert (code, "note:" in out) == (0, False)
    zarr.open_group(place / "raw.zarr")["energy"][0] += 1
    code, out, _ = xreg("report", place / "result.zarr")
    assert code == 0
    assert "note: the raw store is not there or has changed" in out


def test_odd_attributes_of_a_raw_store_do_no_harm(demo, tmp_path):
    raw = shutil.copytree(demo[0] / "raw.zarr", tmp_path / "raw.zarr")
    group = zarr.open_group(raw)
    group.attrs.update({"source_files": 5, "corrupt_files": {"a": "b"}})
    group["counts"][3] = 0
    code, _, err = xreg("run", raw, tmp_path / "out.zarr", "--lazy", "--workers", 0, "--device", "cpu")
    assert code == 3
    assert "frame 3: blank" in err
    assert "{'a': 'b'}" in err


def test_ingest_lists_lost_files_and_fails_for_lost_frames_only(tmp_path, monkeypatch):
    from tests.test_record import Files
    from xreg import record

    monkeypatch.setattr("xreg.readers.open_source", lambda path: Files())
    record._beamline.cache_clear()
    code, out, err = xreg("ingest", "somewhere", tmp_path / "raw.zarr", "--workers", 0)
    assert code == 3
    assert "note: energies came in keV" in out
    assert "flat_3.xrm: truncated" in err
    monkeypatch.setattr(Files, "read_counts", Files.read_flat)
    record._beamline.cache_clear()
    code, _, err = xreg("ingest", "somewhere", tmp_path / "other.zarr", "--workers", 0)
    assert code == 0
    assert "flat_3.xrm: truncated" in err
    record._beamline.cache_clear()


def test_train_takes_the_frames_that_can_be_used(demo, tmp_path):
    raw = shutil.copytree(demo[0] / "raw.zarr", tmp_path / "raw.zarr")
    counts = zarr.open_group(raw)["counts"]
    counts[4] = 0
    frames = cli._own_frames(raw)
    assert len(frames) == 11
    assert all(np.isfinite(f).any() for f in frames)
    counts[:] = 0
    with pytest.raises(ValueError, match=r"none of 12 frames of .* can be used; xreg check"):
        cli._own_frames(raw)


def test_train_hands_its_options_on(tmp_path, monkeypatch):
    from xreg.models.weights import Weights
    from xreg.training import detector

    asked = {}

    def train_detector(folder, config, **options):
        asked.update(folder=folder, seed=config.seed, **options)
        return Weights(str(folder / "detector.safetensors"), "1" * 64)

    monkeypatch.setattr(detector, "train_detector", train_detector)
    code, out, _ = xreg("train", "detect", tmp_path, "--seed", 7, "--device", "cpu")
    assert code == 0
    assert asked.pop("command").startswith("xreg")
    assert asked == {"folder": tmp_path, "seed": 7, "device": "cpu", "own_frames": None, "start": None}
    assert "1" * 64 in out
    start = shipped("detector")
    assert xreg("train", "detect", tmp_path, "--start", start.path)[0] == 0
    assert asked["start"] == start
