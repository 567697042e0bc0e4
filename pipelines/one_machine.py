"""Register a measurement on one machine, look at what failed, and use the result lazily.

    python pipelines/one_machine.py raw.zarr result.zarr

The raw store comes from `xreg ingest` or `xreg simulate`. If this is killed, the same command goes on where it stopped.
"""

import argparse
from pathlib import Path

import numpy as np

import xreg
from xreg.plainly import plain_errors
from xreg.result import failures
from xreg.workers import cores


def main(raw: str, out: str, workers: int | None = None) -> None:
    """Register `raw` into `out` and write edge energies over scans as a table beside it."""
    # One process per core. Each holds one block of frames at a time, so that memory does not grow with the measurement.
    # With a GPU, workers=0 is better: threads of one process take turns on it and read ahead meanwhile.
    workers = cores() if workers is None else workers
    interrupted = Path(f"{out}.partial").exists()
    result = xreg.register(raw, out, workers=workers, resume=interrupted,
                           progress=lambda stage, done, total: print(f"\r{stage} {done}/{total}  ", end="", flush=True))
    print()

    # Bad frames and blocks never stop a run; they are listed, and left out of everything that follows.
    for line in failures(result):
        print("failed:", line)

    # From here on all is lazy: stacks and maps are dask arrays, and only what is asked for is read. One particle's map
    # of one scan is one chunk; a loop over particles never holds more than one.
    with Path(out).with_suffix(".csv").open("w") as table:
        table.write("particle,scan,median_edge_energy_eV,fitted_pixels\n")
        for particle in range(result.sizes["particle"]):
            for scan in range(result.sizes["scan"]):
                edge = result["edge_energy"].isel(particle=particle, scan=scan).values
                known = edge[np.isfinite(edge)]
                median = f"{np.median(known):.3f}" if known.size else "nan"
                table.write(f"{particle},{scan},{median},{known.size}\n")

    # How the electrode deformed: every particle's motion without the part that all have in common.
    for particle, motion in enumerate(result["nonrigid"].values):
        known = motion[np.isfinite(motion).all(axis=-1)]
        if not known.size:
            print(f"particle {particle}: how it moved against the others is not known")
            continue
        dy, dx = known[-1]
        print(f"particle {particle}: moved by {dy:+.2f} px down and {dx:+.2f} px right against the others")


# Worker processes import this file anew; without this line each of them would start a run of its own.
if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("raw")
    parser.add_argument("out")
    options = parser.parse_args()
    with plain_errors(go_on="go on with the same command"):
        main(options.raw, options.out)
