"""Reading a report page as a browser does, as far as tests need it."""

from html.parser import HTMLParser

_VOID = {"meta", "img", "br", "hr", "link", "input", "source", "base"}
_UNCLOSED = {"line", "circle", "path", "polyline"}  # SVG shapes, written as <line ... />


class Page(HTMLParser):
    """The page's elements with their attributes, and its visible text; fails where tags are not balanced."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.elements, self.text, self.style, self._open = [], [], "", []
        self.feed(html)
        self.close()
        assert self._open == [], f"never closed: {self._open}"

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        assert tag in _VOID | _UNCLOSED, f"<{tag}/> closes nothing in HTML"
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open, f"</{tag}> without a start"
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open[-1:] == ["style"]:
            self.style += data
        else:
            self.text.append(data)

    @property
    def shape(self):
        """Tags and attribute names, in order: what hostile text must not change."""
        return [(tag, tuple(attributes)) for tag, attributes in self.elements]

    @property
    def visible(self):
        return " ".join("".join(self.text).split())

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]
