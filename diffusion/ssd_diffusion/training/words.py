"""Lists of words, written as one string so that they stay readable in code. Knows no words itself."""

from __future__ import annotations


def words(text: str, mark: str = " ") -> list[str]:
    """The words between the marks, in order."""
    return text.split(mark)
