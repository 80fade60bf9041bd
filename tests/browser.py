"""Look at the report and at every page of the documentation in headless Chromium, as wide as a desktop and a phone.

``python tests/browser.py PAGES...`` takes HTML files and folders of them and opens each. It complains of console
messages, of anything that is fetched from elsewhere, of pages that are wider than the window, and of links and buttons
that the Tab key does not reach. Screenshots go to ``browser-shots``. Needs the package ``playwright`` and Chromium
(``CHROMIUM``: where it lies).
"""

import functools
import os
import shutil
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from playwright.sync_api import sync_playwright

SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
SHOTS = Path("browser-shots")
QUIET = ["--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip
MOST_TABS = 400
# What a mouse can reach and is to be seen; the navigation drawer of a narrow page is closed, and its button is not.
REACHABLE = """() => [...document.querySelectorAll('a[href], button, summary, input, label[for]')].filter(e => {
  const box = e.getBoundingClientRect(), style = getComputedStyle(e);
  return box.width > 0 && box.height > 0 && style.visibility === 'visible' && !e.closest('[aria-hidden=true]')
    && box.right > 0 && box.left < innerWidth && e.matches('a[href], button, summary') && e.tabIndex >= 0;
}).length"""
FOCUSED = """() => { const e = document.activeElement; if (!e || e === document.body) return null;
  e.dataset.reached = '1'; return e.outerHTML.slice(0, 80); }"""
REACHED = "() => document.querySelectorAll('[data-reached]').length"


class Quiet(SimpleHTTPRequestHandler):
    """Serves files and says nothing."""

    def log_message(self, *_):
        pass


def main():
    found = [
        path for given in map(Path, sys.argv[1:]) for path in (given.rglob("*.html") if given.is_dir() else [given])
    ]
    if not found:
        sys.exit(__doc__)
    SHOTS.mkdir(exist_ok=True)
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    complaints = 0
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium, args=[*QUIET, *(["--no-sandbox"] if os.geteuid() == 0 else [])]
        )
        for path in sorted(found):
            root = next((Path(given) for given in sys.argv[1:] if Path(given) in path.parents), path.parent)
            server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(root)))
            threading.Thread(target=server.serve_forever, daemon=True).start()
            address = f"http://127.0.0.1:{server.server_port}/{path.relative_to(root).as_posix()}"
            for kind, (width, height) in SIZES.items():
                wrong = looked_at(browser, address, path, kind, width, height)
                complaints += len(wrong)
                print(f"{path} {kind}: {'; '.join(wrong) or 'fine'}", flush=True)
            server.shutdown()
        browser.close()
    print(f"{len(found)} pages, {complaints} complaints")
    sys.exit(1 if complaints else 0)


def looked_at(browser, address, path, kind, width, height):
    """What is wrong with a page at a size."""
    context = browser.new_context(viewport={"width": width, "height": height})
    page = context.new_page()
    said, elsewhere = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: elsewhere.append(request.url) if "127.0.0.1" not in request.url else None)
    page.goto(address, wait_until="load")
    page.wait_for_timeout(300)
    wrong = [f"console: {text[:200]}" for text in said]
    wrong += [f"fetched: {url[:100]}" for url in elsewhere if not url.startswith(("data:", "blob:"))]
    across = page.evaluate("document.documentElement.scrollWidth")
    if across > width:
        wrong.append(f"{across} pixels wide")
    page.screenshot(path=SHOTS / f"{path.stem}-{kind}.png", full_page=False)
    reachable = page.evaluate(REACHABLE)
    for _ in range(min(reachable + 20, MOST_TABS)):
        page.keyboard.press("Tab")
        if page.evaluate(FOCUSED) is None:
            break
    reached = page.evaluate(REACHED)
    if reached < min(reachable, MOST_TABS):
        wrong.append(f"Tab reaches {reached} of {reachable} links and buttons")
    context.close()
    return wrong


if __name__ == "__main__":
    main()
