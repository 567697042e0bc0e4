"""The benchmarks of long measurements run, on something tiny."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


def output_of(name, *arguments):
    program = Path(__file__).parents[1] / "benchmarks" / f"{name}.py"
    command = [sys.executable, program, *map(str, arguments)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


def test_scheduling():
    shown = output_of("scheduling", "--blocks", 30, "--most", 20, "--threads", 2, "--length", 2)
    assert "20 in " in shown
    assert "scheduler, CPU time per task" in shown
    assert "30 leaves, 2 levels" in shown


@pytest.mark.slow
def test_full_dataset(tmp_path):
    shown = output_of("full_dataset", tmp_path, "--scans", 1, "--energies", 8, "--side", 128, "--particles", 1,
                      "--radius", 11, 13, "--workers", 1)
    assert "particles found" in shown
    measured = json.loads((tmp_path / "measured.json").read_text())
    assert {"simulate", "set up", "observe", "link", "locate", "measure", "align", "fit"} <= set(measured["stages"])
    assert measured["frames"] == 8
    assert measured["stages"]["observe"]["tasks"] == 8
    assert measured["failed"] == 0
    assert measured["stages"]["observe"]["peak, MiB"]["worker 0"] > 50
    assert len((tmp_path / "memory.csv").read_text().splitlines()) > 2
