"""Programs in benchmarks/ and pipelines/ refuse bad usage in a sentence, with exit code 2, before they measure."""

import json
import runpy
import sys
from pathlib import Path

import pytest

from xreg import record
from xreg.models.dual_unet import UNet, UNetConfig
from xreg.models.weights import save
from xreg.plainly import plain_errors
from xreg.synthetic import PhantomConfig

ROOT = Path(__file__).parents[1]


@pytest.fixture
def started(tmp_path, monkeypatch, capsys):
    """Start a program as from a shell, in a folder that holds a file: exit code, stdout, stderr in one line."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "afile").write_text("")

    def start(command):
        name, *arguments = command.split()
        path = str(ROOT / name)
        monkeypatch.setattr(sys, "argv", [path, *arguments])
        with pytest.raises(SystemExit) as left:
            runpy.run_path(path, run_name="__main__")
        shown = capsys.readouterr()
        return left.value.code, shown.out, " ".join(shown.err.split())

    return start


@pytest.mark.parametrize(("command", "sentence"), [
    ("pipelines/one_machine.py", "the following arguments are required: raw, out"),
    ("pipelines/one_machine.py nowhere o", "one_machine.py: there is no Zarr store at nowhere."),
    ("pipelines/several_gpus.py", "the following arguments are required: raw, out"),
    ("pipelines/slurm.py nowhere oo", "slurm.py: there is no Zarr store at nowhere."),
    ("pipelines/slurm.py nowhere oo --jobs 0", "argument --jobs: '0' came; need a whole number of at least 1."),
    ("pipelines/figure3.py afile", "argument folder: afile is a file; need a folder"),
    ("pipelines/encrypted.py", "the following arguments are required: command"),
    ("pipelines/encrypted.py foo", "invalid choice: 'foo'"),
    ("pipelines/encrypted.py run raw", "the following arguments are required: out, address"),
    ("benchmarks/detection.py --frames -1", "argument --frames: '-1' came; need a whole number of at least 1."),
    ("benchmarks/detection.py --noise a", "argument --noise: 'a' came; need a number from 0.4 to 100."),
    ("benchmarks/detection.py --noise 1,-5", "argument --noise: '-5' came; need a number from 0.4 to 100."),
    ("benchmarks/detection.py --noise nan", "argument --noise: 'nan' came; need a number from 0.4 to 100."),
    ("benchmarks/detection.py --elongation 0", "argument --elongation: '0' came; need a number of at least 1."),
    ("benchmarks/detection.py --elongation inf", "argument --elongation: 'inf' came; need a number of at least 1."),
    ("benchmarks/detection.py --frames 1 --detector nowhere", "detection.py: there are no weights at nowhere;"),
    ("benchmarks/detection.py --frames 1 --noise 1 --real nowhere", "detection.py: there is no Zarr store at nowhere."),
    ("benchmarks/fusion.py --frames 1 --noise 1 --run nowhere", "nowhere/log.jsonl is no log of a training; give the"),
    ("benchmarks/fusion.py --noise 0", "argument --noise: '0' came"),
    ("benchmarks/registration.py afile", "argument folder: afile is a file; need a folder"),
    ("benchmarks/registration.py f --every 0", "argument --every: '0' came"),
    ("benchmarks/registration.py f --counts 100000", "registration.py: counts 100000 and dark_level 100 are more than"),
    ("benchmarks/known_motion.py nowhere empty/k", "known_motion.py: nowhere does not exist; need a folder"),
    ("benchmarks/known_motion.py nowhere k --energy 8", "argument --energy: '8' came; need a number of at least 100."),
    ("benchmarks/xanes_accuracy.py afile", "argument folder: afile is a file; need a folder"),
    ("benchmarks/xanes_speed.py --pixels -1 --threads 0", "argument --pixels: '-1' came"),
    ("benchmarks/xanes_speed.py --threads 0", "argument --threads: '0' came"),
    ("benchmarks/scheduling.py --blocks 0", "argument --blocks: '0' came"),
    ("benchmarks/full_dataset.py afile", "argument folder: afile is a file; need a folder"),
    ("benchmarks/full_dataset.py f --radius 9 5", "full_dataset.py: radius is from 9 to 5; need the smaller number"),
    ("benchmarks/epochs.py empty/e --epochs a", "argument --epochs: 'a' came; need a whole number of at least 1."),
    ("benchmarks/epochs.py afile/e", "afile/e cannot be used (Not a directory); check the path"),
])
def test_bad_usage(started, tmp_path, command, sentence):
    if "slurm" in command:
        pytest.importorskip("dask_jobqueue")
    code, out, err = started(command)
    assert code == 2
    assert sentence in err
    assert out == ""
    assert {p.name for p in tmp_path.iterdir()} == {"afile"}


def test_several_gpus_without_one(started, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    code, _, err = started("pipelines/several_gpus.py raw out")
    assert code == 2
    assert err == "several_gpus.py: there is no GPU here that torch can use; run pipelines/one_machine.py instead."


def test_a_measurement_that_does_not_suit_is_refused_before_anything_is_measured(started, tmp_path):
    record.simulate(PhantomConfig(shape=(64, 72), n_scans=1, energies=(8400.0,), n_particles=0, flats_per_energy=1,
                                  n_darks=1), tmp_path / "raw.zarr", tmp_path / "there.zarr")
    code, out, err = started("benchmarks/detection.py --frames 1 --noise 1 --real raw.zarr")
    assert (code, out) == (2, "")
    assert "all frames of raw.zarr are at 8400 eV; need frames at two energies or more." in err
    code, _, err = started("benchmarks/known_motion.py raw.zarr k --window 0 50 64 32")
    assert code == 2
    assert "the window 0 50 64 32 is not within the measured frame, which has 64x72 pixels; need Y X HEIGHT" in err
    # What there is already is not written over.
    code, _, err = started("pipelines/one_machine.py raw.zarr there.zarr")
    assert code == 2
    assert "there.zarr exists already; choose another name" in err


def test_fusion_refuses_what_is_no_fusion(started, tmp_path):
    save(UNet(UNetConfig(width=2)), tmp_path / "one.safetensors", {})
    code, out, err = started("benchmarks/fusion.py --refiner one.safetensors --frames 1 --noise 1")
    assert (code, out) == (2, "")
    assert "one.safetensors are of one network; need those of a Dual U-Net" in err
    (tmp_path / "log.jsonl").write_text(json.dumps({"step": 1, "loss": 0.5}))
    code, out, err = started("benchmarks/fusion.py --run . --frames 1 --noise 1")
    assert (code, out) == (2, "")
    assert "log.jsonl is no log of a training" in err


def test_errors_in_a_sentence(capsys):
    for raised, code, said in [(ValueError("two\nlines"), 2, "p: two lines"), (OSError(), 2, "p: OSError"),
                               (FileExistsError(17, "File exists", "keys"), 2, "p: keys cannot be used (File exists); "
                                "check the path, and that you may read and write there."),
                               (ModuleNotFoundError("No module named 'tea'", name="tea"), 2, "p: the package tea is "
                                "needed and not installed; install it with pip, and start again."),
                               (KeyboardInterrupt(), 130, "p: stopped; go on with it.")]:
        with pytest.raises(SystemExit) as left, plain_errors("p", go_on="go on with it"):
            raise raised
        assert left.value.code == code
        assert capsys.readouterr().err == f"{said}\n"
    with pytest.raises(TypeError), plain_errors("p"):
        raise TypeError  # a mistake in the program, whose place must be seen
