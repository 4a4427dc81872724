"""Build the emulated driver: a shared object with the name libcuda.so.1."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).resolve().parent
_FLAGS = ["-std=c++17", "-O2", "-g1", "-fPIC", "-pthread", "-Wall", "-Wextra"]
_LINK = ["-shared", "-pthread", "-Wl,-soname,libcuda.so.1", "-ldl"]


def cuda_headers() -> Path | None:
    """Folder with cuda.h: of a toolkit, or of the wheels that torch brings."""
    packages = Path(sysconfig.get_paths()["purelib"]) / "nvidia"
    roots = [
        Path(os.environ[name]) / "include" for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)
    ]
    roots += [
        Path("/usr/local/cuda/include"),
        *sorted(Path("/usr/local").glob("cuda-*/include"), reverse=True),
    ]
    roots += [*packages.glob("cu1*/include"), packages / "cuda_runtime" / "include"]
    return next((root for root in roots if (root / "cuda.h").is_file()), None)


def build() -> Path:
    """Compile the driver, unless these sources were compiled before.

    Raises:
        FileNotFoundError: No cuda.h, or no g++.
        subprocess.CalledProcessError: It does not compile.
    """
    include = cuda_headers()
    if include is None:
        raise FileNotFoundError(
            "cuda.h is missing: install a CUDA toolkit, or pip install nvidia-cuda-runtime"
        )
    sources = sorted((HERE / "driver").glob("*.cpp"))
    digest = hashlib.sha256()
    for path in (
        *sources,
        HERE / "driver" / "core.h",
        HERE / "runtime.h",
        Path(__file__),
        include / "cuda.h",
    ):
        digest.update(path.read_bytes())
    cache = _cache()
    out = cache / f"driver-{digest.hexdigest()[:16]}" / "libcuda.so.1"
    with _one_at_a_time(cache / "lock"):
        if not out.is_file():
            _compile(sources, include, out)
    return out


def _cache() -> Path:
    folder = Path(sys.prefix) / "softcuda"
    if not os.access(sys.prefix, os.W_OK):
        folder = Path(tempfile.gettempdir()) / f"softcuda-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    return folder


@contextmanager
def _one_at_a_time(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _compile(sources: list[Path], include: Path, out: Path) -> None:
    out.parent.mkdir(exist_ok=True)
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
