"""What doctor and verify see of a CUDA device, and finished images: pretended, and on a GPU."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pretended_cuda
import pytest
from cuda_on_cpu import build, compiler
from gpu import require_gpu
from test_device import SIZE, J, file, files, prepare, same

from fastmammo import Preprocessor
from fastmammo.decoding import (
    BACKENDS,
    FrameDecoder,
    cuda_runtime,
    dali,
    nvimgcodec,
    nvjpeg2000,
)
from fastmammo.decoding.nvjpeg2000_probe import Probed
from fastmammo.dicom import read
from fastmammo.errors import BackendUnavailableError, ConfigError, DeviceError
from fastmammo.kernels import INSTALL, gpu, to_host
from fastmammo.report import doctor, gpu_parts
from fastmammo.report.doctor import diagnose, markdown, text
from fastmammo.report.references import tolerance
from fastmammo.report.verify import verify
from fastmammo.testing import phantom, write_dicom

if TYPE_CHECKING:
    from pathlib import Path

    from pretended_cuda import PretendedCuda


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if compiler() is None:
        pytest.skip("no g++: the kernels' files are not run on the CPU")
    return build(tmp_path_factory.mktemp("library"), "none")


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch, library: Path) -> PretendedCuda:
    return pretended_cuda.install(monkeypatch, library)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder with one lossless JPEG 2000 file."""
    (tmp_path / "a.dcm").write_bytes(file(0))
    return tmp_path


def test_doctor_with_a_device(cuda: PretendedCuda) -> None:
    found = diagnose()
    assert found["devices"]["cuda"] == "Pretended GPU, 16384 MiB"
    assert found["cuda"]["missing"] == {}
    assert found["table"][f"{J}.90"]["nvjpeg2000"] == "exact"
    assert found["table"][f"{J}.70"]["nvimgcodec"] == "exact"
    assert found["chosen"][f"{J}.90"] == "numba"
    assert "nvjpeg2000: exact" in text(found)


def test_doctor_without_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_runtime, "missing", lambda: "CuPy: pip install it")
    found = diagnose()
    assert "nvjpeg2000" not in found["backends"]
    assert found["devices"]["cuda"] == "none that can be used"
    assert "cuda lacks CuPy: pip install it" in text(found)


def test_doctor_has_a_line_for_each_part_of_the_gpu_s_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without a device too: what loads, and what is missing, one way to get it."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    monkeypatch.setattr(cuda_runtime, "missing", lambda: f"CuPy: {INSTALL}")
    monkeypatch.setattr(gpu_parts, "_driver", lambda: "for CUDA 12.8, devices: 0")
    monkeypatch.setattr(gpu_parts, "_installed", lambda module: None)
    monkeypatch.setattr(nvimgcodec, "version", lambda: "nvImageCodec 0.9.0.20, nvJPEG 12.4.0")
    monkeypatch.setattr(gpu_parts.nvidia_libraries, "nvjpeg_version", lambda: (12, 4, 0))

    def absent() -> str:
        raise BackendUnavailableError(INSTALL)

    def breaks() -> str:
        raise OSError("libdali.so: undefined symbol")

    monkeypatch.setattr(gpu_parts, "_cupy", absent)
    monkeypatch.setattr(gpu_parts, "_nvrtc", lambda: "13.2")
    monkeypatch.setattr(gpu_parts, "_dali", breaks)
    monkeypatch.setattr(nvjpeg2000, "version", lambda: "nvJPEG2000 0.11.0 for CUDA 13.0.0")
    found = diagnose()
    part = found["cuda"]["parts"]
    assert part["cupy"] == {"version": None, "missing": INSTALL}
    assert part["nvimgcodec"]["version"].startswith("0.9.0.20, nvJPEG 12.4.0; ")
    wanted = [
        "GPU (the GPU path has not been run on a GPU yet):",
        "  NVIDIA's driver: for CUDA 12.8, devices: 0",
        "  CuPy: missing: not installed",
        "  NVRTC: 13.2",
        "  nvJPEG2000: 0.11.0 for CUDA 13.0.0",
        "  nvImageCodec: 0.9.0.20, nvJPEG 12.4.0; lossless JPEG of 9 to 15 bits goes to the CPU: "
        "nvJPEG before 13.0.2, as all of CUDA 12, decodes it to zeros",
        "  DALI: missing: cannot be loaded (OSError: libdali.so: undefined symbol)",
        "  device: none that can be used: cuda lacks CuPy",
        "  CUDA_VISIBLE_DEVICES: '7'",
        f"  what is missing is installed by: {INSTALL}",
    ]
    assert "\n".join(wanted) in text(found)
    below = markdown(found).split("|\n\n")[-1]
    assert below.splitlines() == [wanted[0], "", *(f"- {line.strip()}" for line in wanted[1:])]
    assert INSTALL.startswith("pip install 'fastmammo[cuda13]'")
    assert not any(need.startswith(f"{key}:") for key, need in found["cuda"]["missing"].items())


def test_verify_on_auto_without_a_gpu_is_the_cpu_s(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nvjpeg2000, "missing", lambda: "a CUDA device")
    monkeypatch.setattr(cuda_runtime, "missing", lambda: "a CUDA device")
    found = verify(source, size=SIZE, device="auto")
    assert (found.device, found.exit_code) == ("cpu", 0)
    assert found.to_dict()["device_reason"] == "auto: missing a CUDA device"
    assert "device: cpu (auto: missing a CUDA device)" in found.text()


def test_verify_has_the_gpus_routes(
    cuda: PretendedCuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.dcm").write_bytes(file(0))
    (tmp_path / "b.dcm").write_bytes(file(1, f"{J}.91"))
    found = verify(tmp_path, size=SIZE, device="cuda")
    assert found.exit_code == 0, found.text()
    lossless, lossy = (
        {
            (r["route"], r["backend"]): r
            for r in found.routes()
            if r["device"] == "cuda" and r["syntax"] == syntax
        }
        for syntax in ("JPEG 2000 Lossless", "JPEG 2000")
    )
    rows = lossless
    assert rows["level 0", "nvjpeg2000"]["exact"] == 1
    assert rows["level 2", "nvjpeg2000"]["exact"] == 1
    assert rows["full image", "auto"]["exact"] == 1
    for each in (lossless, lossy):
        assert all(each[f"level {level}", "kernels"]["exact"] == 1 for level in range(1, 6))
    for scale in ("auto", "full"):
        assert rows[f"batch ({scale} image)", "auto"]["exact"] == 1
        assert lossy[f"batch ({scale} image)", "auto"]["not possible"] == 1
    assert found.to_dict()["backends"]["dali"] == "pretended"
    well = nvjpeg2000.decode

    def wrong(*arguments: Any) -> Any:
        pixels = well(*arguments)
        pixels[5, 5] += 1
        return pixels

    monkeypatch.setattr(nvjpeg2000, "decode", wrong)
    assert verify(tmp_path, size=SIZE, device="cuda").exit_code == 1
    assert {r["device"] for r in verify(tmp_path, size=SIZE).routes()} == {"cpu"}
    with pytest.raises(ConfigError, match="device: got 'tpu', allowed are cpu, cuda"):
        verify(tmp_path, device="tpu")


def test_verify_sees_a_batch_that_differs(
    cuda: PretendedCuda, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frames in flight are decoded by nobody else: neither single frames nor images alone."""
    well, count = pretended_cuda.Flight.submit, 0

    def mixed_up(self: Any, request: Any, *, stream: Any = None) -> Any:
        nonlocal count
        count += 1
        future = well(self, request, stream=stream)
        if count == 3:
            future.result()[3:, 3:] += 1
        return future

    monkeypatch.setattr(pretended_cuda.Flight, "submit", mixed_up)
    found = verify(source, size=SIZE, device="cuda")
    wrong = {r["route"] for r in found.routes() if r["differs"] or r["failed"]}
    assert wrong == {"batch (auto image)"}
    assert found.exit_code == 1


def test_verify_sees_a_kernel_that_differs(
    cuda: PretendedCuda, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    well = gpu.low_pass
    monkeypatch.setattr(gpu, "low_pass", lambda pixels: well(pixels) + np.int32(1))
    found = verify(source, size=SIZE, device="cuda")
    wrong = {(r["route"], r["device"]) for r in found.routes() if r["differs"]}
    assert {(f"level {level}", "cuda") for level in range(1, 6)} <= wrong
    assert not any(device == "cpu" for _, device in wrong)


def test_verify_asks_a_lost_gpu_no_more(
    cuda: PretendedCuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in range(3):
        (tmp_path / f"{index}.dcm").write_bytes(file(index))
    well = cuda.asnumpy

    def fails(array: Any) -> Any:
        if cuda.lost:
            raise pretended_cuda.RuntimeFailure("cudaErrorIllegalAddress")
        return well(array)

    monkeypatch.setattr(sys.modules["cupy"], "asnumpy", fails)

    def poison(*_: Any) -> Any:
        cuda.lost = True
        raise pretended_cuda.RuntimeFailure("cudaErrorIllegalAddress")

    monkeypatch.setattr(nvjpeg2000, "decode", poison)
    found = verify(tmp_path, size=SIZE, device="cuda")
    assert found.exit_code == 1
    on_cuda = [(f.path, r) for f in found.files for r in f.results if r.device == "cuda"]
    ((path, result),) = on_cuda
    assert (path, result.status) == ("0.dcm", "failed")
    assert "CUDA failed: cudaErrorIllegalAddress" in found.lost
    assert found.text().count("no route of the GPU was tried after that") == 1
    assert all(r.status != "failed" for f in found.files for r in f.results if r.device == "cpu")
    assert found.to_dict()["lost"] == found.lost


def test_a_failure_of_cuda_in_a_copy_is_an_error_of_the_package(
    cuda: PretendedCuda, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It came out of `verify` as an internal error, and out of `doctor` as a traceback."""
    decoder = FrameDecoder(read(file(0, f"{J}.70")), device="cuda")
    decoder.at(2)  # made by the kernels, which count what lies beyond

    def fails(array: Any) -> Any:
        raise pretended_cuda.RuntimeFailure("cudaErrorLaunchFailure")

    monkeypatch.setattr(sys.modules["cupy"], "asnumpy", fails)
    (each,) = verify(source, size=SIZE, device="cuda").files
    assert each.status == "differs"
    notes = {r.note for r in each.results if r.status == "failed"}
    assert any("copying from the device: CUDA failed: cudaErrorLaunchFailure" in n for n in notes)
    assert each.lost == ""  # the stream goes on
    table = diagnose()["table"][f"{J}.90"]
    assert "copying from the device: CUDA failed" in table["nvjpeg2000"]
    assert table["numba"] == "exact"
    with pytest.raises(DeviceError, match="copying from the device: CUDA failed"):
        decoder.beyond_range(2)


def test_doctor_looks_at_levels_and_survives_what_it_meets(
    cuda: PretendedCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    well = nvjpeg2000.decode

    def wrong(data: Any, codestream: Any, level: int = 0, threads: int = 1) -> Any:
        pixels = well(data, codestream, level, threads)
        if level == 3:
            pixels += 1
        return pixels

    monkeypatch.setattr(nvjpeg2000, "decode", wrong)

    def breaks(*_: Any) -> Any:
        raise KeyError("no such format")

    monkeypatch.setattr(nvimgcodec, "decode", breaks)
    monkeypatch.setattr(doctor, "twins", lambda: "a and b are installed to the same files")
    monkeypatch.setattr(cuda_runtime, "compiler_note", lambda: "CuPy is built for CUDA 12")
    found = diagnose()
    row = found["table"][f"{J}.90"]
    assert row["nvjpeg2000"] == "WRONG at level 3 by up to 1"
    assert row["nvimgcodec"] == "fails with KeyError: 'no such format'"
    assert row["numba"] == row["openjpeg"] == row["dali"] == "exact"
    assert "remark: a and b are installed to the same files" in text(found)
    assert "remark: CuPy is built for CUDA 12" in text(found)


def test_levels_that_are_off_are_told(
    cuda: PretendedCuda, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault = "nvJPEG2000 gives other samples at level 1"
    monkeypatch.setattr(nvjpeg2000, "LEVELS", False)
    monkeypatch.setattr(nvjpeg2000, "_probed", {0: Probed(fault=fault)})
    batch = prepare()(files())
    assert same(batch, prepare("cpu")(files()))
    assert {r["notes"] for r in batch.records} == {f"levels made from the whole frame: {fault}"}
    assert {r["decoder"] for r in batch.records} == {"nvjpeg2000"}
    assert cuda.launched.count("low_pass_columns") or "low_pass" in "".join(cuda.launched)
    assert diagnose()["table"][f"{J}.90"]["nvjpeg2000"] == f"exact, but {fault}"
    found = verify(source, size=SIZE, device="cuda")
    assert found.exit_code == 0
    rows = {(r["route"], r["backend"]): r for r in found.routes() if r["device"] == "cuda"}
    assert rows["level 1", "nvjpeg2000"]["reasons"] == {fault: 1}


def test_dali_s_notes_say_what_it_does_not(cuda: PretendedCuda) -> None:
    decoder = FrameDecoder(read(file(0)), device="cuda", backend="dali")
    decoder.at(0)
    assert decoder.notes == [dali.REMARK]


# --- finished images, on a pretended device and on a GPU -----------------------------------------

_CASES: list[tuple[str, str, dict[str, Any]]] = [
    # nvJPEG2000 has no signed type of 8 bits, DALI none at all; nvJPEG decodes from 9 bits on
    *(
        (backend, f"{J}.90", {"bits_stored": bits, "signed": signed})
        for backend in ("nvjpeg2000", "nvimgcodec", "dali")
        for bits in range(8, 17)
        for signed in (False, True)
        if not signed or (bits > 8 and backend != "dali")
    ),
    *(("nvimgcodec", f"{J}.70", {"bits_stored": bits}) for bits in range(9, 17)),
    *(
        (backend, f"{J}.90", fields)
        for backend in ("nvjpeg2000", "nvimgcodec", "dali")
        for fields in (
            {"tile": (128, 128)},
            {"bits_stored": 10, "precision": 16},
            {"jp2": True},
            {"levels": 0},
        )
    ),
    *((backend, f"{J}.201", {}) for backend in ("nvjpeg2000", "nvimgcodec", "dali")),
]


# all on a GPU; on a pretended one, where it is our own code that is asked, not each depth
CASES = [pytest.param("gpu", *case, marks=pytest.mark.gpu) for case in _CASES] + [
    pytest.param("pretended", *case)
    for case in _CASES
    if case[2].get("bits_stored", 12) in (8, 12, 16) or "precision" in case[2]
]


@pytest.fixture(params=["pretended", pytest.param("gpu", marks=pytest.mark.gpu)])
def either(request: pytest.FixtureRequest) -> str:
    """A CUDA device: one that is pretended, or a true one."""
    if request.param == "gpu":
        require_gpu()
        for backend in (nvjpeg2000, nvimgcodec, dali):
            assert backend.missing() is None, backend.missing()
    else:
        request.getfixturevalue("cuda")
    kind: str = request.param
    return kind


def coded(uid: str, *, signed: bool = False, **fields: Any) -> bytes:
    bits = fields.setdefault("bits_stored", 12)
    values = phantom(401, 307, seed=bits, bits_stored=bits).pixels
    kind = np.int16 if signed else np.uint8 if bits == 8 else np.uint16
    half = 1 << (bits - 1) if signed else 0
    return write_dicom(
        (values.astype(np.int32) - half).astype(kind), transfer_syntax_uid=uid, **fields
    )


@pytest.mark.parametrize("scale", ["auto", "full"])
@pytest.mark.parametrize(
    ("either", "backend", "uid", "fields"), CASES, ids=str, indirect=["either"]
)
def test_finished_images_have_the_cpus_bits(
    either: str, backend: str, uid: str, fields: dict[str, Any], scale: str
) -> None:
    data, settings = coded(uid, **fields), {"size": (128, 64), "bits": 16, "scale": scale}
    make = Preprocessor(**settings, device="cuda", backend=backend, tensors="cupy", workers=2)
    if either == "gpu" and (reason := BACKENDS[backend].refuses(read(data).codestream())):
        assert uid.endswith(".70"), reason  # nvJPEG of CUDA 12
        assert "decodes lossless JPEG of 9 to 15 bits to zeros" in reason
        return
    wanted = Preprocessor(**settings)([data])
    found = make([data, data])
    assert {record["decoder"] for record in found.records} == {backend}
    images = to_host(found.images)
    assert np.array_equal(images[0], wanted.images[0])
    assert np.array_equal(images[1], wanted.images[0])
    assert np.array_equal(make.prepare(data).image, wanted.images[0, 0])


@pytest.mark.parametrize("backend", ["nvjpeg2000", "nvimgcodec", "dali"])
@pytest.mark.parametrize("uid", [f"{J}.91", f"{J}.203"])
def test_finished_images_of_the_9_7_wavelet_are_near(either: str, backend: str, uid: str) -> None:
    """At a fixed box: within 1 stored value, a box that is searched may lie elsewhere."""
    data = coded(uid)
    m = read(data)
    assert m.codestream().wavelet == "9/7"
    settings = {"size": (128, 64), "bits": 16, "crop": "none"}
    wanted = Preprocessor(**settings).prepare(data)
    found = Preprocessor(**settings, device="cuda", backend=backend).prepare(data)
    assert found.geometry == wanted.geometry
    # one stored value more is no more than the steepest step of the look-up table
    step = int(np.abs(np.diff(wanted.voi.values.astype(np.int64))).max())
    difference = np.abs(found.image.astype(np.int64) - wanted.image.astype(np.int64)).max()
    assert difference <= tolerance(m.codestream(), "cuda") * step + 1
