"""Register a measurement on workers of your own that are reached through an encrypted connection.

Dask runs whatever code reaches its ports. On a network that is not yours alone, let it talk to those only who hold a
certificate. Make one, copy the folder to the machines that take part, and keep it as you keep an ssh key:

    pip install 'distributed' cryptography
    python pipelines/encrypted.py certificate keys

Then start the scheduler on one machine and any number of workers on others, now or later:

    export DASK_CONFIG=keys
    dask scheduler --protocol tls
    dask worker tls://first-machine:8786 --nthreads 1 --nworkers 16

and register from anywhere, with the same variable set; so does `xreg run RAW OUT --scheduler tls://first-machine:8786`:

    DASK_CONFIG=keys python pipelines/encrypted.py run raw.zarr result.zarr tls://first-machine:8786
"""

import argparse
from pathlib import Path

import xreg
from xreg.plainly import plain_errors
from xreg.result import failures


def certificate(folder: str) -> None:
    """Write a certificate, its key, and the settings that make Dask use them and refuse everything else."""
    from distributed.security import Security

    made, place = Security.temporary(), Path(folder).absolute()
    place.mkdir(mode=0o700, parents=True)
    # The certificate vouches for itself: it is its own authority, and all who take part share it.
    for name, text in (("certificate.pem", made.tls_ca_file), ("key.pem", made.tls_client_key)):
        (place / name).touch(mode=0o600)
        (place / name).write_text(text)
    both = f"{{cert: {place}/certificate.pem, key: {place}/key.pem}}"
    (place / "dask.yaml").write_text(
        "distributed:\n  comm:\n    require-encryption: true\n    tls:\n"
        f"      ca-file: {place}/certificate.pem\n"
        f"      scheduler: {both}\n      worker: {both}\n      client: {both}\n")


def run(raw: str, out: str, address: str) -> None:
    """Register `raw` into `out` on the workers of a scheduler."""
    # Nothing here is about encryption: xreg takes Dask's settings as they are.
    result = xreg.register(raw, out, scheduler=address, resume=Path(f"{out}.partial").exists())
    for line in failures(result):
        print("failed:", line)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("certificate").add_argument("folder")
    registering = commands.add_parser("run")
    for name in ("raw", "out", "address"):
        registering.add_argument(name)
    options = parser.parse_args()
    with plain_errors(go_on="go on with the same command"):
        if options.command == "certificate":
            certificate(options.folder)
        else:
            run(options.raw, options.out, options.address)
