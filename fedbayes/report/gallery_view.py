"""The gallery of a run's page, from its `gallery.json`; `fedbayes.report.gallery` makes that file."""

import html
from collections.abc import Mapping
from typing import Any

from fedbayes.report import page
from fedbayes.report.result_tables import number
from fedbayes.report.svg import Chart, padded, swatch

_HEADINGS = {
    "most_certain": "Most certain",
    "least_certain": "Least certain",
    "mistakes": "Most certain mistakes",
}
NOT_MADE = (
    "There is no gallery: this run kept none. `python -m fedbayes.report.gallery RUN_DIR` makes it, where its data are."
)


def show(gallery: Mapping[str, Any], partition: Mapping[str, Any]) -> str:
    """The gallery's images and the codes of one client; a line that says why where there are none.

    Args:
        gallery: the object of `gallery.json`; empty where there is no such file.
        partition: the object of `partition.json`, which says how many images the client has.
    """
    parts = []
    missing = str(gallery.get("missing") or "") if gallery else NOT_MADE
    if missing:
        parts.append(f"<p class=soft>{html.escape(missing)}</p>")
    groups = gallery.get("images") or {}
    for name, heading in _HEADINGS.items():
        if groups.get(name):
            items = "".join(_item(image) for image in groups[name])
            parts.append(f"<h3>{heading}</h3><ul class=gallery>{items}</ul>")
    if any(image.get("attention") for images in groups.values() for image in images):
        note = str(gallery.get("attention_note") or "")
        parts.append(f"<p class=soft>{html.escape(note)}</p>")
    if gallery.get("codes"):
        parts.append(_codes(gallery["codes"], partition))
    return "".join(parts)


def _item(image: Mapping[str, Any]) -> str:
    label, predicted = str(image.get("label")), str(image.get("predicted"))
    domain, client = str(image.get("domain")), image.get("partition")
    right = label == predicted
    verdict = f"{predicted}, right" if right else f"{predicted}, but it is {label}"
    alt = f"Test image of client {client}, domain {domain}: {label}"
    pictures = page.picture(str(image["png"]), alt)
    if image.get("attention"):
        pictures += page.picture(str(image["attention"]), f"Where the prompts attend on it, bright is much: {label}")
        pictures = f"<div class=pair>{pictures}</div>"
    css = "" if right else " class=wrong"
    facts = [
        f"{domain}, client {client}",
        f"confidence {number(image.get('confidence'))}",
        f"prompt uncertainty {number(image.get('uncertainty'), 4)}",
    ]
    lines = "<br>".join(html.escape(fact) for fact in facts)
    return f"<li>{pictures}<p{css}>{html.escape(verdict)}</p><p>{lines}</p></li>"


def _codes(codes: Mapping[str, Any], partition: Mapping[str, Any]) -> str:
    """A dot per image in the plane of the two largest principal components."""
    points, names = codes.get("points") or [], [str(name) for name in codes.get("domains") or []]
    if not points:
        return ""
    share = codes.get("explained") or [0.0, 0.0]
    draws = codes.get("draws") or []
    everything = [*points, *draws]
    xs, ys = padded([point[0] for point in everything]), padded([point[1] for point in everything])
    count = _images(partition, codes.get("partition"))
    part = f", {len(points)} of {count:,} images" if count > len(points) else ""
    title = f"Prompt codes of client {codes.get('partition')}{part}"
    labels = [
        f"{name} component, {part:.0%} of the variance" for name, part in zip(("first", "second"), share, strict=True)
    ]
    chart = Chart(title, labels[0], labels[1], xs, ys, size=(480, 380))
    for x, y, domain in draws:
        chart.point(x, y, int(domain), f"a draw, {names[int(domain)]}", radius=1.4)
    for x, y, domain in points:
        chart.point(x, y, int(domain), names[int(domain)])
    used = sorted({int(domain) for *_, domain in points})
    legend = page.legend([(swatch(domain), names[domain]) for domain in used])
    alt = f"{len(points)} images of {len(used)} domains by their prompt codes, in two principal components."
    note = html.escape(str(codes.get("what") or ""))
    heading = "<h3>What instance-wise looks like</h3>"
    return f"{heading}{legend}{page.charts(chart.figure(alt, note))}"


def _images(partition: Mapping[str, Any], client: object) -> int:
    """How many images a client has, of all splits; 0 where the partition does not say."""
    mine = [one for one in partition.get("clients") or [] if one.get("partition") == client]
    return sum(int(one.get(split) or 0) for one in mine for split in ("train", "validation", "test"))
