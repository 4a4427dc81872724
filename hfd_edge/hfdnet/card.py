"""The model card: what a network is, what it takes, how well it does and where it comes from, in Markdown.

Everything in it is read from the run folder, so it cannot differ from the model; nothing is written by hand.
After "Model Cards for Model Reporting" (Mitchell et al., 2019).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tomli_w

from hfd_edge.config import TeacherInputs
from hfd_edge.files import sha256
from hfd_edge.hfdnet.encoder import PRESETS
from hfd_edge.hfdnet.network import MULTIPLE_PX
from hfd_edge.hfdnet.run import Run

CITATION = """@article{gao2022hfdnet,
  title   = {Heterogeneous Feature Distillation Network for {SAR} Image Semantic Segmentation},
  author  = {Gao, Mengyu and Dong, Qiulei},
  journal = {arXiv preprint arXiv:2210.08988},
  year    = {2022}
}"""
"""The paper that the network is reconstructed from."""

_SEES: dict[TeacherInputs, str] = {
    "eo": "EO images",
    "eo+sar": "EO and SAR images",
    "eo before+after": "EO images of two dates",
    "eo before+after+sar": "EO images of two dates and SAR images",
}
_SCORES = (
    ("miou", "mIoU"),
    ("accuracy", "accuracy"),
    ("mf1", "mean F1"),
    ("boundary_miou", "boundary mIoU"),
    ("ece", "calibration error (ECE)"),
)


def model_card(run: Run, *, scores: Sequence[Mapping[str, Any]] = ()) -> str:
    """Write a run's card.

    Args:
        run: With weights.
        scores: Measured on splits that the training did not see, each as of `hfd_edge.evaluation.measure`,
            with its "split". Those of the epoch that is kept come from the run itself.
    Raises:
        CheckpointError: the run has no usable weights, or metrics.json is damaged.
    """
    parts = {
        f"{run.info.dataset.name} {run.info.kind}": _what(run),
        "Input": _input(run),
        "Accuracy": _accuracy(run, scores),
        "Training": _training(run),
        "Limits": _limits(run, scores),
        "Provenance": _provenance(run),
        "Citation": f"```bibtex\n{CITATION}\n```\n\nData: {_source(run)}",
    }
    marks = ["#", *["##"] * (len(parts) - 1)]
    sections = [
        f"{mark} {title}\n\n{text}\n" for mark, (title, text) in zip(marks, parts.items(), strict=True)
    ]
    return "\n".join([*sections, "Generated from the run folder by `hfd-edge card`: do not edit.\n"])


def _what(run: Run) -> str:
    recipe = run.recipe.network
    encoder = recipe.encoder or PRESETS[recipe.preset][0]
    if run.info.arch is None:
        alignment = "with" if recipe.hfam else "without"
        width = recipe.channels or PRESETS[recipe.preset][1]
        form = (
            f"HFD-Net on the encoder `{encoder}`, decoder width {width}, {alignment} feature alignment "
            "(HFAM), reconstructed from the paper's description"
        )
    else:
        form = f"{run.info.arch} on the encoder `{encoder}`"
    classes = ", ".join(run.info.classes)
    sees = _SEES[run.info.sees] if run.info.kind == "teacher" else "SAR images"
    millions = run.network().count_parameters() / 1e6
    megabytes = run.weights_path.stat().st_size / 1e6
    return (
        f"Semantic segmentation of {sees} into {len(run.info.classes)} classes: {classes}. {form}; "
        f"**{millions:.2f} M parameters**, {megabytes:.1f} MB in float32. "
        f"{_teaching(run)}"
    )


def _teaching(run: Run) -> str:
    recipe, text = run.recipe, "It learnt from labels alone."
    if run.info.kind == "student" and recipe.distill.method != "none":
        text = (
            f"It learnt from labels and, by `{recipe.distill.method}`, from a teacher that sees "
            f"{_SEES[recipe.teacher.inputs]}; it needs SAR alone."
        )
    if run.info.unlabelled_sha256:
        text += f" Pairs without labels of {len(run.info.unlabelled_sha256)} further folders took part."
    if run.info.qat_sha256 is not None:
        text += " It was then fine-tuned for INT8."
    elif recipe.network.init == "teacher":
        text += " Its first weights were the teacher's."
    return text


def _input(run: Run) -> str:
    sar, preprocessing, lines = run.info.dataset.sar, run.info.preprocessing, []
    if preprocessing is not None:
        speckle = preprocessing.speckle
        unit = "dB" if preprocessing.logarithmic else "stored values"
        window = "" if speckle == "none" else f" ({preprocessing.window_px} x {preprocessing.window_px})"
        nodata = "NaN" if sar.nodata is None else f"NaN and {sar.nodata:g}"
        lines += [
            f"SAR, units `{sar.units}`, equivalent number of looks {sar.looks:g}; no-data: {nodata}. Speckle "
            f"filter: {speckle}{window}. Then, in {unit}, clipped and standardised by figures of the "
            "training split:",
            "",
            "| band | clipped to | mean | standard deviation |",
            "|---|---|---|---|",
        ]
        columns = zip(sar.bands, preprocessing.clip, preprocessing.mean, preprocessing.std, strict=True)
        lines += [
            f"| {name} | {low:.4g} to {high:.4g} | {m:.4g} | {s:.4g} |" for name, (low, high), m, s in columns
        ]
        lines.append("")
    eo = run.info.dataset.eo
    if run.info.eo_mean is not None and eo is not None:
        lines += [f"EO, bands {', '.join(eo.bands)}; a stored value of {eo.scale:g} is reflectance 1.", ""]
    return "\n".join([*lines, f"Sides are multiples of {MULTIPLE_PX} pixels; the runtime pads and tiles."])


def _accuracy(run: Run, scores: Sequence[Mapping[str, Any]]) -> str:
    columns: list[Mapping[str, Any]] = [*scores]
    if metrics := run.metrics():
        columns.append({**metrics, "split": f"val, {run.recipe.training.keep} epoch"})
    if not columns:
        return "Not measured."
    rows = [
        [title, *(_number(column.get(key)) for column in columns)]
        for key, title in _SCORES
        if any(column.get(key) is not None for column in columns)
    ]
    for name in run.info.classes:
        rows.append([f"IoU {name}", *(_number(column.get("iou", {}).get(name)) for column in columns)])
    rows.append(["tiles", *(str(column.get("tiles", "")) for column in columns)])
    head = ["", *(_measured_on(run, column) for column in columns)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def _measured_on(run: Run, column: Mapping[str, Any]) -> str:
    """The split, and the folder and scheme where they are not those of the training."""
    parts = [str(column["split"])]
    if (data := column.get("data")) not in (None, run.info.dataset.name):
        parts.append(f"of {data}")
    if (scheme := column.get("scheme")) not in (None, run.recipe.split):
        parts.append(f"(scheme {scheme})")
    return " ".join(parts)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _training(run: Run) -> str:
    training, metrics = run.recipe.training, run.metrics()
    scheme = f"split scheme `{run.recipe.split}`" if run.recipe.split else "its own split"
    rows = {
        "data": f"{run.info.dataset.name}, {scheme}",
        "source and licence": _source(run),
        "first weights": f"`{run.recipe.network.init}`, seed {training.seed}",
        "pairs": metrics.get("pairs"),
        "pairs that distil alone, without a label that is used": metrics.get("unlabelled_pairs") or None,
        "labels used": None if training.label_share == 1 else f"{training.label_share:.0%} of train",
        "samples": f"batches of {training.batch} crops of {training.crop_px} pixels",
        "steps": metrics.get("steps"),
        f"{training.keep} epoch": metrics.get("best_epoch"),
        "epochs": metrics.get("epochs"),
        "device": metrics.get("device"),
        "precision": training.precision,
    }
    return _list(rows)


def _limits(run: Run, scores: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        "Trained on one data set: other sensors, incidence angles, seasons and landscapes are not covered. "
        "`predict` warns of scenes unlike the training images, if the bundle was exported with `--data`.",
        'Every pixel with data gets one of the classes above; there is no "other".',
    ]
    if run.recipe.training.keep == "best":
        lines.append("The epoch was chosen by the validation split, so figures on it flatter.")
    if run.metrics().get("unlabelled_pairs"):
        lines.append(
            "Pairs without label took part: where they show the floods, fields or towns of the test split, "
            "its scores hold for places of which there are such pairs, and for others they flatter."
        )
    if not any(score["split"] not in ("train", "val") for score in scores):
        lines.append("Not measured on a split that the training did not see (`hfd-edge card --data`).")
    if run.info.dataset.sar.units == "stretched" and run.info.preprocessing is not None:
        lines.append(
            "The SAR pixels are contrast-stretched: calibrated backscatter is another input, unknown to it."
        )
    if run.info.kind != "student":
        lines.append("Not for devices: only students are exported.")
    return "\n".join(f"- {line}" for line in lines)


def _provenance(run: Run) -> str:
    info = run.info
    facts = {
        "weights, SHA-256": sha256(run.weights_path),
        "data, SHA-256": info.data_sha256,
        "teacher's weights, SHA-256": info.teacher_sha256,
        "started from, SHA-256": info.qat_sha256,
        "code revision": info.commit,
        "begun": info.created,
        "versions": ", ".join(f"{name} {version}" for name, version in info.versions.items()),
    }
    recipe = tomli_w.dumps(run.recipe.model_dump(mode="json", exclude_none=True))
    return f"{_list(facts)}\n\nThe resolved recipe:\n\n```toml\n{recipe.strip()}\n```"


def _list(facts: Mapping[str, Any]) -> str:
    return "\n".join(f"- {name}: {fact}" for name, fact in facts.items() if fact is not None)


def _source(run: Run) -> str:
    return run.info.dataset.source or "not stated; ask who gave you the data before you pass the model on."
