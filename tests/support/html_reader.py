"""A page as a test reads it: its tables, its tags, and whatever it would fetch."""

from html.parser import HTMLParser

_EMPTY = {"meta", "link", "img", "br", "wbr", "input"}


class Page(HTMLParser):
    """Tables by id or caption, each a list of rows of (text, attributes); all tags; what is not closed."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.tables, self.unclosed, self.ids = [], {}, [], []
        self._table = self._row = self._cell = self._caption = None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        if "id" in attributes:
            self.ids.append(attributes["id"])
        if tag not in _EMPTY and tag not in ("line", "circle", "rect", "polyline", "polygon"):
            self.unclosed.append(tag)
        if tag == "table":
            self._table, self._key = [], attributes.get("id")
        elif tag == "tr" and self._table is not None:
            self._row = []
        elif tag in ("td", "th") and self._row is not None:
            self._cell = ["", attributes]
        elif tag == "caption":
            self._caption = ""

    def handle_endtag(self, tag):
        if tag not in _EMPTY and self.unclosed and tag == self.unclosed[-1]:
            self.unclosed.pop()
        if tag == "table":
            self.tables[self._key or self._title] = self._table
            self._table = None
        elif tag == "tr" and self._row is not None:
            self._table.append(self._row)
            self._row = None
        elif tag in ("td", "th") and self._cell is not None:
            self._row.append(tuple(self._cell))
            self._cell = None
        elif tag == "caption":
            self._title, self._caption = self._caption, None

    def handle_data(self, data):
        if self._cell is not None:
            self._cell[0] += data
        if self._caption is not None:
            self._caption += data

    def fetched(self):
        """Every address that the page would load by itself."""
        places = [a.get("src") for _, a in self.tags] + [a.get("href") for t, a in self.tags if t == "link"]
        return [place for place in places if place and not place.startswith("data:")]
