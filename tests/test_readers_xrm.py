import shutil

import numpy as np
import pytest

from xreg.readers import as_ev, find_edge, open_source
from xreg.readers.xrm import NAME, read_frame, read_ssrl_xrm
from xreg.schema import RAW, FrameStatus, validate

SAMPLE = "rep01_20161456_ssrl-test-data_08324.0_eV_{}of003.xrm"


@pytest.fixture
def measured(shared_data):
    return shared_data / "ssrl62c"


@pytest.fixture
def small_series(measured, tmp_path):
    """Two frames and two references of the measured series, in a folder that a test may spoil."""
    names = [SAMPLE.format("001"), SAMPLE.format("002")]
    names += [f"rep01_00005{i}_ref_20161456_ssrl-test-data_08324.0_eV_00{i}of010.xrm" for i in (1, 2)]
    for name in names:
        shutil.copyfile(measured / name, tmp_path / name)
    return tmp_path


def truncate(path, share):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


def test_names_of_a_series():
    frame = NAME.fullmatch("rep12_a_b_08324.0_eV_001of003.xrm")
    assert (frame["rep"], frame["ref"], frame["energy"], frame["number"]) == ("12", None, "08324.0", "001")
    reference = NAME.fullmatch("rep01_000051_ref_a_b_08324.5_eV_007of010.xrm")
    assert (reference["ref"], reference["sequence"], reference["energy"]) == ("ref", "000051", "08324.5")
    assert NAME.fullmatch("chip00.xrm") is None


def test_measured_series_is_described(measured):
    series = read_ssrl_xrm(measured)
    assert len(series.frames) == 6
    assert [e.energy for e in series.frames] == [8324.0] * 3 + [8354.0] * 3
    assert all(e.exposure == pytest.approx(0.5) for e in series.frames)
    assert sum(not e.fault for e in series.references) == 16
    assert series.shape == (1024, 1024)
    assert {name[:12] for name in series.corrupt_files} == {"rep02_000072", "rep02_000182"}
    reasons = " ".join(series.corrupt_files.values())
    assert "holds no frame" in reasons
    assert "truncated" in reasons


def test_measured_series_as_a_raw_store(measured):
    source = open_source(measured)
    raw = source.dataset_template()
    validate(raw, RAW, "counts", "flats", "energy", "scan", "time", "exposure", "frame_status")
    validate(raw, RAW, "flat_energy", "flat_time", "flat_exposure")
    assert raw.counts.shape == (6, 1024, 1024)
    assert raw.flats.shape == (16, 1024, 1024)
    assert raw.counts.dtype == raw.flats.dtype == np.uint16
    assert (raw.attrs["element"], raw.attrs["edge"]) == ("Ni", "K")
    assert raw.attrs["magnification"] == "proportional-to-energy"
    assert raw.attrs["pixel_size_nm"] == pytest.approx(35.54 * 8324 / 9000)
    assert raw.attrs["pixel_size_energy_ev"] == 8324.0
    assert len(raw.attrs["corrupt_files"]) == 2
    assert (np.diff(raw.time.values) > np.timedelta64(0)).all()
    assert source.read_counts(0).mean() == pytest.approx(414.4, abs=0.1)
    assert source.read_flat(3).mean() == pytest.approx(754.8, abs=0.1)


def test_truncated_frame_keeps_its_place(small_series):
    truncate(small_series / SAMPLE.format("001"), 0.5)
    source = open_source(small_series)
    assert source.table.frame_status.values.tolist() == [FrameStatus.CORRUPT, FrameStatus.OK]
    assert list(source.corrupt_files) == [SAMPLE.format("001")]
    assert not source.read_counts(0).any()
    assert source.read_counts(1).any()
    with pytest.raises(ValueError, match="not a whole OLE container"):
        read_frame(small_series / SAMPLE.format("001"))


def test_exposures_that_are_not_known_are_left_out(small_series, monkeypatch):
    from xreg.readers import xrm

    def entry(ole, name, *rest, plain=xrm._entry):
        return np.nan if name == "ExpTimes" else plain(ole, name, *rest)

    monkeypatch.setattr(xrm, "_entry", entry)
    source = open_source(small_series)
    assert not {"exposure", "flat_exposure"} & set(source.table.variables)
    assert any("do not say how long they were exposed" in notice for notice in source.notices)


@pytest.mark.parametrize("seed", range(8))
def test_damaged_bytes_never_crash(small_series, seed):
    path = small_series / SAMPLE.format("002")
    rng = np.random.default_rng(seed)
    data = bytearray(path.read_bytes())
    for at in rng.integers(0, 4096 if seed % 2 else len(data), 200):
        data[at] = rng.integers(256)
    path.write_bytes(data)
    source = open_source(small_series)
    assert source.read_counts(1).shape == source.frame_shape


def test_frame_of_another_shape_is_corrupt(small_series, shared_data):
    shutil.copyfile(shared_data / "dxchange" / "test_chip00.xrm", small_series / SAMPLE.format("003"))
    series = read_ssrl_xrm(small_series)
    fault = series.corrupt_files[SAMPLE.format("003")]
    assert "(512, 512)" in fault
    assert "(1024, 1024)" in fault


def test_file_that_changed_since(small_series, shared_data):
    source = open_source(small_series)
    shutil.copyfile(shared_data / "dxchange" / "test_chip00.xrm", small_series / SAMPLE.format("001"))
    with pytest.raises(ValueError, match=r"now holds a frame of \(512, 512\) px"):
        source.read_counts(0)


def test_nothing_to_read(tmp_path, small_series):
    with pytest.raises(ValueError, match="does not exist"):
        open_source(tmp_path / "nowhere")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ValueError, match="holds no frames that can be read"):
        open_source(empty)
    with pytest.raises(ValueError, match=r"holds no SSRL \.xrm file"):
        read_ssrl_xrm(empty)
    for path in small_series.glob("*_ref_*"):
        truncate(path, 0.3)
    with pytest.raises(ValueError, match="no open-beam reference that can be read"):
        open_source(small_series)
    for path in small_series.glob("*001of003.xrm"):
        path.unlink()
    for path in small_series.glob("*002of003.xrm"):
        truncate(path, 0.3)
    with pytest.raises(ValueError, match="no frame of a sample that can be read"):
        open_source(small_series)


def test_energies_in_kev_are_converted_with_a_notice():
    energy, notices = as_ev(np.array([8.324, 8.354]), "the energy")
    np.testing.assert_allclose(energy, [8324.0, 8354.0])
    assert "came in keV" in notices[0]
    assert as_ev(np.array([8324.0]), "the energy")[1] == ()


def test_edge_is_named_only_when_there_is_one():
    assert find_edge(np.array([8324.0, 8354.0])) == {"element": "Ni", "edge": "K"}
    assert find_edge(np.array([7000.0, 9000.0])) == {}
    assert find_edge(np.array([2000.0])) == {}
