"""
People who use the page, in a real Chromium with its fake camera and microphone, and a server from the installed wheel.

C{python -m tests.browser FOLDER} takes pictures of every view.
"""

from __future__ import annotations

import atexit
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from tests.processes import TIMEOUT, Process, freePort, startServer

try:
    from playwright.sync_api import (
        Browser,
        BrowserContext,
        ConsoleMessage,
        Dialog,
        Locator,
        Page,
        Playwright,
        sync_playwright,
    )
except ImportError:  # there is none for this system
    sync_playwright = None  # type: ignore[assignment]

ROOT = Path(__file__).parent.parent

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

if sync_playwright is None:
    lacking = 'there is no Playwright: pip install -e ".[test]"'
elif CHROMIUM is None:
    lacking = "there is no Chromium: apt-get install chromium"
else:
    lacking = ""
"""Why there can be no browser here; empty if there can."""

ARGUMENTS = (
    "--no-sandbox",  # root has none, and nobody but these tests is let in
    "--use-fake-device-for-media-stream=fps=30",
    "--use-fake-ui-for-media-stream",
    "--autoplay-policy=no-user-gesture-required",
    "--host-resolver-rules=MAP *.test 127.0.0.1",
)

TONE = range(150, 450)
"""Hz of the fake microphone's beep, the first of its overtones among them."""

AUDIBLE = -60.0
"""dB above which something is heard."""

DESKTOP = {"width": 1100, "height": 720}
PHONE = {"width": 390, "height": 780}

VIEWS = ("sign-in", "people", "conversation", "settings", "incoming", "call", "ended")
"""All views of the page, in the order in which L{tour} comes to them."""


@cache
def installedWheel() -> Path:
    """Return a folder with what the wheel of this checkout installs."""
    folder = tempfile.TemporaryDirectory(prefix="wecompany-test-")
    atexit.register(folder.cleanup)
    pip = sys.executable, "-m", "pip"
    subprocess.run([*pip, "wheel", "-q", "--no-deps", "-w", folder.name, ROOT], check=True)
    (wheel,) = Path(folder.name).glob("*.whl")
    package = Path(folder.name) / "installed"
    subprocess.run([*pip, "install", "-q", "--no-deps", "--target", package, wheel], check=True)
    return package


@cache
def _playwright() -> Playwright:
    playwright = sync_playwright().start()
    atexit.register(playwright.stop)
    return playwright


@cache
def chromium() -> Browser:
    """Return the browser."""
    browser = _playwright().chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
    atexit.register(browser.close)
    return browser


class Server:
    """
    A server with a page.

    @ivar port: for TCP.
    @ivar webPort: for browsers.
    """

    def __init__(self, *options: str) -> None:
        self.port, self.webPort = freePort(), freePort()
        self.process = startServer(self.port, "--web", str(self.webPort), *options, package=installedWheel())
        atexit.register(self.process.end)

    def command(self, command: str, user: str, *arguments: str | Path) -> Process:
        """Return the C{wecompany} command, as C{user} runs it in a terminal."""
        server = "--as", user, "--server", f"localhost:{self.port}"
        return Process("wecompany", command, *server, *arguments, package=installedWheel())


class Person:
    """
    Somebody at the page, in a browser of their own: nothing is shared with others.

    @ivar problems: what the page has complained of, and what it should not have done.
    """

    def __init__(self, server: Server, name: str, *, port: int = 0, host: str = "localhost", **context: Any) -> None:
        """
        @param port: through which the page comes; the server's own unless another is given.
        @param context: what else is particular about this browser: see C{Browser.new_context}.
        """
        self.name = name
        self.address = f"http://{host}:{port or server.webPort}/"
        self.context: BrowserContext = chromium().new_context(**context)
        self.context.set_default_timeout(TIMEOUT * 1000)
        self.page: Page = self.context.new_page()
        self.problems: list[str] = []
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("dialog", self._dialogOpened)
        self.page.on("console", self._consoleWritten)

    def _dialogOpened(self, dialog: Dialog) -> None:
        self.problems.append(dialog.message)
        dialog.dismiss()

    def _consoleWritten(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.problems.append(message.text)

    # -- what a person does

    def visit(self) -> None:
        """Go to the page."""
        self.page.goto(self.address)

    def signIn(self, password: str = "", *, isNew: bool = False) -> Person:
        """Sign in, or make an account and sign in."""
        self.visit()
        self.page.fill("#sign-in-name", self.name)
        self.page.fill("#sign-in-password", password)
        self.page.click("#sign-up-button" if isNew else "#sign-in-button")
        return self.awaitOnline()

    def awaitOnline(self) -> Person:
        """Wait until the server knows us."""
        self.until("() => wecompany.stats().isOnline")
        return self

    def open(self, peer: str) -> Person:
        """Open the conversation with somebody."""
        self.contact(peer).click()
        self.page.locator("#peer-name", has_text=peer).wait_for()
        return self

    def write(self, text: str) -> None:
        """Write to whom the conversation is with."""
        self.page.fill("#text", text)
        self.page.keyboard.press("Enter")

    def sendFile(self, path: Path) -> None:
        """Send a file to whom the conversation is with."""
        self.page.set_input_files("#file-input", path)

    def call(self, peer: str, *, video: bool = False) -> None:
        """Call somebody."""
        self.open(peer)
        self.page.click("#video-call" if video else "#voice-call")

    def answer(self, *, video: bool = False) -> None:
        """Take the call that rings, when it does."""
        self.button("Answer with video" if video else "Answer with voice", "#incoming").click()

    def decline(self) -> None:
        """Decline the call that rings, when it does."""
        self.button("Decline", "#incoming").click()

    def hangUp(self) -> None:
        """Hang up."""
        self.button("Hang up", "#call").click()

    def leave(self) -> None:
        """Close the browser."""
        self.context.close()

    # -- what a person sees

    def contact(self, name: str) -> Locator:
        """Return the entry of somebody in the list of people."""
        title = self.page.locator("strong").get_by_text(name, exact=True)
        return self.page.locator("#people .person").filter(has=title)

    def button(self, name: str, within: str = "body") -> Locator:
        """Return the button of that name."""
        return self.page.locator(within).get_by_role("button", name=name, exact=True)

    def message(self, text: str) -> Locator:
        """Return the message in the conversation that has that text in it."""
        return self.page.locator("#log .message").filter(has_text=text)

    def sees(self, within: str, text: str) -> None:
        """Wait until that text is seen there."""
        self.page.locator(within).filter(has_text=text, visible=True).first.wait_for()

    def settle(self) -> None:
        """Wait until nothing moves any more."""
        self.until("() => document.getAnimations().every(({playState}) => playState !== 'running')")

    # -- what the page measures

    def figures(self) -> dict[str, Any]:
        """Return what the page measures: see C{debug.js}."""
        figures: dict[str, Any] = self.page.evaluate("wecompany.stats()")
        return figures

    def until(self, condition: str, argument: object = None) -> None:
        """Wait until that function of the page returns true."""
        self.page.wait_for_function(condition, arg=argument, polling=50)

    def awaitState(self, state: str) -> None:
        """Wait until the call is ringing, incoming, active or the like; C{""} is for no call at all."""
        self.until("(state) => (wecompany.stats().call?.state ?? '') === state", state)

    def hearsTone(self) -> None:
        """Wait until the beep of a fake microphone is heard."""
        self.until(
            "({least, most, audible}) => { const {peak} = wecompany.stats().call;"
            " return peak !== null && peak.frequency >= least && peak.frequency < most && peak.level > audible; }",
            {"least": TONE.start, "most": TONE.stop, "audible": AUDIBLE},
        )

    def seesPictures(self, more: int = 60) -> None:
        """Wait until so many more pictures were shown, at 320×240 or more and 15 a second or more, and soon enough."""
        begin = self.figures()["call"]["shown"]
        self.until(
            "({begin, more}) => { const {shown, size, rate, delay} = wecompany.stats().call;"
            " return shown >= begin + more && size.width >= 320 && size.height >= 240 && rate >= 15 && delay < 200; }",
            {"begin": begin, "more": more},
        )


def tour(server: Server, named: Callable[[str], str] = str, **context: Any) -> Iterator[tuple[str, Person]]:
    """
    Let somebody see every view of the page.

    @param named: makes the users' names.
    @param context: what is particular about the browser.
    @return: each of L{VIEWS} and who sees it now.
    """
    isChinese = context.get("locale", "").startswith("zh")
    words = _CHINESE if isChinese else _ENGLISH
    person, other = Person(server, named(words["me"]), **context), Person(server, named(words["you"]))
    page = person.page
    try:
        person.visit()
        page.locator("#sign-in").wait_for()
        yield "sign-in", person
        other.signIn()
        person.signIn()
        person.contact(other.name).wait_for()
        other.open(person.name)
        other.write(words["first"])
        page.locator("#people .badge", has_text="1").wait_for()
        yield "people", person
        person.open(other.name)
        person.write(words["second"])
        other.write(words["third"])
        page.set_input_files("#file-input", {"name": words["file"], "mimeType": "", "buffer": bytes(1_234_567)})
        with other.page.expect_download():
            other.button("Accept").click()
        person.message(words["third"]).wait_for()
        page.locator(".message.file[data-state=done]").wait_for()
        page.fill("#text", words["draft"])
        yield "conversation", person
        if not page.locator("#settings-button").is_visible():
            page.click("#back")
        page.click("#settings-button")
        page.locator("#settings[open]").wait_for()
        yield "settings", person
        page.keyboard.press("Escape")
        other.call(person.name, video=True)
        page.locator("#incoming[open] .choice").last.wait_for()
        person.settle()
        yield "incoming", person
        page.locator("#incoming .choice button").last.click()
        person.seesPictures(10)
        person.until("() => wecompany.stats().call.roundTrip !== null")
        yield "call", person
        other.hangUp()
        person.awaitState("")
        page.locator("#call").wait_for(state="hidden")
        yield "ended", person
    finally:
        other.leave()


_ENGLISH = {
    "me": "Alice",
    "you": "Bob Miller",
    "first": "Good morning! Have you seen the new plan?",
    "second": "Not yet: is it this one? https://intranet.example/plan",
    "third": "Yes. Shall we talk?",
    "file": "plan.pdf",
    "draft": "I'll call you in five",
}
_CHINESE = {
    "me": "王芳",
    "you": "李明",
    "first": "早上好！你看过新方案了吗？",
    "second": "还没有，是这个吗？ https://intranet.example/plan",
    "third": "对。我们聊一下？",
    "file": "新方案.pdf",
    "draft": "五分钟后打给你",
}


def takePictures(folder: Path) -> None:
    """Take pictures of every view: light and dark, desktop and phone, English and Chinese."""
    for locale in ("en-GB", "zh-CN"):
        for scheme in ("light", "dark"):
            for device, size in (("desktop", DESKTOP), ("phone", PHONE)):
                server = Server("--database=none")
                look: dict[str, Any] = {"color_scheme": scheme, "viewport": size, "locale": locale}
                for view, person in tour(server, reduced_motion="reduce", **look):
                    path = folder / f"{view}-{locale[:2]}-{scheme}-{device}.png"
                    person.page.screenshot(path=path)
                    print(path)
                server.process.end()


if __name__ == "__main__":
    if lacking or len(sys.argv) != 2:
        sys.exit(lacking or "usage: python -m tests.browser FOLDER")
    takePictures(Path(sys.argv[1]))
