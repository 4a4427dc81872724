from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
import typer
from typer.testing import CliRunner

import hfd_edge
from hfd_edge.cli import app
from hfd_edge.cli.run import _destinations

COMMANDS = [
    [],
    *[
        [name]
        for name in "demo simulate data train evaluate export quantize build predict inspect doctor".split()
    ],
    ["selftest"],
    ["export", "triton"],
    *(["calibrate", name] for name in ("cache", "read")),
    ["data", "convert"],
    ["data", "check"],
    ["train", "teacher"],
    ["train", "student"],
    ["train", "baseline"],
]
HEAVY = ["torch", "timm", "lightning_fabric", "onnx", "modelopt", "tensorrt_rtx", "matplotlib", "safetensors"]

runner = CliRunner()


def call(*arguments: str | Path) -> tuple[int, str, str]:
    result = runner.invoke(app, [str(a) for a in arguments])
    return result.exit_code, result.stdout, result.stderr


def without_heavy_packages(code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter in which importing a heavy package fails."""
    block = f"import sys; sys.modules.update(dict.fromkeys({HEAVY!r}))\n"
    return subprocess.run([sys.executable, "-c", block + code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_teaches(command: list[str]) -> None:
    status, out, _ = call(*command, "--help")
    assert status == 0
    assert "Usage:" in out
    assert len(out) > 300


def test_every_command_says_what_it_is_for() -> None:
    command = typer.main.get_command(app)
    context = click.Context(command)
    silent = [name for name in command.list_commands(context) if not command.get_command(context, name).help]
    assert silent == []


def test_import_and_help_never_need_a_heavy_package() -> None:
    done = without_heavy_packages(
        "import hfd_edge, hfd_edge.cli\nhfd_edge.Bundle; hfd_edge.Segmenter\n"
        "from typer.testing import CliRunner\n"
        "r = CliRunner().invoke(hfd_edge.cli.app, ['--help']); print(r.stdout); sys.exit(r.exit_code)"
    )
    assert done.returncode == 0, done.stderr
    assert "predict" in done.stdout


def test_import_is_light() -> None:
    code = "import sys, hfd_edge; print(sorted({'numpy', 'cv2', 'torch', 'pydantic'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_unknown_attribute() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        hfd_edge.Nothing  # noqa: B018


def test_version() -> None:
    status, out, _ = call("--version")
    assert (status, out.strip()) == (0, f"hfd-edge {hfd_edge.__version__}")


def test_doctor_json_is_one_object_and_names_fixes() -> None:
    status, out, _ = call("doctor", "--json")
    assert status == 0
    checks = json.loads(out)["checks"]
    assert checks["runtime on a CPU"]["ok"] is True
    for check in checks.values():
        assert check["ok"] or check["fix"]


def test_doctor_names_the_extra_of_a_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    from hfd_edge.cli import checks

    monkeypatch.setattr(checks, "_version", lambda package: None if package == "torch" else "1.0")
    training = next(c for c in checks.machine_checks() if c.name == "training")
    assert not training.ok
    assert training.fix == "pip install 'hfd-edge[train]'  (brings torch)"


def test_doctor_looks_for_compilers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from hfd_edge.cli import checks
    from hfd_edge.deploy import torch_tensorrt

    def found() -> dict[str, checks.Check]:
        return {check.name: check for check in checks.machine_checks()}

    for name in ("tensorrt", "torch_tensorrt"):
        (tmp_path / name).mkdir()  # imports, but is no TensorRT
        monkeypatch.delitem(sys.modules, name, raising=False)
    with monkeypatch.context() as folders:
        folders.syspath_prepend(str(tmp_path))
        assert "without Builder" in found()["TensorRT engines"].fix
        assert "hfd-edge[torch-tensorrt]" in found()["torch-tensorrt programs"].fix
    module = type(sys)("tensorrt")
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    module.Builder, module.__version__ = object, "10.3.0"  # type: ignore[attr-defined]
    assert found()["TensorRT engines"] == checks.Check("TensorRT engines", True, "tensorrt 10.3.0")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "tensorrt.py").write_text("raise OSError('libnvinfer.so.10: cannot open')")
    (tmp_path / "broken" / "torch_tensorrt.py").write_text("")
    monkeypatch.delitem(sys.modules, "tensorrt")
    monkeypatch.syspath_prepend(str(tmp_path / "broken"))
    broken = found()["TensorRT engines"]
    assert not broken.ok and "does not load: libnvinfer.so.10: cannot open. Install it again" in broken.fix
    monkeypatch.setattr(torch_tensorrt, "why_not_here", lambda: "PyTorch finds no GPU.")
    program = found()["torch-tensorrt programs"]
    assert (program.ok, program.fix) == (False, "PyTorch finds no GPU.")
    monkeypatch.setattr(torch_tensorrt, "why_not_here", lambda: None)
    assert found()["torch-tensorrt programs"].ok


def test_doctor_without_a_gpu_names_what_could_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    from hfd_edge.cli import checks
    from hfd_edge.runtime import kernels

    monkeypatch.setattr("hfd_edge.gpu.find_gpu", lambda: None)
    monkeypatch.setattr(kernels, "compilers_here", lambda: ["NVRTC 13.0"])
    assert checks._kernels() == checks.Check("CUDA kernels", True, "no GPU to load them; NVRTC 13.0")
    monkeypatch.setattr(kernels, "compilers_here", list)
    missing = checks._kernels()
    assert (missing.ok, missing.found) == (False, "no GPU to load them; no compiler")
    assert "nvidia-cuda-nvrtc" in missing.fix


def test_doctor_loads_pycuda(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from hfd_edge.cli import checks

    monkeypatch.setattr(checks, "_version", {"cuda-bindings": "13.0"}.get)
    assert checks._gpu_runtime().fix == "pip install 'hfd-edge[cuda]'  (brings pycuda)"
    monkeypatch.setattr(checks, "_version", lambda package: "1.0")
    module = type(sys)("pycuda.driver")
    monkeypatch.setitem(sys.modules, "pycuda", type(sys)("pycuda"))
    monkeypatch.setitem(sys.modules, "pycuda.driver", module)
    assert checks._gpu_runtime().found == "pycuda 1.0, cuda-bindings 1.0"
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    broken = checks._gpu_runtime()
    assert not broken.ok and "PyCUDA does not load" in broken.found and "reinstall pycuda" in broken.fix


def test_own_errors_exit_with_1_and_one_line(tmp_path: Path) -> None:
    status, out, err = call("inspect", tmp_path)
    assert status == 1
    assert out == ""
    assert re.fullmatch(r"error: .* is not a bundle .*Check the path\.\n", err)


def test_inspect_a_torch_tensorrt_program(tmp_path: Path) -> None:
    """Its sidecar is that of every engine; `load it only when it passes` needs a command that checks it."""
    (tmp_path / "desktop-fp16.pt2").write_bytes(b"program")
    status, _, err = call("inspect", tmp_path / "desktop-fp16.pt2")
    assert status == 1
    assert "has no sidecar desktop-fp16.json" in err


def test_debug_shows_the_error_itself(tmp_path: Path) -> None:
    result = runner.invoke(app, ["--debug", "inspect", str(tmp_path)])
    assert isinstance(result.exception, hfd_edge.HfdEdgeError)


def test_wrong_use_exits_with_2(tmp_path: Path) -> None:
    assert call("predict")[0] == 2
    assert call("no-such-command")[0] == 2


def test_missing_extra_is_named() -> None:
    done = without_heavy_packages(
        "from hfd_edge.cli import main\n"
        "sys.argv = 'hfd-edge train teacher r.toml --data d --out o'.split()\nmain()"
    )
    assert done.returncode == 1
    assert "hfd-edge[train]" in done.stderr
    assert "Traceback" not in done.stderr


def test_destinations(tmp_path: Path) -> None:
    assert _destinations([Path("a.tif")], tmp_path / "mask.tif") == [tmp_path / "mask.tif"]
    assert _destinations([Path("a.png")], tmp_path) == [tmp_path / "a.tif"]
    assert _destinations([Path("a.png"), Path("b.tif")], Path("out")) == [
        Path("out/a.tif"),
        Path("out/b.tif"),
    ]


@pytest.mark.parametrize(
    ("scenes", "out", "message"),
    [
        (["a.tif"], "mask.png", "masks are GeoTIFF"),
        (["a.tif", "b.tif"], "mask.tif", "several scenes need a folder"),
    ],
)
def test_a_file_name_is_never_made_a_folder(
    tmp_path: Path, scenes: list[str], out: str, message: str
) -> None:
    status, _, err = call("predict", tmp_path, *scenes, "--out", tmp_path / out)
    assert status == 2
    assert message in err
    assert list(tmp_path.iterdir()) == []


def test_scenes_of_one_name_are_refused(tmp_path: Path) -> None:
    status, _, err = call("predict", tmp_path, "x/a.tif", "y/a.tif", "--out", tmp_path / "out")
    assert status == 2
    assert "would be called a.tif" in err or "called a.tif" in err
