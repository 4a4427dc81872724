"""What "auto" takes on a CPU: what was measured here, and without that what it always took."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from hfd_edge.bundle import Bundle
from hfd_edge.cli import app
from hfd_edge.environment import allowed_cores
from hfd_edge.errors import BackendError, BundleError
from hfd_edge.files import user_cache
from hfd_edge.metrics import Confusion
from hfd_edge.runtime.agreement import Required
from hfd_edge.runtime.backends import choice, open_backend, tuning
from hfd_edge.runtime.backends.tuning import Conditions, Trial, Tuning, measure, recall, tune

from .conftest import MakeBundle
from .test_selftest import with_golden

PRECISIONS = {name: f"model.{name}.onnx" for name in ("fp32", "int8")}


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    """No GPU, and both engines, whether OpenVINO is installed or not: ONNX Runtime stands in for it."""
    from hfd_edge.runtime import backends
    from hfd_edge.runtime.backends.onnxruntime import OnnxRuntimeBackend

    class Other(OnnxRuntimeBackend):
        name = "openvino"

    def open_cpu(bundle: Bundle, *, backend: str, precision: str, threads: int | None = None) -> Any:
        return {"onnxruntime": OnnxRuntimeBackend, "openvino": Other}[backend](
            bundle, precision=precision, threads=threads
        )

    monkeypatch.setattr(choice, "find_gpu", lambda: None)
    monkeypatch.setattr(choice, "cpu_backends", lambda: ("onnxruntime", "openvino"))
    monkeypatch.setattr(backends, "open_cpu_backend", open_cpu)
    monkeypatch.setattr(tuning, "RUNS", 4)


@pytest.fixture
def bundle(make_bundle: MakeBundle, make_image: Callable[..., np.ndarray], tmp_path: Path) -> Bundle:
    return with_golden(make_bundle(precisions=PRECISIONS), make_image(100, 128), tmp_path)


def times(monkeypatch: pytest.MonkeyPatch, figures: dict[tuple[str, str], float]) -> None:
    """Let variants take so many milliseconds."""
    monkeypatch.setattr(
        tuning, "time_in_turns", lambda _bundle, keys, *_, **__: {k: [figures[k]] for k in keys}
    )


FASTER_INT8 = {
    ("fp32", "onnxruntime"): 100.0,
    ("int8", "onnxruntime"): 160.0,
    ("fp32", "openvino"): 70.0,
    ("int8", "openvino"): 30.0,
}


NOWHERE = Conditions(cpu="", cores=1, threads=1, versions={}, models={})


def chosen(bundle: Bundle, **options: Any) -> tuple[str, str]:
    opened = open_backend(bundle, **options)
    opened.close()
    return opened.name, opened.precision


def test_without_a_measurement_all_is_as_ever(bundle: Bundle) -> None:
    assert chosen(bundle) == ("onnxruntime", "fp32")
    assert chosen(bundle, precision="int8") == ("onnxruntime", "int8")
    assert chosen(bundle, backend="openvino") == ("openvino", "fp32")
    assert not user_cache("tuning").exists()


def test_auto_takes_the_fastest(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    times(monkeypatch, FASTER_INT8)
    result = tune(bundle, threads=1)
    assert recall(bundle, threads=1) == result
    with caplog.at_level(logging.INFO, logger="hfd_edge.runtime"):
        assert chosen(bundle, threads=1) == ("openvino", "int8")
    assert "chose backend openvino and precision int8" in caplog.text
    assert "openvino int8 took 30.0 ms a tile and gave 100.00% of the golden labels" in caplog.text
    assert chosen(bundle, threads=1, precision="fp32") == ("openvino", "fp32")
    assert chosen(bundle, threads=1, backend="onnxruntime") == ("onnxruntime", "fp32")
    named = chosen(bundle, threads=1, backend="onnxruntime", precision="int8")
    assert named == ("onnxruntime", "int8"), "what is named is used"
    assert chosen(bundle, threads=2) == ("onnxruntime", "fp32"), "another number of threads"
    assert "hfd-edge" in result.conditions.versions, "what it asks of the engines changes with its releases"


def test_what_an_engine_takes_by_itself_is_no_number_of_threads(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Engines leave hyperthreads alone: a thread for each of them is another measurement."""
    times(monkeypatch, FASTER_INT8)
    conditions = tune(bundle).conditions
    assert (conditions.threads, conditions.cores) == (None, len(allowed_cores()))
    assert chosen(bundle) == ("openvino", "int8")
    assert chosen(bundle, threads=len(allowed_cores())) == ("onnxruntime", "fp32")


def test_wrong_labels_are_not_chosen(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = bundle.add({"model.int8.onnx": _negated(bundle.model("int8").read_bytes())})
    times(monkeypatch, FASTER_INT8)
    result = tune(broken, threads=1)
    wrong = [trial for trial in result.trials if trial.precision == "int8"]
    assert all(trial.agreement is not None and trial.agreement < 0.98 for trial in wrong)
    assert all(
        "of the golden labels, at least 98.0% expected (the bound of int8)" in trial.reason for trial in wrong
    )
    assert chosen(broken, threads=1) == ("openvino", "fp32")
    assert chosen(broken, threads=1, precision="int8") == ("onnxruntime", "int8"), "asked for by name"


def _negated(model: bytes) -> bytes:
    from onnx import load_from_string, numpy_helper

    loaded = load_from_string(model)
    for weights in loaded.graph.initializer:
        values = numpy_helper.to_array(weights)
        weights.CopyFrom(numpy_helper.from_array(-values, weights.name))
    return loaded.SerializeToString()


def test_a_tie_goes_to_the_better_labels() -> None:
    def trial(precision: str, median: float, agreement: float) -> Trial:
        return Trial(backend="openvino", precision=precision, median_ms=median, agreement=agreement)

    trials = (trial("fp32", 10.3, 1.0), trial("fp16", 10.0, 0.999), trial("int8", 12.0, 0.99))
    result = Tuning(conditions=NOWHERE, created="", trials=trials)
    best = result.best()
    assert best is not None and best.precision == "fp32"
    assert result.best(backend="onnxruntime") is None


def test_a_precision_that_changes_labels_must_be_asked_for(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its quantisation may have changed as many: then it is right, and still not what FP32 gives."""
    common = {"backend": "openvino", "reason": ""}
    trials = tuple(
        Trial(precision=precision, median_ms=median, agreement=agreement, **common)
        for precision, median, agreement in (("fp32", 70.0, 1.0), ("int8", 30.0, 0.94))
    )
    result = Tuning(conditions=NOWHERE, created="", trials=trials)
    assert result.best() == result.best(backend="openvino") == trials[0]
    assert result.best(precision="int8") == trials[1]
    changed = Trial(precision="int8", median_ms=30.0, agreement=0.94, **common)
    monkeypatch.setattr(tuning, "measure", lambda *_, **__: result.model_copy(update={"trials": (changed,)}))
    done = CliRunner().invoke(app, ["bench", "tune", str(bundle.path)], env={"COLUMNS": "200"})
    assert "only where int8 is asked for: at least 98.0% expected" in done.stdout


def test_a_class_that_is_lost_is_not_outweighed_by_the_others() -> None:
    truth = np.zeros((100, 100), np.uint8)
    truth[0] = 1
    lost, kept = (Confusion(("dry", "flood")) for _ in range(2))
    lost.add(truth, np.zeros_like(truth))
    kept.add(truth, np.where(np.arange(100) < 80, truth, 0))
    least = Required(0.98, "at least 98.0% expected")
    assert lost.accuracy == 0.99 > least.share
    message = "It loses flood: IoU with the golden labels is 0.00, at least 0.5 expected."
    assert tuning.fault(lost, least) == message
    assert tuning.fault(kept, least) == ""


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"trials": []}', b"\xff\xfe"])
def test_a_damaged_file_is_ignored(
    bundle: Bundle, content: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    times(monkeypatch, FASTER_INT8)
    path = tune(bundle, threads=1).conditions.path()
    path.write_bytes(content)
    assert chosen(bundle, threads=1) == ("onnxruntime", "fp32")
    assert f"{path} is damaged and ignored" in caplog.text
    assert f"hfd-edge bench tune {bundle.path}" in caplog.text


@pytest.mark.parametrize(("field", "value"), [("cpu", "other cpu"), ("versions", {"onnxruntime": "0.1"})])
def test_a_foreign_file_is_ignored(
    bundle: Bundle, field: str, value: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One copied from another machine, or made before an engine was updated."""
    times(monkeypatch, FASTER_INT8)
    path = tune(bundle, threads=1).conditions.path()
    content = json.loads(path.read_text())
    content["conditions"][field] = value
    path.write_text(json.dumps(content))
    assert chosen(bundle, threads=1) == ("onnxruntime", "fp32")
    assert "it is ignored. Measure again with: hfd-edge bench tune" in caplog.text


def test_another_model_is_another_measurement(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    times(monkeypatch, FASTER_INT8)
    tune(bundle, threads=1)
    changed = bundle.add({"model.int8.onnx": _negated(bundle.model("int8").read_bytes())})
    assert recall(changed, threads=1) is None


GONE = (
    "openvino int8, measured to be the fastest, cannot run and is not used: OpenVINO cannot load it. "
    "Measure again with: hfd-edge bench tune"
)


def test_an_engine_that_has_gone_is_told(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from hfd_edge.runtime import backends

    times(monkeypatch, FASTER_INT8)
    tune(bundle, threads=1)
    open_cpu = backends.open_cpu_backend

    def fails(bundle: Bundle, *, backend: str, **options: Any) -> Any:
        if backend == "openvino":
            raise BackendError("OpenVINO cannot load it.")
        return open_cpu(bundle, backend=backend, **options)

    monkeypatch.setattr(backends, "open_cpu_backend", fails)
    assert chosen(bundle, threads=1) == ("onnxruntime", "fp32")
    assert ("hfd_edge.runtime", logging.WARNING, GONE) in caplog.record_tuples


def test_an_engine_that_refuses_is_listed(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    open_one = tuning.open_backend

    def refuses(bundle: Bundle, *, backend: str, precision: str, threads: int | None) -> Any:
        if (backend, precision) == ("openvino", "int8"):
            raise BackendError("OpenVINO lacks an operator.")
        return open_one(bundle, backend=backend, precision=precision, threads=threads)

    monkeypatch.setattr(tuning, "open_backend", refuses)
    trials = {(trial.backend, trial.precision): trial for trial in measure(bundle, threads=1).trials}
    assert len(trials) == 4
    assert trials["openvino", "int8"] == Trial(
        backend="openvino", precision="int8", reason="OpenVINO lacks an operator."
    )
    assert trials["openvino", "fp32"].agreement == 1.0 and not user_cache("tuning").exists()


def test_nothing_to_check_with(make_bundle: MakeBundle, tmp_path: Path) -> None:
    message = r"has no golden tiles with data.* Export the run again with --data"
    with pytest.raises(BackendError, match=message):
        tune(make_bundle())
    empty = with_golden(make_bundle(name="b.hfd"), np.zeros((2, 128, 128), np.float32), tmp_path)
    with pytest.raises(BackendError, match=message):
        tune(empty)


def test_a_changed_model_is_refused(bundle: Bundle) -> None:
    (bundle.path / "model.int8.onnx").write_bytes(b"")
    with pytest.raises(BundleError, match=r"model\.int8\.onnx was changed"):
        tune(bundle)


def test_the_command(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    times(monkeypatch, FASTER_INT8)
    call = ["bench", "tune", str(bundle.path), "--threads", "1"]
    done = CliRunner().invoke(app, [*call, "--json"])
    assert done.exit_code == 0, done.output
    content = json.loads(done.stdout)
    assert content["chosen"] == {"backend": "openvino", "precision": "int8"}
    assert content["conditions"]["threads"] == 1 and len(content["trials"]) == 4
    assert Path(content["remembered"]).is_file()
    done = CliRunner().invoke(app, call)
    assert done.exit_code == 0
    (line,) = [line for line in done.stdout.splitlines() if "chosen" in line]
    assert line.split() == ["openvino", "int8", "30.0", "100.00%", "chosen"]
    help_text = " ".join(
        CliRunner().invoke(app, ["bench", "tune", "--help"]).stdout.replace("│", " ").split()
    )
    assert "Example: hfd-edge bench tune flood.hfd" in help_text
