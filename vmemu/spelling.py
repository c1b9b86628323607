"""What was probably meant by a word that nothing is called."""

from __future__ import annotations

from collections.abc import Iterable


def written_alike(
    word: str, known: Iterable[str], *, most: int = 1, likeness: float = 0.6
) -> list[str]:
    """Those of ``known`` that are written much like ``word``, the nearest first and ``most`` of
    them; ``likeness`` is the least, from 0 to 1 for the same."""
    import difflib  # nothing needs it that has no mistakes

    return difflib.get_close_matches(word, list(known), most, likeness)
