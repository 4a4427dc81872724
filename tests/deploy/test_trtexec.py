"""The exact command line for each generation of TensorRT."""

from __future__ import annotations

import pytest

from hfd_edge.deploy.trtexec import Job, build_flags, keeps_layers, run_flags
from hfd_edge.errors import EngineError

FP16 = Job("m.onnx", "m.engine", 1024, fp16=True)
CACHED = Job("m.onnx", "m.engine", 2048, fp16=True, int8=True, cache="c.cache", layers={"a/Conv": "fp32"})
TYPED = Job("m.onnx", "m.engine", 4096, typed=True, shapes=((1, 2, 64, 64), (2, 2, 64, 64), (4, 2, 64, 64)))


@pytest.mark.parametrize(
    ("job", "version", "expected"),
    [
        (
            FP16,
            (8, 2, 1),
            "--onnx=m.onnx --saveEngine=m.engine --workspace=1024 --fp16 --timingCacheFile=timing.cache "
            "--buildOnly",
        ),
        (
            CACHED,
            (8, 2, 1),  # no --layerPrecisions yet
            "--onnx=m.onnx --saveEngine=m.engine --workspace=2048 --fp16 --int8 --calib=c.cache "
            "--timingCacheFile=timing.cache --buildOnly",
        ),
        (
            CACHED,
            (8, 5, 2),
            "--onnx=m.onnx --saveEngine=m.engine --memPoolSize=workspace:2048 --fp16 --int8 --calib=c.cache "
            "--precisionConstraints=obey --layerPrecisions=a/Conv:fp32 --timingCacheFile=timing.cache "
            "--buildOnly",
        ),
        (
            CACHED,
            (8, 6, 2),
            "--onnx=m.onnx --saveEngine=m.engine --memPoolSize=workspace:2048 --fp16 --int8 --calib=c.cache "
            "--precisionConstraints=obey --layerPrecisions=a/Conv:fp32 --timingCacheFile=timing.cache "
            "--skipInference",
        ),
        (
            TYPED,
            (10, 3, 0),
            "--onnx=m.onnx --saveEngine=m.engine --memPoolSize=workspace:4096 --stronglyTyped "
            "--minShapes=sar:1x2x64x64 --optShapes=sar:2x2x64x64 --maxShapes=sar:4x2x64x64 "
            "--timingCacheFile=timing.cache --skipInference",
        ),
        (
            TYPED,
            (11, 4, 1),  # strongly typed without a flag
            "--onnx=m.onnx --saveEngine=m.engine --memPoolSize=workspace:4096 "
            "--minShapes=sar:1x2x64x64 --optShapes=sar:2x2x64x64 --maxShapes=sar:4x2x64x64 "
            "--timingCacheFile=timing.cache --skipInference",
        ),
    ],
)
def test_build_flags(job: Job, version: tuple[int, int, int], expected: str) -> None:
    assert " ".join(build_flags(job, version, input_name="sar")) == expected


def test_the_dla() -> None:
    job = Job("m.onnx", "m.engine", 1024, fp16=True, dla_core=1)
    assert {"--useDLACore=1", "--allowGPUFallback"} <= set(build_flags(job, (8, 5, 2), input_name="sar"))
    flags = run_flags("m.engine", inputs={"sar": "x.f32"}, output="o.json", shapes={}, job=job)
    assert " ".join(flags) == (
        "--loadEngine=m.engine --loadInputs=sar:x.f32 --useDLACore=1 --iterations=1 --warmUp=0 --duration=0 "
        "--exportOutput=o.json"
    )
    shaped = run_flags("m.engine", inputs={"sar": "x"}, output="o", shapes={"sar": (1, 2, 64, 64)}, job=TYPED)
    assert "--shapes=sar:1x2x64x64" in shaped


@pytest.mark.parametrize(
    ("changes", "version", "message"),
    [
        (
            {"typed": True, "fp16": True},
            (10, 3, 0),
            "A strongly typed engine takes its precision from the ONNX",
        ),
        ({"typed": True}, (8, 6, 2), "TensorRT 8.6.2 has no strongly typed networks; they came with 10"),
        ({"int8": True}, (11, 4, 1), "TensorRT 11.4.1 takes its precision from the ONNX alone"),
        ({"cache": "c"}, (8, 5, 2), "The calibration cache c is for INT8, which is not asked for"),
        ({"layers": {"a:b": "fp32"}}, (8, 5, 2), "Node name 'a:b' cannot be written in --layerPrecisions"),
    ],
)
def test_what_a_version_does_not_take(
    changes: dict[str, object], version: tuple[int, int, int], message: str
) -> None:
    with pytest.raises(EngineError, match=message):
        build_flags(Job("m.onnx", "m.engine", 1, **changes), version, input_name="sar")  # type: ignore[arg-type]


def test_which_versions_keep_single_layers() -> None:
    assert [keeps_layers(version) for version in ((8, 2, 1), (8, 4, 0), (10, 3, 0), (11, 0, 0))] == (
        [False, True, True, False]
    )
