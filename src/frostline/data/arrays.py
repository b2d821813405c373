"""Between Arrow arrays and NumPy's, without a copy where there need be none.

Arrow's own ways (``pa.array``, ``to_numpy``, ``pa.scalar``) import pandas, where it is installed, which takes a second.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc


def true_positions(mask: pa.BooleanArray | pa.ChunkedArray) -> npt.NDArray[np.int64]:
    """The positions of what is true."""
    positions: npt.NDArray[np.int64] = np.from_dlpack(pc.indices_nonzero(mask)).astype(np.int64)
    return positions


def text_bytes(texts: pa.LargeStringArray) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
    """``[N + 1]`` where each text starts and the last one ends, and the UTF-8 bytes, both without a copy."""
    _, starts, content = texts.buffers()
    ends = np.frombuffer(starts, dtype=np.int64)[texts.offset : texts.offset + len(texts) + 1]
    return ends, np.frombuffer(content or b"", dtype=np.uint8)


def is_empty(texts: pa.LargeStringArray) -> npt.NDArray[np.bool_]:
    """``[N]`` whether a text has no characters."""
    empty: npt.NDArray[np.bool_] = np.diff(text_bytes(texts)[0]) == 0
    return empty


def taken(values: pa.Array, positions: npt.NDArray[np.int64]) -> pa.Array:
    """The values at some positions."""
    buffer = pa.py_buffer(np.ascontiguousarray(positions, dtype=np.int64))
    return values.take(pa.Array.from_buffers(pa.int64(), len(positions), [None, buffer]))


def binary_array(values: Sequence[bytes]) -> pa.LargeBinaryArray:
    """The values in one piece."""
    ends = np.cumsum([0, *map(len, values)], dtype=np.int64)
    buffers = [None, pa.py_buffer(ends), pa.py_buffer(b"".join(values))]
    return pa.Array.from_buffers(pa.large_binary(), len(values), buffers)


def codes_of(encoded: pa.DictionaryArray) -> npt.NDArray[np.int64]:
    """``[N]`` positions in the dictionary."""
    codes: npt.NDArray[np.int64] = np.from_dlpack(encoded.indices).astype(np.int64)
    return codes
