"""Recognise a raw store again: whether it is the one, and unchanged."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from xreg import files
from xreg.store.blocks import read_block, refuse_outage
from xreg.store.create import to_plain
from xreg.store.opening import PICTURES, open_group

#: Frames at most that are read to recognise a raw store again.
_SAMPLED = 6


def digest(*parts: Any) -> str:
    """Hash of arrays and plain values, the same in every process."""
    h = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            h.update(f"{part.dtype.str}{part.shape}".encode())
            h.update(np.ascontiguousarray(part).data if part.dtype.kind not in "OT" else str(part.tolist()).encode())
        else:
            h.update(json.dumps(to_plain(part), sort_keys=True).encode())
    return h.hexdigest()


def fingerprint(path: str | Path) -> dict[str, str]:
    """What a raw store is recognised by.

    `content` (attributes, all small variables, a few frames, and names and sizes of the arrays' files) stays the same
    when a store is copied elsewhere; `files` (the times of change, or entity tags, too) tells any change in place.
    """
    group = open_group(path)
    found = files.listing(str(path))
    arrays = dict(group.arrays())
    # Disks and URLs list their files in different orders.
    sizes = sorted([name.lstrip("/"), size] for name, size, _ in found)
    parts: list[Any] = [dict(group.attrs), [entry for entry in sizes if entry[0].partition("/")[0] in arrays]]
    for name, array in sorted(arrays.items()):
        parts.append([name, array.shape, str(array.dtype)])
        if name not in PICTURES:
            parts.append(read_block(path, name, ...))
        elif array.shape[0]:
            rows = np.unique(np.linspace(0, array.shape[0] - 1, _SAMPLED).astype(int))
            parts.extend(_readable(path, name, row) for row in rows)
    return {"content": digest(*parts), "files": digest(found)}


def _readable(path: str | Path, name: str, row: int) -> Any:
    """One row, or a word for it where it is damaged: a damaged frame must not keep the others from being used."""
    try:
        return read_block(path, name, int(row))
    except OSError as error:
        refuse_outage(path, error)
        return "damaged"
