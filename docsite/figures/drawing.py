"""Writes SVG: boxes, texts, lines, arrows on a white sheet, which reads on light and dark pages."""

from __future__ import annotations

from xml.sax.saxutils import escape, quoteattr

INK, MUTED, LINE = "#1f2933", "#5b6875", "#9aa5b1"
# One colour for each thing that figures speak of: fill and border.
TEAL, ORANGE, PURPLE = ("#d5f0ec", "#0f766e"), ("#fdebd0", "#b45309"), ("#e6e1f7", "#5b3fa8")
GREY, RED, BLUE = ("#eef1f4", "#7b8794"), ("#fbdcdc", "#b42318"), ("#dbeafe", "#1d4ed8")
_FONT = "ui-sans-serif, system-ui, 'DejaVu Sans', sans-serif"
_MONO = "ui-monospace, 'DejaVu Sans Mono', monospace"


class Drawing:
    """A sheet of ``width`` x ``height`` pixels; ``title`` is read aloud by screen readers."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self._head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
            f'height="{height}" role="img" aria-label={quoteattr(title)} font-family="{_FONT}">'
        )
        self._parts = [
            f"<title>{escape(title)}</title>",
            '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
            f'orient="auto-start-reverse"><path d="M0 0 L8 4 L0 8 z" fill="{INK}"/></marker></defs>',
            f'<rect width="{width}" height="{height}" rx="8" fill="#ffffff"/>',
        ]

    def to_svg(self) -> str:
        """Return the file."""
        return "\n".join([self._head, *self._parts, "</svg>\n"])

    def box(
        self, x: float, y: float, width: float, height: float, colour: tuple[str, str], *, radius: float = 6
    ) -> None:
        """Draw a rectangle."""
        fill, border = colour
        self._parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{radius:g}" '
            f'fill="{fill}" stroke="{border}" stroke-width="1.4"/>'
        )

    def text(
        self,
        x: float,
        y: float,
        words: str,
        *,
        size: float = 14,
        colour: str = INK,
        anchor: str = "middle",
        bold: bool = False,
        mono: bool = False,
    ) -> None:
        """Write ``words`` with their baseline at ``y``."""
        weight = ' font-weight="600"' if bold else ""
        family = f' font-family="{_MONO}"' if mono else ""
        self._parts.append(
            f'<text x="{x:g}" y="{y:g}" font-size="{size:g}" fill="{colour}" '
            f'text-anchor="{anchor}"{weight}{family}>{escape(words)}</text>'
        )

    def line(
        self, x1: float, y1: float, x2: float, y2: float, *, colour: str = LINE, dashed: bool = False
    ) -> None:
        """Draw a thin line."""
        dash = ' stroke-dasharray="4 4"' if dashed else ""
        self._parts.append(
            f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" stroke="{colour}" '
            f'stroke-width="1"{dash}/>'
        )

    def arrow(self, x1: float, y1: float, x2: float, y2: float) -> None:
        """Draw an arrow from the first point to the second."""
        self._parts.append(
            f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" stroke="{INK}" '
            'stroke-width="1.4" marker-end="url(#arrow)"/>'
        )
