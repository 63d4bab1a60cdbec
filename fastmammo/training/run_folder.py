"""Takes what a run is made of, keeps its folder: the lock on it, config.json, its tables."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from fastmammo.conversion.manifest import version
from fastmammo.conversion.writers import write_atomic
from fastmammo.errors import CheckpointError
from fastmammo.training.checkpoints import differences

if TYPE_CHECKING:
    import pandas as pd

    from fastmammo.training.images import Images
    from fastmammo.training.settings import Settings

_LOCK = ".lock"
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

    def take(self, *, resume: bool) -> None:
        """Make the folder where it is not there, and lock it.

        Raises:
            CheckpointError: another run works on it; it holds something, and the run is not to go
                on; it holds something that is no run; or it cannot be written.
        """
        try:
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
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        self._lock = lock
        try:
            self._check(resume)
        except CheckpointError:
            self.release()
            raise

    def _check(self, resume: bool) -> None:
        held = sorted(each.name for each in self.path.iterdir() if each.name != _LOCK)
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

    def release(self) -> None:
        """Let go of the lock."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def settle(self, config: dict[str, Any], table: pd.DataFrame) -> bool:
        """Write config.json and table.csv, or check that they are of the same run.

        Returns:
            Whether an earlier run has begun here.

        Raises:
            CheckpointError: the earlier run had other settings, another version, or other data.
        """
        if not (self.path / "config.json").exists():
            self.write_table("table.csv", table)
            self.write_json("config.json", config)
            return False
        earlier = read_config(self.path)
        found = differences(config["identity"], earlier["identity"])
        if found:
            shown = "; ".join(found[:8]) + ("; ..." if len(found) > 8 else "")
            raise CheckpointError(
                f"the run in {self.path} cannot go on with these settings: {shown}. Give those "
                "that it was started with, or name another run folder"
            )
        return True

    def write_json(self, name: str, values: dict[str, Any]) -> None:
        """Write a JSON file, whole or not at all."""
        self.write_text(name, json.dumps(values, indent=2) + "\n")

    def write_table(self, name: str, table: pd.DataFrame) -> None:
        """Write a CSV, whole or not at all."""
        self.write_text(name, table.to_csv(index=False, lineterminator="\n"))

    def write_text(self, name: str, text: str) -> None:
        """Write a text, whole or not at all."""
        path = os.fspath(self.path / name)
        write_atomic(path, [text.encode()], f"{path}.partial")


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
    settings: Settings, table: pd.DataFrame, images: Images, source: str | os.PathLike[str]
) -> dict[str, Any]:
    """Return what config.json holds: settings, versions, and what makes the run what it is.

    `identity` holds, by name, every value that must be equal for the run to go on.
    """
    made = pixel_settings(images.settings)
    data = table.drop(columns="path", errors="ignore").to_csv(index=False).encode()
    identity = {
        "fastmammo": version("fastmammo"),
        **settings.numbers(),
        **{f"images.{name}": value for name, value in made.items()},
        "table.rows": len(table),
        "table.digest": hashlib.sha256(data).hexdigest()[:16],
    }
    return {
        "fastmammo": version("fastmammo"),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in _PACKAGES},
        },
        "settings": settings.to_dict(),
        "digest": settings.digest(),
        "identity": identity,
        "source": {
            "path": os.path.abspath(source),
            "size": list(images.size),
            "bits": images.bits,
            "storage": images.storage,
            "config": images.settings.get("config", {}),
        },
    }


def pixel_settings(made: dict[str, Any]) -> dict[str, Any]:
    """Return those settings that decide an image's pixels, of `Images.settings`."""
    config = made.get("config", {})
    return {name: value for name, value in config.items() if name not in _CHANGES_NO_PIXELS}
