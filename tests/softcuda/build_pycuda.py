"""Build PyCUDA into this environment, where CUDA's headers are: it has no wheels, and no GPU is needed.

`make unit` runs it, so that the default tests can run the GPU code on the emulated driver. The extension is
linked to that driver by the name that a real one has, so the same build works on a machine with a GPU.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import build_driver

PYCUDA = "pycuda==2026.1"
FAILED = Path(sys.prefix) / ".pycuda-failed"  # a build that failed is not tried at every call
# cudaProfiler.h is in a wheel of its own, which nothing brings; PyCUDA takes three calls from it.
_PROFILER = """#include <cuda.h>
extern "C" {
typedef enum CUoutput_mode_enum { CU_OUT_KEY_VALUE_PAIR = 0, CU_OUT_CSV = 1 } CUoutput_mode;
CUresult CUDAAPI cuProfilerInitialize(const char* config, const char* output, CUoutput_mode mode);
CUresult CUDAAPI cuProfilerStart(void);
CUresult CUDAAPI cuProfilerStop(void);
}
"""


def why_not() -> str | None:
    """What keeps PyCUDA from being built here; None if nothing does."""
    if reason := build_driver.why_not():
        return reason
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").is_file():
        return "Python has no headers"
    return f"it failed before; delete {FAILED} to try again" if FAILED.exists() else None


def wheel(folder: Path) -> Path:
    """Build PyCUDA's wheel in a folder; a minute and a half.

    Raises:
        subprocess.CalledProcessError: It does not build; its output says why.
    """
    include = build_driver.cuda_headers()
    assert include is not None
    (folder / "lib").mkdir()
    (folder / "lib" / "libcuda.so").symlink_to(build_driver.build())
    (folder / "include").mkdir()
    if not (include / "cudaProfiler.h").is_file():
        (folder / "include" / "cudaProfiler.h").write_text(_PROFILER)
    # PyCUDA's setup reads this file in the home folder. It would take the folder above the first nvcc on PATH
    # for CUDA_ROOT, which is wrong where that is a link or a script.
    settings = {
        "CUDA_ROOT": str(include.parent),
        "CUDA_INC_DIR": [str(include), str(folder / "include")],
        "CUDADRV_LIB_DIR": [str(folder / "lib")],
        "CUDART_LIB_DIR": [],
        "CUDART_LIBNAME": [],
        "CUDA_ENABLE_CURAND": False,
    }
    text = "".join(f"{name} = {value!r}\n" for name, value in settings.items())
    (folder / ".aksetup-defaults.py").write_text(text)
    flags = f"-Wl,--no-as-needed {os.environ.get('LDFLAGS', '')}".strip()
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--wheel-dir",
        str(folder),
        PYCUDA,
    ]
    environment = {**os.environ, "HOME": str(folder), "LDFLAGS": flags, "CFLAGS": "-w"}
    subprocess.run(
        command, check=True, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    return next(folder.glob("pycuda-*.whl"))


def main() -> None:
    """Build and install it, or say why not; the tests that need it then skip."""
    if importlib.util.find_spec("pycuda"):
        return
    missing = why_not()
    if missing:
        print(f"PyCUDA is not built ({missing}); the tests on the emulated GPU are skipped.")
        return
    print("Building PyCUDA for the tests on the emulated GPU (a minute and a half, once)", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        try:
            install = [sys.executable, "-m", "pip", "install", "--quiet", str(wheel(Path(folder)))]
            subprocess.run(install, check=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        except subprocess.CalledProcessError as error:
            with contextlib.suppress(OSError):  # where nothing can be written, it is tried again
                FAILED.touch()
            print("\n".join((error.output or "").splitlines()[-20:]))
            print("PyCUDA does not build here; the tests on the emulated GPU are skipped.")


if __name__ == "__main__":
    main()
