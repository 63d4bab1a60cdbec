"""Takes the state of a training, leaves it whole on disk; gives it back, checked."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from typing import TYPE_CHECKING, Any

import torch

from fastmammo.conversion.writers import write_atomic
from fastmammo.errors import CheckpointError

if TYPE_CHECKING:
    from pathlib import Path

KIND = "fastmammo checkpoint"
FORMAT = 1
"""Raised whenever a checkpoint's keys change their meaning."""

State = dict[str, Any]


def save_checkpoint(path: Path, state: State) -> None:
    """Write a checkpoint so that `path` holds all of it, or what it held before.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    buffer = io.BytesIO()
    torch.save({"kind": KIND, "format": FORMAT, **state}, buffer)
    write_atomic(os.fspath(path), [buffer.getbuffer()], f"{os.fspath(path)}.partial")


def load_checkpoint(path: Path, *, resuming: bool = False) -> State:
    """Read a checkpoint onto the CPU, as tensors and plain values: no code in it is ever run.

    Args:
        resuming: it is read to train on, not to score: damage has another remedy then.

    Raises:
        CheckpointError: it is not there, is damaged, is of another program or of a later version,
            or holds something else than tensors and plain values.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"no checkpoint at {path}. Has the fold been trained? `resume` goes on with it"
        ) from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds more than tensors and plain values, or is damaged; nothing of it was "
            f"run. {_remedy(path, resuming)}"
        ) from error
    except (RuntimeError, EOFError, KeyError, ValueError, zipfile.BadZipFile, OSError) as error:
        raise CheckpointError(
            f"{path} is damaged: {_damage(path, error)}. {_remedy(path, resuming)}"
        ) from error
    if not isinstance(state, dict) or state.get("kind") != KIND:
        raise CheckpointError(f"{path} is no checkpoint of fastmammo's trainer")
    if state.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} has format {state.get('format')!r}, wanted {FORMAT}. It was written by "
            f"fastmammo {state.get('identity', {}).get('fastmammo', '(unknown)')}: use that version"
        )
    return state


def _damage(path: Path, error: Exception) -> str:
    """Say in a few words what is wrong: torch's own words are of its archives' insides."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    size = path.stat().st_size
    if not size:
        return "it is empty"
    # an archive's directory stands at its end
    whole = zipfile.is_zipfile(path)
    return "its content is broken" if whole else f"it is cut short, at {size} bytes, or no archive"


def _remedy(path: Path, resuming: bool) -> str:
    best = path.with_name("best.pt")
    beside = path.name != best.name and best.exists()
    if resuming:
        lost = " (best.pt beside it can be scored with, not gone on with)" if beside else ""
        return f"Take it from a copy, or remove it: the fold is then trained from its start{lost}"
    instead = ", or copy best.pt, the weights of the best epoch, over it" if beside else ""
    return f"Take it from a copy{instead}, or remove it and train its fold again with resume"


def check_identity(path: Path, state: State, identity: dict[str, Any]) -> None:
    """Refuse a checkpoint of other settings, another version or other data.

    Args:
        identity: name: value of all that must be equal for a run to go on.

    Raises:
        CheckpointError: names each difference.
    """
    found = differences(identity, state.get("identity", {}))
    if found:
        shown = "; ".join(found[:8]) + ("; ..." if len(found) > 8 else "")
        raise CheckpointError(
            f"{path} is of another run, it cannot go on with these settings: {shown}. Give the "
            "settings that it was started with, or name another run folder"
        )


def load_weights(path: Path, module: torch.nn.Module, weights: State) -> None:
    """Load weights into a model of the same architecture.

    Raises:
        CheckpointError: names missing, unexpected and differently shaped weights.
    """
    own = module.state_dict()
    wrong = [
        f"{name}: {tuple(weights[name].shape)} there, {tuple(own[name].shape)} here"
        for name in own
        if name in weights and weights[name].shape != own[name].shape
    ]
    wrong += [f"{name}: absent there" for name in own if name not in weights]
    wrong += [f"{name}: unknown here" for name in weights if name not in own]
    if wrong:
        raise CheckpointError(
            f"{path} is of another model: {'; '.join(wrong[:4])}"
            f"{f' and {len(wrong) - 4} more' if len(wrong) > 4 else ''}. Was it trained with "
            "another version of timm, or other settings of the model?"
        )
    module.load_state_dict(weights)


def differences(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """Return a line for each value in which two dicts differ: "loop.lr: 0.1 there, 0.2 here"."""
    absent = object()
    found = []
    for name in sorted({*ours, *theirs}):
        here, there = ours.get(name, absent), theirs.get(name, absent)
        if here != there:
            words = ["absent" if each is absent else repr(each) for each in (there, here)]
            found.append(f"{name}: {words[0]} there, {words[1]} here")
    return found
