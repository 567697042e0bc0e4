"""Reading stores that somebody else made: nothing is allocated on the word of a file, and no link leads out of a store.

A chunk of a few kB may claim to hold GB, and decoders believe it. Here each claim is compared with what the array's
shape calls for before the chunk is decoded. Codecs that are not known to be harmless are refused.
"""

import errno
import os
import struct
import zlib
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numcodecs.abc
import zarr
from zarr.codecs import (
    BloscCodec,
    BytesCodec,
    Crc32cCodec,
    GzipCodec,
    ShardingCodec,
    TransposeCodec,
    VLenUTF8Codec,
    ZstdCodec,
)
from zarr.storage import FsspecStore, LocalStore, WrapperStore

from xreg import files

#: Compressors of Zarr v2 whose claims can be checked, and filters that keep the size.
_COMPRESSORS_V2 = ("blosc", "zstd", "gzip", "zlib", "lz4")
_FILTERS_V2 = ("delta", "shuffle", "vlen-utf8")
_HARMLESS = (BytesCodec, Crc32cCodec, TransposeCodec, VLenUTF8Codec)


def open_reader(place: str) -> WrapperStore:
    """A store for reading only, opened anew, out of which no link leads."""
    return _Inside(FsspecStore.from_url(place, read_only=True, storage_options=files.FRESH) if files.is_url(place)
                   else LocalStore(place, read_only=True))


def guarded(array: zarr.Array) -> zarr.Array:
    """The same array, whose chunks are looked at before they are decoded.

    Raises
    ------
    ValueError
        If it is encoded in a way that cannot be checked.
    """
    metadata = array.metadata
    if metadata.zarr_format == 3:
        metadata = replace(metadata, codecs=tuple(_bounded(codec, array) for codec in metadata.codecs))
    else:
        used = [c.codec_id for c in (metadata.compressor, *(metadata.filters or ())) if c is not None]
        known = [*(_COMPRESSORS_V2 if metadata.compressor is not None else ()), *_FILTERS_V2]
        for name in used:
            if name not in known:
                raise _unknown(name, array)
        if metadata.compressor is not None:
            most = product(metadata.chunks) * array.dtype.itemsize
            metadata = replace(metadata, compressor=_BoundedV2(metadata.compressor, most))
    return zarr.Array(zarr.AsyncArray(metadata=metadata, store_path=array.store_path))


def product(numbers: Iterable[int]) -> int:
    """Product of whole numbers, however large."""
    product = 1
    for number in numbers:
        product *= int(number)
    return product


def check_claim(kind: str, data: bytes | memoryview, most: int) -> None:
    """Refuse a compressed chunk that claims to hold more than it should.

    Parameters
    ----------
    kind : {"blosc", "zstd", "lz4", "gzip", "zlib"}
        How it was compressed.
    data : bytes
        The compressed chunk.
    most : int
        Bytes that the array's shape calls for.

    Raises
    ------
    ValueError
        If it claims more, or does not say.
    """
    claimed = _CLAIMS[kind](data, most)
    if claimed is None or claimed > most + most // 8 + 1024:
        says = "does not say how much it holds" if claimed is None else f"claims to hold {claimed} bytes"
        msg = f"a chunk of {len(data)} bytes {says}, where {most} bytes belong"
        raise ValueError(msg)


# -- what chunks claim -----------------------------------------------------------------------------------------------


def _claim_of_blosc(data: bytes | memoryview, _most: int) -> int | None:
    return struct.unpack_from("<I", data, 4)[0] if len(data) >= 16 else None


def _claim_of_lz4(data: bytes | memoryview, _most: int) -> int | None:
    return struct.unpack_from("<I", data)[0] if len(data) >= 4 else None


def _claim_of_zstd(data: bytes | memoryview, _most: int) -> int | None:
    """Content size in the frame's header (RFC 8878, 3.1.1.1)."""
    if len(data) < 6 or bytes(data[:4]) != b"\x28\xb5\x2f\xfd":
        return None
    descriptor = data[4]
    single, size = bool(descriptor & 0x20), descriptor >> 6
    start = 5 + (not single) + (0, 1, 2, 4)[descriptor & 3]
    length = (int(single), 2, 4, 8)[size]
    if not length or len(data) < start + length:
        return None
    return int.from_bytes(data[start : start + length], "little") + (256 if length == 2 else 0)


def _claim_of_deflate(data: bytes | memoryview, most: int) -> int | None:
    """Decoded as far as the limit, since the stream itself does not say."""
    limit = most + most // 8 + 1025
    try:
        return len(zlib.decompressobj(47).decompress(data, limit))
    except zlib.error:
        return None


_CLAIMS = {"blosc": _claim_of_blosc, "lz4": _claim_of_lz4, "zstd": _claim_of_zstd, "gzip": _claim_of_deflate,
           "zlib": _claim_of_deflate}


# -- codecs that check -----------------------------------------------------------------------------------------------


class _Bounded:
    """Check every chunk before it is decoded; mixed into the codecs of Zarr v3."""

    kind: str

    def _check(self, chunk: Any, spec: Any) -> None:
        most = product(spec.shape) * spec.dtype.to_native_dtype().itemsize
        check_claim(self.kind, memoryview(chunk.as_numpy_array()).cast("B"), most)

    async def _decode_single(self, chunk_bytes: Any, chunk_spec: Any) -> Any:
        self._check(chunk_bytes, chunk_spec)
        return await super()._decode_single(chunk_bytes, chunk_spec)

    def _decode_sync(self, chunk_bytes: Any, chunk_spec: Any) -> Any:
        self._check(chunk_bytes, chunk_spec)
        return super()._decode_sync(chunk_bytes, chunk_spec)


class _Blosc(_Bounded, BloscCodec):
    kind = "blosc"


class _Zstd(_Bounded, ZstdCodec):
    kind = "zstd"


class _Gzip(_Bounded, GzipCodec):
    kind = "gzip"


class _BoundedV2(numcodecs.abc.Codec):
    """The same for a codec of Zarr v2."""

    codec_id = "xreg-bounded"

    def __init__(self, inner: numcodecs.abc.Codec, most: int):
        self.inner, self.most = inner, most

    def encode(self, buf: Any) -> Any:
        return self.inner.encode(buf)

    def decode(self, buf: Any, out: Any = None) -> Any:
        check_claim(self.inner.codec_id, memoryview(buf).cast("B"), self.most)
        return self.inner.decode(buf, out)


def _bounded(codec: Any, array: zarr.Array) -> Any:
    for plain, checking in ((BloscCodec, _Blosc), (ZstdCodec, _Zstd), (GzipCodec, _Gzip)):
        if isinstance(codec, plain):
            return checking.from_dict(codec.to_dict())
    if isinstance(codec, ShardingCodec):
        return replace(codec, codecs=tuple(_bounded(c, array) for c in codec.codecs))
    if isinstance(codec, _HARMLESS):
        return codec
    raise _unknown(type(codec).__name__, array)


def _unknown(name: str, array: zarr.Array) -> ValueError:
    msg = (f"{array.name.lstrip('/')} is encoded with {name}, which xreg does not read; write the store anew with "
           "blosc, zstd or gzip, or without compression.")
    return ValueError(msg)


# -- links -----------------------------------------------------------------------------------------------------------


class _Inside(WrapperStore):
    """A store that follows no link out of its own folder."""

    async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
        self._refuse_links(key)
        return await super().get(key, prototype, byte_range)

    async def get_partial_values(self, prototype: Any, key_ranges: Iterable[tuple[str, Any]]) -> Any:
        key_ranges = list(key_ranges)
        for key, _ in key_ranges:
            self._refuse_links(key)
        return await super().get_partial_values(prototype, key_ranges)

    def _refuse_links(self, key: str) -> None:
        if not isinstance(self._store, LocalStore):
            return
        root = os.path.realpath(self._store.root)
        if not os.path.realpath(os.path.join(root, key)).startswith(root + os.sep):
            msg = f"{key} is a link that leads out of the store, which is refused"
            raise OSError(errno.ELOOP, msg)
