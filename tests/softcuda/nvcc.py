"""Stand-in for nvcc: compiles an unmodified .cu file for the emulated driver (tests/softcuda).

bin/nvcc calls it. It takes nvcc's options as hfd-edge passes them and writes a shared object where nvcc
writes a cubin or a fatbin; `softcuda_launch` in it runs a kernel on the CPU. Settings come from the
environment:

SOFTCUDA_CACHE: folder of compiled modules (default: in .venv, or else the temporary folder).
SOFTCUDA_CHECKS: 0 compiles without the hooks: faster, finds nothing, counts nothing.
SOFTCUDA_GCOV: folder whose sources are compiled for gcov; notes and counts lie beside the module.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

from build_driver import cache_folder, locked

HERE = Path(__file__).resolve().parent
KERNELS = HERE / "kernels"
VERSION = """nvcc: NVIDIA (R) Cuda compiler driver
Stand-in for the emulated driver of hfd-edge's tests ({identity})
Cuda compilation tools, release 13.0, V13.0.88
"""
CAPABILITIES = (75, 80, 86, 87, 88, 89, 90, 100, 103, 110, 120, 121)

# Options of nvcc that change nothing here; kernels are never contracted nor compiled with fast-math.
_IGNORED = re.compile(
    r"-O[0-3]|-lineinfo|--?cubin|--?fatbin|-m64|-w|--?std=c\+\+1[47]|--?fmad=\w+|--?code=.*|--?gpu-code=.*"
    r"|--?resource-usage|-res-usage|--?threads=\d+|--?(Xptxas|ptxas-options|Xcompiler|compiler-options|ccbin)=.*"
)
_IGNORED_WITH_VALUE = re.compile(
    r"--?(Xptxas|ptxas-options|Xcompiler|compiler-options|ccbin|compiler-bindir|Xfatbin|code|gpu-code|Werror|"
    r"diag-suppress|std|t|threads)"
)
_OUTPUT, _DEFINE = ("-o", "--output-file"), ("-I", "-D")
_ARCHITECTURE = ("-arch", "--gpu-architecture", "-gencode", "--generate-code")

# The optimiser must neither merge nor widen accesses: a GPU makes them one by one.
_LANGUAGE = """
    -std=c++14 -g1 -fPIC -fvisibility=hidden -ffp-contract=off -fno-strict-aliasing -fno-threadsafe-statics
    -fno-tree-vectorize -fno-tree-slp-vectorize -fno-store-merging -fno-tree-loop-distribute-patterns
    -Wall -Wno-unused-function -Wno-unknown-pragmas -Wno-attributes
""".split()
_HOOKS = """
    -fsanitize=thread --param tsan-instrument-func-entry-exit=0
    -fsanitize=bounds,alignment,pointer-overflow,signed-integer-overflow,shift,integer-divide-by-zero
    -fsanitize=float-cast-overflow
""".split()

# CUDA's own syntax after preprocessing, where kernels/cuda_dialect.h has left markers.
_PARENTHESES = r"\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)"
_ATTRIBUTE = r"__attribute__\s*\(\(.*?\)\)\s*"
_BOUNDS = re.compile(rf"softcuda_bounds_marker\s*({_PARENTHESES})")
_KERNEL = re.compile(
    r'extern\s+"C"\s+softcuda_global_marker\s+(?:void\s+)?'
    rf"(?:softcuda_bounds_marker\s*(?P<bounds>{_PARENTHESES})\s*)?(?:void\s+)?(?P<name>\w+)\s*\("
)
_DYNAMIC_SHARED = re.compile(
    rf"extern\s+softcuda_shared_marker\s+(?:{_ATTRIBUTE})?(?P<type>[\w:\s]+?)\s+(?:{_ATTRIBUTE})?"
    r"(?P<name>\w+)\s*\[\s*\]\s*;"
)
_STATIC_SHARED = re.compile(r"softcuda_shared_marker\b(?P<declaration>[^;]*);")


def fail(text: str) -> NoReturn:
    """End as nvcc does when it cannot go on."""
    sys.stderr.write(f"nvcc fatal   : {text}\n")
    raise SystemExit(1)


def architecture(value: str) -> int:
    """Return 86 for "sm_86" or "arch=compute_86,code=sm_86"."""
    found = re.search(r"(?:sm|compute)_(\d+)", value)
    if found is None or int(found[1]) not in CAPABILITIES:
        fail(f"Unsupported gpu architecture '{value}'")
    return int(found[1])


def parse(arguments: list[str]) -> tuple[Path, Path, int, list[str]]:
    """Read nvcc's options: source, output, compute capability (86), preprocessor options."""
    source = output = None
    capability, passed = CAPABILITIES[0], []
    rest = list(arguments)
    while rest:
        option = rest.pop(0)
        name, _, value = option.partition("=")
        if name in (*_OUTPUT, *_ARCHITECTURE, *_DEFINE):
            value = value or (rest.pop(0) if rest else fail(f"option {option} needs a value"))
            if name in _OUTPUT:
                output = Path(value)
            elif name in _ARCHITECTURE:
                capability = architecture(value)
            else:
                passed += [name, value]
        elif option.startswith(_DEFINE):
            passed.append(option)
        elif _IGNORED_WITH_VALUE.fullmatch(option):
            del rest[:1]
        elif option.startswith("-"):
            if not _IGNORED.fullmatch(option):
                fail(f"Unknown option '{option}'")
        else:
            source = Path(option)
    if source is None or not source.is_file():
        fail(f"No input files specified ({source})")
    return source, output or Path(f"{source.stem}.cubin"), capability, passed


def gxx(*arguments: str | Path) -> str:
    """Run g++; pass its messages on, and end when it fails."""
    done = subprocess.run(["g++", *map(str, arguments)], capture_output=True, text=True)
    sys.stderr.write(done.stderr)
    if done.returncode != 0:
        raise SystemExit(done.returncode)
    return done.stdout


def declare_shared(match: re.Match[str]) -> str:
    """Return the declaration of static shared memory as references into the executor's arena."""
    declaration = match["declaration"]
    plain = re.sub(rf"{_ATTRIBUTE}|<[^<>]*>|\[[^\]]*\]", "", declaration)
    names = [part.split()[-1].strip("*& ") for part in plain.split(",")]
    references = ""
    for name in names:
        kind = f"softcuda_type_of_{name}"
        declaration = re.sub(rf"\b{name}\b(?=\s*([\[,]|$))", kind, declaration, count=1)
        place = f'softcuda_static_shared("{name}", sizeof({kind}), alignof({kind}))'
        references += f" static {kind}& {name} = *reinterpret_cast<{kind}*>({place});"
    return f"typedef {declaration};{references}"


def translate(source: Path, capability: int, passed: list[str]) -> str:
    """Return the preprocessed source with CUDA's syntax replaced and a table of its kernels at the end."""
    language = ["-E", "-x", "c++", "-std=c++14", "-D__CUDACC__", f"-D__CUDA_ARCH__={capability * 10}"]
    text = gxx(*language, *passed, "-include", KERNELS / "cuda_dialect.h", source.resolve())
    if not counted(text):  # copies of a source are one module, wherever they lie
        text = text.replace(f'"{source.resolve().parent}/', '"')
    head, end, body = text.partition("struct softcuda_end_of_dialect;")
    table = ""
    for kernel in _KERNEL.finditer(body):
        name, bounds = kernel["name"], kernel["bounds"] or "()"
        call = f"softcuda_call<decltype(&{name}), &{name}>"
        table += f'  {{"{name}", {call}, softcuda_size({name}), softcuda_bound{bounds}}},\n'
    pointer = r"\g<type>* const \g<name> = reinterpret_cast<\g<type>*>(softcuda_dynamic_shared);"
    body = _STATIC_SHARED.sub(declare_shared, _DYNAMIC_SHARED.sub(pointer, body))
    body = _BOUNDS.sub("", body).replace("softcuda_global_marker", "")
    # In an unnamed namespace nothing of the kernel can clash with the executor or the C library.
    return (
        f"{head}{end}\nnamespace {{ {body}\n}}\n"
        'extern "C" __attribute__((visibility("hidden")))\n'
        f"const SoftcudaEntry softcuda_entries[] = {{\n{table}  {{nullptr, nullptr, 0, 0}}}};\n"
    )


def modules_folder() -> Path:
    """Return where compiled modules are kept."""
    chosen = os.environ.get("SOFTCUDA_CACHE")
    return Path(chosen) if chosen else cache_folder() / "kernels"


def counted(text: str) -> bool:
    """Whether gcov shall count a preprocessed source: it, or what it includes, lies in the folder."""
    chosen = os.environ.get("SOFTCUDA_GCOV")
    return bool(chosen) and f'"{Path(chosen).resolve()}/' in text


def flags(*, gcov: bool) -> list[str]:
    """Return g++'s options for a kernel."""
    chosen = list(_LANGUAGE)
    if int(gxx("-dumpversion").split(".")[0]) >= 12:
        chosen.append("-ftrivial-auto-var-init=pattern")  # a variable without a value is no zero by luck
    cpu = Path("/proc/cpuinfo")
    if platform.machine() == "x86_64" and cpu.exists() and " fma " in cpu.read_text():
        chosen.append("-mfma")  # an explicit fmaf as one instruction
    if os.environ.get("SOFTCUDA_CHECKS", "1") != "0":
        chosen += _HOOKS
    if gcov:
        # As atomics, the counters of lines are no loads and stores of the kernel.
        return [*chosen, "-O1", "--coverage", "-fprofile-update=atomic"]
    return [*chosen, "-O2"]


def identity(options: list[str]) -> str:
    """Return a hash of all that a module depends on beside its source; `nvcc --version` shows it."""
    key = hashlib.sha256("\0".join(["g++", gxx("-dumpfullversion"), *options]).encode())
    for part in (Path(__file__), HERE / "runtime.h", *sorted(KERNELS.iterdir())):
        key.update(part.read_bytes())
    return key.hexdigest()


def executor() -> Path:
    """Compile what runs the kernels, the same for all of them, unless it is in the cache."""
    with locked(modules_folder() / f"executor-{identity([])[:24]}") as folder:
        made = folder / "executor.o"
        if not made.exists():
            language = ["-std=c++17", "-O2", "-g1", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]
            gxx(*language, "-c", KERNELS / "executor.cpp", "-o", folder / "executor.tmp")
            (folder / "executor.tmp").rename(made)
        return made


def build(text: str, options: list[str]) -> Path:
    """Compile a translated source into the cache, unless it is there."""
    key = hashlib.sha256((identity(options) + text).encode()).hexdigest()
    with locked(modules_folder() / key[:24]) as folder:
        module = folder / "module.so"
        if not module.exists():
            image = f'const char softcuda_image[] = "{module}";'  # for addr2line
            (folder / "kernel.ii").write_text(
                f'{text}extern "C" __attribute__((visibility("hidden"))) {image}\n'
            )
            gxx("-fpreprocessed", *options, "-c", folder / "kernel.ii", "-o", folder / "kernel.o")
            coverage = ["--coverage"] if "--coverage" in options else []
            made, objects = folder / "module.tmp", (folder / "kernel.o", executor())
            gxx("-shared", "-Wl,-Bsymbolic,-z,defs", *coverage, *objects, "-lm", "-o", made)
            made.rename(module)
        return module


def main(arguments: list[str]) -> None:
    """Compile as nvcc would."""
    if "--version" in arguments or "-V" in arguments:
        options = flags(gcov=bool(os.environ.get("SOFTCUDA_GCOV")))
        sys.stdout.write(VERSION.format(identity=identity(options)[:16]))
    elif "--list-gpu-code" in arguments:
        sys.stdout.write("".join(f"sm_{capability}\n" for capability in CAPABILITIES))
    else:
        source, output, capability, passed = parse(arguments)
        text = translate(source, capability, passed)
        shutil.copyfile(build(text, flags(gcov=counted(text))), output)


if __name__ == "__main__":
    main(sys.argv[1:])
