"""Readers of Arrow's file formats: Parquet, Arrow files (Feather, too), Arrow streams.

They need pyarrow, which is imported when such a table is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, Any

from vmemu.traces.tables.table import ROWS, TableReader

_CONTINUATION = b"\xff\xff\xff\xff"
_LONGEST_SCHEMA = 1 << 24


class ParquetReader(TableReader):
    """A Parquet file; its row groups are read one behind the other."""

    format = "parquet"
    title = "Parquet table"

    @classmethod
    def sniff(cls, head: bytes) -> bool:
        return head.startswith(b"PAR1")

    def _open(self, arrow: Any, file: IO[bytes]) -> Any:
        self._table = arrow.parquet.ParquetFile(file)
        return self._table.schema_arrow

    def _batches(self) -> Iterator[Any]:
        names = [self._table.schema_arrow.names[index] for index in self._wanted]
        batches: Iterator[Any] = self._table.iter_batches(ROWS, columns=names)
        return batches


class ArrowReader(TableReader):
    """An Arrow file or stream."""

    format = "arrow"
    title = "Arrow table"

    @classmethod
    def sniff(cls, head: bytes) -> bool:
        # A stream starts with a mark and the length of its schema, a flatbuffer.
        schema = int.from_bytes(head[4:8], "little")
        is_stream = head.startswith(_CONTINUATION) and 0 < schema < _LONGEST_SCHEMA
        return head.startswith(b"ARROW1") or (is_stream and schema % 8 == 0)

    def _open(self, arrow: Any, file: IO[bytes]) -> Any:
        self._indexed = file.read(6) == b"ARROW1"
        file.seek(0)
        opened = arrow.ipc.open_file if self._indexed else arrow.ipc.open_stream
        self._table = opened(file)
        return self._table.schema

    def _batches(self) -> Iterator[Any]:
        table = self._table
        numbers = range(table.num_record_batches) if self._indexed else ()
        for batch in map(table.get_batch, numbers) if self._indexed else table:
            for start in range(0, batch.num_rows, ROWS):
                yield batch.select(self._wanted).slice(start, ROWS)
