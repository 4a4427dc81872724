"""The CUDA kernels as the driver takes them: packaged, kept from an earlier run, or compiled now.

The first of these that there is, is taken:

1. the fatbin that the package brings (made by hatch_build.py where nvcc was there), if it was made from the
   very sources beside it and has code for this GPU;
2. what nvcc makes of the sources; JetPack and the CUDA toolkit bring it;
3. what NVRTC makes of them, which cuda-bindings loads.

What a compiler made is kept in the user's cache folder under a hash of all that it depends on.
`KernelImage.way` and `Kernels.ways` say which it was, and so does `hfd-edge doctor`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfd_edge.errors import BackendError, StorageError
from hfd_edge.files import user_cache, write_bytes
from hfd_edge.runtime.compilers import INDEX, LANGUAGE, Compiler, Nvcc, Nvrtc, Source

if TYPE_CHECKING:
    from hfd_edge.runtime.device import Device, Function, Module

SOURCES = Path(__file__).resolve().parents[1] / "sar" / "kernels"
"""Folder of the .cu and .cuh files."""
PACKAGED = Path(__file__).resolve().parents[1] / "data" / "kernels"
"""Folder of the fatbins and of kernels.json, which says what they are; a checkout has none."""

# Each finds a compiler or raises BackendError; NVRTC is loaded only where nvcc does not help.
_COMPILERS: tuple[Callable[[], Compiler], ...] = (Nvcc.find, Nvrtc.find)
_PACKAGED_WAY = "packaged fatbin"
_DIGEST_BYTES = hashlib.sha256().digest_size

_log = logging.getLogger("hfd_edge.runtime")


@dataclass(frozen=True)
class KernelImage:
    """Machine code of one source.

    Attributes:
        content: Fatbin or cubin, as `Device.module` takes it.
        way: Where it came from: "packaged fatbin", "nvcc 13.0.88", "NVRTC 13.0", "cached nvcc 13.0.88".
        compute_capability: GPU that it was chosen for; 87 is sm_87.
    """

    content: bytes
    way: str
    compute_capability: int


def kernel_image(name: str, compute_capability: int, *, packaged: bool = True) -> KernelImage:
    """Get the kernels of one source for a GPU.

    Args:
        name: Source without its suffix: "speckle", "labels", ...
        compute_capability: Of the GPU; 87 is sm_87.
        packaged: Whether the package's own fatbin may be taken.
    Raises:
        BackendError: the package has none for this GPU, and there is no compiler, or none that can compile
            it; says what each of them answered.
    """
    source = Source.read(SOURCES, name)
    faults = []
    if packaged:
        content, reason = _packaged(source, compute_capability)
        if content is not None:
            return KernelImage(content, _PACKAGED_WAY, compute_capability)
        faults.append(f"packaged fatbin: {reason}")
    for find in _COMPILERS:
        try:
            content, way = _compiled(source, find(), compute_capability)
            return KernelImage(content, way, compute_capability)
        except BackendError as error:
            faults.append(str(error))
    raise BackendError(
        f"The CUDA kernels in {name}.cu cannot be had for this GPU (sm_{compute_capability}). "
        f"{'; '.join(faults)}. Install the CUDA toolkit that belongs to the driver (JetPack: "
        "sudo apt install nvidia-jetpack) so that nvcc is on PATH, or NVRTC with: "
        "pip install 'hfd-edge[cuda]' nvidia-cuda-nvrtc."
    )


class Kernels:
    """The kernels on one device, each source loaded when it is first needed. Threads may share it.

    Attributes:
        ways: How each loaded source was had, by its name; see `KernelImage.way`.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._modules: dict[str, Module] = {}
        self._lock = threading.Lock()
        self.ways: dict[str, str] = {}

    def function(self, source: str, name: str) -> Function:
        """Get a kernel.

        Args:
            source: File without its suffix: "speckle".
            name: The kernel's name in it.
        Raises:
            BackendError: the source cannot be had for this GPU, the driver refuses it, or it has no such
                kernel.
        """
        return self._module(source).function(name)

    def load_all(self) -> str:
        """Load every source, and say how: "labels, speckle: cached nvcc 13.0.88". Raises BackendError."""
        names: dict[str, list[str]] = {}
        for path in sorted(SOURCES.glob("*.cu")):
            self._module(path.stem)
            names.setdefault(self.ways[path.stem], []).append(path.stem)
        return "; ".join(f"{', '.join(stems)}: {way}" for way, stems in names.items())

    def close(self) -> None:
        """Unload the modules; more than once is allowed."""
        with self._lock:
            for module in self._modules.values():
                module.close()
            self._modules.clear()

    def _module(self, source: str) -> Module:
        with self._lock:
            if source not in self._modules:
                self._modules[source], self.ways[source] = self._load(source)
                _log.debug("kernels of %s.cu: %s", source, self.ways[source])
            return self._modules[source]

    def _load(self, source: str) -> tuple[Module, str]:
        capability = self._device.limits.compute_capability
        image, note = kernel_image(source, capability), ""
        if image.way == _PACKAGED_WAY:
            try:
                return self._device.module(image.content), image.way
            except BackendError as error:
                # Drivers of CUDA 12, as JetPack 6 has, need not take code of CUDA 13; their own nvcc helps.
                _log.warning(
                    "the driver refuses the packaged kernels of %s.cu, compiling them here: %s", source, error
                )
            image, note = (
                kernel_image(source, capability, packaged=False),
                ", for want of a fatbin that loads",
            )
        try:
            return self._device.module(image.content), image.way + note
        except BackendError as error:
            raise BackendError(
                f"The driver refuses the kernels of {source}.cu from {image.way}: {error} A driver takes "
                "code of toolkits up to its own CUDA version, which nvidia-smi shows: install that toolkit, "
                "or a newer driver."
            ) from error


def packaged_kernels() -> str | None:
    """What the package's fatbins are for and who made them, in words; None where it has none."""
    index = _index()
    if index is None:
        return None
    gpus = ", ".join(f"sm_{gpu}" for gpu in index["cubins"])
    return f"{len(index['files'])} fatbins by {index['compiler']} for {gpus} and later"


def compilers_here() -> list[str]:
    """Compilers that this machine has, in the order in which they are tried: "nvcc 13.0.88", "NVRTC 13.0"."""
    found = []
    for find in _COMPILERS:
        with contextlib.suppress(BackendError):
            found.append(find().version)
    return found


def _index() -> dict[str, Any] | None:
    try:
        content: dict[str, Any] = json.loads((PACKAGED / INDEX).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return content


def _packaged(source: Source, compute_capability: int) -> tuple[bytes | None, str]:
    """The package's fatbin, or the reason why it cannot be taken."""
    name, index = source.path.stem, _index()
    entry = None if index is None else index["files"].get(name)
    if index is None or entry is None:
        return None, "this installation has none"
    if entry["source"] != source.digest:
        return None, "was made from other sources than those beside it"
    if compute_capability < min(index["ptx"]):
        return None, f"is for sm_{min(index['ptx'])} and later"
    try:
        content = (PACKAGED / f"{name}.fatbin").read_bytes()
    except OSError as error:
        return None, str(error.strerror)
    if hashlib.sha256(content).hexdigest() != entry["sha256"]:
        _log.warning("%s is damaged and not used; install hfd-edge again", PACKAGED / f"{name}.fatbin")
        return None, "is damaged"
    return content, ""


def _compiled(source: Source, compiler: Compiler, compute_capability: int) -> tuple[bytes, str]:
    """Machine code from the cache, or from the compiler; and the way."""
    parts = [source.digest, compiler.identity, *LANGUAGE, str(compute_capability)]
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
    path = user_cache("kernels") / f"{source.path.stem}-sm{compute_capability}-{key[:32]}.bin"
    content = _read_cached(path)
    if content is not None:
        return content, f"cached {compiler.version}"
    content = compiler.cubin(source, compute_capability)
    try:
        # The hash in front tells a file that the disk or somebody damaged from a whole one.
        write_bytes(path, hashlib.sha256(content).digest() + content)
    except StorageError as error:
        _log.warning("the compiled kernels are not kept, so each start compiles them again: %s", error)
    return content, compiler.version


def _read_cached(path: Path) -> bytes | None:
    try:
        stored = path.read_bytes()
    except OSError:
        return None
    digest, content = stored[:_DIGEST_BYTES], stored[_DIGEST_BYTES:]
    if content and hashlib.sha256(content).digest() == digest:
        return content
    _log.warning("%s is damaged; compiling the kernels again", path)
    return None
