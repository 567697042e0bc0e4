import errno
import multiprocessing

import pytest

from xreg import files
from xreg.journal import Journal


@pytest.fixture(params=["disk", "URL"])
def journal(request, tmp_path):
    if request.param == "URL":
        return Journal.of(f"memory://{tmp_path}")
    (tmp_path / "run").mkdir()
    return Journal.of(tmp_path)


def test_a_marker_says_what_was_recorded(journal):
    assert journal.done("observe", "0") is None
    journal.mark("observe", "0", {"checksum": "abc"})
    assert journal.done("observe", "0") == {"checksum": "abc"}
    assert journal.all_done("observe") == {"0": {"checksum": "abc"}}
    assert journal.all_done("align") == {}
    assert journal.any_done("observe")
    assert not journal.any_done("align")


def test_a_torn_marker_counts_as_not_done(journal):
    journal.mark("observe", "0", {"checksum": "abc"})
    files.write(f"{journal.root}/done/observe/0.json", b'{"check')
    assert journal.done("observe", "0") is None
    assert journal.all_done("observe") == {}


def test_success_wipes_out_an_earlier_failure(journal):
    journal.fail("align", "3", "bad luck")
    assert journal.failed("align") == {"3": "bad luck"}
    journal.mark("align", "3", {})
    assert journal.failed("align") == {}


def test_forget(journal):
    journal.mark("fit", "0-0", {})
    journal.fail("fit", "0-1", "why")
    journal.forget("fit")
    assert journal.all_done("fit") == journal.failed("fit") == {}


def test_plan_round_trip(journal):
    with pytest.raises(ValueError, match="holds no plan of an interrupted run"):
        journal.plan()
    journal.write_plan({"a": [1, 2]})
    assert journal.plan() == {"a": [1, 2]}
    with pytest.raises(FileExistsError):
        journal.write_plan({"a": 3})
    assert journal.plan() == {"a": [1, 2]}


def _try_lock(root, answers):
    try:
        with Journal(root).lock():
            answers.put("got it")
    except ValueError as error:
        answers.put(str(error))


def test_on_a_disk_without_locks_a_lease_serves(journal, monkeypatch):
    def nothing(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("xreg.journal.fcntl.flock", nothing)
    monkeypatch.setattr("xreg.journal.RENEWED", 0.05)
    monkeypatch.setattr("xreg.journal.EXPIRED", 1.0)
    files.create(f"{journal.root}/plan.json", b"{}")
    with journal.lock() as check:
        check()
        with pytest.raises(ValueError, match="another run is writing"), journal.lock():
            pass
    with journal.lock():
        pass


def test_only_one_process_holds_the_lock(tmp_path):
    (tmp_path / "run").mkdir()
    journal = Journal.of(tmp_path)
    context = multiprocessing.get_context("spawn")
    answers = context.SimpleQueue()
    with journal.lock():
        other = context.Process(target=_try_lock, args=(journal.root, answers))
        other.start()
        other.join()
    assert "another run is writing" in answers.get()
    with journal.lock():
        pass
