"""Where a scatter read goes on: the property that every byte is filled once, within the kernel's limits."""

from hypothesis import given
from hypothesis import strategies as st

from penstock.kernels.io.directio import skip_filled

lengths = st.lists(st.integers(0, 9), max_size=8)


@given(lengths, st.integers(0, 80), st.integers(1, 10), st.none() | st.integers(0, 40))
def test_remaining_is_the_rest_within_the_limits(lengths, done, most_buffers, most_bytes):
    flat = bytes(range(sum(lengths)))
    buffers, start = [], 0
    for length in lengths:
        buffers.append(memoryview(flat)[start : start + length])
        start += length
    rest = skip_filled(buffers, done, most_buffers=most_buffers, most_bytes=most_bytes)
    taken = b"".join(rest)
    assert flat[done:].startswith(taken)
    assert all(len(buffer) for buffer in rest)
    assert len(rest) <= most_buffers
    if most_bytes is not None:
        assert len(taken) <= most_bytes
    # Nothing is left out unless a limit says so.
    assert taken == flat[done:] or len(rest) == most_buffers or len(taken) == most_bytes


@given(lengths, st.data())
def test_short_reads_fill_every_byte_once(lengths, data):
    flat = bytes(range(1, sum(lengths) + 1))
    buffers = [memoryview(bytearray(length)) for length in lengths]
    done = 0
    while rest := skip_filled(buffers, done, most_buffers=3):
        got = data.draw(st.integers(1, sum(map(len, rest))))
        for buffer in rest:
            piece = flat[done : done + min(len(buffer), got)]
            buffer[: len(piece)] = piece
            done, got = done + len(piece), got - len(piece)
    assert b"".join(buffers) == flat
