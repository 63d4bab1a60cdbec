"""Takes an input's path inside SRC, gives an output name that is safe below DST on any system."""

from __future__ import annotations

import hashlib
import re
import unicodedata

STATE_FOLDER = ".fastmammo"
"""The folder in DST that holds the journal and the lock: no output may lie in it."""

OWN_FILES = frozenset({"manifest.csv", "timings.csv", "config.json", "boxes.csv", "images.npy"})
"""What runs write into DST beside the outputs: no output may have such a name, or lie below it."""

_DICOM_SUFFIX = re.compile(r"\.(dcm|dicom|dic)$", re.IGNORECASE)
_FORBIDDEN = frozenset('<>:"|?*\\/')
_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?$", re.IGNORECASE)
_MAX_BYTES = 200
"""Of one component: file systems allow 255 bytes, and a suffix has to fit behind the name."""


def is_dicom_name(name: str) -> bool:
    """Whether the name ends in .dcm, .dicom or .dic, in any case."""
    return _DICOM_SUFFIX.search(name) is not None


def output_name(path: str) -> str:
    """Return the output's path below DST, without the suffix of its format.

    A DICOM suffix is dropped, any other is kept: `a.dcm` and `a.1` become `a` and `a.1`.
    Characters that are control, format or reserved ones somewhere become "_", so do "." and "..";
    a component that is too long is shortened and ends in a digest of the whole. A folder that is
    called as a table of the run gets a "_" in front.

    Args:
        path: relative, with "/" between its components.
    """
    shortened = _DICOM_SUFFIX.sub("", path)
    # a file that is called just ".dcm" keeps its name: an empty one would be its folder's
    if not shortened or shortened.endswith("/"):
        shortened = path
    components = [_component(each) for each in shortened.split("/") if each]
    below = len(components) > 1 and components[0].lower() in OWN_FILES
    if components[0].lower() == STATE_FOLDER or below:
        components[0] = "_" + components[0]
    return "/".join(components)


def is_component(text: str) -> bool:
    """Whether the text may serve as one component of a path to read: no separator, no ".."."""
    return bool(text) and text not in (".", "..") and not set(text) & {"/", "\\", "\0"}


def _component(text: str) -> str:
    # category C*: control, format (which can reverse what a reader sees), lone surrogates
    # (bytes that are no UTF-8), unassigned
    clean = "".join(
        "_" if c in _FORBIDDEN or unicodedata.category(c).startswith("C") else c for c in text
    )
    stripped = clean.rstrip(". ")
    clean = stripped + "_" * (len(clean) - len(stripped))
    if _RESERVED.match(clean):
        clean = "_" + clean
    encoded = clean.encode()
    if len(encoded) > _MAX_BYTES:
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]
        clean = encoded[: _MAX_BYTES - 13].decode(errors="ignore") + "-" + digest
    return clean
