"""The only package that knows Zarr: create, open, read and write whole blocks, and say what has been done.

All stores are Zarr v3 groups without consolidated metadata (open them with ``xr.open_zarr(path, consolidated=False)``).
Every chunk carries a checksum, so that a flipped bit is an error and not a number. Writes are whole blocks of the write
grid, asserted, since two tasks that share a chunk overwrite each other without a word. A place is a path or a URL that
fsspec knows; every process opens it for itself, and no graph carries a store that is open.
"""

from xreg.store.blocks import (
    Stored,
    chunk_length,
    declared,
    missing_chunks,
    read_block,
    read_rows,
    read_sound_rows,
    write_block,
)
from xreg.store.create import (
    Spec,
    begin,
    clear_arrays,
    create_arrays,
    create_group,
    create_raw,
    exists,
    finish,
    growing,
    is_group,
    refuse_unfinished,
    reopen,
    to_plain,
    write_tables,
)
from xreg.store.identity import digest, fingerprint
from xreg.store.opening import PICTURES, is_time, open_frames, open_store

__all__ = [
    "PICTURES",
    "Spec",
    "Stored",
    "begin",
    "chunk_length",
    "clear_arrays",
    "create_arrays",
    "create_group",
    "create_raw",
    "declared",
    "digest",
    "exists",
    "fingerprint",
    "finish",
    "growing",
    "is_group",
    "is_time",
    "missing_chunks",
    "open_frames",
    "open_store",
    "read_block",
    "read_rows",
    "read_sound_rows",
    "refuse_unfinished",
    "reopen",
    "to_plain",
    "write_block",
    "write_tables",
]
