"""The page in a real browser: people write, send files and call each other, and others who use the terminal."""

from __future__ import annotations

import hashlib
import random
import socket
import threading
from functools import cache, partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import av
from axe_playwright_python.sync_playwright import Axe
from twisted.trial.unittest import SynchronousTestCase

from tests import browser, temporaryFolder
from tests.browser import Person, Server
from tests.processes import TIMEOUT, Process, Proxy
from wecompany.wire import MessageType, encodeFrame

FILE_SIZE = 20_000_000

DECODED = 0.9
"""The part of the frames sent that has to be decoded at the other side."""

CUT_FOR = 5.0
"""Seconds for which the network is away in the middle of a call."""


@cache
def theServer(*options: str) -> Server:
    """Return a server with those options, the same for all tests."""
    return Server(*options)


class BrowserTestCase(SynchronousTestCase):
    """What needs a browser."""

    if browser.lacking:
        skip = browser.lacking

    server: Server

    def setUp(self) -> None:
        self.server = theServer()
        self.people: list[Person] = []

    def tearDown(self) -> None:
        """Close the browsers; no page has complained."""
        for person in self.people:
            person.leave()
        self.assertEqual([problem for person in self.people for problem in person.problems], [])

    def person(self, name: str, **details: Any) -> Person:
        """Return somebody with a browser."""
        person = Person(self.server, self.named(name), **details)
        self.people.append(person)
        return person

    def named(self, name: str) -> str:
        """Return a name that nobody has had in another test, as they share a server."""
        return f"{name} {self.id().rpartition('.')[2]}"

    def command(self, command: str, user: str, *arguments: str | Path) -> Process:
        """Run the C{wecompany} command."""
        process = self.server.command(command, self.named(user), *arguments)
        self.addCleanup(process.end)
        return process


class ConversationTests(BrowserTestCase):
    """Who is there, and what they write."""

    def test_chat(self) -> None:
        """Two people see each other, write to each other, and see that the server has it and what is unread."""
        alice, bob = self.person("alice").signIn(), self.person("bob").signIn()
        alice.open(bob.name)
        alice.sees("#peer-state", "online")
        alice.write("hello, 你好")
        alice.message("hello, 你好").locator(".stored").wait_for()
        bob.sees("#people .badge", "1")
        bob.until("() => document.title.startsWith('(1)')")
        bob.open(alice.name)
        bob.message("hello, 你好").wait_for()
        bob.contact(alice.name).locator(".badge").wait_for(state="hidden")
        bob.until("() => document.title === 'WeCompany'")
        bob.write("hello alice")
        alice.message("hello alice").wait_for()
        self.assertRegex(alice.message("hello alice").locator("time").inner_text(), r"\d\d:\d\d")
        bob.leave()
        alice.sees("#peer-state", "offline")

    def test_history(self) -> None:
        """What was said is there after a reload, and what came meanwhile comes then."""
        alice, bob = self.person("alice").signIn(), self.person("bob").signIn()
        alice.open(bob.name)
        alice.write("before")
        alice.message("before").locator(".stored").wait_for()
        bob.sees("#people", "before")
        bob.page.goto("about:blank")
        alice.sees("#peer-state", "offline")
        alice.write("meanwhile")
        alice.message("meanwhile").locator(".stored").wait_for()
        bob.visit()
        bob.awaitOnline().open(alice.name)
        bob.message("before").wait_for()
        bob.message("meanwhile").wait_for()
        self.assertEqual(bob.page.locator("#log .message").count(), 2)

    def test_terminal(self) -> None:
        """Somebody at the page and somebody in a terminal write to each other."""
        alice = self.person("alice").signIn()
        bob = self.command("chat", "bob")
        alice.open(self.named("bob")).write("hello bob")
        bob.waitFor("hello bob")
        bob.type(f'/to "{alice.name}"')
        bob.type("hello alice")
        alice.message("hello alice").wait_for()

    def test_reconnected(self) -> None:
        """What is written while the network is away is marked as waiting, and gets through when it is back."""
        proxy = Proxy(self.server.webPort)
        self.addCleanup(proxy.close)
        alice, bob = self.person("alice", port=proxy.port).signIn(), self.person("bob").signIn()
        alice.open(bob.name)
        proxy.isDown = True
        proxy.cut()
        alice.sees("#down", "")
        alice.write("into the void")
        alice.message("into the void").locator(".waiting").wait_for()
        proxy.isDown = False
        alice.message("into the void").locator(".stored").wait_for()
        bob.open(alice.name).message("into the void").wait_for()
        alice.problems.clear()  # the browser says that it could not connect

    def test_taken(self) -> None:
        """Who wants a name that somebody online has is told so."""
        self.person("alice").signIn()
        other = self.person("alice")
        other.visit()
        other.page.fill("#sign-in-name", other.name)
        other.page.click("#sign-in-button")
        other.sees("#sign-in-message", "online already")

    def test_notified(self) -> None:
        """Who looks elsewhere is told of a message by a notification."""
        alice, bob = self.person("alice").signIn(), self.person("bob", permissions=["notifications"])
        bob.page.add_init_script(
            "window.told = []; document.hasFocus = () => false;"
            "Notification = class { static permission = 'granted'; close() {}"
            " constructor(title, {body}) { told.push(`${title}: ${body}`) } }"
        )
        bob.signIn()
        alice.open(bob.name)
        alice.write("are you there?")
        bob.until("(expected) => told.includes(expected)", f"{alice.name}: are you there?")


class AccountTests(BrowserTestCase):
    """Where a password is wanted."""

    def setUp(self) -> None:
        super().setUp()
        self.server = theServer("--accounts", "--signup")

    def test_account(self) -> None:
        """An account is made at the page; its password, and no other, lets one in."""
        alice = self.person("alice").signIn("correct horse", isNew=True)
        alice.leave()
        again = self.person("alice")
        again.visit()
        again.page.fill("#sign-in-name", again.name)
        again.page.fill("#sign-in-password", "wrong horse")
        again.page.click("#sign-in-button")
        again.sees("#sign-in-message", "password is wrong")
        again.page.fill("#sign-in-password", "correct horse")
        again.page.click("#sign-in-button")
        again.awaitOnline()

    def test_kept(self) -> None:
        """Who stays signed in need give no password after a reload; whoever logs out has to."""
        alice = self.person("alice")
        alice.visit()
        alice.page.check("#sign-in-keep")
        alice.page.fill("#sign-in-name", alice.name)
        alice.page.fill("#sign-in-password", "correct horse")
        alice.page.click("#sign-up-button")
        alice.awaitOnline()
        alice.page.reload()
        alice.awaitOnline()
        alice.page.click("#settings-button")
        alice.button("Log out").click()
        alice.page.locator("#sign-in").wait_for()
        alice.page.reload()
        alice.page.locator("#sign-in").wait_for()


class FileTests(BrowserTestCase):
    """Files come as they were sent."""

    def setUp(self) -> None:
        super().setUp()
        self.folder = temporaryFolder(self)
        data = random.Random(20).randbytes(FILE_SIZE)
        self.path = self.folder / "holiday 报告.bin"
        self.path.write_bytes(data)
        self.digest = hashlib.sha256(data).hexdigest()

    def saved(self, person: Person) -> str:
        """Let somebody take the file that is offered; return the hash of what their browser saves."""
        with person.page.expect_download() as download:
            person.button("Accept").click()
        path = self.folder / "saved"
        download.value.save_as(path)
        self.assertEqual(download.value.suggested_filename, self.path.name)
        return hashlib.sha256(path.read_bytes()).hexdigest()

    def test_file(self) -> None:
        """A file of 20 MB arrives with the same hash, and both sides show that."""
        alice, bob = self.person("alice").signIn(), self.person("bob").signIn()
        alice.open(bob.name).sendFile(self.path)
        bob.open(alice.name)
        self.assertEqual(self.saved(bob), self.digest)
        alice.message("complete and checked").wait_for()
        bob.message("complete and checked").wait_for()

    def test_paused(self) -> None:
        """A file that is paused stands still, and goes on when that is asked for."""
        alice, bob = self.person("alice").signIn(), self.person("bob").signIn()
        alice.open(bob.name)
        bob.open(alice.name)
        alice.sendFile(self.path)
        # The whole file is there before a person, or a test, could press the button.
        bob.page.evaluate(
            "() => { const watch = new MutationObserver(() => {"
            " const buttons = [...document.querySelectorAll('#log button')];"
            " const pause = buttons.find((button) => button.textContent === 'Pause');"
            " if (pause) { watch.disconnect(); pause.click(); } });"
            " watch.observe(document.getElementById('log'), { childList: true, subtree: true }); }"
        )
        bob.button("Accept").click()
        bob.message("Paused at").wait_for()
        with bob.page.expect_download() as download:
            bob.button("Resume").click()
        self.assertEqual(hashlib.sha256(Path(download.value.path()).read_bytes()).hexdigest(), self.digest)

    def test_dropped(self) -> None:
        """A file that is dropped into the conversation is sent, and a picture is shown when it has come."""
        alice, bob = self.person("alice").signIn(), self.person("bob").signIn()
        alice.open(bob.name)
        bob.open(alice.name)
        dropped = alice.page.evaluate_handle(
            "async () => { const canvas = new OffscreenCanvas(64, 48); canvas.getContext('2d');"
            " const blob = await canvas.convertToBlob(); const transfer = new DataTransfer();"
            " transfer.items.add(new File([blob], 'picture.png')); return transfer; }"
        )
        for event in ("dragover", "drop"):
            alice.page.dispatch_event("#conversation", event, {"dataTransfer": dropped})
        with bob.page.expect_download():
            bob.button("Accept").click()
        picture = bob.page.locator("#log img.picture")
        picture.wait_for()
        self.assertEqual(picture.evaluate("(image) => [image.naturalWidth, image.naturalHeight]"), [64, 48])

    def test_declined(self) -> None:
        """Who does not want a file says so, and the sender learns of it."""
        alice, bob = self.person("alice").signIn(), self.person("bob").signIn()
        alice.open(bob.name).sendFile(self.path)
        bob.open(alice.name).button("Decline").click()
        alice.message("Declined").wait_for()

    def test_cut(self) -> None:
        """A file goes on where it was when the network comes back in the middle of it."""
        proxy = Proxy(self.server.webPort)
        self.addCleanup(proxy.close)
        alice, bob = self.person("alice", port=proxy.port).signIn(), self.person("bob").signIn()
        alice.open(bob.name).sendFile(self.path)
        bob.open(alice.name)
        with bob.page.expect_download() as download:
            bob.button("Accept").click()
            bob.until("() => document.querySelector('#log progress')?.value > 0")
            proxy.cut()
        self.assertEqual(hashlib.sha256(Path(download.value.path()).read_bytes()).hexdigest(), self.digest)
        self.assertEqual(alice.figures()["registrations"], 2)

    def test_toTheTerminal(self) -> None:
        """A file gets from the page to the terminal."""
        inbox = self.folder / "inbox"
        bob = self.command("receive-files", "bob", "--into", inbox)
        alice = self.person("alice").signIn()
        alice.open(self.named("bob")).sendFile(self.path)
        alice.message("complete and checked").wait_for()
        bob.waitFor(self.path.name)
        self.assertEqual(hashlib.sha256((inbox / self.path.name).read_bytes()).hexdigest(), self.digest)

    def test_fromTheTerminal(self) -> None:
        """And from the terminal to the page."""
        bob = self.person("bob").signIn()
        alice = self.command("send-file", "alice", bob.name, self.path)
        bob.open(self.named("alice"))
        self.assertEqual(self.saved(bob), self.digest)
        self.assertEqual(alice.wait(), 0)


class CallTests(BrowserTestCase):
    """Calls, with real codecs at both ends."""

    def pair(self, **details: Any) -> tuple[Person, Person]:
        """Return two people who are signed in."""
        return self.person("alice", **details).signIn(), self.person("bob").signIn()

    def assertAllDecoded(self, sender: Person, receiver: Person, *streams: str) -> None:
        """Check, when a call is over, that nearly all that was sent in it was decoded at the other side."""
        for person in (sender, receiver):
            person.until("() => wecompany.stats().call === null && wecompany.stats().lastCall !== null")
        sent, decoded = sender.figures()["lastCall"]["sent"], receiver.figures()["lastCall"]["decoded"]
        for stream in streams:
            self.assertGreater(sent[stream], 30, stream)
            self.assertGreaterEqual(decoded[stream], DECODED * sent[stream], stream)

    def test_audio(self) -> None:
        """In an audio call each hears the other, until the caller hangs up."""
        alice, bob = self.pair()
        alice.call(bob.name)
        bob.until("(name) => document.title.includes(name)", alice.name)
        bob.sees("#incoming", "Voice call")
        bob.answer()
        alice.hearsTone()
        bob.hearsTone()
        alice.sees("#call .call-state", "0:0")
        alice.sees("#call .quality", "ms")
        alice.hangUp()
        bob.sees("#call .call-state", "ended")
        self.assertAllDecoded(alice, bob, "audio")
        self.assertAllDecoded(bob, alice, "audio")

    def test_video(self) -> None:
        """In a video call each sees and hears the other in time, until the callee hangs up."""
        alice, bob = self.pair()
        alice.call(bob.name, video=True)
        bob.answer(video=True)
        alice.seesPictures()
        bob.seesPictures()
        alice.hearsTone()
        bob.hearsTone()
        bob.hangUp()
        alice.sees("#call .call-state", "ended")
        self.assertAllDecoded(alice, bob, "audio", "video")
        self.assertAllDecoded(bob, alice, "audio", "video")

    def test_controls(self) -> None:
        """The other side learns when one mutes, and when one's camera goes off and on."""
        alice, bob = self.pair()
        alice.call(bob.name, video=True)
        bob.answer()
        bob.seesPictures(10)
        alice.button("Mute microphone").click()
        bob.sees("#call .notes", f"{alice.name} is muted")
        alice.button("Unmute microphone").click()
        bob.page.locator("#call .notes", has_text="is muted").wait_for(state="hidden")
        alice.button("Turn camera off").click()
        bob.page.locator("#call canvas").wait_for(state="hidden")
        alice.button("Turn camera on").click()
        bob.page.locator("#call canvas").wait_for()
        bob.button("Turn camera on").click()
        alice.seesPictures(10)
        alice.hangUp()
        bob.awaitState("")

    def test_rejected(self) -> None:
        """Who is rejected is told so; the callee has missed nothing."""
        alice, bob = self.pair()
        alice.call(bob.name)
        bob.decline()
        alice.sees("#call .call-state", "declined")
        bob.awaitState("")
        self.assertTrue(bob.contact(alice.name).locator(".badge").is_hidden())

    def test_busy(self) -> None:
        """Who calls somebody in a call is told that they are busy, and the call goes on."""
        alice, bob = self.pair()
        alice.call(bob.name)
        bob.answer()
        alice.awaitState("active")
        carol = self.person("carol").signIn()
        carol.call(bob.name)
        carol.sees("#call .call-state", "busy")
        alice.hearsTone()
        bob.hangUp()

    def test_noAnswer(self) -> None:
        """A call that nobody takes ends by itself, and the callee has missed it."""
        self.server = theServer("--ring-timeout", "2")
        alice, bob = self.pair()
        alice.call(bob.name)
        alice.awaitState("ringing")
        alice.sees("#call .call-state", "no answer")
        bob.sees("#people", "Missed call")

    def test_cancelled(self) -> None:
        """A call that is taken back while it rings was missed."""
        alice, bob = self.pair()
        alice.call(bob.name)
        bob.awaitState("incoming")
        alice.hangUp()
        bob.awaitState("")
        bob.sees("#people", "Missed call")

    def test_glare(self) -> None:
        """When both call each other it becomes one call."""
        alice, bob = self.pair()
        alice.open(bob.name)
        bob.open(alice.name)
        alice.page.evaluate("document.getElementById('voice-call').click()")
        bob.page.evaluate("document.getElementById('voice-call').click()")
        alice.awaitState("active")
        bob.awaitState("active")
        self.assertEqual(alice.figures()["call"]["id"], bob.figures()["call"]["id"])
        bob.hearsTone()
        bob.hangUp()
        alice.awaitState("")

    def test_tabClosed(self) -> None:
        """When the callee closes the tab the call is over at once."""
        alice, bob = self.pair()
        alice.call(bob.name)
        bob.answer()
        alice.hearsTone()
        bob.page.close(run_before_unload=True)
        alice.awaitState("")
        self.assertLess(alice.figures()["lastCall"]["seconds"], 30)

    def test_networkCut(self) -> None:
        """When the network was away for 5 s in the middle of a call, picture and sound come back."""
        proxy = Proxy(self.server.webPort)
        self.addCleanup(proxy.close)
        alice, bob = self.pair(port=proxy.port)
        alice.call(bob.name, video=True)
        bob.answer(video=True)
        alice.seesPictures()
        bob.seesPictures()
        proxy.isDown = True
        proxy.cut()
        alice.sees("#call .notes", "Reconnecting")
        bob.until("(end) => wecompany.stats().call.seconds >= end", bob.figures()["call"]["seconds"] + CUT_FOR)
        bob.sees("#call .notes", "Nothing comes from")
        proxy.isDown = False
        alice.awaitOnline()
        alice.problems.clear()  # the browser says that it could not connect
        for person in (alice, bob):
            person.seesPictures()
            person.hearsTone()
            person.page.locator("#call .notes", has_text="…").wait_for(state="hidden")
        self.assertEqual(alice.figures()["registrations"], 2)
        alice.hangUp()
        bob.awaitState("")

    def test_peerLost(self) -> None:
        """When one does not come back within the grace, the call is over."""
        self.server = theServer("--call-grace", "1")
        proxy = Proxy(self.server.webPort)
        self.addCleanup(proxy.close)
        alice, bob = self.pair(port=proxy.port)
        alice.call(bob.name)
        bob.answer()
        bob.hearsTone()
        proxy.isDown = True
        proxy.cut()
        bob.sees("#call .call-state", "lost")
        proxy.isDown = False
        alice.awaitOnline()
        alice.awaitState("")
        alice.problems.clear()  # the browser says that it could not connect


class TerminalCallTests(BrowserTestCase):
    """Calls between the page and C{wecompany call} and C{answer}."""

    def decoded(self, path: Path) -> dict[str, int]:
        """Return how many frames of each kind a recording decodes to."""
        found = {}
        for kind in ("audio", "video"):
            with av.open(str(path)) as container:
                streams = [stream for stream in container.streams if stream.type == kind]
                found[kind] = sum(1 for _ in container.decode(*streams))
        return found

    def test_pageCalls(self) -> None:
        """The terminal answers somebody at the page, and records sound and pictures of the whole call."""
        recording = temporaryFolder(self) / "heard.webm"
        bob = self.command("answer", "bob", "--record", recording, "--tone", "60")
        alice = self.person("alice").signIn()
        alice.call(self.named("bob"), video=True)
        alice.awaitState("active")
        alice.hearsTone()
        alice.until("() => wecompany.stats().call.sent.video >= 100")
        alice.hangUp()
        self.assertEqual(bob.wait(), 0, bob.lines)
        sent = alice.figures()["lastCall"]["sent"]
        for kind, n in self.decoded(recording).items():
            self.assertGreaterEqual(n, DECODED * sent[kind], kind)

    def test_terminalCalls(self) -> None:
        """Somebody at the page answers the terminal, and hears its tone."""
        recording = temporaryFolder(self) / "heard.ogg"
        bob = self.person("bob").signIn()
        alice = self.command("call", "alice", bob.name, "--tone", "20", "--record", recording)
        bob.answer()
        bob.hearsTone()
        bob.until("() => wecompany.stats().call.sent.audio >= 100")
        bob.hangUp()
        alice.wait()
        figures = bob.figures()["lastCall"]
        self.assertGreaterEqual(self.decoded(recording)["audio"], DECODED * figures["sent"]["audio"])
        self.assertEqual(figures["received"]["audioLost"], 0)


class HostileTests(BrowserTestCase):
    """Pages and people that mean harm."""

    SCRIPT = "<img src=x onerror=alert(1)>"

    def test_names(self) -> None:
        """A name, a text and a file's name that look like markup are shown as they are, and nothing of them runs."""
        alice = self.person("alice").signIn()
        mallory = self.person(self.SCRIPT).signIn()
        path = temporaryFolder(self) / f"{self.SCRIPT}.png"
        path.write_bytes(b"<script>alert(2)</script>")
        mallory.open(alice.name).write(f"{self.SCRIPT} javascript:alert(3) https://example.com/'onclick='alert(4)")
        mallory.sendFile(path)
        alice.open(mallory.name)
        alice.message(self.SCRIPT).first.wait_for()
        with alice.page.expect_download():
            alice.button("Accept").click()
        mallory.call(alice.name)
        alice.sees("#incoming", mallory.name)
        alice.answer()
        mallory.awaitState("active")
        self.assertEqual(alice.page.locator("img[src=x], #app script, [onerror], [onclick]").count(), 0)
        mallory.hangUp()
        alice.awaitState("")

    def test_otherOrigin(self) -> None:
        """A page of another origin gets no connection, and the page itself in no frame."""
        folder = temporaryFolder(self)
        frame = f"<iframe src='http://localhost:{self.server.webPort}/'></iframe>"
        (folder / "index.html").write_text(f"<link rel=icon href='data:,'>{frame}")
        handler = partial(_Quiet, directory=str(folder))
        with ThreadingHTTPServer(("127.0.0.1", 0), handler) as evil:
            threading.Thread(target=evil.serve_forever, daemon=True).start()
            mallory = self.person("mallory", port=evil.server_port)
            mallory.visit()
            code = mallory.page.evaluate(
                "(address) => new Promise((resolve) => {"
                " const socket = new WebSocket(address);"
                " socket.onopen = () => resolve('open'); socket.onclose = ({code}) => resolve(code); })",
                f"ws://localhost:{self.server.webPort}/ws",
            )
            (_, framed) = mallory.page.frames
            self.assertEqual((code, framed.locator("#sign-in").count()), (1006, 0))
            evil.shutdown()
        mallory.problems.clear()  # the browser says that it could not connect, and not show the frame

    def test_messages(self) -> None:
        """A text message and one that is too long are refused, each with the code that says so."""
        mallory = self.person("mallory")
        mallory.visit()
        closed = (
            "(message) => new Promise((resolve) => {"
            " const socket = new WebSocket(new URL('ws', document.baseURI.replace('http', 'ws')));"
            " socket.onopen = () => socket.send(message); socket.onclose = ({code}) => resolve(code); })"
        )
        self.assertEqual(mallory.page.evaluate(closed, "a text"), 1003)
        long = closed.replace("send(message)", "send(new Uint8Array(message))")
        self.assertEqual(mallory.page.evaluate(long, 65_536), 1009)


class _Quiet(SimpleHTTPRequestHandler):
    """A server of pages that says nothing of them."""

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


class AccessibleTests(BrowserTestCase):
    """Every view can be used with a keyboard, and by who does not see it well or at all."""

    def assertAccessible(self, **context: Any) -> None:
        """Check every view against the rules of WCAG 2.1 AA, and the best practices beside them."""
        views = []
        for view, person in browser.tour(self.server, self.named, **context):
            if person not in self.people:
                self.people.append(person)
            found = Axe().run(person.page).response["violations"]
            self.assertEqual([(view, one["id"], [n["html"] for n in one["nodes"]]) for one in found], [])
            views.append(view)
        self.assertEqual(views, list(browser.VIEWS))

    def test_light(self) -> None:
        """No rule is broken, light and on a desktop."""
        self.assertAccessible(color_scheme="light", reduced_motion="reduce", viewport=browser.DESKTOP)

    def test_dark(self) -> None:
        """Nor dark, on a phone and in Chinese."""
        self.assertAccessible(color_scheme="dark", reduced_motion="reduce", viewport=browser.PHONE, locale="zh-CN")

    def test_status(self) -> None:
        """Nor on the operator's page, which draws the figures as they are now."""
        self.person("bob").signIn()
        operator = self.person("operator", color_scheme="dark", viewport=browser.PHONE)
        operator.address += "status"
        operator.visit()
        operator.page.locator("#charts svg").first.wait_for()
        operator.until("() => /^[1-9]\\d* users online$/m.test(document.getElementById('charts').innerText)")
        self.assertEqual(Axe().run(operator.page).response["violations"], [])

    def test_keyboard(self) -> None:
        """One signs in, chooses somebody, writes, calls and hangs up with keys alone, however many people there are."""
        bob = self.person("bob").signIn()
        for i in range(25):
            with socket.create_connection(("127.0.0.1", self.server.port), TIMEOUT) as somebody:
                somebody.sendall(encodeFrame(MessageType.HEARTBEAT, self.named(f"somebody {i}").encode()))
                somebody.recv(1)
        alice = self.person("alice")
        alice.visit()
        keyboard = alice.page.keyboard
        keyboard.type(alice.name)
        keyboard.press("Enter")
        alice.awaitOnline().contact(bob.name).wait_for()

        def goTo(name: str) -> None:
            for _ in range(20):
                keyboard.press("Tab")
                if alice.page.evaluate("document.activeElement.ariaLabel") == name:
                    return
            self.fail(f"Tab does not get to {name}")

        alice.page.focus("#search")
        keyboard.type(bob.name)
        keyboard.press("Enter")
        alice.page.locator("#text:focus").wait_for()
        keyboard.type("with keys")
        keyboard.press("Enter")
        bob.sees("#people", "with keys")
        alice.page.focus("#people button[aria-current=true]")
        keyboard.press("ArrowDown")
        keyboard.press("ArrowUp")
        alice.page.locator("#people button[aria-current=true]:focus").wait_for()
        goTo("Voice call")
        keyboard.press("Enter")
        bob.page.locator("#incoming:focus").wait_for()
        bob.page.keyboard.press("Tab")
        bob.page.keyboard.press("Tab")
        bob.page.keyboard.press("Enter")
        alice.awaitState("active")
        goTo("Hang up")
        keyboard.press("Enter")
        bob.awaitState("")


class LackingTests(BrowserTestCase):
    """Browsers that cannot do everything are told what they lack."""

    def test_insecure(self) -> None:
        """Over plain HTTP from another machine one can write; that calls need TLS is said."""
        alice, bob = self.person("alice", host="chat.test").signIn(), self.person("bob").signIn()
        alice.sees("#lacking", "https")
        alice.open(bob.name)
        alice.write("only text")
        bob.open(alice.name).message("only text").wait_for()
        bob.call(alice.name)
        bob.sees("#call .call-state", "not possible on the other side")
        alice.problems.clear()  # the browser says that it heeds no Cross-Origin-Opener-Policy there

    def test_noCodecs(self) -> None:
        """A browser without WebCodecs can write, and says what it lacks."""
        alice = self.person("alice")
        alice.page.add_init_script("for (const one of ['Audio', 'Video']) delete window[one + 'Decoder'];")
        alice.signIn().sees("#lacking", "WebCodecs")

    def test_noVideo(self) -> None:
        """Who calls somebody whose browser shows no video is told so, and is heard."""
        alice, bob = self.person("alice").signIn(), self.person("bob")
        bob.page.add_init_script("delete window.VideoDecoder;")
        bob.signIn().sees("#lacking", "VP8")
        alice.call(bob.name, video=True)
        bob.answer(video=True)
        alice.sees("#call .notes", "The other side cannot show video.")
        alice.seesPictures(10)
        bob.hearsTone()
        self.assertEqual(alice.figures()["call"]["sent"]["video"], 0)
        alice.hangUp()
        bob.awaitState("")

    def test_noCamera(self) -> None:
        """Without a camera one is heard all the same, and told what is missing."""
        alice, bob = self.person("alice"), self.person("bob").signIn()
        alice.page.add_init_script(
            "const open = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);"
            "navigator.mediaDevices.getUserMedia = (wanted) => wanted.video"
            " ? Promise.reject(new DOMException('', 'NotFoundError')) : open(wanted);"
        )
        alice.signIn().call(bob.name, video=True)
        alice.sees("#call .notes", "No camera was found")
        bob.answer(video=True)
        bob.hearsTone()
        alice.seesPictures(10)
        alice.hangUp()
        bob.awaitState("")
