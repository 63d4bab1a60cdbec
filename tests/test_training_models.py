"""Models: what is built from a name, its weights, its map, freezing; and what is refused."""

from __future__ import annotations

import http.server
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import safetensors.torch
import timm
import torch
from huggingface_hub import constants

from fastmammo.errors import ModelError, WeightsError
from fastmammo.training import backbones, weights
from fastmammo.training.backbones import PRESETS, build_backbone, resolve
from fastmammo.training.models import Model, ModelConfig, build_model
from fastmammo.training.small_cnn import SmallCNN

if TYPE_CHECKING:
    from torch import Tensor, nn


def build(model: str = "small_cnn", **options: Any) -> Model:
    size = options.pop("image_size", (64, 32))
    config = ModelConfig(model=model, pretrained=False, **options)
    return build_model(config, image_size=size)


def images(count: int = 2, rows: int = 64, columns: int = 32) -> Tensor:
    return torch.rand(count, 1, rows, columns, generator=torch.Generator().manual_seed(0))


def stirred(network: nn.Module) -> nn.Module:
    """Give all weights and statistics values of their own: fresh ones are often 0 or 1."""
    generator = torch.Generator().manual_seed(1)
    for name, value in network.state_dict().items():
        if value.is_floating_point():
            noise = torch.rand(value.shape, generator=generator)
            value.copy_(value + 0.1 * (noise if name.endswith("running_var") else noise - 0.5))
    return network


# ---- names


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_every_preset_gives_a_feature_map(preset: str) -> None:
    """On the device "meta": shapes alone, so that the large ones cost nothing."""
    name = resolve(preset)
    if name == "small_cnn":
        assert build_backbone(name).channels == 64
        return
    with torch.device("meta"):
        network = backbones._create(name, {"in_chans": 1, "num_classes": 0, "global_pool": ""})
        layout, _ = backbones._probe(name, network, (128, 64))
    assert layout == "NCHW"
    assert timm.models.is_model_pretrained(name)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("resnet_50", "resnet50"),
        ("efficientnet-b0", "efficientnet_b0"),
        ("smallcnn", "small_cnn"),
        ("resnet50.a1_in2k", "resnet50.a1_in1k"),
        ("hf-hub:timm/resnet50", "resnet50"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(name: str, near: str) -> None:
    with pytest.raises(ModelError, match=f"model: got '{name}', wanted a preset") as caught:
        build(name)
    assert near in str(caught.value).split("the nearest:")[1]


def test_a_name_with_its_tag_is_taken() -> None:
    assert resolve("resnet50.a1_in1k") == "resnet50.a1_in1k"


# ---- weights


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050"])
def test_the_grey_stem_equals_the_rgb_model_on_a_grey_image(name: str, tmp_path: Path) -> None:
    rgb = stirred(timm.create_model(name)).eval()
    path = tmp_path / "rgb.pth"
    torch.save(rgb.state_dict(), path)
    grey = build_backbone(name, weights=str(path)).eval()
    batch = images()
    normal = (batch - grey.mean) / grey.std
    with torch.no_grad():
        torch.testing.assert_close(
            grey(batch), rgb.forward_features(normal.repeat(1, 3, 1, 1)), rtol=1e-4, atol=1e-4
        )


def test_weights_of_a_grey_model_are_taken_as_they_are(tmp_path: Path) -> None:
    before = stirred(build_backbone("resnet18", pretrained=False).network).eval()
    path = tmp_path / "grey.safetensors"
    safetensors.torch.save_file(before.state_dict(), path)
    after = build_backbone("resnet18", weights=str(path)).network
    for name, value in before.state_dict().items():
        torch.testing.assert_close(after.state_dict()[name], value, rtol=0, atol=0)
    # the file's tensors must not hang on the model: each of its copies would carry them
    assert "state_dict" not in after.pretrained_cfg


def test_images_are_normalised_as_in_the_pretraining() -> None:
    backbone = build_backbone("efficientnet_b0", pretrained=False)
    assert float(backbone.mean) == pytest.approx((0.485 + 0.456 + 0.406) / 3)
    assert float(backbone.std) == pytest.approx((0.229 + 0.224 + 0.225) / 3)
    assert {"mean", "std"} <= set(dict(backbone.named_buffers()))


class Hostile:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def test_files_that_are_no_weights_are_refused(tmp_path: Path) -> None:
    def refused(path: Path, match: str) -> None:
        with pytest.raises(WeightsError, match=match):
            build_backbone("resnet18", weights=str(path))

    refused(tmp_path / "absent.pth", r"weights of resnet18: got .*absent.pth, which is no file.*")
    (tmp_path / "text.pth").write_text("no weights")
    refused(tmp_path / "text.pth", "text.pth cannot be read as a state_dict of tensors alone")
    (tmp_path / "text.safetensors").write_text("no weights")
    refused(tmp_path / "text.safetensors", "cannot be read as a state_dict of tensors alone")
    torch.save({"state_dict": Hostile(tmp_path / "mark")}, tmp_path / "hostile.pth")
    refused(tmp_path / "hostile.pth", "nothing else in a file is ever executed")
    assert not (tmp_path / "mark").exists()
    torch.save({"conv1.weight": 3}, tmp_path / "number.pth")
    refused(tmp_path / "number.pth", "number.pth holds no state_dict")
    torch.save(timm.create_model("vgg11").features.state_dict(), tmp_path / "vgg.pth")
    refused(tmp_path / "vgg.pth", r"vgg.pth lacks \d+ of its tensors \(bn1.bias, ...\), wanted a")
    torch.save(timm.create_model("resnet26").state_dict(), tmp_path / "r26.pth")
    refused(tmp_path / "r26.pth", "r26.pth is of another architecture: RuntimeError")


def test_small_cnn_takes_no_weights_file() -> None:
    with pytest.raises(ModelError, match="small_cnn has no pretrained weights"):
        build_backbone("small_cnn", weights="some.pth")
    build_model(ModelConfig(model="small_cnn"))  # pretrained, its default, is no error


def test_a_hub_that_is_not_reached_is_said_soon(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    start = time.monotonic()
    with pytest.raises(
        WeightsError, match=r"pretrained weights of resnet18: got .*Error"
    ) as caught:
        build_model(ModelConfig(model="resnet18"))
    assert time.monotonic() - start < 20  # six tries with pauses would take a minute
    for part in ("http://127.0.0.1:9", "--no-pretrained", "--weights FILE", str(tmp_path)):
        assert part in str(caught.value)
    assert constants.HF_HUB_OFFLINE is False  # left as it was


def test_the_hubs_cache_serves_without_the_hub(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rgb = stirred(timm.create_model("resnet18"))
    folder = tmp_path / "models--timm--resnet18.a1_in1k"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    (folder / "snapshots" / ("0" * 40)).mkdir(parents=True)
    safetensors.torch.save_file(
        rgb.state_dict(), folder / "snapshots" / ("0" * 40) / "model.safetensors"
    )
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    network: Any = build_backbone("resnet18").network
    torch.testing.assert_close(network.layer4[1].conv2.weight, rgb.layer4[1].conv2.weight)
    torch.testing.assert_close(network.conv1.weight, rgb.conv1.weight.sum(1, keepdim=True))


def test_an_answer_of_any_kind_means_reachable() -> None:
    class Refusing(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_error(int(self.path[1:]))

        def log_message(self, *_: Any) -> None: ...

    with http.server.HTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        assert weights._reachable(f"{url}/403")
        assert weights._reachable(f"{url}/200")
        server.shutdown()
    assert not weights._reachable("http://127.0.0.1:9")


def test_a_model_without_published_weights() -> None:
    with pytest.raises(WeightsError, match="densenet264d: timm knows none; train from random"):
        build_model(ModelConfig(model="densenet264d"))


# ---- architectures

SMALL = ["resnet18", "vgg11_bn", "squeezenet", "convnext_atto", "vit_tiny_patch16_224", "small_cnn"]


@pytest.mark.parametrize("name", SMALL)
def test_every_weight_has_a_gradient(name: str) -> None:
    """Weights that no gradient reaches stop a distributed run."""
    model = build(name, auxiliary="view, density,age", pooling="average")
    found = model(images())
    assert {k: tuple(v.shape) for k, v in found.items()} == {
        "cancer": (2,), "view": (2, 2), "density": (2, 4), "age": (2,)
    }  # fmt: skip
    assert all(v.dtype == torch.float32 for v in found.values())
    sum(v.sum() for v in found.values()).backward()
    assert [k for k, p in model.named_parameters() if p.grad is None] == []
    assert model.features(images()).shape == (2, model.backbone.channels)


def test_vgg_comes_without_its_classifier() -> None:
    # its "pre_logits" alone holds 100 million weights and wants maps of 7 x 7
    network = build_backbone("vgg11", pretrained=False).network
    assert sum(p.numel() for p in network.parameters()) < 10e6


def test_convnext_features_are_those_of_its_own_head() -> None:
    ours = build("convnext_atto")
    stirred(ours.backbone)
    theirs = timm.create_model("convnext_atto", in_chans=1, num_classes=0).eval()
    state = dict(ours.backbone.network.state_dict())
    norm = ours.backbone.norm
    assert norm is not None
    state |= {"head.norm.weight": norm.weight, "head.norm.bias": norm.bias}
    theirs.load_state_dict(state)
    batch = images()
    normal = (batch - ours.backbone.mean) / ours.backbone.std
    with torch.no_grad():
        torch.testing.assert_close(ours.eval().features(batch), theirs(normal))


def test_tokens_become_a_map_in_their_places() -> None:
    backbone = build_backbone("vit_tiny_patch16_224", pretrained=False, image_size=(64, 32)).eval()
    with torch.no_grad():
        tokens = backbone.network.forward_features((images() - backbone.mean) / backbone.std)
        maps = backbone(images())
    assert maps.shape == (2, 192, 4, 2)
    torch.testing.assert_close(maps[:, :, 2, 1], tokens[:, 1 + 2 * 2 + 1])


def test_channels_last_maps_are_turned() -> None:
    backbone = build_backbone("swin_tiny_patch4_window7_224", pretrained=False, image_size=(96, 64))
    assert backbone.layout == "NHWC"
    assert backbone.fixed_size == (96, 64)
    with torch.no_grad():
        assert backbone(images(1, 96, 64)).shape == (1, 768, 3, 2)


def test_the_same_seed_gives_the_same_weights() -> None:
    states = []
    for _ in range(2):  # the second finds what the first has looked up: it must draw no less
        torch.manual_seed(3)
        states.append(build("vit_tiny_patch16_224", auxiliary="view").state_dict())
    assert all(torch.equal(v, states[1][k]) for k, v in states[0].items())


def test_what_a_model_does_not_have_is_noted() -> None:
    notes = build("vgg11", drop_path=0.1).notes
    assert notes == ("vgg11 has no stochastic depth: drop_path 0.1 is not used",)
    assert build("resnet18", drop_path=0.1).notes == ()


def test_some_models_cannot_do_without_their_pooling() -> None:
    assert build("efficientvit_b0").feature_map(images()).shape == (2, 128, 2, 1)


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("vit_tiny_patch16_224", "it cuts images into squares of 16x16, and would not see what is"),
        ("levit_128s", "it does not take images of 64x32: RuntimeError.*choose another size"),
        ("nest_tiny", "timm cannot build it with .*Model only handles square inputs"),
        ("tnt_s_legacy_patch16_224", "got features of shape .* wanted a map of 384 channels"),
    ],
)
def test_sizes_and_kinds_that_do_not_fit_are_refused(name: str, match: str) -> None:
    size = (60, 30) if name.startswith("vit_tiny") else (64, 32)
    with pytest.raises(ModelError, match=f"model {name}: {match}"):
        build(name, image_size=size)


def test_images_that_do_not_fit_are_refused() -> None:
    model = build("vit_tiny_patch16_224", image_size=None)
    with pytest.raises(ModelError, match="got 64x32, but the model was built for 224x224"):
        model(images())
    small = build()
    with pytest.raises(ModelError, match=r"images: got torch.uint8 of shape \(1, 1, 8, 8\)"):
        small(torch.zeros(1, 1, 8, 8, dtype=torch.uint8))
    with pytest.raises(ModelError, match=r"wanted float in \[0, 1\] of shape \(n, 1, rows"):
        small(torch.zeros(1, 3, 8, 8))


def test_small_cnn_is_small_and_takes_any_size() -> None:
    model = build()
    assert sum(p.numel() for p in model.parameters()) < 0.5e6
    for rows, columns in ((1, 1), (9, 33), (128, 64)):
        assert model(images(2, rows, columns))["cancer"].isfinite().all()
    assert SmallCNN().feature_info[-1] == {"module": "stages.2", "num_chs": 64, "reduction": 8}


def test_logits_stay_float32_under_autocast() -> None:
    model = build("resnet18", auxiliary="density").eval()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        found = model(images(16))
    assert {v.dtype for v in found.values()} == {torch.float32}
    assert len(found["cancer"].unique()) == 16


def test_auto_pooling_suits_the_map() -> None:
    kinds = {n: type(build(n).pool).__name__ for n in ("small_cnn", "resnet18", "convnext_atto")}
    assert kinds == {
        "small_cnn": "MaxPool", "resnet18": "GeMPool", "convnext_atto": "AveragePool"
    }  # fmt: skip


# ---- freezing


def test_frozen_stages_keep_weights_and_statistics() -> None:
    model = build("resnet18", freeze=2).train()  # the stem and layer1
    before = {k: v.clone() for k, v in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(images())["cancer"].sum().backward()
    optimizer.step()
    after = model.state_dict()
    changed = {k for k, v in before.items() if not torch.equal(v, after[k])}
    frozen = [k for k in before if ".conv1." in k[:24] or ".bn1." in k[:22] or "layer1" in k]
    assert len(frozen) > 20
    assert changed.isdisjoint(frozen)
    assert any("layer2.0.bn1.running_mean" in k for k in changed)
    assert not model.get_submodule("backbone.network.bn1").training
    assert not model.get_submodule("backbone.network.layer1.0.bn1").training
    assert model.get_submodule("backbone.network.layer2.0.bn1").training
    assert model.eval().train().get_submodule("backbone.network.bn1").training is False


@pytest.mark.parametrize("name", ["vgg11_bn", "vit_tiny_patch16_224", "small_cnn", "convnext_atto"])
def test_stages_are_counted_from_the_stem(name: str) -> None:
    trained, model = [], build(name)
    for stages in (0, 1, 2):
        model.freeze(stages)
        trained.append(sum(p.numel() for p in model.backbone.parameters() if p.requires_grad))
    assert trained[0] == sum(p.numel() for p in model.backbone.parameters())
    assert trained[0] > trained[1] > trained[2] > 0


def test_statistics_can_be_kept_alone() -> None:
    model = build(freeze_norms=True).train()
    before = {k: v.clone() for k, v in model.state_dict().items() if "running" in k}
    model(images())
    assert before
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in before.items())
    assert all(p.requires_grad for p in model.parameters())


def test_more_stages_than_there_are() -> None:
    with pytest.raises(ModelError, match="freeze: got 4 stages, but SmallCNN has 3"):
        build(freeze=4)
