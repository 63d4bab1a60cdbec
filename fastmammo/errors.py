"""The errors and warnings of fastmammo.

    FastMammoError                          the root; .path and .frame where they are known
    ├── ReadError                           the bytes are not a usable mammogram
    │   ├── NotDicomError (ValueError)      not a DICOM file at all: `convert` skips such files
    │   ├── TruncatedFileError              the file ends in the middle of an element
    │   ├── MissingAttributeError           an attribute that is needed is absent or empty
    │   ├── NotImageError                   DICOM, but a report, a DICOMDIR...: `convert` skips them
    │   └── UnsupportedImageError           an image, but not grey: colour, palette, no pixels
    ├── DecodeError                         the codestream did not become pixels
    │   ├── UnsupportedSyntaxError          no backend can decode this transfer syntax or style
    │   ├── BackendUnavailableError (ImportError)   one could; says what to install
    │   ├── SizeBombError                   the header claims more than the bytes can hold
    │   ├── MismatchError                   codestream and DICOM header contradict each other
    │   ├── CorruptCodestreamError          the codec refused it; carries the codec's own words
    │   └── DeviceError                     the GPU, or its driver, failed: not the file's fault
    │       └── DeviceMemoryError           its memory does not suffice for the frame
    ├── PreprocessError                     stored values did not become an image
    │   ├── WindowError                     the window asked for is not in the file
    │   ├── NoPixelSpacingError             a spacing in mm is asked for, the header tells none
    │   └── DoesNotFitError                 at the spacing asked for it is larger than the output
    ├── EncodeError                         stored values did not become a file
    │   └── NotExactError                   the file does not give them back: `transcode` keeps none
    ├── FilteredError                       not what the filters ask for: `convert` skips it
    ├── ConvertError                        a bulk run cannot start or go on
    │   ├── OutputCollisionError            two inputs would give one output name
    │   └── WorkerError                     a worker process died or ran out of time on a file
    ├── TrainingError                       a training run cannot start or go on
    │   ├── TableError (ValueError)         a table lacks a column, or a value in it is not allowed
    │   ├── LeakError                       a patient stands on both sides of a split
    │   ├── ModelError                      no such model, or it does not take such images
    │   ├── WeightsError                    pretrained weights could not be had
    │   ├── CheckpointError                 a checkpoint of another model or version, or damaged
    │   └── DivergedError                   the loss is no number any more
    └── ConfigError (ValueError)            a setting: field, got, allowed

    FastMammoWarning (UserWarning)

Messages say what failed, where, got, wanted, and what to do::

    try:
        mammogram = fastmammo.read(path)
        pixels = fastmammo.decode(mammogram)
    except fastmammo.FastMammoError as error:
        print(f"{path}: {error}")
"""

from __future__ import annotations

import traceback


class FastMammoError(Exception):
    """Any error that fastmammo raises on purpose.

    `path` is the file (or None for bytes) and `frame` the frame index, where they are known.
    """

    path: str | None = None
    frame: int | None = None

    @property
    def reason(self) -> str:
        """The class name without "Error", in words: the short cause that a manifest row carries."""
        name = type(self).__name__.removesuffix("Error")
        return "".join(f" {c.lower()}" if c.isupper() else c for c in name).strip()


def forget_frames(error: BaseException | None) -> None:
    """Let go of what the tracebacks of an error that is kept, and of its causes, hold on to.

    A failure may live as long as its batch, and the frames that it passed through held the file's
    bytes and the device's arrays. The lines stay where the error is a defect, for whoever mends it.
    """
    while error is not None:
        trace = error.__traceback__
        traceback.clear_frames(trace)
        if trace is not None:
            # the outermost frame is still at work: nothing clears it
            known = isinstance(error, (FastMammoError, OSError))
            error.__traceback__ = None if known else trace.tb_next
        error = error.__cause__ or error.__context__


class ReadError(FastMammoError):
    """The bytes are not a usable mammogram."""


class NotDicomError(ReadError, ValueError):
    """The bytes are not a DICOM file (PS3.10 7.1: no preamble, no file meta information)."""


class TruncatedFileError(ReadError):
    """The file ends before an element whose length it has announced."""


class MissingAttributeError(ReadError):
    """An attribute without which the pixels mean nothing is absent or empty."""


class NotImageError(ReadError):
    """A DICOM object that is no image at all: a report, a DICOMDIR, a plan."""


class UnsupportedImageError(ReadError):
    """A DICOM object that is no greyscale image, or holds no pixels."""


class DecodeError(FastMammoError):
    """The codestream did not become pixels."""


class UnsupportedSyntaxError(DecodeError):
    """No backend can decode this transfer syntax, or this style of it, on this device."""


class BackendUnavailableError(DecodeError, ImportError):
    """A backend could decode it, but is not installed: the message says what to install."""


class SizeBombError(DecodeError):
    """The header claims more pixels than its bytes can hold, or than the limit allows."""


class MismatchError(DecodeError):
    """Codestream and DICOM header contradict each other in a way that no rule settles."""


class CorruptCodestreamError(DecodeError):
    """The codec, or the reading of the codestream's own header, refused the bytes."""


class DeviceError(DecodeError):
    """The GPU or its driver failed: no fault of the file, and maybe the end of this process's GPU.

    After most CUDA errors nothing more can be done on that device in the same process.
    """


class DeviceMemoryError(DeviceError):
    """The device's memory does not suffice for the frame."""


class PreprocessError(FastMammoError):
    """Stored values did not become an image."""


class WindowError(PreprocessError):
    """The window or VOI LUT that was asked for is not in the file."""


class NoPixelSpacingError(PreprocessError):
    """The output is to have a spacing in mm, and the header does not tell that of its pixels."""


class DoesNotFitError(PreprocessError):
    """At the spacing in mm that was asked for, the image needs more pixels than the output has."""


class EncodeError(FastMammoError):
    """Stored values did not become a codestream, or a DICOM file."""


class NotExactError(EncodeError):
    """What was written does not decode to the source's pixels, or says other things of them."""


class FilteredError(FastMammoError):
    """The header does not say what the filters of a bulk run ask for; `facts` is what it says."""

    def __init__(self, message: str, facts: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.facts = facts or {}


class ConvertError(FastMammoError):
    """A bulk run cannot start, or cannot go on."""


class OutputCollisionError(ConvertError):
    """Two inputs would give one output name."""


class WorkerError(ConvertError):
    """A worker process died, or exceeded its time, on one file."""


class TrainingError(FastMammoError):
    """A training run cannot start, or cannot go on."""


class TableError(TrainingError, ValueError):
    """A table lacks a column or an image, or a value in it is not allowed."""


class LeakError(TrainingError):
    """A patient stands on both sides of a split: every metric on it would be too good."""


class ModelError(TrainingError):
    """There is no model of that name, or it does not take such images."""


class WeightsError(TrainingError):
    """Pretrained weights could not be had: not downloaded, or of another architecture."""


class CheckpointError(TrainingError):
    """A checkpoint, or a run folder, is of another model or version, or damaged."""


class DivergedError(TrainingError):
    """The loss is no finite number any more."""


class ConfigError(FastMammoError, ValueError):
    """A setting has a value that is not allowed: field, got, allowed."""


class FastMammoWarning(UserWarning):
    """Something was settled by a rule that the user should know of."""
