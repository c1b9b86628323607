"""Recorded memory traces: native format, readers of what other tools write, mapping on RAM blocks.

``native``     the format that replay maps into memory, and its writer
``trace``      a trace in memory
``reader``     the interface of a reader; ``readers/`` has one file a recorded format
``recordings`` the choice of a reader by content
``opening``    recordings as they lie there, compressed or not, as one stream
``convert``    from any recording to the native format
``mapping``    from recorded pages to offsets in RAM blocks
``stats``      what a trace or a recording holds
"""

from __future__ import annotations
