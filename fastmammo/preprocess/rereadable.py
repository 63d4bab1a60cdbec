"""Takes a source, gives it as often as it has to be read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastmammo.dicom import Mammogram, Source


class Rereadable:
    """A source that may be read again: a file object is set back to where it was, a pipe kept."""

    def __init__(self, source: Source | Mammogram) -> None:
        self._source: Any = source
        self._is_file = hasattr(source, "read")
        self._start: int | None = None

    def take(self) -> Any:
        """Return the source, as it was when it was taken first.

        Raises:
            OSError: a file object cannot be read.
        """
        if not self._is_file:
            return self._source
        if self._start is not None:
            self._source.seek(self._start)
            return self._source
        try:
            self._start = self._source.tell()
        except (AttributeError, OSError):  # io.UnsupportedOperation is one
            self._source, self._is_file = self._source.read(), False
        return self._source
