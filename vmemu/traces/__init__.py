"""Recorded memory traces: native format, readers of what other tools write, mapping on RAM blocks.

``opening``    recordings as they lie there, compressed or not, as one stream
``reader``     the interface of a reader; ``readers/`` has one file a recorded format
``recordings`` the choice of a reader by content
``native``     the format that replay maps into memory; ``writer`` writes it
``trace``      a trace in memory
``convert``    from a recording or a native trace to any output; ``collapse``, ``export`` on the way
``stats``      what a trace or a recording holds
``missing``    what recordings can't say
``mapping``    from recorded pages to offsets in RAM blocks
``record``     a command is run under a recorder, and leaves a native trace
"""

from __future__ import annotations
