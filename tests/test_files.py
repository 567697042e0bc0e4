import numpy as np
import pytest

from xreg import files


@pytest.fixture(params=["disk", "URL"])
def folder(request, tmp_path):
    return str(tmp_path) if request.param == "disk" else f"memory://{tmp_path}"


def test_files_are_written_read_listed_and_removed(folder):
    assert files.names(f"{folder}/a") == []
    files.write(f"{folder}/a/two", b"2")
    files.write(f"{folder}/a/one", b"1")
    assert files.names(f"{folder}/a") == ["one", "two"]
    assert files.read(f"{folder}/a/one") == b"1"
    files.write(f"{folder}/a/one", b"11")
    assert files.read(f"{folder}/a/one") == b"11"
    assert [(name.lstrip("/"), size) for name, size, _ in files.listing(folder)] == [("a/one", 2), ("a/two", 1)]
    files.remove(f"{folder}/a/one")
    files.remove(f"{folder}/a/one")
    with pytest.raises(FileNotFoundError):
        files.read(f"{folder}/a/one")
    with pytest.raises(FileNotFoundError):
        files.stamp(f"{folder}/a/one")


def test_only_one_can_create_a_file(folder):
    files.create(f"{folder}/b/lock", b"mine")
    with pytest.raises(FileExistsError):
        files.create(f"{folder}/b/lock", b"yours")
    assert files.read(f"{folder}/b/lock") == b"mine"


def test_arrays_come_back(folder):
    files.save_arrays(f"{folder}/run/setup.npz", a=np.arange(3), b=np.float32(0.5))
    found = files.load_arrays(f"{folder}/run/setup.npz")
    np.testing.assert_array_equal(found["a"], [0, 1, 2])
    assert found["b"] == np.float32(0.5)


def test_places_are_made_absolute_and_urls_left_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert files.absolute("raw.zarr") == str(tmp_path / "raw.zarr")
    assert files.absolute("s3://bucket/raw.zarr/") == "s3://bucket/raw.zarr"


def test_urls_of_an_unknown_kind_are_refused():
    with pytest.raises(ValueError, match=r"nowhere://a/b cannot be reached .*; for s3:// URLs: pip install"):
        files.read("nowhere://a/b")
