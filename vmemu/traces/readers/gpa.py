"""Reader of the 24-byte records of a QEMU TCG plugin: guest-physical addresses, several vCPUs.

Little-endian, no header::

    byte  0  u64  sequence number over all vCPUs
    byte  8  u64  guest-physical address
    byte 16  u32  vCPU
    byte 20  u8   0 load, 1 store
    byte 21  u8   log2(size in bytes)
    byte 22  u8   1 if the address is a device's (I/O)
    byte 23  u8   0

Device accesses are no accesses to RAM: they are dropped and counted.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from vmemu.traces.reader import MAX_STREAMS, Chunk, Reader, by_stream

RECORD = np.dtype(
    [
        ("sequence", "<u8"),
        ("address", "<u8"),
        ("vcpu", "<u4"),
        ("store", "u1"),
        ("size_log2", "u1"),
        ("io", "u1"),
        ("zero", "u1"),
    ]
)
_RECORDS_A_CHUNK = 1 << 17
_SNIFFED_RECORDS = 512
_MAX_SIZE_LOG2 = 12

_Records = NDArray[np.void]


class GpaReader(Reader):
    """One stream a vCPU. Modifies show as a load and a store; fetches are not recorded."""

    format = "tcg-gpa"
    title = "QEMU TCG plugin records"
    address_kind = "guest-physical"
    missing = ("times", "modifies", "rom_places", "instruction_fetches")

    @classmethod
    def sniff(cls, head: bytes) -> bool:
        count = min(len(head) // RECORD.itemsize, _SNIFFED_RECORDS)
        records = np.frombuffer(head, RECORD, count)
        # Zeros are valid records one by one; that no two share a sequence number tells them apart.
        distinct = len(np.unique(records["sequence"])) == count
        return count > 0 and distinct and bool(_well_formed(records).all())

    def chunks(self) -> Iterator[Chunk]:
        buffer = bytearray(_RECORDS_A_CHUNK * RECORD.itemsize)
        seen = 0
        while size := self.stream.readinto(buffer):
            records = np.frombuffer(buffer, RECORD, size // RECORD.itemsize)
            self.tally.truncated |= size % RECORD.itemsize != 0
            kept = self._keep(records, seen)
            seen += len(records)
            yield from by_stream(
                kept["vcpu"],
                kept["address"].astype(np.uint64),
                kept["store"].astype(np.uint8),
                np.left_shift(np.uint16(1), kept["size_log2"].astype(np.uint16)),
            )
            self._refuse_mostly_unknown(seen - self.tally.unknown_lines)
        self.tally.truncated |= self.stream.truncated

    def _keep(self, records: _Records, before: int) -> _Records:
        """The records of RAM; counts the rest. ``before``: records in earlier chunks."""
        good = _well_formed(records)
        bad = np.flatnonzero(~good)
        if len(bad):
            raw = records[bad[0]].tobytes().hex()
            self.tally.unknown(len(bad), f"record {before + int(bad[0]) + 1}: {raw}")
        io = good & (records["io"] != 0)
        self.tally.drop("io", int(np.count_nonzero(io)))
        kept: _Records = records[good & ~io]
        return kept


def _well_formed(records: _Records) -> NDArray[np.bool_]:
    log2 = records["size_log2"]
    size = np.left_shift(np.uint64(1), np.minimum(log2, 63).astype(np.uint64))
    last = records["address"] + (size - np.uint64(1))
    good: NDArray[np.bool_] = (
        (records["store"] <= 1)
        & (log2 <= _MAX_SIZE_LOG2)
        & (records["io"] <= 1)
        & (records["zero"] == 0)
        & (records["vcpu"] < MAX_STREAMS)
        & (last >= records["address"])
    )
    return good
