"""Calibration caches: exact text, exact round trip, and refusal of what does not belong together."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hfd_edge.bundle import Bundle
from hfd_edge.deploy.cache import (
    Cache,
    add_cache,
    cache_name,
    format_cache,
    import_cache,
    left_out,
    open_cache,
    read_cache,
    stored_cache,
    summary,
    version_number,
    version_text,
    write_cache,
)
from hfd_edge.deploy.graph import high_precision_nodes, load
from hfd_edge.deploy.record import RECORD, CalibrationRecord, CalibrationTile, KeptNode, write_record
from hfd_edge.errors import BundleError, ExportError, StorageError


def make_record(onnx_sha256: str = "a" * 64, **changes: object) -> CalibrationRecord:
    fields = {
        "method": "entropy",
        "onnx_sha256": onnx_sha256,
        "data_sha256": "d" * 64,
        "split": "train",
        "input_shape": (2, 64, 64),
        "selection": "even",
        "requested_tiles": 1,
        "tiles": (CalibrationTile(name="a", row=0, col=0, sha256="e" * 64),),
        "amax": {"sar": 1.0, "fine.0.0:out": 6.0},
        "quantized_tensors": ("sar",),
        "quantized_nodes": ("fine.0.0",),
        "kept": (KeptNode(node="classifier", reason="its logits decide the argmax"),),
        "versions": {},
    }
    return CalibrationRecord.model_validate({**fields, **changes})


@pytest.fixture
def calibrated(bundle: Bundle) -> Bundle:
    """The Mini bundle with a range for every activation and the kept nodes that the graph names."""
    model = load(bundle.model("fp32"))
    names = ["sar", *(name for node in model.graph.node for name in node.output)]
    record = make_record(
        bundle.manifest.files["model.fp32.onnx"],
        amax={name: 0.5 + index / 7 for index, name in enumerate(names)},
        quantized_tensors=("sar", "fine.0.2/Clip:out", "align/GridSample:out"),
        kept=tuple(KeptNode(node=name, reason="kept") for name in high_precision_nodes(model)),
    )
    return bundle.add({RECORD: write_record(record)})


@pytest.mark.parametrize(
    ("tensorrt", "number"),
    [
        *(("8.2.1", 8201), ("8.2.5", 8205), ("8.5.2", 8502), ("8.6.2", 8602), ("9.3.0", 9300)),
        *(("10.3.0", 100300), ("10.13.3", 101303), ("10.16.2", 101602)),
    ],
)
def test_exact_text(tensorrt: str, number: int) -> None:
    text = write_cache(make_record(), tensorrt=tensorrt)
    # 1/127 and 6/127 as float32: the bits that TensorRT's own tools print
    assert text == f"TRT-{number}-EntropyCalibration2\nsar: 3c010204\nfine.0.0:out: 3d418306\n"
    assert version_text(version_number(tensorrt)) == tensorrt
    assert read_cache(text).version == tensorrt


@pytest.mark.parametrize("algorithm", ["MinMaxCalibration", "EntropyCalibration", "LegacyCalibration"])
def test_other_calibrators(algorithm: str) -> None:
    text = write_cache(make_record(), tensorrt="8.6.2", algorithm=algorithm)
    assert text.startswith(f"TRT-8602-{algorithm}\nsar: ")
    assert read_cache(text).algorithm == algorithm
    with pytest.raises(
        ExportError, match="Algorithm is 'Best', expected one of: EntropyCalibration2, MinMax"
    ):
        write_cache(make_record(), tensorrt="8.6.2", algorithm="Best")


@pytest.mark.parametrize(
    ("scale", "digits"),
    [(1.0, "3f800000"), (2.0**-125, "1000000"), (2.0**-149, "1"), (2.0**-127, "400000"), (0.0, "0")],
)
def test_values_without_leading_zeros(scale: float, digits: str) -> None:
    cache = Cache("8.5.2", "EntropyCalibration2", {"x": scale * 127})
    assert format_cache(cache) == f"TRT-8502-EntropyCalibration2\nx: {digits}\n"
    assert read_cache(format_cache(cache)) == cache
    zeros = "0" * (8 - len(digits))
    assert read_cache(f"TRT-8502-EntropyCalibration2\nx: {zeros}{digits.upper()}\n") == cache


def test_a_negative_zero_is_written_as_zero() -> None:
    cache = Cache("8.5.2", "EntropyCalibration2", {"x": -0.0})
    assert format_cache(cache).endswith("\nx: 0\n")


@given(st.floats(min_value=1e-36, max_value=1e38))
def test_round_trip(amax: float) -> None:
    record = make_record(amax={"sar": amax})
    text = write_cache(record, tensorrt="10.3.0")
    found = read_cache(text)
    assert np.float32(found.amax["sar"] / 127) == np.float32(amax / 127)
    assert found.amax["sar"] == pytest.approx(amax, rel=1e-7)
    # a record made from a cache gives the same cache, and the same ranges, again
    again = write_cache(make_record(amax=found.amax), tensorrt="10.3.0")
    assert again == text and read_cache(again).amax == found.amax


def test_names_with_colons_and_spaces() -> None:
    names = {"a: b: 3f": 1.0, "(Unnamed Layer* 64) [Shuffle]_output": 0.0, "x:out": 2.0}
    cache = Cache("10.3.0", "EntropyCalibration2", names)
    assert read_cache(format_cache(cache)).amax == pytest.approx(names)
    assert summary(cache) == {
        "tensorrt": "10.3.0",
        "algorithm": "EntropyCalibration2",
        "tensors": 3,
        "zero_ranges": 1,
        "smallest_amax": 1.0,
        "largest_amax": 2.0,
    }


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("", "line 1, is '', expected a header such as TRT-100300-EntropyCalibration2"),
        ("TRT-8XXX-EntropyCalibration2\nx: 1", "line 1, is 'TRT-8XXX"),
        ("x: 3f800000", "line 1, is 'x: 3f800000', expected a header"),
        ("TRT-8502-Guess\nx: 1", "line 1, names the calibrator 'Guess'"),
        ("TRT-110000-EntropyCalibration2\nx: 1", "line 1, is for TensorRT number 110000, expected one of"),
        ("TRT-42-EntropyCalibration2\nx: 1", "line 1, is for TensorRT number 42"),
        ("TRT-8502-EntropyCalibration2\n", "has a header but no tensors"),
        ("TRT-8502-EntropyCalibration2\nx: 1\ny 2", "line 3, is 'y 2', expected 'TENSOR: HEX'"),
        ("TRT-8502-EntropyCalibration2\nx: 1\n\ny: 2", "line 3, is ''"),
        ("TRT-8502-EntropyCalibration2\nx: 123456789", "line 2, is 'x: 123456789'"),
        ("TRT-8502-EntropyCalibration2\nx: 0x3f", "line 2, is 'x: 0x3f'"),
        ("TRT-8502-EntropyCalibration2\nx: 0.007", "line 2, is 'x: 0.007'"),
        ("TRT-8502-EntropyCalibration2\nx: -3f800000", "line 2, is 'x: -3f800000'"),
        ("TRT-8502-EntropyCalibration2\nx: ", "line 2, is 'x: '"),
        ("TRT-8502-EntropyCalibration2\nx: 1\nx: 2", "line 3, names x again"),
        (
            "TRT-8502-EntropyCalibration2\na: 1\nx: bf800000",
            "line 3, gives x the scale -1.0, expected a finite",
        ),
        ("TRT-8502-EntropyCalibration2\nx: 80000000", "line 2, gives x the scale -0.0"),
        ("TRT-8502-EntropyCalibration2\nx: 7f800000", "line 2, gives x the scale inf"),
        ("TRT-8502-EntropyCalibration2\nx: 7fc00000", "line 2, gives x the scale nan"),
    ],
)
def test_malformed_lines_are_refused_with_their_number(body: str, message: str) -> None:
    with pytest.raises(ExportError) as caught:
        read_cache(body)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("tensorrt", "message"),
    [
        ("11.4.1", "TensorRT 11.4.1 reads no calibration caches.*int8 or int8_fp16"),
        ("6.0.1", "reads no calibration caches"),
        ("8.10.0", "reads no calibration caches"),
        ("10.3", "version is '10.3', expected three numbers such as 10.3.0"),
        ("10.3.0.26", "expected three numbers"),
    ],
)
def test_versions_without_caches(tensorrt: str, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        write_cache(make_record(), tensorrt=tensorrt)


@pytest.mark.parametrize("amax", [1e-46, 1e42])
def test_a_range_beyond_float32(amax: float) -> None:
    with pytest.raises(ExportError, match=r"range of x is 1e[+-]4\d, which has no positive float32 scale"):
        write_cache(make_record(amax={"x": amax}), tensorrt="8.5.2")


@pytest.mark.parametrize("name", ["", "a\nb", " a", "a\u2028b"])
def test_a_name_that_does_not_fit_on_a_line(name: str) -> None:
    with pytest.raises(ExportError, match="does not fit on a line"):
        format_cache(Cache("8.5.2", "EntropyCalibration2", {name: 1.0}))


def test_kept_nodes_get_no_scale(calibrated: Bundle) -> None:
    """Outputs of flow head, grid arithmetic, GridSample and classifier stay out, their inputs stay in."""
    path, info = stored_cache(add_cache(calibrated, tensorrt="10.3.0"), tensorrt="10.3.0")
    held = set(open_cache(path).amax)
    assert {"align.flow_head:out", "align/Mul:out", "align/Add:out", "align/Transpose:out", "logits"} == set(
        info.left_out
    )
    assert held.isdisjoint(info.left_out)
    assert {"sar", "fine.0.0:out", "fine.0.2/Clip:out", "align.flow_merge.2/Relu:out", "Concat:out"} <= held
    # GridSample is kept, but its output is quantised again for the convolution behind it.
    assert "align/GridSample" in info.kept and "align/GridSample:out" in held
    model = load(calibrated.model("fp32"))
    assert held | set(info.left_out) == {"sar", *(name for node in model.graph.node for name in node.output)}


def test_a_node_that_the_gate_kept_gets_no_scale() -> None:
    record = make_record(
        amax={"sar": 1.0, "body.1:out": 1.0, "body.1:out1": 1.0, "body.10:out": 1.0, "logits": 1.0},
        kept=(KeptNode(node="body.1", reason="accuracy gate"),),
    )
    assert left_out(record) == ("body.1:out", "body.1:out1", "logits")


def test_the_cache_in_a_bundle(calibrated: Bundle) -> None:
    added = add_cache(calibrated, tensorrt="8.5.2")
    path, info = stored_cache(Bundle.open(added.path), tensorrt="8.5.2")
    assert path == added.path / "calibration/tensorrt-8.5.2.cache"
    assert path.read_text().startswith("TRT-8502-EntropyCalibration2\nsar: ")
    assert (info.tensorrt, info.method, info.input_shape) == ("8.5.2", "entropy", (2, 64, 64))
    assert info.onnx_sha256 == added.manifest.files["model.fp32.onnx"]
    assert info.tensors == len(open_cache(path).amax)
    with pytest.raises(
        ExportError, match=r"has no calibration/tensorrt-8.6.2.cache. Write it with: hfd-edge"
    ):
        stored_cache(added, tensorrt="8.6.2")
    added.verify()


def test_a_bundle_that_was_not_quantised(
    bundle: Bundle, snapshot: Callable[[Path], dict[str, bytes]]
) -> None:
    before = snapshot(bundle.path)
    with pytest.raises(ExportError, match="has no calibration record"):
        add_cache(bundle, tensorrt="8.5.2")
    assert snapshot(bundle.path) == before


def test_a_full_disk_leaves_nothing(
    calibrated: Bundle, snapshot: Callable[[Path], dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = snapshot(calibrated.path)

    def full(self: Path, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(StorageError, match="Free some space"):
        add_cache(calibrated, tensorrt="8.5.2")
    assert snapshot(calibrated.path) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"onnx_sha256": "b" * 64},
            "is of another FP32 model: bbbb.*Write it with: hfd-edge calibrate cache",
        ),
        ({"input_shape": [2, 128, 128]}, r"of another input shape: \(2, 128, 128\), the bundle has \(2, 64"),
        ({"input_shape": [1, 64, 64]}, r"of another input shape: \(1, 64, 64\)"),
        ({"record_sha256": "c" * 64}, "of another calibration record: cccc"),
        ({"cache_sha256": "0" * 64}, "of another cache: 0000"),
        ({"tensorrt": "8.6.2"}, "of another TensorRT: 8.6.2, the bundle has 8.5.2"),
        ({"strange": 1}, "tensorrt-8.5.2.json is damaged"),
    ],
)
def test_a_cache_that_does_not_belong_is_refused(
    calibrated: Bundle, changes: dict[str, object], message: str
) -> None:
    added = add_cache(calibrated, tensorrt="8.5.2")
    name = "calibration/tensorrt-8.5.2.json"
    content = json.loads((added.path / name).read_text()) | changes
    forged = added.add({name: json.dumps(content).encode()})
    with pytest.raises(ExportError, match=message):
        stored_cache(forged, tensorrt="8.5.2")


def test_a_cache_of_another_version_under_this_name(calibrated: Bundle) -> None:
    """The header decides what TensorRT reads: a renamed cache would be ignored without a word."""
    first, other = add_cache(calibrated, tensorrt="8.5.2"), cache_name("8.6.2")
    text = (first.path / cache_name("8.5.2")).read_bytes()
    info = json.loads((first.path / "calibration/tensorrt-8.5.2.json").read_text()) | {"tensorrt": "8.6.2"}
    forged = first.add({other: text, other.replace(".cache", ".json"): json.dumps(info).encode()})
    with pytest.raises(ExportError, match="is of another TensorRT: 8.5.2, expected 8.6.2"):
        stored_cache(forged, tensorrt="8.6.2")


def test_a_cache_from_before_the_last_calibration(calibrated: Bundle) -> None:
    added = add_cache(calibrated, tensorrt="8.5.2")
    record = make_record(calibrated.manifest.files["model.fp32.onnx"], amax={"sar": 2.0})
    again = added.add({RECORD: write_record(record)})
    with pytest.raises(ExportError, match="is of another calibration record"):
        stored_cache(again, tensorrt="8.5.2")


def test_a_cache_that_was_edited(calibrated: Bundle) -> None:
    added = add_cache(calibrated, tensorrt="8.5.2")
    path = added.path / cache_name("8.5.2")
    path.write_text(path.read_text().replace("sar: 3", "sar: 4"))
    with pytest.raises(BundleError, match="was changed after the bundle was made"):
        stored_cache(added, tensorrt="8.5.2")


def test_a_cache_without_a_sidecar(calibrated: Bundle) -> None:
    foreign = calibrated.add({cache_name("8.5.2"): b"TRT-8502-EntropyCalibration2\nsar: 3c010204\n"})
    with pytest.raises(ExportError, match=r"has no calibration/tensorrt-8.5.2.json"):
        stored_cache(foreign, tensorrt="8.5.2")


def test_a_foreign_cache_is_checked_against_the_model(mini_onnx: Path, tmp_path: Path) -> None:
    model = onnx.load(mini_onnx)
    names = ["sar", *(name for node in model.graph.node for name in node.output)]
    names += ["(Unnamed Layer* 3) [Shuffle]_output", "ONNXTRT_Broadcast_812_output"]
    names += [f"{model.graph.initializer[0].name}_output"]
    path = tmp_path / "foreign.cache"
    path.write_text(format_cache(Cache("8.6.1", "MinMaxCalibration", dict.fromkeys(names, 1.0))))
    found = import_cache(path, mini_onnx)
    assert (found.version, found.algorithm, set(found.amax)) == ("8.6.1", "MinMaxCalibration", set(names))

    path.write_text("TRT-8601-MinMaxCalibration\nsar: 3c010204\nlayer1.0: 3c010204\nlayer1.1: 3c010204\n")
    with pytest.raises(
        ExportError, match=r"is for another model: 2 of its 3 tensors.*first layer1.0, layer1.1"
    ):
        import_cache(path, mini_onnx)
    path.write_text("TRT-8601-MinMaxCalibration\nlogits: 3c010204\n")
    with pytest.raises(ExportError, match="has no scale for the model's input sar"):
        import_cache(path, mini_onnx)


def test_files_that_cannot_be_read(tmp_path: Path, mini_onnx: Path) -> None:
    with pytest.raises(ExportError, match="cannot be read as a calibration cache"):
        open_cache(tmp_path / "none.cache")
    (tmp_path / "binary.cache").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ExportError, match="cannot be read as a calibration cache"):
        import_cache(tmp_path / "binary.cache", mini_onnx)
