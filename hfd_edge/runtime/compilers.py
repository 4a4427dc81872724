"""CUDA sources to machine code: nvcc, or NVRTC where there is no toolkit.

Imports nothing but the standard library until NVRTC is asked for: the build hook of the package uses it too,
in an environment that has no dependencies.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from hfd_edge.errors import BackendError, MissingExtraError, require

FATBIN_CUBINS = (75, 80, 86, 87, 89, 90, 100, 110, 120, 121)
"""GPUs that a packaged fatbin holds machine code for; 87 is sm_87."""
FATBIN_PTX = (75, 120)
"""Intermediate code beside it, which a driver compiles for GPUs that are not named: the oldest covers all
that come later, the newest serves those after it with fewer workarounds for old instruction sets."""
INDEX = "kernels.json"
"""What the fatbins beside it are: compiler, GPUs, and the hashes of each one's source and content."""

# C++14 is what the toolkit of every device understands. No fast-math: the kernels are compared with float64.
# Products and sums fuse where a source says fmaf and nowhere else: a pixel must not depend on which copy of
# an unrolled loop computed it, nor on the compiler.
LANGUAGE = ("-std=c++14", "-fmad=false")
_TIMEOUT_S = 1800  # a fatbin is a dozen compilations, and small devices are slow
# Where the vendor's packages and JetPack install a toolkit without putting it on PATH.
_USUAL_NVCC = "/usr/local/cuda/bin/nvcc"


@dataclass(frozen=True)
class Source:
    """One .cu file, with all headers of its folder.

    Attributes:
        path: The file.
        text: Its content.
        headers: Content of every .cuh beside it, by file name.
        digest: SHA-256, hex, of all of these.
    """

    path: Path
    text: str
    headers: dict[str, str]
    digest: str

    @classmethod
    def read(cls, folder: Path, name: str) -> Source:
        """Read `folder`/`name`.cu.

        Raises:
            BackendError: there is no such file.
        """
        path = folder / f"{name}.cu"
        try:
            text = path.read_text("utf-8")
            headers = {header.name: header.read_text("utf-8") for header in sorted(folder.glob("*.cuh"))}
        except OSError as error:
            known = ", ".join(sorted(file.stem for file in folder.glob("*.cu"))) or "none"
            raise BackendError(
                f"The CUDA source {path} cannot be read: {error.strerror}. Sources there: {known}. "
                "Install hfd-edge again."
            ) from error
        digest = hashlib.sha256()
        for part in (path.name, text, *(item for pair in headers.items() for item in pair)):
            digest.update(f"{len(part)}:{part}".encode())
        return cls(path, text, headers, digest.hexdigest())


class Compiler(Protocol):
    """What turns a source into machine code for one GPU."""

    @property
    def version(self) -> str:
        """Name and version for people, "nvcc 13.0.88"."""
        ...

    @property
    def identity(self) -> str:
        """Everything about the compiler that its output depends on."""
        ...

    def cubin(self, source: Source, compute_capability: int) -> bytes:
        """Compile. Raises BackendError with the compiler's own words."""
        ...


@dataclass(frozen=True)
class Nvcc:
    """A toolkit's nvcc. Called as `nvcc -std=c++14 -cubin -arch=sm_87 -o OUT.cubin SOURCE.cu`.

    Attributes:
        path: The program.
        identity: All that `nvcc --version` prints. Compiled kernels are kept under a key that holds it, so a
            stand-in for nvcc must print everything that its output depends on.
    """

    path: Path
    identity: str

    @classmethod
    def find(cls) -> Nvcc:
        """The first nvcc on PATH, else in $CUDA_HOME, else in the usual place.

        Raises:
            BackendError: there is none, or it does not run.
        """
        home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
        places = [shutil.which("nvcc"), home and f"{home}/bin/nvcc", _USUAL_NVCC]
        found = next((Path(place) for place in places if place and Path(place).is_file()), None)
        if found is None:
            raise BackendError("no nvcc on PATH, in $CUDA_HOME or in /usr/local/cuda")
        return cls(found, _nvcc_identity(found, found.stat().st_mtime_ns))

    @property
    def version(self) -> str:
        """ "nvcc 13.0.88"."""
        found = re.search(r"release .*V([\d.]+)", self.identity)
        return f"nvcc {found[1] if found else 'of unknown version'}"

    def cubin(self, source: Source, compute_capability: int) -> bytes:
        """Compile for one GPU. Raises BackendError."""
        return self._run(source, (f"-arch=sm_{compute_capability}", "-cubin"))

    def fatbin(self, source: Source, *, cubins: Sequence[int], ptx: Sequence[int]) -> bytes:
        """Compile for many GPUs into one file that the driver chooses from. Raises BackendError."""
        codes = [f"-gencode=arch=compute_{gpu},code=sm_{gpu}" for gpu in cubins]
        codes += [f"-gencode=arch=compute_{gpu},code=compute_{gpu}" for gpu in ptx]
        return self._run(source, (*codes, "-fatbin"))

    def known(self) -> tuple[int, ...]:
        """GPUs that it has code generators for. Raises BackendError."""
        return tuple(
            int(found) for found in re.findall(r"sm_(\d+)\b", _nvcc_says(self.path, "--list-gpu-code"))
        )

    def report(self, source: Source, compute_capability: int) -> str:
        """What the assembler says about each kernel's resources. Raises BackendError."""
        options = (f"-arch=sm_{compute_capability}", "-cubin", "-Xptxas", "-v")
        return self._process(source, options)[1]

    def _run(self, source: Source, options: Sequence[str]) -> bytes:
        return self._process(source, options)[0]

    def _process(self, source: Source, options: Sequence[str]) -> tuple[bytes, str]:
        """Run nvcc; gives its output file and what it printed."""
        with tempfile.TemporaryDirectory(prefix="hfd-edge-nvcc-") as folder:
            out = Path(folder) / f"{source.path.stem}.out"
            command = [str(self.path), *LANGUAGE, *options, "-o", str(out), str(source.path)]
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S)
            except subprocess.TimeoutExpired as error:
                raise BackendError(
                    f"{self.path} did not finish {source.path.name} within {_TIMEOUT_S} seconds"
                ) from error
            except OSError as error:
                raise BackendError(f"{self.path} could not be run: {error}") from error
            if done.returncode != 0 or not out.is_file():
                raise BackendError(
                    f"{self.version} could not compile {source.path.name} with {' '.join(options)}: "
                    f"{_first_fault(done.stderr + done.stdout)}"
                )
            return out.read_bytes(), done.stderr + done.stdout


@dataclass(frozen=True)
class Nvrtc:
    """The compiler library of CUDA, through cuda-bindings; needs neither a toolkit nor a C++ compiler.

    Attributes:
        identity: Name and version.
    """

    identity: str
    _library: Any

    @classmethod
    def find(cls) -> Nvrtc:
        """Load it.

        Raises:
            BackendError: cuda-bindings is not installed, or the library cannot be found.
        """
        try:
            library = require("cuda.bindings.nvrtc", extra="cuda", purpose="compiling kernels with NVRTC")
            major, minor = _checked(library, library.nvrtcVersion())
        except MissingExtraError as error:
            raise BackendError(f"no NVRTC: {error}") from error
        except RuntimeError as error:  # cuda-bindings is here, libnvrtc is not
            raise BackendError(f"NVRTC cannot be loaded: {str(error).splitlines()[0]}") from error
        return cls(f"NVRTC {major}.{minor}", library)

    @property
    def version(self) -> str:
        """ "NVRTC 13.0"."""
        return self.identity

    def cubin(self, source: Source, compute_capability: int) -> bytes:
        """Compile for one GPU. Raises BackendError."""
        library = self._library
        names = [name.encode() for name in source.headers]
        texts = [text.encode() for text in source.headers.values()]
        made = library.nvrtcCreateProgram(
            source.text.encode(), source.path.name.encode(), len(names), texts, names
        )
        program = _checked(library, made)
        try:
            options = [option.encode() for option in (f"-arch=sm_{compute_capability}", *LANGUAGE)]
            try:
                _checked(library, library.nvrtcCompileProgram(program, len(options), options))
            except BackendError as error:
                log = bytes(_checked(library, library.nvrtcGetProgramLogSize(program)))
                _checked(library, library.nvrtcGetProgramLog(program, log))
                reason = _first_fault(log.rstrip(b"\0").decode(errors="replace")) or str(error)
                raise BackendError(
                    f"{self.version} could not compile {source.path.name} for sm_{compute_capability}: "
                    f"{reason}"
                ) from error
            content = bytes(_checked(library, library.nvrtcGetCUBINSize(program)))
            _checked(library, library.nvrtcGetCUBIN(program, content))
            return content
        finally:
            library.nvrtcDestroyProgram(program)


def _checked(library: Any, answer: tuple[Any, ...]) -> Any:
    """The values of an NVRTC call, or its error."""
    status, *values = answer
    if status != library.nvrtcResult.NVRTC_SUCCESS:
        raise BackendError(f"NVRTC says {status.name}")
    return values[0] if len(values) == 1 else tuple(values)


def write_fatbins(folder: Path, out: Path) -> list[Path]:
    """Compile every .cu of a folder for all GPUs of `FATBIN_CUBINS` that nvcc knows.

    Args:
        folder: Sources.
        out: Existing folder that gets NAME.fatbin for each, and the index.
    Returns:
        The files written.
    Raises:
        BackendError: there is no nvcc, or a source does not compile.
    """
    nvcc = Nvcc.find()
    known = nvcc.known()
    cubins = [gpu for gpu in FATBIN_CUBINS if gpu in known]
    ptx = [gpu for gpu in FATBIN_PTX if gpu in known]
    sources = [Source.read(folder, path.stem) for path in sorted(folder.glob("*.cu"))]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        contents = list(pool.map(lambda source: nvcc.fatbin(source, cubins=cubins, ptx=ptx), sources))
    files, written = {}, []
    for source, content in zip(sources, contents, strict=True):
        written.append(out / f"{source.path.stem}.fatbin")
        written[-1].write_bytes(content)
        files[source.path.stem] = {
            "source": source.digest,
            "sha256": hashlib.sha256(content).hexdigest(),
        }
    index = {"compiler": nvcc.version, "cubins": cubins, "ptx": ptx, "files": files}
    written.append(out / INDEX)
    written[-1].write_text(json.dumps(index, indent=2) + "\n", "utf-8")
    return written


@functools.lru_cache(maxsize=8)
def _nvcc_identity(path: Path, _modified_ns: int) -> str:
    """Output of `nvcc --version`, asked once for each file."""
    return _nvcc_says(path, "--version")


def _nvcc_says(path: Path, question: str) -> str:
    try:
        done = subprocess.run([str(path), question], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BackendError(f"{path} could not be run: {error}") from error
    if done.returncode != 0:
        raise BackendError(f"{path} {question} failed: {_first_fault(done.stderr + done.stdout)}")
    return done.stdout


def _first_fault(output: str) -> str:
    """The compiler's first error, or its first line."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    faults = [line for line in lines if re.search(r"\b(error|fatal)\b", line, re.IGNORECASE)]
    return (faults or lines or ["no reason given"])[0]
