from __future__ import annotations

from pathlib import Path

import pytest

from hfd_edge.config import DatasetConfig, Recipe, parse, read_toml, write_toml
from hfd_edge.errors import RecipeError
from hfd_edge.files import resource_folder

DATASET = """
name = "two"
classes = ["land", "water"]
palette = [[90, 60, 30], [0, 0, 255]]
[sar]
bands = ["vv", "vh"]
units = "intensity"
looks = 4.4
nodata = 0.0
"""


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_empty_recipe_is_all_defaults(tmp_path: Path) -> None:
    recipe = read_toml(write(tmp_path / "r.toml", ""), Recipe)
    assert recipe == Recipe()
    assert recipe.distill.method == "hfdm"


def test_recipe_survives_writing_and_reading(tmp_path: Path) -> None:
    recipe = Recipe.model_validate(
        {"split": "event", "training": {"epochs": 3}, "network": {"encoder": "resnet10t"}}
    )
    write_toml(tmp_path / "r.toml", recipe)
    assert read_toml(tmp_path / "r.toml", Recipe) == recipe


RECIPES = [p for p in sorted(resource_folder("recipes").glob("*.toml")) if not p.name.startswith("ablation-")]


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.name)
def test_shipped_recipes_are_valid(path: Path) -> None:
    assert isinstance(read_toml(path, Recipe), Recipe)


def test_overrides_are_typed(tmp_path: Path) -> None:
    path = write(tmp_path / "r.toml", "[training]\nepochs = 3\n")
    overrides = (
        "training.epochs=7",
        "distill.method=none",
        "network.hfam=false",
        "training.learning_rate=1e-3",
    )
    recipe = read_toml(path, Recipe, overrides=overrides)
    assert (recipe.training.epochs, recipe.distill.method, recipe.network.hfam) == (7, "none", False)
    assert recipe.training.learning_rate == 1e-3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochs = 3", "epochs: Extra inputs are not permitted"),
        ("[training]\nepoch = 3", "training.epoch: Extra inputs"),
        ("[training]\nepochs = 0", "training.epochs: Input should be greater than 0"),
        ("[training]\ncrop_px = 100", "crop_px is 100, but must be a multiple of 32"),
        ("[preprocessing]\nwindow_px = 4", "window_px is 4, but must be odd"),
        ("[deploy]\ntile_px = 500", "tile_px is 500, but must be a multiple of 32"),
        ("[distill]\nmethod = 'magic'", "distill.method: Input should be 'none', 'logits'"),
        ("a = = 1", "not valid TOML"),
    ],
)
def test_faults_name_file_key_and_value(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        read_toml(write(tmp_path / "bad.toml", text), Recipe)
    assert "bad.toml" in str(caught.value)


def test_missing_recipe(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="There is no file"):
        read_toml(tmp_path / "none.toml", Recipe)
    with pytest.raises(RecipeError, match="cannot be read: Is a directory"):
        read_toml(tmp_path, Recipe)


@pytest.mark.parametrize(
    ("override", "message"),
    [("training.epochs", "is not KEY=VALUE"), ("split.a=1", "split is a value, not a section")],
)
def test_bad_overrides(tmp_path: Path, override: str, message: str) -> None:
    path = write(tmp_path / "r.toml", "split = 'spatial'")
    with pytest.raises(RecipeError, match=message):
        read_toml(path, Recipe, overrides=(override,))


def test_dataset_config(tmp_path: Path) -> None:
    config = read_toml(write(tmp_path / "dataset.toml", DATASET), DatasetConfig)
    assert config.sar.bands == ("vv", "vh")
    assert config.ignore_index == 255
    write_toml(tmp_path / "again.toml", config)
    assert read_toml(tmp_path / "again.toml", DatasetConfig) == config


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"intensity"', '"decibel"', "sar.units: Input should be"),
        ("[0, 0, 255]]", "[0, 0, 255], [1, 1, 1]]", "palette has 3 colours for 2 classes"),
        ("[0, 0, 255]", "[0, 0, 256]", "less than or equal to 255"),
        ('name = "two"', 'name = "two"\nignore_index = 1', "ignore_index 1 is the id of a class"),
        ("looks = 4.4", "looks = 0", "sar.looks: Input should be greater than 0"),
    ],
)
def test_dataset_faults(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in DATASET
    with pytest.raises(RecipeError, match=message):
        read_toml(write(tmp_path / "dataset.toml", DATASET.replace(old, new)), DatasetConfig)


def test_parse_names_its_source() -> None:
    with pytest.raises(RecipeError, match=r"run\.json: split"):
        parse({"split": 3}, Recipe, source="run.json")


@pytest.mark.parametrize("nodata", ["nan", "inf", "-inf"])
def test_nodata_that_is_no_number_needs_no_declaration(tmp_path: Path, nodata: str) -> None:
    """NaN differs from itself, and JSON has none: a manifest would never equal its own data folder."""
    text = DATASET.replace("nodata = 0.0", f"nodata = {nodata}")
    assert read_toml(write(tmp_path / "dataset.toml", text), DatasetConfig).sar.nodata is None


def test_a_tolerance_is_searched_in_full_or_refused() -> None:
    crop = {"training": {"crop_px": 128}}
    recipe = parse({**crop, "distill": {"tolerance_px": 16}}, Recipe, source="here")
    assert recipe.distill.tolerance_px == 16
    message = r"distill.tolerance_px is 17, but crops of 128 pixels .* up to 16 .*training.crop_px"
    with pytest.raises(RecipeError, match=message):
        parse({**crop, "distill": {"tolerance_px": 17}}, Recipe, source="here")
