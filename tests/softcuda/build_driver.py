"""Build the emulated driver: a shared object with the name libcuda.so.1."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).resolve().parent
_FLAGS = ["-std=c++17", "-O2", "-g1", "-fPIC", "-pthread", "-Wall", "-Wextra"]
_LINK = ["-shared", "-pthread", "-Wl,-soname,libcuda.so.1", "-ldl"]


_OLDEST_HEADERS = 12000  # CUDA_VERSION


def cuda_headers() -> Path | None:
    """Folder with cuda.h of CUDA 12 or newer: of a toolkit, or of the wheels that torch brings."""
    packages = Path(sysconfig.get_paths()["purelib"]) / "nvidia"
    roots = [
        Path(os.environ[name]) / "include" for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)
    ]
    roots += [
        Path("/usr/local/cuda/include"),
        *sorted(Path("/usr/local").glob("cuda-*/include"), reverse=True),
    ]
    roots += [*packages.glob("cu1*/include"), packages / "cuda_runtime" / "include", Path("/usr/include")]
    return next((root for root in roots if _usable(root)), None)


def _usable(include: Path) -> bool:
    if not ((include / "cuda.h").is_file() and (include / "cudaTypedefs.h").is_file()):
        return False
    version = re.search(r"#define\s+CUDA_VERSION\s+(\d+)", (include / "cuda.h").read_text(errors="replace"))
    return version is not None and int(version[1]) >= _OLDEST_HEADERS


def why_not() -> str | None:
    """What keeps the driver from being built here; None if nothing does."""
    if cuda_headers() is None:
        return "no cuda.h of CUDA 12 or newer: neither a CUDA toolkit nor NVIDIA's wheels are installed"
    return "no g++" if shutil.which("g++") is None else None


def missing() -> str | None:
    """What the suites need to run on the emulated driver and is not here; None if all is."""
    if find_spec("pycuda") is None:
        return "PyCUDA is not installed; make test builds it where CUDA's headers are"
    return why_not()


def build() -> Path:
    """Compile the driver, unless these sources were compiled before.

    Raises:
        FileNotFoundError: No cuda.h, or no g++.
        subprocess.CalledProcessError: It does not compile.
    """
    if reason := why_not():
        raise FileNotFoundError(f"the emulated driver cannot be built: {reason}")
    include = cuda_headers()
    assert include is not None
    sources = sorted((HERE / "driver").glob("*.cpp"))
    digest = hashlib.sha256()
    headers = [HERE / "driver" / "core.h", HERE / "runtime.h", include / "cuda.h", include / "cudaTypedefs.h"]
    for path in (*sources, *headers, Path(__file__)):
        digest.update(path.read_bytes())
    with locked(cache_folder() / f"driver-{digest.hexdigest()[:16]}") as folder:
        out = folder / "libcuda.so.1"
        if not out.is_file():
            _compile(sources, include, out)
    return out


def cache_folder() -> Path:
    """Return where compiled drivers and kernels are kept: in .venv, or else in the temporary folder."""
    venv = (HERE.parent.parent / ".venv").resolve()
    if os.access(venv, os.W_OK):
        return venv / "softcuda"
    return Path(tempfile.gettempdir()) / f"softcuda-{os.getuid()}"


@contextmanager
def locked(folder: Path) -> Iterator[Path]:
    """Make a folder that one process at a time works in."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder


def _compile(sources: list[Path], include: Path, out: Path) -> None:
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        rest = Path(folder) / "rest.cpp"
        rest.write_text(_generated(include))

        def compiled(source: Path) -> str:
            made = f"{folder}/{source.stem}.o"
            subprocess.run(["g++", *_FLAGS, f"-I{include}", "-c", str(source), "-o", made], check=True)
            return made

        with ThreadPoolExecutor(max_workers=2) as pool:
            objects = list(pool.map(compiled, [*sources, rest]))
        made = Path(folder) / out.name
        subprocess.run(["g++", *objects, *_LINK, "-o", str(made)], check=True)
        made.replace(out)


def _generated(include: Path) -> str:
    """All that no source implements, and the table for cuGetProcAddress.

    Every call of the header is defined weakly, so that an implementation wins: it answers "not supported".
    """
    header, types = ((include / name).read_text(errors="replace") for name in ("cuda.h", "cudaTypedefs.h"))
    names = set(re.findall(r"CUDAAPI\s+(cu\w+)\s*\(", header))
    names |= set(re.findall(r"#define\s+cu\w+\s+(?:__CUDA_API_PT[DS][SZ]\()?(cu\w+)\)?", header))
    names |= {
        "cuCtxAttach",
        "cuProfilerInitialize",
    }  # PyCUDA wants them; they stand in no header, or in another
    lines = ['extern "C" int softcuda_unsupported(const char*);']
    lines += [
        f'extern "C" __attribute__((weak)) int {name}() {{ return softcuda_unsupported("{name}"); }}'
        for name in sorted(names)
    ]
    lines.append("struct SoftcudaSymbol { const char* name; int since; const char* symbol; };")
    lines.append("extern const SoftcudaSymbol softcuda_symbols[] = {")
    # PFN_cuMemAlloc_v2000 and PFN_cuMemAlloc_v3020 are the types of cuMemAlloc and of cuMemAlloc_v2.
    since: dict[str, set[int]] = {}
    for name, version in re.findall(r"\*PFN_(cu\w+?)_v(\d+)\)", types):
        since.setdefault(name, set()).add(int(version))
    for name, versions in sorted(since.items()):
        for index, first in enumerate(sorted(versions)):
            symbol = f"{name}_v{index + 1}"
            lines.append(f'{{"{name}", {first}, "{symbol if symbol in names else name}"}},')
    return "\n".join([*lines, "{nullptr, 0, nullptr}};\n"])


if __name__ == "__main__":
    print(build())
