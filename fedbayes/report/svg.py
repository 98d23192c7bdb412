"""A chart's drawing as an element of a page: colours of the style sheet, names of its own, tooltips of its marks."""

import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence

from fedbayes.report.style import COLOURS, INK, LINE, SOFT
from fedbayes.text import visible

Mark = tuple[int | None, Sequence[str]]
"""The group that an artist belongs to, and its tooltips."""
_IN_PAGE = {INK: "currentColor", SOFT: "currentColor", LINE: "var(--line)"}
_IN_PAGE |= {colour: f"var(--c{index})" for index, colour in enumerate(COLOURS)}
_HEX = re.compile("|".join(_IN_PAGE))
_NUMBER = re.compile(r"-?\d+\.\d+")


def embedded(drawing: str, name: str, title: str, description: str, marks: Mapping[str, Mark], kind: str) -> str:
    """Return matplotlib's SVG as an element of a page.

    Args:
        drawing: the SVG that matplotlib saved.
        name: unique within the page; leads all names inside.
        title: what is shown.
        description: the same for those who cannot see it.
        marks: by the names of artists.
        kind: classes of the element in the style sheet.
    """
    root = ET.fromstring(drawing)
    for parent in root.iter():
        for child in list(parent):
            if child.tag.rpartition("}")[2] in ("metadata", "style"):
                parent.remove(child)
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', ET.tostring(root, encoding="unicode")))
    for element in root.iter():
        _adapt(element, name, marks, used)
    attributes = {"class": kind, "viewBox": root.get("viewBox", "")}
    attributes |= {"role": "img", "aria-labelledby": f"{name}-title {name}-text"}
    root.attrib.clear()
    root.attrib.update(attributes)
    for place, (tag, end, text) in enumerate((("title", "title", title), ("desc", "text", description))):
        root.insert(place, ET.Element(tag, id=f"{name}-{end}"))
        root[place].text = visible(text)
    return re.sub(r"\s*\n\s*", "", ET.tostring(root, encoding="unicode"))


def _adapt(element: ET.Element, name: str, marks: Mapping[str, Mark], used: set[str]) -> None:
    """Make an element of matplotlib's SVG one of a page: its colours, its names, its tooltip."""
    element.tag = element.tag.rpartition("}")[2]
    group, tips = marks.get(element.get("id", ""), (None, ()))
    for key, value in list(element.attrib.items()):
        del element.attrib[key]
        key = key.rpartition("}")[2]
        if key == "id":
            if value not in used:
                continue
            value = f"{name}-{value}"
        elif key == "style":
            value = re.sub(r"(?:^|; )font[^;]*", "", _HEX.sub(lambda match: _IN_PAGE[match[0]], value)).strip("; ")
        elif key in ("d", "x", "y", "transform"):
            value = _NUMBER.sub(lambda match: f"{float(match[0]):.1f}".removesuffix(".0"), value)
            value = " ".join(value.split())
        value = re.sub(r"(url\(#|^#(?=\w))", rf"\g<1>{name}-", value) if key != "style" else value
        if value and not value.startswith("rotate(-0 "):
            element.set(key, value)
    if group is not None:
        element.set("data-group", str(group))
    targets = [element] if len(tips) == 1 else [child for child in element.iter() if child.tag.endswith("use")]
    for target, tip in zip(targets, tips, strict=False):
        title = ET.Element("title")
        title.text = visible(tip)
        target.insert(0, title)
