"""simulate, data convert, data check."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hfd_edge.cli import app
from hfd_edge.cli.common import Json, show

if TYPE_CHECKING:
    from hfd_edge.datasets.folder import PairFolder

folder_app = typer.Typer(
    no_args_is_help=True, help="Bring data into the project's folder layout and check it."
)
app.add_typer(folder_app, name="data")


@app.command()
def simulate(
    out: Annotated[Path, typer.Argument(help="Folder to make.", metavar="DIR")],
    train: Annotated[int, typer.Option(min=1, help="Training pairs.")] = 64,
    val: Annotated[int, typer.Option(min=1, help="Validation pairs.")] = 16,
    test: Annotated[int, typer.Option(min=1, help="Test pairs.")] = 16,
    size_px: Annotated[int, typer.Option("--size", min=32, help="Side of a tile, pixels.")] = 256,
    looks: Annotated[float, typer.Option(min=0.5, help="Looks of the speckle; 1 is single-look.")] = 4.0,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same pixels.")] = 0,
    scene_px: Annotated[
        int, typer.Option("--scene", min=0, help="Also write DIR/scene.tif of this side; 0 for none.")
    ] = 0,
    json: Json = False,
) -> None:
    """Simulate paired EO/SAR/label scenes whose truth is known.

    SAR is sigma0 (linear, VV and VH) with gamma speckle, layover and shadow at buildings and a noise
    floor; EO has haze and clouds. Use it to try the whole road, or to test your own code.

    Example: `hfd-edge simulate data/sim --train 200 --scene 4096`
    """
    from hfd_edge.datasets.simulated import write_dataset, write_scene
    from hfd_edge.report.console import bars

    pairs = {"train": train, "val": val, "test": test}
    with bars() as progress:
        write_dataset(out, **pairs, size_px=size_px, seed=seed, looks=looks, progress=progress)
        if scene_px:
            write_scene(
                out / "scene.tif", rows=scene_px, cols=scene_px, seed=seed + 1, looks=looks, progress=progress
            )
    result = {"folder": str(out), "pairs": pairs, "scene": str(out / "scene.tif") if scene_px else None}
    show(result, as_json=json, title="Simulated")


@folder_app.command()
def convert(
    name: Annotated[str, typer.Argument(help="Data set, for example ombria.")],
    source: Annotated[Path, typer.Argument(help="The data as their authors distribute them.", metavar="SRC")],
    destination: Annotated[Path, typer.Argument(help="Folder to make.", metavar="DST")],
    json: Json = False,
) -> None:
    """Convert a public data set into the project's data folder.

    Example: `hfd-edge data convert ombria ~/OMBRIA data/ombria`
    """
    from hfd_edge.datasets.convert import convert as convert_data
    from hfd_edge.report.console import bars

    with bars() as progress:
        convert_data(name, source, destination, progress=progress)
    _report_folder(destination, as_json=json)


@folder_app.command()
def check(
    folder: Annotated[Path, typer.Argument(help="Data folder.", metavar="DIR")], json: Json = False
) -> None:
    """Read every file of a data folder and list what is wrong with it; exit code 1 if anything is."""
    from hfd_edge.report.console import bars

    faults: list[str] = []
    with bars() as progress:
        for _, opened in _open_schemes(folder):
            faults += opened.check(progress=progress)
    _report_folder(folder, as_json=json, faults=sorted(set(faults)))


def _open_schemes(path: Path) -> list[tuple[str, PairFolder]]:
    """The folder under each of its split schemes, or once, as "", when it has none."""
    from hfd_edge.datasets.folder import PairFolder

    folder = PairFolder.open(path)
    if not folder.schemes:
        return [("", folder)]
    return [(f"{scheme}/", PairFolder.open(path, scheme=scheme)) for scheme in folder.schemes]


def _report_folder(path: Path, *, as_json: bool, faults: list[str] | None = None) -> None:
    opened = _open_schemes(path)
    pairs = {f"{prefix}{split}": len(one.pairs(split)) for prefix, one in opened for split in one.splits}
    result = {"folder": str(path), "classes": list(opened[0][1].config.classes), "pairs": pairs}
    if faults is not None:
        result["faults"] = faults
    show(result, as_json=as_json, title="Data folder")
    if faults:
        raise typer.Exit(1)
