"""Takes what a run is made of, keeps its folder: the lock on it, config.json, its tables."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from fastmammo.conversion.manifest import version
from fastmammo.conversion.writers import write_atomic
from fastmammo.errors import CheckpointError, WeightsError
from fastmammo.training.checkpoints import differences
from fastmammo.training.fingerprint import file_digest
from fastmammo.training.scored import whole_labels

if TYPE_CHECKING:
    from collections.abc import Iterable

    import pandas as pd

    from fastmammo.training.images import Images
    from fastmammo.training.settings import Settings

_LOCK, _CONFIG = ".lock", "config.json"
IMAGES = "images-cache"
"""In the run folder: decoded DICOMs, until every fold is scored."""
NOTES = "notes.json"
"""In the run folder: the lines that a run told its user."""
_PACKAGES = (
    *("fastmammo", "torch", "timm", "lightning-fabric", "numpy", "pandas", "scikit-learn"),
)
_CHANGES_NO_PIXELS = ("device", "strict")


class RunFolder:
    """The folder of a run, which one run at a time may write.

    The lock is flock's: the kernel drops it with the process, so a dead run locks nobody out.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._lock: IO[str] | None = None
        self._made = False

    def take(self, *, resume: bool) -> None:
        """Make the folder where it is not there, and lock it.

        Raises:
            CheckpointError: another run works on it; it holds something, and the run is not to go
                on; it holds something that is no run; or it cannot be written.
        """
        try:
            self._made = not self.path.exists()
            self.path.mkdir(parents=True, exist_ok=True)
            lock = open(self.path / _LOCK, "a+", encoding="utf-8")  # noqa: SIM115
        except OSError as error:
            raise CheckpointError(
                f"cannot write to the run folder {self.path}: {error.strerror}. Choose another"
            ) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            owner = lock.read().strip() or "unknown"
            lock.close()
            raise CheckpointError(
                f"another run works on {self.path} (process {owner}): wait for it, or name another "
                "run folder"
            ) from None
        if not self._is_the_lock(lock):  # removed by a run that ended between the two
            lock.close()
            self.take(resume=resume)
            return
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        self._lock = lock
        try:
            self._check(resume)
        except CheckpointError:
            self.release()
            raise

    def _is_the_lock(self, lock: IO[str]) -> bool:
        try:
            return os.path.samestat(os.fstat(lock.fileno()), (self.path / _LOCK).stat())
        except FileNotFoundError:
            return False

    def _check(self, resume: bool) -> None:
        # of a run that was killed before its config.json stood there, this is all that is left
        begun = {_LOCK, f"{_CONFIG}.partial", IMAGES}
        held = sorted(each.name for each in self.path.iterdir() if each.name not in begun)
        if held and self._unused():
            return
        if held and not resume:
            raise CheckpointError(
                f"the run folder {self.path} is not empty: it holds {', '.join(held[:4])}"
                f"{', ...' if len(held) > 4 else ''}. Go on with it by resume, or name another"
            )
        if held and "config.json" not in held:
            raise CheckpointError(
                f"{self.path} is no run folder: it holds {', '.join(held[:4])}, but no config.json."
                " Name another"
            )

    def _unused(self) -> bool:
        """Tell whether a run has begun here, and ended before anything was learnt.

        Such a run failed at its start (weights that could not be had), and stands in nobody's way.
        """
        held = {each.name.removesuffix(".partial") for each in self.path.iterdir()}
        folds = {each for each in held if re.fullmatch(r"fold\d+", each)}
        if not held <= {_LOCK, _CONFIG, IMAGES, NOTES, "table.csv"} | folds:
            return False
        if any(next(self.path.glob(f"fold*/{name}"), None) for name in ("last.pt", "oof.csv")):
            return False
        try:
            read_config(self.path)
        except CheckpointError:
            return False
        return True

    def release(self) -> None:
        """Let go of the lock; of a folder that holds nothing else nothing is left."""
        if self._lock is None:
            return
        if [each.name for each in self.path.iterdir()] == [_LOCK]:
            # while the lock is held: who opens the file after this gets a new one
            (self.path / _LOCK).unlink()
            if self._made:
                self.path.rmdir()
        self._lock.close()
        self._lock = None

    def settle(self, config: dict[str, Any], table: pd.DataFrame) -> dict[str, Any] | None:
        """Write config.json and table.csv, or check that they are of the same run.

        Returns:
            The config.json of the earlier run that has begun here; None where there is none.

        Raises:
            CheckpointError: the earlier run had other settings, another version, or other data.
        """
        if not (self.path / _CONFIG).exists() or self._unused():
            (self.path / NOTES).unlink(missing_ok=True)
            # config.json first: where it stands, what else there is is known to be the run's
            self.write_json(_CONFIG, config)
            self.write_table("table.csv", table)
            return None
        earlier = read_config(self.path)
        found = differences(config["identity"], earlier["identity"])
        if found:
            shown = "; ".join(found[:8]) + ("; ..." if len(found) > 8 else "")
            raise CheckpointError(
                f"the run in {self.path} cannot go on with these settings: {shown}. Give those "
                "that it was started with, or name another run folder"
            )
        if not (self.path / "table.csv").exists():  # killed between the two
            self.write_table("table.csv", table)
        return earlier

    def keep_notes(self, lines: Iterable[str]) -> None:
        """Add to notes.json those lines that it does not hold yet."""
        known = read_notes(self.path)
        found = list(dict.fromkeys((*known, *lines)))
        if found != known:
            self.write_text(NOTES, json.dumps(found, indent=2) + "\n")

    def drop_images(self) -> None:
        """Remove the decoded images."""
        shutil.rmtree(self.path / IMAGES, ignore_errors=True)

    def scored_folds(self) -> list[int]:
        """Return the folds whose scores are written."""
        found = self.path.glob("fold*/oof.csv")
        return sorted(int(each.parent.name.removeprefix("fold")) for each in found)

    def write_json(self, name: str, values: dict[str, Any]) -> None:
        """Write a JSON file, whole or not at all."""
        self.write_text(name, json.dumps(values, indent=2) + "\n")

    def write_table(self, name: str, table: pd.DataFrame) -> None:
        """Write a CSV, whole or not at all."""
        self.write_text(name, whole_labels(table).to_csv(index=False, lineterminator="\n"))

    def write_text(self, name: str, text: str) -> None:
        """Write a text, whole or not at all."""
        path = os.fspath(self.path / name)
        write_atomic(path, [text.encode()], f"{path}.partial")


def read_notes(path: Path) -> list[str]:
    """Return what a run told its user, as notes.json keeps it; none where it is not there."""
    try:
        found = json.loads((path / NOTES).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []  # notes are beside the run: nothing depends on them
    return [str(each) for each in found] if isinstance(found, list) else []


def read_config(path: Path) -> dict[str, Any]:
    """Read a run's config.json.

    Raises:
        CheckpointError: it is not there, or was not written by the trainer.
    """
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(
            f"{path} is no run folder: config.json cannot be read ({error.strerror})"
        ) from error
    except ValueError as error:
        raise CheckpointError(f"{path}: config.json is damaged ({error})") from error
    if not isinstance(config, dict) or "identity" not in config or "settings" not in config:
        raise CheckpointError(
            f"{path}: config.json is not that of a training run. Is it a folder of `convert`?"
        )
    return config


def describe_run(
    settings: Settings,
    table: pd.DataFrame,
    images: Images,
    source: str | os.PathLike[str],
    *,
    precision: str = "32-true",
    ranks: int = 1,
) -> dict[str, Any]:
    """Return what config.json holds: settings, versions, and what makes the run what it is.

    `identity` holds, by name, every value that must be equal for the run to go on.

    Args:
        precision: what `auto` came to: predictions are computed in it too.
        ranks: processes that train.

    Raises:
        TableError: an image's file cannot be read.
        WeightsError: the file of `model.weights` cannot be read.
    """
    made = pixel_settings(images.settings)
    data = table.drop(columns="path", errors="ignore").to_csv(index=False).encode()
    identity = {
        "fastmammo": version("fastmammo"),
        **settings.numbers(),
        **{f"images.{name}": value for name, value in made.items()},
        "table.rows": len(table),
        "table.digest": hashlib.sha256(data).hexdigest()[:16],
        "images.digest": images.fingerprint(),
        "model.weights.digest": _weights_digest(settings.model.weights),
    }
    return {
        "fastmammo": version("fastmammo"),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in _PACKAGES},
        },
        "settings": settings.to_dict(),
        "digest": settings.digest(),
        "precision": precision,
        "ranks": ranks,
        "identity": identity,
        "source": {
            "path": os.path.abspath(source),
            "size": list(images.size),
            "bits": images.bits,
            "storage": images.storage,
            "config": images.settings.get("config", {}),
        },
    }


def _weights_digest(path: str) -> str:
    if not path:
        return ""
    try:
        return file_digest(path)
    except OSError as error:
        raise WeightsError(
            f"weights: {path} cannot be read ({error.strerror}). Name a file of weights, or leave "
            "the setting out"
        ) from error


def pixel_settings(made: dict[str, Any]) -> dict[str, Any]:
    """Return those settings that decide an image's pixels, of `Images.settings`."""
    config = made.get("config", {})
    return {name: value for name, value in config.items() if name not in _CHANGES_NO_PIXELS}
