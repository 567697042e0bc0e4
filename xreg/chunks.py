"""How a measurement is cut into blocks: integers in, integers out.

A block is a run of consecutive frames that one task reads, works through frame by frame, and writes. The blocks are the
write grid: every stored array that grows with the frames has chunks of exactly one block, so that no two tasks ever
touch one chunk.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import dask.array as da
    import xarray as xr

MIB = 2**20
#: Bytes of float32 frames that a block aims at, and the number of frames that it never exceeds without need.
BLOCK_BYTES = 48 * MIB
BLOCK_FRAMES = 32
#: Blocks into which even a short measurement is cut, so that several workers have something to do.
FEWEST_BLOCKS = 8
#: A raw chunk of several frames is decoded whole; up to this size a block grows to hold it, so that it is decoded once.
READ_BYTES = 256 * MIB
#: Reads in which a table of regions is gone through, and bytes that one of them may take.
MOST_READS, JOINED_BYTES = 1024, 64 * MIB
#: Frames, open-beam references and windows may not be declared larger than this; a store that does is refused.
MAX_FRAME_PIXELS = 2**25
MAX_FRAMES = 2**27
MAX_CHUNK_BYTES = 4 * 1024 * MIB
#: Tables and darks are read whole.
MAX_TABLE_BYTES = 4 * 1024 * MIB
#: Memory (bytes) of an idle worker process: the interpreter, numpy, dask and torch.
PROCESS_BYTES = 450 * MIB
#: Working memory per pixel of the frame that is being worked on: float64 copies and the networks' activations.
WORK_BYTES_PER_PIXEL = 400


@dataclass(frozen=True)
class Block:
    """Frames `start` up to, not including, `stop`; `index` is the block's place in the write grid."""

    index: int
    start: int
    stop: int

    @property
    def region(self) -> slice:
        """The block's frames as a slice."""
        return slice(self.start, self.stop)

    def __len__(self) -> int:
        return self.stop - self.start


def block_length(n_frames: int, frame_pixels: int, *, scan_length: int | None = None, read_chunk: int = 1) -> int:
    """Frames per block.

    Parameters
    ----------
    n_frames : int
        Frames in the measurement.
    frame_pixels : int
        Pixels per frame.
    scan_length : int, optional
        Frames per scan where all scans have the same. A divisor of it is preferred, so that a scan is a whole number
        of blocks.
    read_chunk : int
        Frames per chunk of the raw store.

    Returns
    -------
    int
        At least 1 and, unless a raw chunk holds more, at most `BLOCK_FRAMES`.
    """
    most = max(1, min(BLOCK_FRAMES, BLOCK_BYTES // max(4 * frame_pixels, 1), n_frames // FEWEST_BLOCKS))
    if most < read_chunk <= n_frames and read_chunk * frame_pixels * 4 <= READ_BYTES:
        return read_chunk
    if scan_length:
        divisor = max(d for d in range(1, most + 1) if scan_length % d == 0)
        if 4 * divisor >= most:
            return divisor
    return most


def frame_blocks(n_frames: int, length: int) -> list[Block]:
    """All blocks of the write grid, in order; the last may be shorter.

    Raises
    ------
    ValueError
        If the length is not positive or there are no frames.
    """
    if n_frames < 1 or length < 1:
        msg = f"{n_frames} frames in blocks of {length}; need at least one frame and blocks of at least one."
        raise ValueError(msg)
    starts = range(0, n_frames, length)
    return [Block(i, start, min(start + length, n_frames)) for i, start in enumerate(starts)]


def joined(rows: int, chunk: int, row_bytes: int) -> int:
    """Number of stored chunks that are read as one, so that a graph over a table stays small however long it is.

    Parameters
    ----------
    rows, chunk : int
        Length of the table, and of its stored chunks.
    row_bytes : int
        Bytes per row.

    Returns
    -------
    int
        So many that there are at most `MOST_READS` reads, as long as one read is at most `JOINED_BYTES`; at least 1.
    """
    wanted = -(-rows // (chunk * MOST_READS))
    return max(1, min(wanted, JOINED_BYTES // max(chunk * row_bytes, 1)))


def is_aligned(region: tuple[slice, ...], shape: tuple[int, ...], grid: tuple[int, ...]) -> bool:
    """Whether a region begins and ends on the write grid (or at the end of the array) along every axis."""
    return len(region) == len(shape) == len(grid) and all(
        s.start % g == 0 and (s.stop % g == 0 or s.stop == n) and s.start < s.stop <= n
        for s, n, g in zip(region, shape, grid, strict=True))


def in_flight(workers: int) -> int:
    """Number of tasks handed out at a time: enough to keep all workers busy, few enough to hold memory down."""
    return 2 * max(workers, 1) + 1


def runs(indices: list[int]) -> list[tuple[int, int]]:
    """Sorted indices as (start, stop) pairs of consecutive runs: ``[0, 1, 2, 7]`` gives ``[(0, 3), (7, 8)]``."""
    found: list[tuple[int, int]] = []
    for i in indices:
        if found and i == found[-1][1]:
            found[-1] = (found[-1][0], i + 1)
        else:
            found.append((i, i + 1))
    return found


def scan_length(scan: list[int]) -> int | None:
    """Frames per scan where every scan is one unbroken run of the same number of frames, else None."""
    lengths: list[int] = []
    for i, number in enumerate(scan):
        if i and number == scan[i - 1]:
            lengths[-1] += 1
        else:
            lengths.append(1)
    whole = len(lengths) == len(set(scan)) and len(set(lengths)) == 1
    return lengths[0] if whole and lengths else None


def process_memory(frame_pixels: int, length: int, read_chunk: int, flats_per_frame: float, window: int,
                   particles: int) -> int:
    """Estimated peak memory (bytes) of one worker process.

    The block's counts as stored and as decoded, its optical density, the references of some frames, windows on some
    particles, and the working copies of a single frame.
    """
    counts = (length + max(read_chunk, length)) * frame_pixels * 2
    density = length * frame_pixels * 4
    flats = int(min(flats_per_frame * length, 32) * frame_pixels * 2)
    windows = 2 * min(particles * length * window**2 * 4, 128 * MIB)
    return PROCESS_BYTES + counts + density + flats + windows + WORK_BYTES_PER_PIXEL * frame_pixels


def whole_frames(frames: "xr.DataArray") -> "da.Array":
    """Dask array of a (frame, y, x) stack whose frames are whole; arrays in memory get one chunk per frame.

    Raises
    ------
    ValueError
        If frames are split in y or x. Networks and interpolation see whole frames, never tiles of them: a particle that
        a tile cuts would be another particle.
    """
    import dask.array as da

    array = frames.data if isinstance(frames.data, da.Array) else da.from_array(frames.data, chunks=(1, -1, -1))
    if array.numblocks[1:] != (1, 1):
        msg = (f"frames are split into {array.numblocks[1]} x {array.numblocks[2]} chunks; need whole frames. "
               'Join them with frames.chunk({"y": -1, "x": -1}).')
        raise ValueError(msg)
    return array
