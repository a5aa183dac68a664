"""The few shapes that the pictures of the docs are made of, as SVG text."""

from html import escape

INK, SOFT, LINE, PAPER, PANEL = "#1f2933", "#52606d", "#9aa5b1", "#ffffff", "#eef2f6"
TEACHER, TEACHER_EDGE = "#fdebc8", "#b7791f"
STUDENT, STUDENT_EDGE = "#cdeee7", "#0f766e"
MASK = "#364152"
FONT = "ui-sans-serif, system-ui, -apple-system, 'Segoe UI', sans-serif"
MONO = "ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace"


class Picture:
    """A sheet with its own light ground, so that it reads the same on light and dark pages."""

    def __init__(self, width: int, height: int, title: str) -> None:
        """Start a sheet; the title is for readers who do not see it."""
        self._parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
            f'height="{height}" role="img" font-family="{FONT}" font-size="13" fill="{INK}">',
            f"<title>{escape(title)}</title>",
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
            f'orient="auto"><path d="M0 0L8 4L0 8z" fill="{SOFT}"/></marker></defs>',
            f'<rect x="0.5" y="0.5" width="{width - 1}" height="{height - 1}" rx="8" fill="{PAPER}" stroke="{LINE}"/>',
        ]

    def box(self, x: float, y: float, width: float, height: float, fill: str, edge: str = LINE, dash: str = "") -> None:
        """Draw a rectangle with round corners."""
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        self._parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="3" fill="{fill}" '
            f'stroke="{edge}"{dashed}/>'
        )

    def text(self, x: float, y: float, text: str, *, mono: bool = False, **attributes: str | int) -> None:
        """Write one line; `y` is its base line. Attributes are those of SVG, with `_` for `-`."""
        given = {"font-family": MONO, **attributes} if mono else attributes
        written = "".join(f' {name.replace("_", "-")}="{value}"' for name, value in given.items())
        self._parts.append(f'<text x="{x:g}" y="{y:g}" xml:space="preserve"{written}>{escape(text)}</text>')

    def arrow(self, x0: float, y0: float, x1: float, y1: float) -> None:
        """Draw a straight arrow."""
        self._parts.append(
            f'<path d="M{x0:g} {y0:g}L{x1:g} {y1:g}" stroke="{SOFT}" stroke-width="1.5" fill="none" '
            'marker-end="url(#tip)"/>'
        )

    def finish(self) -> str:
        """Return the whole file."""
        return "\n".join([*self._parts, "</svg>", ""])
