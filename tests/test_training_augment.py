"""Augmentation: an image's picture is its key's alone, and every stage does what it says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmammo.errors import ConfigError
from fastmammo.training.augment import PRESETS, Augmentation, AugmentConfig
from fastmammo.training.clahe import clahe
from fastmammo.training.draws import integers, uniforms

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """On a busy machine a second thread costs more than such small images gain by it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


ALL = AugmentConfig(
    "standard",
    flip_vertical=0.5,
    clahe_share=0.5,
    noise_share=0.5,
    cut_out_share=0.5,
    positive_strength=1.5,
)


def pictures(count: int, rows: int = 33, columns: int = 21, seed: int = 0) -> torch.Tensor:
    """Return smooth images in [0, 1]: a ramp and a bright spot, another one for each image."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:rows, 0:columns]
    pages = [
        0.5 * x / columns
        + 0.5 * np.exp(-((y - a * rows) ** 2 + (x - b * columns) ** 2) / (0.02 * rows * columns))
        for a, b in random.uniform(0.2, 0.8, (count, 2))
    ]
    return torch.from_numpy(np.stack(pages)[:, None]).to(torch.float32)


def augmented(config: AugmentConfig, images: torch.Tensor, rows: list[int]) -> torch.Tensor:
    return Augmentation(config)(images, (7, 3, np.array(rows)), np.zeros(len(rows), bool))


# The draws


def test_draws_are_splitmix64() -> None:
    # SplitMix64's first numbers from the state 0, as every description of it lists them
    from fastmammo.training.draws import _mix

    state = np.array([0, 0x9E3779B97F4A7C15], np.uint64)
    assert [hex(each) for each in _mix(state)] == ["0xe220a8397b1dcdaf", "0x6e789e6aa1b965f4"]


def test_draws_are_uniform_and_independent() -> None:
    draws = uniforms(integers(0, 0, np.arange(20000), 6))
    assert draws.shape == (20000, 6)
    assert 0 <= draws.min() < 1e-3
    assert 0.999 < draws.max() < 1
    for column in draws.T:
        counts, _ = np.histogram(column, 20, (0, 1))
        # chi-square of 19 degrees of freedom: 0.9999 of all fair draws lie below 50
        assert ((counts - 1000) ** 2 / 1000).sum() < 50
    for other in (draws[1:], uniforms(integers(0, 1, np.arange(20000), 6))[:-1]):
        assert abs(np.corrcoef(draws[:-1, 0], other[:, 0])[0, 1]) < 0.03
    assert np.abs(np.corrcoef(draws.T) - np.eye(6)).max() < 0.03


def test_draws_differ_by_each_part_of_the_key() -> None:
    rows = np.array([5, 6])
    drawn = [
        integers(1, 2, rows, 3),
        integers(2, 1, rows, 3),
        integers(1, 3, rows, 3),
        integers(-1, 2, rows, 3),
        integers(1, 2, rows, 3, 1),
        integers(1, 2, rows + 2, 3),
    ]
    assert len(np.unique(np.concatenate(drawn))) == 6 * 2 * 3
    assert (integers(1, 2, rows, 3, np.array([0, 1]))[1] == integers(1, 2, rows, 3, 1)[1]).all()


# The keys


@settings(max_examples=25, deadline=None)
@given(order=st.permutations(range(9)), size=st.integers(1, 9))
def test_a_picture_does_not_depend_on_the_batch(order: list[int], size: int) -> None:
    images = pictures(9)
    keys = np.arange(9) * 1000
    positive = np.arange(9) % 2 == 0
    augmentation = Augmentation(ALL)
    whole = augmentation(images, (7, 3, keys), positive)
    chosen = np.array(order[:size])
    part = augmentation(images[chosen], (7, 3, keys[chosen]), torch.from_numpy(positive[chosen]))
    assert torch.equal(part, whole[chosen])


def test_keys_make_the_picture() -> None:
    image = pictures(1).expand(64, 1, 33, 21)
    rows = np.arange(64)
    augmentation = Augmentation(ALL)
    none = np.zeros(64, bool)
    first = augmentation(image, (7, 3, rows), none)
    assert len({page.numpy().tobytes() for page in first}) == 64
    assert torch.equal(first, augmentation(image, (7, 3, rows), none))
    for keys, repeats in (((8, 3, rows), 0), ((7, 4, rows), 0), ((7, 3, rows), 1)):
        other = augmentation(image, keys, none, repeats)
        assert (first != other).flatten(1).any(1).all()


def test_images_stay_as_they_were_and_in_range() -> None:
    images = pictures(64)
    before = images.clone()
    out = augmented(ALL, images, list(range(64)))
    assert torch.equal(images, before)
    assert out.dtype == torch.float32
    assert out.shape == images.shape
    assert 0 <= out.min() <= out.max() <= 1


# The stages


def test_no_augmentation_gives_the_images_back() -> None:
    images = pictures(3)
    assert augmented(AugmentConfig("none"), images, [0, 1, 2]) is images


def test_flips_are_exact() -> None:
    images = pictures(5)
    for name, axis in (("flip_horizontal", -1), ("flip_vertical", -2)):
        out = augmented(AugmentConfig("none", **{name: 1.0}), images, [0, 1, 2, 3, 4])
        assert torch.equal(out, images.flip(axis))
    half = augmented(AugmentConfig("none", flip_horizontal=0.5), images, [0, 1, 2, 3, 4])
    same = [torch.equal(a, b) for a, b in zip(half, images, strict=True)]
    assert 0 < sum(same) < 5


def test_an_affine_of_almost_nothing_gives_the_image_back_flips_included() -> None:
    images = pictures(4, 34, 22)
    still = AugmentConfig("none", affine_share=1.0, rotation=1e-6)
    assert torch.allclose(augmented(still, images, [0, 1, 2, 3]), images, atol=1e-5)
    flipped = AugmentConfig(
        "none", affine_share=1.0, rotation=1e-6, flip_horizontal=1.0, flip_vertical=1.0
    )
    out = augmented(flipped, images, [0, 1, 2, 3])
    assert torch.allclose(out, images.flip(-1).flip(-2), atol=1e-5)


def test_affine_as_opencv_has_it() -> None:
    cv2 = pytest.importorskip("cv2")
    rows, columns = 40, 24
    images = pictures(6, rows, columns)
    augmentation = Augmentation(
        AugmentConfig(
            "none",
            affine_share=1.0,
            rotation=30.0,
            zoom=0.2,
            shear=15.0,
            shift=0.1,
            random_crop=0.3,
            flip_horizontal=0.5,
        )
    )
    keys = (7, 3, np.arange(6))
    out = augmentation(images, keys, np.zeros(6, bool))
    draws = augmentation.draw(keys, np.zeros(6, bool))
    for index, page in enumerate(out[:, 0].numpy()):
        d = {name: each[index] for name, each in draws.items()}
        angle, lean = np.radians(d["rotation"]), np.tan(np.radians(d["shear"]))
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        matrix = turn @ np.array([[1, lean], [0, 1]]) * d["left"] / d["zoom"]
        matrix = matrix @ np.diag([-1 if d["flip_horizontal"] else 1, 1])
        centre = np.array([columns - 1, rows - 1]) / 2
        offset = centre + np.array([d["x"] * columns, d["y"] * rows]) - matrix @ centre
        x, y = np.meshgrid(np.arange(columns), np.arange(rows))
        place = np.stack((x, y), -1) @ matrix.T + offset
        place = place.astype(np.float32)
        wanted = cv2.remap(images[index, 0].numpy(), place[..., 0], place[..., 1], cv2.INTER_LINEAR)
        # OpenCV takes the place to 1/32 of a pixel; at the border it may fill elsewhere
        assert np.abs(page - wanted).mean() < 0.01
        assert np.corrcoef(page.ravel(), wanted.ravel())[0, 1] > 0.999


@pytest.mark.parametrize("shape", [(64, 48), (61, 45)])
def test_clahe_is_opencvs(shape: tuple[int, int]) -> None:
    cv2 = pytest.importorskip("cv2")
    random = np.random.default_rng(1)
    pages = (random.normal(0.3, 0.2, (3, *shape)).clip(0, 1) * 255).round().astype(np.uint8)
    pages[:, :, :20] = 0
    limits = [1.0, 2.5, 40.0]
    images = torch.from_numpy(pages[:, None] / 255.0).to(torch.float32)
    out = clahe(images, torch.tensor(limits))
    for page, limit, got in zip(pages, limits, out[:, 0].numpy(), strict=True):
        wanted = cv2.createCLAHE(limit, (8, 8)).apply(page)
        # OpenCV rounds the interpolated value, we do not
        assert np.abs(got * 255 - wanted).max() < 0.501


def test_tone_is_gamma_then_contrast_then_brightness() -> None:
    images = pictures(8)
    config = AugmentConfig("none", tone_share=1.0, gamma=0.4, contrast=0.3, brightness=0.1)
    augmentation = Augmentation(config)
    keys = (7, 3, np.arange(8))
    out = augmentation(images, keys, np.zeros(8, bool))
    d = augmentation.draw(keys, np.zeros(8, bool))
    assert (np.abs(d["gamma"]) <= 0.4).all()
    assert (np.abs(d["contrast"] - 1) <= 0.3).all()
    assert (np.abs(d["brightness"]) <= 0.1).all()
    for index in range(8):
        page = images[index, 0].numpy().astype(np.float64) ** np.exp(d["gamma"][index])
        wanted = (page * d["contrast"][index] + d["brightness"][index]).clip(0, 1)
        assert np.abs(out[index, 0].numpy() - wanted).max() < 1e-5


def test_noise_has_the_spread_that_was_drawn() -> None:
    images = torch.full((4, 1, 64, 64), 0.5)
    augmentation = Augmentation(AugmentConfig("none", noise_share=1.0, noise=0.1))
    keys = (7, 3, np.arange(4))
    out = augmentation(images, keys, np.zeros(4, bool))
    drawn = augmentation.draw(keys, np.zeros(4, bool))["noise"]
    assert np.allclose(out.std((1, 2, 3)), drawn, rtol=0.05)
    assert np.allclose(out.mean((1, 2, 3)), 0.5, atol=0.01)


def test_cut_out_is_one_rectangle_of_air() -> None:
    images = torch.ones(32, 1, 40, 30)
    images[:, :, 0, 0] = 0.25
    out = augmented(AugmentConfig("none", cut_out_share=1.0, cut_out=0.5), images, list(range(32)))
    shares = []
    for page in out[:, 0].numpy():
        page[0, 0] = page[0, 1]
        y, x = np.nonzero(page == 0.25)
        assert (page[page != 0.25] == 1).all()
        assert len(y) == (np.ptp(y) + 1) * (np.ptp(x) + 1)
        assert np.ptp(y) + 1 <= 0.5 * 40 + 2
        assert np.ptp(x) + 1 <= 0.5 * 30 + 2
        shares.append(len(y) / 1200)
    assert len(set(shares)) > 10


@pytest.mark.parametrize("value", [0.0, 20 / 255, 1.0])
def test_air_that_is_not_black_gets_no_wedges_and_no_hole(value: float) -> None:
    """A SIGMOID window leaves air at 20 of 255: what an affine uncovers is to be as bright."""
    config = AugmentConfig(
        "none",
        flip_horizontal=0.5,
        **{"affine_share": 1.0, "rotation": 45.0, "zoom": 0.3, "shear": 8.0, "shift": 0.3},
        **{"cut_out_share": 1.0, "cut_out": 0.5},
    )
    flat = torch.full((16, 1, 40, 30), value)
    assert torch.equal(augmented(config, flat, list(range(16))), flat)
    shown = pictures(16) * (1 - value) + value
    out = augmented(config, shown, list(range(16)))
    assert (out >= shown.amin((2, 3), keepdim=True) - 1e-6).all()
    assert (out <= 1).all()


def test_images_flipped_to_one_side_are_mirrored_only_where_asked_for() -> None:
    preset = AugmentConfig("standard")
    for config in ({}, {"flip": "none"}):
        assert preset.of_images(config) == (preset, "")
    found, line = preset.of_images({"flip": "left"})
    assert found.values() == {**preset.values(), "flip_horizontal": 0.0}
    assert "the breast is at the left: augment=standard mirrors none" in line
    asked = AugmentConfig("standard", flip_horizontal=0.5)
    assert asked.of_images({"flip": "left"}) == (asked, "")
    assert AugmentConfig("none").of_images({"flip": "left"})[1] == ""


def test_shares_are_the_shares_of_the_images() -> None:
    draws = Augmentation(ALL).draw((0, 0, np.arange(4000)), np.zeros(4000, bool))
    for name, share in ALL.values().items():
        if name.endswith("_share") or name.startswith("flip"):
            assert abs(draws[name].mean() - share) < 0.03, name


def test_positives_are_varied_more_strongly_by_option() -> None:
    config = AugmentConfig("standard", positive_strength=2.0)
    rows = np.arange(2000)
    plain = Augmentation(config).draw((0, 0, rows), np.zeros(2000, bool))
    strong = Augmentation(config).draw((0, 0, rows), np.ones(2000, bool))
    for name in ("rotation", "shear", "brightness", "gamma", "noise", "cut_rows"):
        assert np.allclose(strong[name], 2 * plain[name]), name
    assert np.allclose(strong["zoom"] - 1, 2 * (plain["zoom"] - 1))
    assert (strong["affine_share"] == plain["affine_share"]).all()
    # a range does not grow beyond what makes sense
    wild = AugmentConfig("standard", zoom=0.4, positive_strength=10.0)
    zooms = Augmentation(wild).draw((0, 0, rows), np.ones(2000, bool))["zoom"]
    assert 0.5 <= zooms.min() < 0.51


# The settings


def test_presets_and_what_differs_from_them() -> None:
    assert not any(AugmentConfig("none").values().values())
    own = AugmentConfig("light", rotation=45, flip_horizontal=0)
    assert own.values() == {
        **AugmentConfig("light").values(),
        "rotation": 45.0,
        "flip_horizontal": 0.0,
    }
    for name, preset in PRESETS.items():
        values = AugmentConfig(name).values()
        assert {key: value for key, value in values.items() if value} == preset


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"augment": "heavy"}, "augment: got 'heavy', allowed are none, light, standard"),
        ({"rotation": 200}, "rotation: got 200, allowed is 0 to 180"),
        ({"flip_horizontal": 1.5}, "flip_horizontal: got 1.5, allowed is 0 to 1"),
        ({"positive_strength": -1}, "positive_strength: got -1, allowed is 0 to 10"),
        (
            {"augment": "none", "rotation": 10},
            "rotation: got 10, but affine_share is 0 with augment=none.*set affine_share too",
        ),
        (
            {"augment": "light", "noise_share": 0.5},
            "noise_share: got 0.5, but noise are 0 with augment=light.*set one of them too",
        ),
    ],
)
def test_settings_that_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AugmentConfig(**fields)  # type: ignore[arg-type]


def test_deterministic_mode_takes_all_stages() -> None:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        augmented(ALL, pictures(16), list(range(16)))
    finally:
        torch.use_deterministic_algorithms(before)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_too_a_picture_does_not_depend_on_the_batch() -> None:
    images = pictures(9).cuda()
    augmentation = Augmentation(ALL)
    rows, none = np.arange(9), np.zeros(9, bool)
    whole = augmentation(images, (7, 3, rows), none)
    assert whole.is_cuda
    for index in range(9):
        alone = augmentation(images[index : index + 1], (7, 3, rows[index : index + 1]), none[:1])
        assert torch.equal(alone[0], whole[index])
