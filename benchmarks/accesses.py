"""A trace of plain accesses, made for the rows of replay, in the native format."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from vmemu.traces.native import npy
from vmemu.traces.native.meta import META_NAME, Counts, Meta, Source, StreamMeta
from vmemu.traces.reader import LOAD, STORE

PAGES = 256
_RUN = 16
_CHUNK = 1 << 22
_STORE_EACH = 3


def write_trace(directory: Path, accesses: int) -> Path:
    """A trace directory of so many accesses of 8 aligned bytes on ``PAGES`` pages.

    Runs of 16 words behind each other, each anywhere, on memory that fits into a CPU's cache, and
    each third a store: what a missed cache or a mispredicted branch takes would hide what the loop
    itself does. Not written by TraceWriter, which keeps 14 bytes an access until it is done.
    """
    directory.mkdir()
    random = np.random.default_rng(1)
    stores = 0
    with (
        (directory / "0.where.npy").open("wb") as where,
        (directory / "0.what.npy").open("wb") as what,
    ):
        where.write(npy.header(np.dtype("<u4"), accesses))
        what.write(npy.header(np.dtype("u1"), accesses))
        for begin in range(0, accesses, _CHUNK):
            count = min(_CHUNK, accesses - begin)
            runs = random.integers(PAGES * 512 // _RUN, size=-(-count // _RUN), dtype=np.uint32)
            words = runs[:, None] * np.uint32(_RUN) + np.arange(_RUN, dtype=np.uint32)
            is_store = (begin + np.arange(count)) % _STORE_EACH == 0
            npy.write_values(where, words.reshape(-1)[:count] * np.uint32(8))
            npy.write_values(what, np.where(is_store, STORE, LOAD).astype(np.uint8))
            stores += int(np.count_nonzero(is_store))
        for column in (where, what):
            column.flush()
            os.fsync(column.fileno())  # not to be written out beside what is measured
    with (directory / "pages.npy").open("wb") as pages:
        pages.write(npy.header(np.dtype("<u8"), PAGES))
        npy.write_values(pages, np.arange(PAGES, dtype="<u8"))
    meta = Meta(
        address_kind="virtual",
        source=Source(),
        sizes=(8,),
        pages=PAGES,
        streams=(StreamMeta(0, accesses),),
        fetches=False,
        counts=Counts(accesses=accesses, reads=accesses - stores, writes=stores),
        truncated=False,
        missing=("times",),
    )
    (directory / META_NAME).write_bytes(meta.to_json())
    return directory
