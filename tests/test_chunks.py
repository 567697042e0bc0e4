import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xreg import chunks


@given(st.integers(1, 5000), st.integers(1, 2**22), st.integers(1, 400), st.integers(1, 200))
def test_block_length_is_usable(n_frames, pixels, scan, read_chunk):
    length = chunks.block_length(n_frames, pixels, scan_length=scan, read_chunk=read_chunk)
    assert 1 <= length <= max(chunks.BLOCK_FRAMES, read_chunk)
    assert length <= n_frames
    assert length == 1 or length * pixels * 4 <= max(chunks.BLOCK_BYTES, chunks.READ_BYTES)


@pytest.mark.parametrize(("pixels", "read_chunk", "wanted"), [
    (460**2, 1, 13), (460**2, 7, 13), (460**2, 143, 143), (1000**2, 1, 11), (1000**2, 143, 11), (1000**2, 32, 32),
])
def test_block_length_divides_a_scan_of_143_unless_raw_chunks_are_large(pixels, read_chunk, wanted):
    assert chunks.block_length(6435, pixels, scan_length=143, read_chunk=read_chunk) == wanted


def test_a_prime_scan_is_not_cut_into_single_frames():
    assert chunks.block_length(6000, 460**2, scan_length=139) == chunks.BLOCK_FRAMES


@given(st.integers(1, 1000), st.integers(1, 100))
def test_blocks_cover_every_frame_once(n_frames, length):
    blocks = chunks.frame_blocks(n_frames, length)
    assert [f for b in blocks for f in range(b.start, b.stop)] == list(range(n_frames))
    assert [b.index for b in blocks] == list(range(len(blocks)))
    assert all(chunks.is_aligned((b.region,), (n_frames,), (length,)) for b in blocks)
    assert sum(len(b) for b in blocks) == n_frames


def test_no_frames_make_no_blocks():
    with pytest.raises(ValueError, match="0 frames in blocks of 3; need at least one frame"):
        chunks.frame_blocks(0, 3)


@pytest.mark.parametrize(("start", "stop", "aligned"), [
    (0, 4, True), (4, 8, True), (8, 10, True), (0, 10, True),
    (0, 3, False), (2, 4, False), (8, 12, False), (4, 4, False),
])
def test_is_aligned(start, stop, aligned):
    assert chunks.is_aligned((slice(start, stop),), (10,), (4,)) is aligned


@given(st.integers(1, 10**8), st.integers(1, 32), st.integers(1, 10**6))
def test_reads_of_a_long_table_are_few_or_large(rows, chunk, row_bytes):
    many = chunks.joined(rows, chunk, row_bytes)
    assert many == 1 or many * chunk * row_bytes <= chunks.JOINED_BYTES
    few = rows <= many * chunk * chunks.MOST_READS
    assert few or (many + 1) * chunk * row_bytes > chunks.JOINED_BYTES


@given(st.sets(st.integers(0, 60)))
def test_runs_join_neighbours(indices):
    found = chunks.runs(sorted(indices))
    assert [i for a, b in found for i in range(a, b)] == sorted(indices)
    assert all(b < c for (_, b), (c, _) in itertools.pairwise(found))


@pytest.mark.parametrize(("scan", "wanted"), [
    ([0, 0, 0, 1, 1, 1], 3), ([0, 0, 1], None), ([0, 1, 0, 1], None), ([5], 1), ([], None),
])
def test_scan_length(scan, wanted):
    assert chunks.scan_length(scan) == wanted


def test_memory_grows_with_the_frame_but_not_with_the_number_of_frames():
    small = chunks.process_memory(460**2, 13, 1, 2, 111, 9)
    large = chunks.process_memory(1000**2, 11, 1, 2, 111, 9)
    assert small < large < 2 * 2**30
    assert np.isfinite(large)
