"""Check an engine that build.sh made: run it on golden tiles and compare with what the model gives.

For the device: standard library only, and Python 3.6 (JetPack 4). Exit code 0: the engine is right; else 1.
"""

import argparse
import array
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent


class Failed(Exception):
    """What is wrong, and what to do."""


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trtexec", default=os.environ.get("TRTEXEC", "trtexec"), help="program to run")
    parser.add_argument("--before", action="store_true", help="check files and TensorRT only; builds nothing")
    parser.add_argument("--seconds", type=float, default=0.0, help="how long the build took")
    options = parser.parse_args()
    kit = json.loads((HERE / "kit.json").read_text(encoding="utf-8"))
    try:
        check_files(kit)
        version = check_version(kit, options.trtexec)
        if options.before:
            return 0
        verify(kit, options, version)
    except Failed as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def check_files(kit):
    """Every file must be what it was when the kit was made."""
    for name, expected in sorted(kit["files"].items()):
        path = HERE / name
        if not path.is_file():
            raise Failed(f"{name} is missing. Copy the whole kit again.")
        if sha256(path) != expected:
            raise Failed(f"{name} was changed or cut off. Copy the whole kit again.")


def check_version(kit, trtexec):
    """Read TensorRT's version from trtexec's first line, and compare."""
    text = run([trtexec, "--help"], "ask trtexec for its version")[1]
    found = re.search(r"\[TensorRT v(\d+)\]", text)
    if found is None:
        raise Failed(f"{trtexec} does not say its TensorRT version. Set TRTEXEC to TensorRT's own.")
    number = int(found.group(1))
    major, rest = divmod(number, 10000 if number >= 100000 else 1000)
    version = f"{major}.{rest // 100}.{rest % 100}"
    wanted = kit["tensorrt"]
    parts = 3 if kit["exact_version"] else 2
    if version.split(".")[:parts] != wanted.split(".")[:parts]:
        why = " A calibration cache is for one version alone." if kit["exact_version"] else ""
        raise Failed(
            f"this kit is for TensorRT {wanted}, but {trtexec} is {version}.{why} "
            "Make a kit for a target with this version."
        )
    return version


def verify(kit, options, version):
    """Run every golden tile; write the sidecar when all is well."""
    engine = HERE / kit["engine"]
    if not engine.is_file():
        raise Failed(f"there is no {kit['engine']}. Run: sh build.sh")
    classes = len(kit["classes"])
    confusion = [[0] * classes for _ in range(classes)]
    errors = []
    for tile in kit["golden"]:
        expected = read_floats(HERE / tile["logits"])
        found = infer(kit, options.trtexec, tile)
        count(confusion, expected, found, classes)
        errors.append(difference(expected, found))
    total = sum(map(sum, confusion))
    scores = {
        "agreement": sum(confusion[index][index] for index in range(classes)) / float(total),
        "miou": mean_iou(confusion),
        "difference": max(errors),
    }
    wrong = report(scores, kit)
    if wrong:
        raise Failed(
            f"the engine does not compute what the model computes: {wrong}, over {total} pixels. "
            "Do not use it: build another precision, or report the log of trtexec."
        )
    write_sidecar(kit, engine, version, options.seconds, scores)
    print(f"verified {kit['engine']} on {len(kit['golden'])} tiles")


def report(scores, kit):
    """Print all scores; give those beyond their limits in words."""
    wrong = []
    for name, found in sorted(scores.items()):
        least, most = kit["minimum"].get(name), kit["maximum"].get(name)
        limit = f"at least {least}" if most is None else f"at most {most}"
        print(f"{name:<10} {found:.4f}, {limit}")
        if (least is not None and found < least) or (most is not None and found > most):
            wrong.append(f"{name} is {found:.4f}, expected {limit}")
    return "; ".join(wrong)


def infer(kit, trtexec, tile):
    """Logits that the engine gives a tile."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "output.json"
        words = {"@INPUT@": tile["input"], "@OUTPUT@": str(output)}
        flags = [re.sub("@[A-Z]+@", lambda found: words[found.group()], flag) for flag in kit["run"]]
        code, text = run([trtexec, *flags], "run the engine")
        if code or not output.is_file():
            lines = [line for line in text.splitlines() if "[E]" in line] or text.splitlines()[-5:]
            raise Failed("trtexec could not run the engine ({}):\n{}".format(code, "\n".join(lines)))
        # trtexec writes nan and inf, which are no JSON.
        content = re.sub(r"-?\b(nan|inf)\b", "null", output.read_text(encoding="utf-8"))
    try:
        found = [item for item in json.loads(content) if item["name"] == kit["output"]["name"]]
    except ValueError as error:
        raise Failed("trtexec wrote no outputs that can be read. Run build.sh again.") from error
    if not found:
        raise Failed(f"the engine has no output {kit['output']['name']}. Run build.sh again.")
    values = found[0]["values"]
    if any(value is None for value in values):
        raise Failed("the engine gives NaN or infinity. Do not use it: build another precision.")
    return values


def count(confusion, expected, found, classes):
    """Add a tile's labels; `found` may hold the same tile several times (a fixed batch)."""
    if not found or len(found) % len(expected):
        raise Failed(
            f"the engine gives {len(found)} values for a tile, expected {len(expected)}. Run build.sh again."
        )
    pixels = len(expected) // classes
    truth = labels(expected, 0, pixels, classes)
    for start in range(0, len(found), len(expected)):
        for true, label in zip(truth, labels(found, start, pixels, classes)):
            confusion[true][label] += 1


def difference(expected, found):
    """Root mean square difference of the logits, relative to their spread."""
    size = len(expected)
    mean = sum(expected) / size
    spread = sum((value - mean) ** 2 for value in expected) / size
    error = sum((value - expected[index % size]) ** 2 for index, value in enumerate(found)) / len(found)
    return (error / max(spread, 1e-12)) ** 0.5


def labels(values, start, pixels, classes):
    """Class with the largest logit, pixel by pixel; values are (classes, pixels)."""
    planes = [values[start + index * pixels : start + (index + 1) * pixels] for index in range(classes)]
    return [max(range(classes), key=column.__getitem__) for column in zip(*planes)]


def mean_iou(confusion):
    """Mean over the classes that occur on either side."""
    scores = []
    for index, row in enumerate(confusion):
        union = sum(row) + sum(other[index] for other in confusion) - row[index]
        if union:
            scores.append(row[index] / float(union))
    return sum(scores) / len(scores)


def write_sidecar(kit, engine, version, seconds, scores):
    """Say what the engine is: hfd-edge refuses engines without it."""
    record = dict(kit["record"], version=python_version(version))
    keyed = ("onnx_sha256", "flavour", "version", "compute_capabilities", "options")
    content = {name: record[name] for name in keyed}
    content["compute_capabilities"] = sorted(content["compute_capabilities"])
    record["engine_key"] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    record["bytes"] = engine.stat().st_size
    record["sha256"] = sha256(engine)
    record["seconds"] = seconds
    record["note"] = (
        f"Built by trtexec {version}; on golden tiles: agreement {scores['agreement']:.4f}, "
        f"mean IoU {scores['miou']:.4f}, logits differ by {scores['difference']:.4f}."
    )
    path = HERE / kit["sidecar"]
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)


def python_version(version):
    """The version as TensorRT's Python module says it, which may have a fourth number."""
    program = [sys.executable, "-c", "import tensorrt; print(tensorrt.__version__)"]
    try:
        done = subprocess.run(program, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    except OSError:
        return version
    found = done.stdout.decode("utf-8", "replace").strip()
    return found if found.startswith(version + ".") else version


def run(command, purpose):
    """Exit code and output of a program."""
    try:
        done = subprocess.run(command, cwd=str(HERE), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    except OSError as error:
        raise Failed(f"cannot {purpose}: {command[0]}: {error}. Set TRTEXEC=/path/to/trtexec.") from error
    return done.returncode, done.stdout.decode("utf-8", "replace")


def read_floats(path):
    """Little-endian float32 values of a file."""
    values = array.array("f")
    values.frombytes(path.read_bytes())
    if sys.byteorder == "big":
        values.byteswap()
    return values


def sha256(path):
    """Hash of a file, hex."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


if __name__ == "__main__":
    sys.exit(main())
