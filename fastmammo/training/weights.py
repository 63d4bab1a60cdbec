"""Takes the name of a timm model and gives it with pretrained weights, from the hub or a file."""

from __future__ import annotations

import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import huggingface_hub.constants as hub
import timm
import timm.models
from torch import Tensor, nn

from fastmammo.errors import WeightsError

if TYPE_CHECKING:
    from collections.abc import Iterator

REACH_SECONDS = 5.0
HELP = (
    "train from random weights (--no-pretrained), or give a local file (--weights FILE, the "
    "model's own state_dict as .safetensors or .pth)"
)


def pretrained_model(name: str, weights: str, options: dict[str, Any]) -> nn.Module:
    """Build a timm model with pretrained weights.

    Args:
        name: of timm, with or without a tag.
        weights: path of a file with the model's state_dict; "" asks the hub, or its cache here.
        options: keyword arguments of `timm.create_model`. Where `in_chans` is 1 and the weights are
            of an RGB stem, their sum over the channels is taken.

    Raises:
        WeightsError: no such file, not the weights of this model, none published, or the hub
            cannot be reached.
    """
    if weights:
        return _from_file(name, Path(weights), options)
    if not timm.models.is_model_pretrained(name):
        raise WeightsError(f"pretrained weights of {name}: timm knows none; {HELP}")
    try:
        with _no_long_retries():
            network: nn.Module = timm.create_model(name, pretrained=True, **options)
    except Exception as error:  # the hub's client and its HTTP library raise classes of their own
        raise WeightsError(
            f"pretrained weights of {name}: got {_first_line(error)} from {hub.ENDPOINT}, and no "
            f"copy in its cache {hub.HF_HUB_CACHE}; {HELP}"
        ) from error
    return network


def _from_file(name: str, path: Path, options: dict[str, Any]) -> nn.Module:
    if not path.is_file():
        raise WeightsError(f"weights of {name}: got {path}, which is no file; {HELP}")
    try:
        state = timm.models.load_state_dict(str(path), weights_only=True)
    except Exception as error:  # unpickling a damaged or a hostile file fails in any class
        raise WeightsError(
            f"weights of {name}: {path} cannot be read as a state_dict of tensors alone: "
            f"{_first_line(error)}; nothing else in a file is ever executed"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise WeightsError(f"weights of {name}: {path} holds no state_dict (names to tensors)")
    overlay = {"state_dict": dict(state), "custom_load": False}
    try:
        network: Any = timm.create_model(
            name, pretrained=True, pretrained_cfg_overlay=overlay, **options
        )
    except Exception as error:  # timm's own checks and filters raise several classes
        raise WeightsError(
            f"weights of {name}: {path} is of another architecture: {_first_line(error)}"
        ) from error
    # timm loads without complaint what fits, the classifier being left out: count it ourselves
    missing = sorted(
        key
        for key in network.state_dict()
        if key not in state and not key.endswith("num_batches_tracked") and not _is_head(key)
    )
    if missing:
        raise WeightsError(
            f"weights of {name}: {path} lacks {len(missing)} of its tensors ({missing[0]}, ...), "
            "wanted a state_dict with timm's names of this very model"
        )
    # timm keeps the whole state_dict on the model: every copy of it would carry the file along
    network.pretrained_cfg.pop("state_dict", None)
    found: nn.Module = network
    return found


def _is_head(key: str) -> bool:
    return key.split(".")[0] in ("head", "pre_logits", "conv_head", "norm_head", "classifier", "fc")


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"


def _reachable(url: str) -> bool:
    request = urllib.request.Request(url, method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=REACH_SECONDS).close()
    except urllib.error.HTTPError:
        return True  # an answer, if not a kind one
    except OSError:  # URLError and time-outs are among them
        return False
    return True


@contextmanager
def _no_long_retries() -> Iterator[None]:
    """Let the hub's client read only its cache while the hub cannot be reached.

    It would try every file six times with growing pauses: a minute before the message comes.
    """
    before = hub.HF_HUB_OFFLINE
    if not before and not _reachable(hub.ENDPOINT):
        hub.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        hub.HF_HUB_OFFLINE = before
