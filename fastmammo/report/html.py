"""Takes titles, tables, figures and images, gives one HTML page that needs nothing else.

No script, no outside address: styles stand in the page, pictures are data in it, so that it can be
mailed, archived and printed. Text is escaped unless it is `Markup`, which the functions here make.
"""

from __future__ import annotations

import base64
import html
import io
from typing import TYPE_CHECKING, Any

from fastmammo.conversion.writers import write_atomic

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping, Sequence

    from PIL import Image


class Markup(str):
    """Text that is HTML already, and is put into a page as it is."""

    __slots__ = ()


def escape(value: object) -> Markup:
    """Return text that shows itself, whatever it holds; `Markup` stays as it is."""
    return value if isinstance(value, Markup) else Markup(html.escape(str(value), quote=True))


def join(parts: Iterable[object], between: str = "") -> Markup:
    """Return parts one after the other, escaped where they are not `Markup`."""
    return Markup(between.join(escape(part) for part in parts))


def element(name: str, *content: object, **attributes: object) -> Markup:
    """Return an element with its content; `class_` is the attribute class."""
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{name}{given}>{join(content)}</{name}>")


def number(value: Any, digits: int = 3) -> Markup:
    """Return a number as people read it; a dash where there is none."""
    if value is None or value != value:
        return Markup('<span class="none" title="undefined">–</span>')
    if isinstance(value, bool):
        return Markup("yes" if value else "no")
    if isinstance(value, int):
        return Markup(f"{value:,}")
    if isinstance(value, float):
        return Markup(f"{value:.{digits}f}")
    return escape(value)


def table(
    heads: Sequence[object],
    rows: Iterable[Sequence[object]],
    *,
    left: int = 1,
    caption: object = "",
) -> Markup:
    """Return a table: the first `left` columns are text, the others numbers, set to the right."""

    def cells(name: str, values: Sequence[object]) -> Markup:
        return join(
            element(name, value if isinstance(value, str) else number(value),
                    class_="text" if index < left else None)
            for index, value in enumerate(values)
        )  # fmt: skip

    head = element("thead", element("tr", cells("th", heads)))
    body = element("tbody", *(element("tr", cells("td", row)) for row in rows))
    title = element("caption", caption) if caption else ""
    return element("div", element("table", title, head, body), class_="wide")


def section(title: str, *content: object, lead: object = "") -> Markup:
    """Return a section with a heading, and a line under it that says what is to be seen."""
    intro = element("p", lead, class_="lead") if lead else ""
    return element("section", element("h2", title), intro, *content)


def columns(*parts: object) -> Markup:
    """Return parts side by side, one below the other where the page is narrow."""
    return element("div", *(element("div", part) for part in parts if part), class_="columns")


def thirds(*parts: object) -> Markup:
    """Return small parts in one row, one below the other where the page is narrow."""
    return element("div", *parts, class_="thirds")


def card(title: object, value: object, under: object = "", *, main: bool = False) -> Markup:
    """Return one figure that counts: large, with what it is and its interval."""
    return element(
        "div",
        element("div", title, class_="what"),
        element("div", value, class_="value"),
        element("div", under, class_="under"),
        class_="card main" if main else "card",
    )


def cards(*parts: Markup) -> Markup:
    """Return cards in a row."""
    return element("div", *parts, class_="cards")


def notes(lines: Iterable[object]) -> Markup:
    """Return a list of remarks; nothing where there are none."""
    items = [element("li", line) for line in lines]
    return element("ul", *items, class_="notes") if items else Markup("")


def bars(
    counts: Mapping[str, int],
    *,
    parts: Mapping[str, int] | None = None,
    unit: str = "images",
    total: int | None = None,
) -> Markup:
    """Return counts as bars, with the share of each; `parts` are drawn dark inside of them.

    Args:
        counts: name → count, in the order in which they are shown.
        parts: name → how many of them are positive.
        unit: what is counted.
        total: what shares are of; by default all counts together.
    """
    total, most = total or sum(counts.values()), max(counts.values(), default=0)
    rows = []
    for name, count in counts.items():
        inner = ""
        cells: list[object] = [
            element("td", name or "(unknown)", class_="text", title=name or None)
        ]
        if parts is not None:
            dark = parts.get(name, 0)
            inner = element("i", style=f"width:{100 * dark / max(count, 1):.2f}%")
        fill = element("b", inner, style=f"width:{100 * count / max(most, 1):.2f}%")
        cells.append(element("td", element("div", fill, class_="bar"), class_="graph"))
        cells += [element("td", number(count)), element("td", f"{count / max(total, 1):.1%}")]
        if parts is not None:
            cells += [
                element("td", number(dark)),
                element("td", f"{dark / count:.2%}" if count else number(None)),
            ]
        rows.append(element("tr", *cells))
    heads = ["", "", unit, "share"] + (["positive", "of these"] if parts is not None else [])
    head = element("thead", element("tr", *(element("th", each) for each in heads)))
    body = element("tbody", *rows)
    return element("div", element("table", head, body, class_="bars"), class_="wide")


def svg(data: str, alt: str) -> Markup:
    """Return a drawing as an image in the page; nothing in it can run."""
    return _image("svg+xml", data.encode(), alt, class_="chart")


def png(image: Image.Image, alt: str) -> Markup:
    """Return an image in the page, in its own size."""
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return _image("png", file.getvalue(), alt, width=image.width, height=image.height)


def _image(kind: str, data: bytes, alt: str, **attributes: object) -> Markup:
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    shown = "".join(f' {key.rstrip("_")}="{escape(value)}"' for key, value in attributes.items())
    return Markup(f'<img src="{source}" alt="{escape(alt)}"{shown}>')


def page(title: str, subtitle: object, *content: object) -> str:
    """Return the whole page."""
    head = join(
        (
            Markup('<meta charset="utf-8">'),
            Markup('<meta name="viewport" content="width=device-width, initial-scale=1">'),
            # the browser too refuses whatever would be fetched or run
            Markup(
                '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
                "img-src data:; style-src 'unsafe-inline'\">"
            ),
            element("title", title),
            Markup(f"<style>{_STYLE}</style>"),
        )
    )
    header = element("header", element("h1", title), element("p", subtitle))
    footer = element(
        "footer", "Made by fastmammo. Not a medical device: figures of research, on the data named."
    )
    body = element("body", element("main", header, *content, footer))
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>{body}</html>\n'


def write_page(path: str | os.PathLike[str], text: str) -> None:
    """Write a page, whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    name = str(path)
    write_atomic(name, [text.encode()], f"{name}.partial")


_STYLE = """
:root { --ink:#1c2127; --soft:#5c6670; --line:#dfe3e8; --paper:#fff; --wash:#f5f7f9;
  --main:#0b5cad; --warm:#c2410c; }
* { box-sizing:border-box; }
html { -webkit-text-size-adjust:100%; }
body { margin:0; background:var(--wash); color:var(--ink);
  font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif; }
main { max-width:1120px; margin:0 auto; padding:28px 32px 40px; background:var(--paper); }
h1 { font-size:26px; line-height:1.25; margin:0 0 4px; overflow-wrap:anywhere; }
h2 { font-size:19px; margin:0 0 6px; }
h3 { font-size:15px; margin:18px 0 6px; }
header p, .lead { color:var(--soft); margin:0 0 14px; max-width:80ch; overflow-wrap:anywhere; }
section { margin-top:26px; padding-top:18px; border-top:1px solid var(--line); }
footer { margin-top:34px; padding-top:12px; border-top:1px solid var(--line);
  color:var(--soft); font-size:13px; }
.cards { display:flex; flex-wrap:wrap; gap:12px; margin:16px 0 4px; }
.card { flex:1 1 150px; padding:12px 14px; border:1px solid var(--line); border-radius:8px; }
.card.main { flex:1.6 1 240px; border:2px solid var(--main); background:#f1f7fd; }
.card .what { color:var(--soft); font-size:13px; }
.card .value { font-size:24px; font-weight:600; font-variant-numeric:tabular-nums; }
.card.main .value { font-size:34px; line-height:1.25; color:var(--main); }
.card .under { color:var(--soft); font-size:13px; font-variant-numeric:tabular-nums; }
.columns { display:grid; grid-template-columns:repeat(auto-fit,minmax(min(420px,100%),1fr));
  gap:8px 28px; align-items:start; }
.columns > div { min-width:0; }
.thirds { display:grid; grid-template-columns:repeat(auto-fit,minmax(min(300px,100%),1fr));
  gap:4px 12px; }
.wide { overflow-x:auto; }
table { border-collapse:collapse; margin:6px 0 12px; font-size:14px;
  font-variant-numeric:tabular-nums; }
caption { text-align:left; color:var(--soft); font-size:13px; padding-bottom:4px; }
th, td { padding:4px 10px; border-bottom:1px solid var(--line); text-align:right;
  white-space:nowrap; }
th { font-weight:600; color:var(--soft); font-size:13px; vertical-align:bottom; }
th.text, td.text { text-align:left; white-space:normal; overflow-wrap:break-word; }
td.text { min-width:5ch; max-width:60ch; }
.summary td.text { max-width:none; } .summary td:first-child { color:var(--soft); }
td.good { background:#e9f6ec; } td.bad { background:#fdeeea; }
.none { color:#9aa3ad; }
.bars { width:100%; } .bars td.graph { width:60%; padding-right:4px; }
.bars td.text { white-space:nowrap; max-width:26ch; overflow:hidden; text-overflow:ellipsis; }
.bar { height:13px; background:var(--wash); border-radius:2px; min-width:60px; }
.bar b { display:block; height:100%; background:#9cc3e8; border-radius:2px; min-width:1px; }
.bar i { display:block; height:100%; background:var(--warm); border-radius:2px; }
img.chart { width:100%; height:auto; display:block; }
.cases { display:grid; grid-template-columns:repeat(auto-fill,minmax(280px,1fr)); gap:16px;
  margin:8px 0 18px; }
.cases.single { grid-template-columns:repeat(auto-fill,minmax(150px,1fr)); }
.case { margin:0; padding:8px; border:1px solid var(--line); border-radius:8px;
  break-inside:avoid; min-width:0; }
.case .pictures { display:flex; gap:4px; background:#000; border-radius:4px; overflow:hidden;
  justify-content:center; }
.case img { flex:1 1 0; min-width:0; max-width:100%; height:auto; object-fit:contain; }
.case figcaption { font-size:13px; line-height:1.4; padding-top:6px; overflow-wrap:anywhere; }
.case figcaption span { color:var(--soft); }
.key { display:inline-block; width:14px; height:10px; margin:0 5px 0 12px; vertical-align:-1px; }
.notes { padding-left:20px; margin:6px 0; } .notes li { overflow-wrap:anywhere; }
.settings { column-width:330px; column-gap:28px; }
.settings > div { break-inside:avoid; }
.settings table { width:100%; } .settings td { font-size:13px; white-space:normal;
  overflow-wrap:anywhere; }
@media (max-width:640px) { main { padding:18px 14px; } h1 { font-size:21px; }
  th, td { padding:4px 6px; } }
@media print { body { background:#fff; font-size:12px; } main { max-width:none; padding:0; }
  section { break-inside:auto; } h2, h3, .lead { break-after:avoid; }
  .columns, .thirds { break-inside:avoid; }
  .card, table, img { break-inside:avoid; }
  .columns { grid-template-columns:1fr 1fr; }
  .thirds, .cases { grid-template-columns:repeat(3,1fr); }
  .cases.single { grid-template-columns:repeat(6,1fr); } .settings { column-width:200px; }
  table { font-size:10.5px; } th, td { padding:2px 5px; } th { font-size:10px; }
  .settings td, .case figcaption { font-size:10px; } .cases { gap:8px; } .case { padding:5px; }
  * { -webkit-print-color-adjust:exact; print-color-adjust:exact; } .wide { overflow:visible; }
  @page { margin:14mm; } }
"""
