"""What every HTML page is made with: one self-contained file, pictures inside, no script, no network."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from hfd_edge.errors import require
from hfd_edge.files import write_text
from hfd_edge.report.pictures import png_bytes

Array = NDArray[Any]

MINUS = "\N{MINUS SIGN}"
_TEMPLATES = Path(__file__).parent / "templates"


def require_templates() -> Any:
    """Load jinja2, so that work whose end is a page can fail before it begins. Raises MissingExtraError."""
    return require("jinja2", extra="report", purpose="Writing the HTML report")


def write_page(template: str, path: Path, context: Mapping[str, Any]) -> None:
    """Fill a template and write it, whole or not at all.

    Raises:
        MissingExtraError: jinja2 is not installed.
        StorageError: the file cannot be written.
    """
    jinja2 = require_templates()
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,  # class names and paths come from users
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    write_text(path, environment.get_template(template).render(**context))


def cell(
    caption: str, picture: Array | None, alt: str, *, note: str = "", pixels: bool = False
) -> dict[str, Any]:
    """One picture, uint8 RGB (3, rows, cols), as the `picture` macro of parts.html.j2 takes it.

    Args:
        caption: Text below.
        picture: None shows a frame that says why there is none.
        alt: What it shows, for those who cannot see it.
        note: Muted text after the caption.
        pixels: Keep pixels square when enlarged; for labels.
    Raises:
        ValueError: the picture is not uint8 (3, rows, cols).
    """
    shown: dict[str, Any] = {"caption": caption, "note": note, "alt": alt, "pixels": pixels, "png": None}
    if picture is not None:
        shown |= {"png": encoded(png_bytes(picture)), "rows": picture.shape[1], "cols": picture.shape[2]}
    return shown


def legend(classes: Sequence[str], palette: Sequence[Sequence[int]]) -> list[tuple[str, str]]:
    """Class names and their CSS colours. Raises ValueError: palette and classes differ in length."""
    if len(palette) != len(classes):
        raise ValueError(f"palette has {len(palette)} colours for {len(classes)} classes")
    return [(name, css(colour)) for name, colour in zip(classes, palette, strict=True)]


def signed(points: float, *, digits: int = 1) -> str:
    """A difference with its sign; what rounds to zero has none."""
    rounded = round(points, digits)
    return f"{'+' if rounded > 0 else MINUS if rounded < 0 else ''}{abs(rounded):.{digits}f}"


def css(colour: Sequence[int]) -> str:
    """An RGB colour, 0 to 255, as CSS."""
    red, green, blue = (int(part) for part in colour)
    return f"#{red:02x}{green:02x}{blue:02x}"


def encoded(png: bytes) -> str:
    """A PNG as a data URL."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
