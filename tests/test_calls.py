"""Calls: section 4 of the contract, through the wire and through C{VideoCallServer}."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from twisted.trial.unittest import SynchronousTestCase

from wecompany import CallSession, EndCode, ErrorCode, MessageType, RejectCode, ServerObserver, VideoCallServer
from wecompany.calls import MAX_REMEMBERED
from wecompany.limits import Limits
from wecompany.testing import FakeClient, MemoryServer, Message

REQUEST, ACCEPT, REJECT = MessageType.CALL_REQUEST, MessageType.CALL_ACCEPT, MessageType.CALL_REJECT
END, MEDIA, ERROR = MessageType.CALL_END, MessageType.MEDIA_DATA, MessageType.ERROR

OFFER, ANSWER = b"an offer", b"an answer"
A_MOMENT = 0.125
"""Seconds: a binary fraction, so that sums of times are exact."""

PEER = {"alice": "bob", "bob": "alice"}


def call(kind: int, peer: str, callId: bytes, code: int, text: bytes = b"") -> Message:
    """A frame whose data is a call ID, one byte, and the rest."""
    return Message(kind, peer, callId + bytes((code,)) + text)


def refusalOf(callee: str, callId: bytes, code: RejectCode) -> Message:
    """The REJECT of a request that cannot ring: that of one too many names the limit."""
    isTooMany = code == RejectCode.OVERLOADED
    return call(REJECT, callee, callId, code, b"too many calls: try again in a minute (limit calls)" * isTooMany)


def error(code: int, kind: int, userId: str) -> Message:
    """An ERROR without its text, which is free."""
    return Message(ERROR, userId, bytes((code, kind)))


def withoutText(message: Message) -> Message:
    """That message; an ERROR without its text."""
    return message._replace(data=message.data[:2]) if message.type == ERROR else message


class Scene(SynchronousTestCase):
    """A server, and three users online."""

    def setUp(self) -> None:
        self.open()

    def open(self, **options: Any) -> None:
        """Begin anew, with such a server."""
        self.server = MemoryServer(idleTimeout=1e6, **options)
        self.clients: dict[str, FakeClient] = {}
        for name in ("alice", "bob", "carol"):
            self.login(name)

    def login(self, name: str) -> FakeClient:
        """Let that user register, for the first time or again."""
        self.clients[name] = self.server.login(name)
        return self.clients[name]

    def drop(self, *names: str) -> None:
        """Break their connections."""
        for name in names:
            self.clients.pop(name).drop()

    def send(self, sender: str, kind: int, peer: str, data: bytes = b"") -> None:
        """Let a user send a frame."""
        self.clients[sender].send(kind, peer, data)

    def assertTold(self, expected: dict[str, list[Message]] | None = None, about: str = "") -> None:
        """Everyone connected has got just these messages since one last asked."""
        told = {name: [withoutText(m) for m in client.received()] for name, client in self.clients.items()}
        self.assertEqual({name: ms for name, ms in told.items() if ms}, expected or {}, about)

    def assertToldAfter(self, seconds: float, expected: dict[str, list[Message]]) -> None:
        """Everyone gets these messages then, and nothing before."""
        self.server.advance(seconds - A_MOMENT)
        self.assertTold()
        self.server.advance(A_MOMENT)
        self.assertTold(expected)

    def forgetFrames(self) -> None:
        """Read what has come."""
        for client in self.clients.values():
            client.received()

    def counted(self) -> int:
        """Return how much the operator's counters say in all."""
        return sum(self.server.factory.counters.values())


class CallScene(Scene):
    """Alice calls bob; carol has no part in it."""

    def open(self, **options: Any) -> None:
        """Begin anew, with such a server."""
        super().open(**options)
        self.calls = self.server.factory.calls

    def assertBothTold(self, kind: int, callId: bytes, tail: bytes) -> None:
        """Alice and bob have got this frame of their call, and nobody anything else."""
        self.assertTold(
            {"alice": [Message(kind, "bob", callId + tail)], "bob": [Message(kind, "alice", callId + tail)]}
        )

    def ring(self, caller: str = "alice", callee: str = "bob") -> bytes:
        """Return the ID of a call that rings."""
        self.send(caller, REQUEST, callee, b"\0" + OFFER)
        callId = self.clients[caller].received()[-1].data[:16]
        self.assertEqual(self.state(callId), "ringing")
        self.forgetFrames()
        return callId

    def talk(self, caller: str = "alice", callee: str = "bob") -> bytes:
        """Return the ID of an active call."""
        callId = self.ring(caller, callee)
        self.send(callee, ACCEPT, caller, callId + ANSWER)
        self.forgetFrames()
        return callId

    def over(self) -> bytes:
        """Return the ID of a call that has just ended."""
        callId = self.talk()
        self.send("alice", END, "bob", callId)
        self.forgetFrames()
        return callId

    def callThatIs(self, state: str) -> bytes:
        """Return the ID of a call in that state."""
        return {"ringing": self.ring, "active": self.talk, "ended": self.over}[state]()

    def state(self, callId: bytes) -> str | None:
        """Return the state of that call."""
        session = self.calls.getCallSession(callId.hex())
        return None if session is None else session.state

    def mediaFlows(self) -> bool:
        """Return whether media goes both ways between alice and bob."""
        self.send("alice", MEDIA, "bob", b"\0from alice")
        self.send("bob", MEDIA, "alice", b"\0from bob")
        got = {name: self.clients[name].received() for name in PEER}
        return got == {
            "alice": [Message(MEDIA, "bob", b"\0from bob")],
            "bob": [Message(MEDIA, "alice", b"\0from alice")],
        }


# -- The table -----------------------------------------------------------------------------------------------------


class Event(NamedTuple):
    """What a client sends about a call."""

    sender: str
    peer: str
    kind: MessageType
    callId: bytes


Outcome = Callable[[Event], dict[str, list[Message]]]
"""Who is told what."""

SENT = {ACCEPT: b"fine", REJECT: b"\1why", END: b"\4why"}
"""What follows the call ID in the frames which the cells of the table send."""


def both(kind: int, tail: bytes) -> Outcome:
    """This frame of the call goes to both."""
    return lambda event: {name: [Message(kind, PEER[name], event.callId + tail)] for name in PEER}


def sender(kind: int, tail: bytes) -> Outcome:
    """This frame goes to whoever sent."""
    return lambda event: {event.sender: [Message(kind, event.peer, event.callId + tail)]}


def refused(code: ErrorCode) -> Outcome:
    """Whoever sent gets an ERROR."""
    return lambda event: {event.sender: [error(code, event.kind, event.peer)]}


def ignored(event: Event) -> dict[str, list[Message]]:
    """Nobody gets anything."""
    return {}


def cell(
    rule: str, state: str, kind: MessageType, name: str, outcome: Outcome, after: str
) -> Callable[[CallScene], None]:
    """Return the test of one cell: in C{state}, C{name} sends a frame, whose outcome is that; C{after} is the state."""

    def test(self: CallScene) -> None:
        callId = self.callThatIs(state)
        for peer in (PEER[name],) if name in PEER else PEER:
            self.send(name, kind, peer, callId + SENT[kind])
            self.assertTold(outcome(Event(name, peer, kind, callId)), rule)
            self.assertEqual(self.state(callId), after, rule)
        self.assertEqual(self.calls.isUserInCall("alice"), after != "ended", rule)

    test.__doc__ = rule
    return test


NO_CALL, FORBIDDEN, BAD = (
    refused(code) for code in (ErrorCode.NO_SUCH_CALL, ErrorCode.FORBIDDEN, ErrorCode.BAD_REQUEST)
)
DECLINED, HUNG_UP, CANCELLED = both(REJECT, b"\0why"), both(END, b"\0why"), both(END, b"\1why")


class TableThroughTheWireTests(CallScene):
    """Every cell of the table for frames about calls; alice is the caller, bob the callee, carol a third user."""

    test_calleeAcceptsRinging = cell(
        "The callee's ACCEPT makes a ringing call active, for both.",
        "ringing", ACCEPT, "bob", both(ACCEPT, b"fine"), "active",
    )  # fmt: skip
    test_calleeAcceptsActive = cell(
        "The callee's second ACCEPT is answered with the first one, to the callee only.",
        "active", ACCEPT, "bob", sender(ACCEPT, ANSWER), "active",
    )  # fmt: skip
    test_calleeAcceptsEnded = cell(
        "An ACCEPT of an ended call is noSuchCall.", "ended", ACCEPT, "bob", NO_CALL, "ended"
    )
    test_callerAcceptsRinging = cell(
        "A caller cannot accept its own call.", "ringing", ACCEPT, "alice", FORBIDDEN, "ringing"
    )
    test_callerAcceptsActive = cell(
        "The caller's ACCEPT of an active call is ignored.", "active", ACCEPT, "alice", ignored, "active"
    )
    test_callerAcceptsEnded = cell(
        "The caller's ACCEPT of an ended call is noSuchCall.", "ended", ACCEPT, "alice", NO_CALL, "ended"
    )
    test_calleeRejectsRinging = cell(
        "The callee's REJECT ends a ringing call, for both.",
        "ringing", REJECT, "bob", both(REJECT, b"\1why"), "ended",
    )  # fmt: skip
    test_calleeRejectsActive = cell(
        "An active call cannot be rejected by the callee.", "active", REJECT, "bob", BAD, "active"
    )
    test_calleeRejectsEnded = cell(
        "The callee's REJECT of an ended call is ignored.", "ended", REJECT, "bob", ignored, "ended"
    )
    test_callerRejectsRinging = cell(
        "The caller's REJECT cancels a ringing call.", "ringing", REJECT, "alice", CANCELLED, "ended"
    )
    test_callerRejectsActive = cell(
        "An active call cannot be rejected by the caller.", "active", REJECT, "alice", BAD, "active"
    )
    test_callerRejectsEnded = cell(
        "The caller's REJECT of an ended call is ignored.", "ended", REJECT, "alice", ignored, "ended"
    )
    test_callerEndsRinging = cell(
        "The caller's END cancels a ringing call.", "ringing", END, "alice", CANCELLED, "ended"
    )
    test_callerEndsActive = cell("The caller's END hangs up.", "active", END, "alice", HUNG_UP, "ended")
    test_callerEndsEnded = cell(
        "The caller's END of an ended call is ignored.", "ended", END, "alice", ignored, "ended"
    )
    test_calleeEndsRinging = cell(
        "The callee's END of a ringing call declines it.", "ringing", END, "bob", DECLINED, "ended"
    )
    test_calleeEndsActive = cell("The callee's END hangs up.", "active", END, "bob", HUNG_UP, "ended")
    test_calleeEndsEnded = cell("The callee's END of an ended call is ignored.", "ended", END, "bob", ignored, "ended")

    def test_aThirdUser(self) -> None:
        """To a third user no call exists, whatever its state and whomever of the two it names."""
        for state in ("ringing", "active", "ended"):
            for kind in (ACCEPT, REJECT, END):
                self.open()
                rule = f"{kind.name} of a call that is {state}"
                cell(rule, state, kind, "carol", NO_CALL, state)(self)

    def test_thePeerIsTheOtherParty(self) -> None:
        """A party that names anyone but the other party gets noSuchCall, and the call goes on."""
        callId = self.talk()
        for kind in (ACCEPT, REJECT, END):
            for peer in ("alice", "carol", "nobody"):
                self.send("alice", kind, peer, callId)
                self.assertTold({"alice": [error(ErrorCode.NO_SUCH_CALL, kind, peer)]})
        self.assertTrue(self.mediaFlows())

    def test_anUnknownCall(self) -> None:
        """A frame with an ID that no call has is noSuchCall."""
        for kind in (ACCEPT, REJECT, END):
            self.send("alice", kind, "bob", bytes(16))
            self.assertTold({"alice": [error(ErrorCode.NO_SUCH_CALL, kind, "bob")]})

    def test_whatIsIgnoredIsCounted(self) -> None:
        """A frame which the table ignores has neither effect nor ERROR, so the operator's counters show it."""
        uncounted = []
        for state, kind, name in (
            ("active", ACCEPT, "alice"),
            ("ended", REJECT, "bob"),
            ("ended", REJECT, "alice"),
            ("ended", END, "alice"),
            ("ended", END, "bob"),
        ):
            self.open()
            callId = self.callThatIs(state)
            before = self.counted()
            self.send(name, kind, PEER[name], callId)
            if self.counted() != before + 1:
                uncounted.append((state, kind.name, name))
        self.assertEqual(uncounted, [])


class MediaTests(CallScene):
    """Media goes between the two parties of an active call and nowhere else."""

    def assertDropped(self, name: str, peer: str, about: str = "") -> None:
        """Media from C{name} to C{peer} reaches nobody and is counted."""
        before = self.counted()
        self.send(name, MEDIA, peer, b"\0sound")
        self.assertTold(about=about)
        self.assertEqual(self.counted(), before + 1, about)

    def test_active(self) -> None:
        """In an active call media is passed on to the other party only, byte for byte and in order."""
        self.talk()
        before = self.counted()
        for i in range(256):
            self.send("alice", MEDIA, "bob", bytes((i,)) * i)
            self.send("bob", MEDIA, "alice", bytes((255 - i,)) * i)
        self.assertTold(
            {
                "alice": [Message(MEDIA, "bob", bytes((255 - i,)) * i) for i in range(256)],
                "bob": [Message(MEDIA, "alice", bytes((i,)) * i) for i in range(256)],
            }
        )
        self.assertEqual(self.counted(), before)

    def test_notActive(self) -> None:
        """Media of a party is dropped and counted while the call rings and when it has ended."""
        for state in ("ringing", "ended"):
            self.open()
            self.callThatIs(state)
            for name in PEER:
                self.assertDropped(name, PEER[name], f"{name}, {state}")

    def test_thirdUser(self) -> None:
        """Media of a third user is dropped and counted, whatever the state."""
        for state in ("ringing", "active", "ended"):
            self.open()
            self.callThatIs(state)
            for peer in PEER:
                self.assertDropped("carol", peer, state)

    def test_toAnotherThanTheParty(self) -> None:
        """Media of a party to anyone but the other party is dropped and counted."""
        self.talk()
        for peer in ("carol", "alice", "nobody"):
            self.assertDropped("alice", peer)

    def test_noCall(self) -> None:
        """Media without any call is dropped and counted."""
        self.assertDropped("alice", "bob")

    def test_partyAway(self) -> None:
        """Media for a party in its grace is dropped and counted."""
        self.talk()
        self.drop("bob")
        self.assertDropped("alice", "bob")

    def test_length(self) -> None:
        """Media that fits into a frame with the sender's ID is passed on; one byte more is a badRequest."""
        self.talk()
        most = 65_535 - 3 - len("alice")
        self.send("alice", MEDIA, "bob", bytes(most))
        self.assertTold({"bob": [Message(MEDIA, "alice", bytes(most))]})
        self.send("alice", MEDIA, "bob", bytes(most + 1))
        self.assertTold({"alice": [error(ErrorCode.BAD_REQUEST, MEDIA, "bob")]})

    def test_badUserId(self) -> None:
        """Media to what is no user ID is a badRequest."""
        self.send("alice", MEDIA, "#group", b"\0")
        self.assertTold({"alice": [error(ErrorCode.BAD_REQUEST, MEDIA, "")]})


# -- Frames --------------------------------------------------------------------------------------------------------


class RequestTests(CallScene):
    """What a CALL_REQUEST that can ring does."""

    def test_rings(self) -> None:
        """The caller is told the call's ID and flags, the callee the offer too, and nobody else anything."""
        for flags in (0, 1, 0xFF):
            self.open()
            self.send("alice", REQUEST, "bob", bytes((flags,)) + OFFER)
            (confirmation,) = self.clients["alice"].received()
            callId = confirmation.data[:16]
            self.assertEqual(confirmation, call(REQUEST, "bob", callId, flags))
            self.assertTold({"bob": [call(REQUEST, "alice", callId, flags, OFFER)]})
            session = self.calls.getCallSession(callId.hex())
            self.assertEqual(session, CallSession(callId.hex(), "alice", "bob", bool(flags & 1), "ringing", 0.0))

    def test_withoutOfferAndAnswer(self) -> None:
        """Offer and answer may be empty."""
        self.send("alice", REQUEST, "bob", b"\1")
        callId = self.clients["alice"].received()[0].data[:16]
        self.assertTold({"bob": [call(REQUEST, "alice", callId, 1)]})
        self.send("bob", ACCEPT, "alice", callId)
        self.assertBothTold(ACCEPT, callId, b"")

    def test_freshIds(self) -> None:
        """No two calls have the same ID, be it that they rang or that they could not."""
        ids = set()
        for _ in range(5):
            callId = self.ring()
            self.send("carol", REQUEST, "bob", b"\0")
            (refusal,) = self.clients["carol"].received()
            ids |= {callId, refusal.data[:16]}
            self.send("alice", END, "bob", callId)
        self.assertEqual(len(ids), 10)

    def test_again(self) -> None:
        """A second request while the own call rings is answered with the confirmation again and nothing else."""
        callId = self.ring()
        self.send("alice", REQUEST, "bob", b"\1another offer")
        self.assertTold({"alice": [call(REQUEST, "bob", callId, 0)]})
        self.drop("bob")
        self.send("alice", REQUEST, "bob", b"\1another offer")
        self.assertTold({"alice": [call(REQUEST, "bob", callId, 0)]})
        self.login("bob")
        self.assertTold({"bob": [call(REQUEST, "alice", callId, 0, OFFER)]})

    def test_again_notIn30Seconds(self) -> None:
        """A second request does not make the call ring longer."""
        callId = self.ring()
        self.server.advance(20)
        self.send("alice", REQUEST, "bob", b"\0")
        self.forgetFrames()
        self.server.advance(10)
        self.assertBothTold(REJECT, callId, b"\3")

    def test_glare(self) -> None:
        """A request to someone whose own call to the sender rings accepts that call, the offer being the answer."""
        callId = self.ring()
        self.send("bob", REQUEST, "alice", b"\1bob's offer")
        self.assertBothTold(ACCEPT, callId, b"bob's offer")
        self.assertEqual(self.state(callId), "active")
        self.assertTrue(self.mediaFlows())

    def test_glare_inGrace(self) -> None:
        """Glare accepts the call of a caller in grace too, which learns of it when it is back."""
        callId = self.ring()
        self.drop("alice")
        self.send("bob", REQUEST, "alice", b"\0bob's offer")
        self.assertTold({"bob": [Message(ACCEPT, "alice", callId + b"bob's offer")]})
        self.server.advance(14)
        self.login("alice")
        self.assertTold({"alice": [Message(ACCEPT, "bob", callId + b"bob's offer")]})
        self.assertTrue(self.mediaFlows())

    def test_glare_isNoRequestTooMany(self) -> None:
        """Glare is an acceptance, so a user who has no requests left can still pick up in this way."""
        for _ in range(10):
            self.send("bob", REQUEST, "nobody", b"\0")
        callId = self.ring()
        self.send("bob", REQUEST, "alice", b"\0")
        self.assertBothTold(ACCEPT, callId, b"")

    def test_lengths(self) -> None:
        """Offer and answer have at most 16,384 bytes, wherever they stand; else badRequest and no effect."""
        long, tooLong = bytes(16_384), bytes(16_385)
        self.send("alice", REQUEST, "bob", b"\0" + tooLong)
        self.assertTold({"alice": [error(ErrorCode.BAD_REQUEST, REQUEST, "bob")]})
        self.assertFalse(self.calls.isUserInCall("alice"))
        self.send("alice", REQUEST, "bob", b"\0" + long)
        (request,) = self.clients["bob"].received()
        callId = request.data[:16]
        self.assertEqual(request, call(REQUEST, "alice", callId, 0, long))
        self.forgetFrames()
        for kind, data in ((ACCEPT, callId + tooLong), (REQUEST, b"\0" + tooLong)):
            self.send("bob", kind, "alice", data)
            self.assertTold({"bob": [error(ErrorCode.BAD_REQUEST, kind, "alice")]})
        self.assertEqual(self.state(callId), "ringing")
        self.send("bob", ACCEPT, "alice", callId + long)
        self.assertBothTold(ACCEPT, callId, long)

    def test_shortFields(self) -> None:
        """A request without flags, and any other call frame without a whole call ID, is a badRequest."""
        callId = self.ring()
        for kind, data in ((REQUEST, b""), (ACCEPT, callId[:15]), (REJECT, callId[:15]), (END, callId[:15])):
            self.send("bob", kind, "alice", data)
            self.assertTold({"bob": [error(ErrorCode.BAD_REQUEST, kind, "alice")]})
        self.assertEqual(self.state(callId), "ringing")

    def test_badUserIds(self) -> None:
        """A call frame to what is no user ID is a badRequest."""
        for kind in (REQUEST, ACCEPT, REJECT, END):
            for userId in (b"", b"#group", b"a/b", b"\xff", b" alice", b"x" * 129):
                self.clients["alice"].send(kind, userId, bytes(17))
                self.assertTold({"alice": [error(ErrorCode.BAD_REQUEST, kind, "")]})


class ReasonTests(CallScene):
    """Codes and texts of REJECT and END."""

    def test_rejectCodes(self) -> None:
        """Of a callee's reject codes 0, 1, 6 and 7 are passed on; all others become 0."""
        for code in (*range(9), 127, 255):
            self.open()
            callId = self.ring()
            self.send("bob", REJECT, "alice", callId + bytes((code,)) + b"sorry")
            passedOn = code if code in (0, 1, 6, 7) else 0
            self.assertBothTold(REJECT, callId, bytes((passedOn,)) + b"sorry")

    def test_endCodes(self) -> None:
        """End codes are the server's own, whatever a client writes there."""
        for code in (*range(7), 255):
            for state, expected in (("ringing", EndCode.CANCELLED), ("active", EndCode.HUNG_UP)):
                self.open()
                callId = self.callThatIs(state)
                self.send("alice", END, "bob", callId + bytes((code,)))
                self.assertBothTold(END, callId, bytes((expected,)))

    def test_leftOut(self) -> None:
        """A client may leave out code and text, which then are 0 and empty."""
        callId = self.ring()
        self.send("bob", REJECT, "alice", callId)
        self.assertBothTold(REJECT, callId, b"\0")
        callId = self.talk()
        self.send("bob", END, "alice", callId)
        self.assertBothTold(END, callId, b"\0")

    def test_lengths(self) -> None:
        """A reason text has at most 1,024 bytes; else badRequest, and the call goes on."""
        for state, kind in (("ringing", REJECT), ("active", END)):
            self.open()
            callId = self.callThatIs(state)
            self.send("bob", kind, "alice", callId + b"\0" + b"x" * 1_025)
            self.assertTold({"bob": [error(ErrorCode.BAD_REQUEST, kind, "alice")]})
            self.assertEqual(self.state(callId), state)
            self.send("bob", kind, "alice", callId + b"\0" + b"x" * 1_024)
            self.assertBothTold(kind, callId, b"\0" + b"x" * 1_024)

    def test_opaque(self) -> None:
        """A reason text is opaque: it need not be UTF-8."""
        callId = self.ring()
        self.send("bob", REJECT, "alice", callId + b"\0\xff\xfe")
        self.assertBothTold(REJECT, callId, b"\0\xff\xfe")


class RefusalTests(CallScene):
    """A request that cannot ring is answered to the caller alone, and the reasons are tested in order."""

    def assertRefused(self, caller: str, callee: str, code: RejectCode) -> None:
        """The caller gets a REJECT under a fresh call ID, and nobody anything else."""
        self.send(caller, REQUEST, callee, b"\0" + OFFER)
        (refusal,) = self.clients[caller].received()
        callId = refusal.data[:16]
        self.assertEqual(refusal, refusalOf(callee, callId, code))
        self.assertTold()
        self.assertIsNone(self.state(callId))
        for kind in (ACCEPT, END):  # there never was such a call
            self.send(caller, kind, callee, callId)
            self.assertTold({caller: [error(ErrorCode.NO_SUCH_CALL, kind, callee)]})

    def spend(self, name: str) -> None:
        """Use up the calls which a user may make at once."""
        for _ in range(10):
            self.send(name, REQUEST, "nobody", b"\0")
        self.assertEqual({m.data[16:] for m in self.clients[name].received()}, {bytes((RejectCode.OFFLINE,))})

    def test_toSelf(self) -> None:
        """Nobody can call oneself."""
        self.assertRefused("alice", "alice", RejectCode.TO_SELF)

    def test_toSelf_first(self) -> None:
        """ToSelf goes before overloaded and busy."""
        self.spend("alice")
        self.assertRefused("alice", "alice", RejectCode.TO_SELF)
        self.ring("bob", "carol")
        self.assertRefused("bob", "bob", RejectCode.TO_SELF)

    def test_overloaded(self) -> None:
        """A user makes 10 requests at once and 10 a minute; others are not affected."""
        self.spend("alice")
        self.assertRefused("alice", "bob", RejectCode.OVERLOADED)
        self.assertRefused("bob", "nobody", RejectCode.OFFLINE)
        self.server.advance(6 - A_MOMENT)
        self.assertRefused("alice", "bob", RejectCode.OVERLOADED)
        self.server.advance(A_MOMENT)
        self.ring()
        self.assertRefused("alice", "carol", RejectCode.OVERLOADED)
        self.server.advance(60)
        self.forgetFrames()
        for _ in range(10):
            self.assertRefused("alice", "nobody", RejectCode.OFFLINE)
        self.assertRefused("alice", "nobody", RejectCode.OVERLOADED)

    def test_overloaded_beforeBusyAndOffline(self) -> None:
        """Overloaded goes before busy and offline."""
        self.spend("alice")
        self.talk("bob", "carol")
        self.assertRefused("alice", "bob", RejectCode.OVERLOADED)
        self.assertRefused("alice", "nobody", RejectCode.OVERLOADED)

    def test_busy(self) -> None:
        """Whoever is in a ringing or active call, as caller or callee, neither calls another nor can be called."""
        self.login("dave")
        for state in ("ringing", "active"):
            callId = self.callThatIs(state)
            for name in PEER:
                self.assertRefused("carol", name, RejectCode.BUSY)
                self.assertRefused(name, "carol", RejectCode.BUSY)
            self.assertEqual(self.state(callId), state)
            self.send("alice", END, "bob", callId)
            self.forgetFrames()
        self.ring("carol", "bob")

    def test_busy_theSameTwo(self) -> None:
        """The two parties of an active call are busy for each other too."""
        self.talk()
        for name, peer in PEER.items():
            self.assertRefused(name, peer, RejectCode.BUSY)
        self.assertTrue(self.mediaFlows())

    def test_busy_inGrace(self) -> None:
        """A party in its grace is busy, not offline; when its call is over it is offline."""
        for state, grace in (("ringing", 5), ("active", 15)):
            self.open()
            self.callThatIs(state)
            self.drop("bob")
            self.server.advance(grace - A_MOMENT)
            self.assertRefused("carol", "bob", RejectCode.BUSY)
            self.server.advance(A_MOMENT)
            self.forgetFrames()
            self.assertRefused("carol", "bob", RejectCode.OFFLINE)

    def test_busy_beforeOffline(self) -> None:
        """Busy goes before offline: whoever is in a call is told so, even if the callee is offline."""
        self.talk()
        self.assertRefused("alice", "nobody", RejectCode.BUSY)

    def test_offline(self) -> None:
        """Who is not online cannot be called."""
        self.assertRefused("alice", "nobody", RejectCode.OFFLINE)
        self.drop("bob")
        self.assertRefused("alice", "bob", RejectCode.OFFLINE)


# -- Time ----------------------------------------------------------------------------------------------------------


class TimeTests(CallScene):
    """What ends a call by itself."""

    def test_ring(self) -> None:
        """A call that nobody answers rings for 30 s."""
        callId = self.ring()
        self.assertToldAfter(
            30, {name: [call(REJECT, peer, callId, RejectCode.NO_ANSWER)] for name, peer in PEER.items()}
        )
        self.assertEqual(self.state(callId), "ended")

    def test_ring_other(self) -> None:
        """How long a call rings is an option."""
        self.open(ringTimeout=7)
        callId = self.ring()
        self.assertToldAfter(
            7, {name: [call(REJECT, peer, callId, RejectCode.NO_ANSWER)] for name, peer in PEER.items()}
        )

    def test_ring_answered(self) -> None:
        """An answered call does not end after 30 s."""
        self.ring()
        self.server.advance(30 - A_MOMENT)
        self.send("bob", REQUEST, "alice", b"\0")
        self.forgetFrames()
        self.server.advance(60)
        self.assertTrue(self.mediaFlows())

    def test_maximum(self) -> None:
        """A call lasts 12 h at most, from its answer on."""
        callId = self.ring()
        self.server.advance(20)
        self.send("bob", ACCEPT, "alice", callId)
        self.forgetFrames()
        self.server.clock.advance(12 * 3600 - A_MOMENT)  # in one step, as nothing else happens
        self.assertTrue(self.mediaFlows())
        self.server.clock.advance(A_MOMENT)
        self.assertBothTold(END, callId, bytes((EndCode.MAX_DURATION,)))
        self.assertFalse(self.mediaFlows())

    def test_maximum_other(self) -> None:
        """How long a call lasts is an option."""
        self.open(maxCall=60)
        callId = self.talk()
        self.assertToldAfter(60, {name: [call(END, peer, callId, EndCode.MAX_DURATION)] for name, peer in PEER.items()})

    def test_maximum_inGrace(self) -> None:
        """The maximum ends a call also while a party is away, which is told when it is back."""
        self.open(maxCall=20)
        callId = self.talk()
        self.server.advance(10)
        self.drop("bob")
        self.assertToldAfter(10, {"alice": [call(END, "bob", callId, EndCode.MAX_DURATION)]})
        self.server.advance(10)
        self.login("bob")
        self.assertTold({"bob": [call(END, "alice", callId, EndCode.MAX_DURATION)]})

    def test_noMaximum(self) -> None:
        """0 stands for no maximum."""
        self.open(maxCall=0)
        self.talk()
        self.server.clock.advance(100 * 3600)
        self.assertTrue(self.mediaFlows())

    def test_remembered(self) -> None:
        """An ended call is remembered for 32 s; then it is unknown."""
        callId = self.over()
        self.server.advance(32 - A_MOMENT)
        self.send("alice", END, "bob", callId)
        self.assertTold()
        self.assertEqual(self.state(callId), "ended")
        self.server.advance(A_MOMENT)
        self.send("alice", END, "bob", callId)
        self.assertTold({"alice": [error(ErrorCode.NO_SUCH_CALL, END, "bob")]})
        self.assertIsNone(self.state(callId))

    def test_remembered_eachForItself(self) -> None:
        """Each ended call is remembered from its own end on."""
        first = self.over()
        self.server.advance(20)
        second = self.over()
        self.server.advance(12)
        self.assertEqual([self.state(first), self.state(second)], [None, "ended"])
        self.server.advance(20)
        self.assertIsNone(self.state(second))

    def test_remembered_atMost(self) -> None:
        """At most 10,000 ended calls are remembered; for one more the oldest is forgotten, an untold end with it."""
        self.assertEqual(MAX_REMEMBERED, 10_000)
        self.open(limits=Limits.none())
        first = self.talk()
        self.drop("alice")
        self.send("bob", END, "alice", first)
        ids = [first]
        while len(ids) <= 10_000:
            callId = self.calls.initiateCall("bob", "carol")
            self.assertTrue(self.calls.endCall(callId))
            ids.append(bytes.fromhex(callId))
            if len(ids) in (10_000, 10_001):
                self.assertEqual(self.state(first), "ended" if len(ids) == 10_000 else None)
                self.assertEqual(self.state(ids[1]), "ended")
            self.server.pump()
        self.assertEqual(self.state(ids[-10_001]), None)
        self.assertEqual(self.state(ids[-10_000]), "ended")
        self.clients.clear()
        self.login("alice")
        self.assertTold()


class GraceTests(CallScene):
    """A party whose connection is lost has some time to come back."""

    def test_ringing(self) -> None:
        """While a call rings a party may be away for 5 s; then the call is cancelled, or its callee offline."""
        for name, kind, code in (("alice", END, EndCode.CANCELLED), ("bob", REJECT, RejectCode.OFFLINE)):
            self.open()
            callId = self.ring()
            self.server.advance(1)
            self.drop(name)
            self.assertToldAfter(5, {PEER[name]: [call(kind, name, callId, code)]})
            self.assertEqual(self.state(callId), "ended")
            self.login(name)
            self.assertTold({name: [call(kind, PEER[name], callId, code)]})

    def test_ringing_shorter(self) -> None:
        """The grace of a ringing call is that of an active one where that is shorter, and no longer where it is not."""
        for callGrace, expected in ((2, 2), (60, 5)):
            self.open(callGrace=callGrace)
            callId = self.ring()
            self.drop("alice")
            self.assertToldAfter(expected, {"bob": [call(END, "alice", callId, EndCode.CANCELLED)]})

    def test_ringing_back(self) -> None:
        """A party that is back in time gets its CALL_REQUEST again, and the call rings on."""
        for name, offer in (("alice", b""), ("bob", OFFER)):
            self.open()
            callId = self.ring()
            self.drop(name)
            self.server.advance(5 - A_MOMENT)
            self.login(name)
            self.assertTold({name: [call(REQUEST, PEER[name], callId, 0, offer)]})
            self.server.advance(10)
            self.assertTold()
            self.send("bob", ACCEPT, "alice", callId + ANSWER)
            self.assertBothTold(ACCEPT, callId, ANSWER)
            self.assertTrue(self.mediaFlows())

    def test_ringing_goesOn(self) -> None:
        """The 30 s of ringing go on while a party is away."""
        callId = self.ring()
        self.server.advance(28)
        self.drop("bob")
        self.assertToldAfter(2, {"alice": [call(REJECT, "bob", callId, RejectCode.NO_ANSWER)]})
        self.login("bob")
        self.assertTold({"bob": [call(REJECT, "alice", callId, RejectCode.NO_ANSWER)]})

    def test_ringing_peerActs(self) -> None:
        """While a party is away the other one can end the call, and the absent one learns it."""
        for name, kind, code in (("alice", REJECT, RejectCode.BUSY), ("bob", END, EndCode.CANCELLED)):
            self.open()
            callId = self.ring()
            self.drop(name)
            self.send(PEER[name], kind, name, callId + b"\1why")
            self.assertTold({PEER[name]: [call(kind, name, callId, code, b"why")]})
            self.server.advance(20)
            self.assertTold()
            self.login(name)
            self.assertTold({name: [call(kind, PEER[name], callId, code, b"why")]})

    def test_active(self) -> None:
        """In an active call a party may be away for 15 s; then it is peerLost."""
        for name in PEER:
            self.open()
            callId = self.talk()
            self.server.advance(1)
            self.drop(name)
            self.assertToldAfter(15, {PEER[name]: [call(END, name, callId, EndCode.PEER_LOST)]})
            self.login(name)
            self.assertTold({name: [call(END, PEER[name], callId, EndCode.PEER_LOST)]})

    def test_active_other(self) -> None:
        """The grace of an active call is an option."""
        self.open(callGrace=40)
        callId = self.talk()
        self.drop("bob")
        self.assertToldAfter(40, {"alice": [call(END, "bob", callId, EndCode.PEER_LOST)]})

    def test_active_back(self) -> None:
        """A party that is back in time gets CALL_ACCEPT again, the other one nothing, and media flows."""
        for name in PEER:
            self.open()
            callId = self.talk()
            self.drop(name)
            self.server.advance(15 - A_MOMENT)
            self.login(name)
            self.assertTold({name: [Message(ACCEPT, PEER[name], callId + ANSWER)]})
            self.assertTrue(self.mediaFlows())
            self.server.advance(60)
            self.assertTold()
            self.assertEqual(self.state(callId), "active")

    def test_active_eachLoss(self) -> None:
        """Each loss has its own grace."""
        callId = self.talk()
        for _ in range(3):
            self.drop("bob")
            self.server.advance(14)
            self.login("bob")
            self.forgetFrames()
        self.drop("bob")
        self.assertToldAfter(15, {"alice": [call(END, "bob", callId, EndCode.PEER_LOST)]})

    def test_acceptedInGrace(self) -> None:
        """When the callee accepts while the caller is away, the caller has the active grace from its loss on."""
        callId = self.ring()
        self.drop("alice")
        self.server.advance(4)
        self.send("bob", ACCEPT, "alice", callId + ANSWER)
        self.assertTold({"bob": [Message(ACCEPT, "alice", callId + ANSWER)]})
        self.assertEqual(self.state(callId), "active")
        self.assertToldAfter(11, {"bob": [call(END, "alice", callId, EndCode.PEER_LOST)]})

    def test_acceptedInGrace_back(self) -> None:
        """A caller that comes back to a call which was accepted meanwhile gets the CALL_ACCEPT."""
        callId = self.ring()
        self.drop("alice")
        self.server.advance(4)
        self.send("bob", ACCEPT, "alice", callId + ANSWER)
        self.forgetFrames()
        self.server.advance(11 - A_MOMENT)
        self.login("alice")
        self.assertTold({"alice": [Message(ACCEPT, "bob", callId + ANSWER)]})
        self.assertTrue(self.mediaFlows())
        self.server.advance(30)
        self.assertEqual(self.state(callId), "active")

    def test_both(self) -> None:
        """When both are away the first grace to end ends the call, and both learn it."""
        for state, kind, code, first in (
            ("ringing", END, EndCode.CANCELLED, "alice"),
            ("ringing", REJECT, RejectCode.OFFLINE, "bob"),
            ("active", END, EndCode.PEER_LOST, "bob"),
        ):
            self.open()
            callId = self.callThatIs(state)
            self.drop(first)
            self.server.advance(1)
            self.drop(PEER[first])
            self.server.advance(30)
            for name in PEER:
                self.login(name)
                self.assertTold({name: [call(kind, PEER[name], callId, code)]})

    def test_both_back(self) -> None:
        """When both were away and come back in time the call goes on."""
        callId = self.talk()
        self.drop("alice", "bob")
        self.server.advance(10)
        for name in PEER:
            self.login(name)
            self.assertTold({name: [Message(ACCEPT, PEER[name], callId + ANSWER)]})
        self.server.advance(20)
        self.assertTrue(self.mediaFlows())

    def test_offlineForTheRest(self) -> None:
        """Who is in grace is offline for text, presence and files."""
        self.talk()
        self.drop("bob")
        self.assertNotIn("bob", self.server.factory.getOnlineUsers())
        self.send("alice", MessageType.TEXT, "bob", b"hello")
        self.send("alice", MessageType.FILE, "bob", bytes(1 + 16 + 8 + 32) + b"name")
        self.send("alice", MessageType.PRESENCE, "", b"\0")
        self.assertTold(
            {
                "alice": [
                    error(ErrorCode.OFFLINE, MessageType.TEXT, "bob"),
                    error(ErrorCode.OFFLINE, MessageType.FILE, "bob"),
                    Message(MessageType.PRESENCE, "carol", b"\1"),
                    Message(MessageType.PRESENCE, "", b"\0\0\0\1"),
                ]
            }
        )

    def test_told(self) -> None:
        """A party that was absent when its call ended is told within 32 s, once; after that it is not."""
        for seconds, isTold in ((32 - A_MOMENT, True), (32, False)):
            self.open()
            callId = self.talk()
            self.drop("bob")
            self.send("alice", END, "bob", callId + b"\0bye")
            self.forgetFrames()
            self.server.advance(seconds)
            self.login("bob")
            self.assertTold({"bob": [call(END, "alice", callId, EndCode.HUNG_UP, b"bye")]} if isTold else {})
            self.drop("bob")
            self.login("bob")
            self.assertTold()

    def test_told_thoughInAnotherCall(self) -> None:
        """An absent party is told of the end also when the other one is in a new call by then."""
        callId = self.talk()
        self.drop("bob")
        self.send("alice", END, "bob", callId)
        self.ring("alice", "carol")
        self.login("bob")
        self.assertTold({"bob": [call(END, "alice", callId, EndCode.HUNG_UP)]})

    def test_presentPartiesAreNotToldAgain(self) -> None:
        """Who was present when its call ended hears nothing of it on the next registration."""
        self.over()
        self.drop("bob")
        self.login("bob")
        self.assertTold()

    def test_registrationFirst(self) -> None:
        """The call's frame follows the registration's HEARTBEAT at once, also after a LOGIN."""
        callId = self.talk()
        self.drop("bob")
        bob = self.server.connect()
        bob.send(MessageType.LOGIN, "bob")
        self.assertEqual(
            [(m.type, m.userId) for m in bob.received()],
            [(MessageType.AUTH_RESPONSE, "bob"), (MessageType.HEARTBEAT, "bob"), (ACCEPT, "alice")],
        )
        self.assertEqual(self.state(callId), "active")


class TakeoverTests(CallScene):
    """A takeover carries calls over, as if the connection were lost and registered again at once."""

    def bySession(self, name: str, *frames: bytes) -> FakeClient:
        """Take over with the old session ID; send more in the same breath."""
        newcomer = self.server.connect()
        payload = bytes((MessageType.ACK,)) + len(name).to_bytes(2, "big") + name.encode()
        payload += bytes(4) + self.clients[name].sessionId
        newcomer.sendBytes(b"".join(len(p).to_bytes(2, "big") + p for p in (payload, *frames)))
        return newcomer

    def byProbe(self, name: str) -> FakeClient:
        """Take over from a connection that gives no sign of life for 5 s."""
        newcomer = self.server.connect()
        newcomer.send(MessageType.HEARTBEAT, name)
        self.server.advance(5 - A_MOMENT)
        self.assertTold({name: [Message(MessageType.HEARTBEAT, name, b"")]})
        self.server.advance(A_MOMENT)
        return newcomer

    def assertCarriedOver(self, state: str, name: str, takeOver: Callable[[str], FakeClient], frame: Message) -> None:
        """The newcomer gets C{frame} after its HEARTBEAT, and the old connection's end changes nothing."""
        newcomer = takeOver(name)
        old, self.clients[name] = self.clients[name], newcomer
        self.assertEqual([withoutText(m) for m in old.received()], [error(ErrorCode.REPLACED, 255, "")])
        greeting, *rest = newcomer.received()
        self.assertEqual((greeting.type, len(greeting.data)), (MessageType.HEARTBEAT, 16))
        self.assertEqual(rest, [frame])
        old.drop()
        self.server.advance(16)
        self.assertTold()
        self.assertTrue(self.calls.isUserInCall(name))
        if state == "active":
            self.assertTrue(self.mediaFlows())
            self.assertEqual(old.received(), [])

    def test_ringing(self) -> None:
        """A newcomer that takes a ringing call over gets its CALL_REQUEST again."""
        for takeOver in (self.bySession, self.byProbe):
            for name, offer in (("alice", b""), ("bob", OFFER)):
                self.open()
                callId = self.ring()
                self.assertCarriedOver("ringing", name, takeOver, call(REQUEST, PEER[name], callId, 0, offer))
                self.send("bob", ACCEPT, "alice", callId)
                self.assertBothTold(ACCEPT, callId, b"")

    def test_active(self) -> None:
        """A newcomer that takes an active call over gets its CALL_ACCEPT again, and the media."""
        for takeOver in (self.bySession, self.byProbe):
            for name in PEER:
                self.open()
                callId = self.talk()
                self.assertCarriedOver("active", name, takeOver, Message(ACCEPT, PEER[name], callId + ANSWER))

    def test_pipelined(self) -> None:
        """What a newcomer sends right behind its first frame is taken after the call's frame was sent."""
        callId = self.talk()
        newcomer = self.bySession("bob", bytes((END,)) + b"\0\5alice" + callId)
        self.assertEqual([m.type for m in newcomer.received()], [MessageType.HEARTBEAT, ACCEPT, END])
        self.clients.pop("bob")
        self.assertTold({"alice": [call(END, "bob", callId, EndCode.HUNG_UP)]})

    def test_wrongSession(self) -> None:
        """A newcomer that is turned away leaves the call as it is."""
        self.talk()
        self.clients["bob"].sessionId = bytes(16)
        newcomer = self.bySession("bob")
        self.assertEqual(newcomer.received(), [])
        self.send("bob", MessageType.HEARTBEAT, "")
        self.assertEqual([m.data[0] for m in newcomer.received()], [ErrorCode.ID_IN_USE])
        self.forgetFrames()
        self.assertTrue(self.mediaFlows())


class StopTests(CallScene):
    """The server stops."""

    def test_toldBoth(self) -> None:
        """Both parties of every ringing and active call get END shuttingDown, and then the ERROR."""
        self.login("dave")
        active, ringing = self.talk(), self.ring("carol", "dave")
        stopped = self.server.factory.stopServer()
        last = error(ErrorCode.SHUTTING_DOWN, 255, "")
        code = EndCode.SHUTTING_DOWN
        self.assertTold(
            {
                "alice": [call(END, "bob", active, code), last],
                "bob": [call(END, "alice", active, code), last],
                "carol": [call(END, "dave", ringing, code), last],
                "dave": [call(END, "carol", ringing, code), last],
            }
        )
        self.assertFalse(any(self.calls.isUserInCall(name) for name in self.clients))
        self.drop(*self.clients)
        self.assertIsNone(self.successResultOf(stopped))

    def test_absent(self) -> None:
        """A call whose party is away ends too, and no timer of it or of any ended call is left."""
        self.over()
        callId = self.talk()
        self.drop("alice")
        stopped = self.server.factory.stopServer()
        self.assertTold(
            {
                "bob": [call(END, "alice", callId, EndCode.SHUTTING_DOWN), error(ErrorCode.SHUTTING_DOWN, 255, "")],
                "carol": [error(ErrorCode.SHUTTING_DOWN, 255, "")],
            }
        )
        self.drop("bob", "carol")
        self.assertIsNone(self.successResultOf(stopped))
        self.server.advance(1)
        self.assertEqual(self.server.clock.getDelayedCalls(), [])

    def test_neverUsed(self) -> None:
        """A server without any call stops too."""
        self.drop(*self.clients)
        self.assertIsNone(self.successResultOf(self.server.factory.stopServer()))


# -- For applications ----------------------------------------------------------------------------------------------

Use = Callable[[VideoCallServer, str], bool]
"""What an application does with the call of that ID."""


def apiCell(
    rule: str, state: str, use: Use, result: bool, outcome: Outcome, after: str | None = None
) -> Callable[[CallScene], None]:
    """Return the test of one cell: in C{state}, C{use} returns C{result}, and C{outcome} is what clients get."""

    def test(self: CallScene) -> None:
        callId = self.callThatIs(state)
        self.assertIs(use(self.calls, callId.hex()), result)
        self.assertTold(outcome(Event("alice", "bob", MEDIA, callId)))
        self.assertEqual(self.state(callId), after or state)

    test.__doc__ = rule
    return test


def accepts(calls: VideoCallServer, callId: str) -> bool:
    """Accept for the callee."""
    return calls.acceptCall(callId, b"fine")


def rejects(calls: VideoCallServer, callId: str) -> bool:
    """Reject for the callee."""
    return calls.rejectCall(callId, "why")


def ends(calls: VideoCallServer, callId: str) -> bool:
    """End for either."""
    return calls.endCall(callId, "why")


def relays(calls: VideoCallServer, callId: str) -> bool:
    """Send media to bob."""
    return calls.relayMediaData(callId, "alice", b"\0sound")


def toBob(event: Event) -> dict[str, list[Message]]:
    """Bob gets alice's media."""
    return {"bob": [Message(MEDIA, "alice", b"\0sound")]}


class TableThroughTheApiTests(CallScene):
    """Every cell of the table that an application can reach, with what it returns."""

    test_acceptRinging = apiCell(
        "An application accepts for the callee.", "ringing", accepts, True, both(ACCEPT, b"fine"), "active"
    )
    test_acceptActive = apiCell("An active call is not accepted again.", "active", accepts, False, ignored)
    test_acceptEnded = apiCell("An ended call cannot be accepted.", "ended", accepts, False, ignored)
    test_rejectRinging = apiCell("An application rejects for the callee.", "ringing", rejects, True, DECLINED, "ended")
    test_rejectActive = apiCell("An active call cannot be rejected.", "active", rejects, False, ignored)
    test_rejectEnded = apiCell("An ended call cannot be rejected.", "ended", rejects, False, ignored)
    test_endRinging = apiCell("An application cancels a ringing call.", "ringing", ends, True, CANCELLED, "ended")
    test_endActive = apiCell("An application hangs up.", "active", ends, True, HUNG_UP, "ended")
    test_endEnded = apiCell("An ended call cannot be ended again.", "ended", ends, False, ignored)
    test_mediaRinging = apiCell("Media of a ringing call is dropped.", "ringing", relays, False, ignored)
    test_mediaActive = apiCell("Media of an active call goes to the other party.", "active", relays, True, toBob)
    test_mediaEnded = apiCell("Media of an ended call is dropped.", "ended", relays, False, ignored)


class ApiTests(CallScene):
    """C{VideoCallServer} as an application uses it: the same rules as on the wire."""

    def test_initiate(self) -> None:
        """C{initiateCall} rings, with the flag for video, and returns the ID which both parties get."""
        for isVideo in (False, True):
            self.open()
            callId = bytes.fromhex(self.calls.initiateCall("alice", "bob", isVideo, OFFER))
            self.assertTold(
                {
                    "alice": [call(REQUEST, "bob", callId, isVideo)],
                    "bob": [call(REQUEST, "alice", callId, isVideo, OFFER)],
                }
            )

    def test_initiate_refused(self) -> None:
        """Where a request cannot ring C{initiateCall} returns an empty string, and the caller gets the REJECT."""
        self.login("dave")
        self.talk("bob", "carol")

        def assertRefused(caller: str, callee: str, code: RejectCode) -> None:
            self.assertEqual(self.calls.initiateCall(caller, callee, False), "")
            (refusal,) = self.clients[caller].received()
            self.assertEqual(refusal, refusalOf(callee, refusal.data[:16], code))
            self.assertTold()

        assertRefused("alice", "alice", RejectCode.TO_SELF)
        assertRefused("alice", "bob", RejectCode.BUSY)
        assertRefused("bob", "carol", RejectCode.BUSY)
        for _ in range(9):
            assertRefused("alice", "nobody", RejectCode.OFFLINE)
        assertRefused("alice", "bob", RejectCode.OVERLOADED)

    def test_initiate_nobodyToTell(self) -> None:
        """A caller that is not online, no user ID, or too long an offer: nothing rings, and nobody is told."""
        for caller, callee in (("nobody", "bob"), ("", "bob"), ("alice", ""), ("alice", "#group"), ("alice", "a/b")):
            self.assertEqual(self.calls.initiateCall(caller, callee), "")
        self.assertEqual(self.calls.initiateCall("alice", "bob", offer=bytes(16_385)), "")
        self.assertTold()
        self.assertNotEqual(self.calls.initiateCall("alice", "bob", offer=bytes(16_384)), "")

    def test_initiate_again(self) -> None:
        """A second C{initiateCall} returns the call that rings already and sends its confirmation again."""
        callId = self.ring()
        self.assertEqual(self.calls.initiateCall("alice", "bob"), callId.hex())
        self.assertTold({"alice": [call(REQUEST, "bob", callId, 0)]})

    def test_initiate_glare(self) -> None:
        """An C{initiateCall} against a ringing one accepts that."""
        callId = self.ring()
        self.assertEqual(self.calls.initiateCall("bob", "alice", offer=b"bob's"), callId.hex())
        self.assertBothTold(ACCEPT, callId, b"bob's")

    def test_initiate_glareInGrace(self) -> None:
        """An C{initiateCall} against the ringing call of a caller in grace accepts it too."""
        callId = self.ring()
        self.drop("alice")
        self.assertEqual(self.calls.initiateCall("bob", "alice"), callId.hex())
        self.assertTold({"bob": [Message(ACCEPT, "alice", callId)]})
        self.assertEqual(self.calls.initiateCall("alice", "bob"), "")

    def test_accept_absentCallee(self) -> None:
        """Accepted for a callee who is away, the call is active, and the callee has the active grace from its loss."""
        callId = self.ring()
        self.drop("bob")
        self.server.advance(4)
        self.assertTrue(self.calls.acceptCall(callId.hex()))
        self.assertTold({"alice": [Message(ACCEPT, "bob", callId)]})
        self.assertToldAfter(11, {"alice": [call(END, "bob", callId, EndCode.PEER_LOST)]})

    def test_rejectCodes(self) -> None:
        """C{rejectCall} passes on the codes that a callee may give; all others become declined."""
        for code in range(9):
            self.open()
            callId = self.ring()
            self.assertTrue(self.calls.rejectCall(callId.hex(), "büro zu", code))
            passedOn = code if code in (0, 1, 6, 7) else 0
            self.assertBothTold(REJECT, callId, bytes((passedOn,)) + "büro zu".encode())

    def test_lengths(self) -> None:
        """What is too long for the wire is refused, the call goes on, and one byte less is taken."""
        callId = self.ring().hex()
        self.assertFalse(self.calls.acceptCall(callId, bytes(16_385)))
        self.assertFalse(self.calls.rejectCall(callId, "ü" * 513))
        self.assertFalse(self.calls.endCall(callId, "x" * 1_025))
        self.assertTold()
        self.assertTrue(self.calls.acceptCall(callId, bytes(16_384)))
        self.assertTrue(self.calls.endCall(callId, "ü" * 512))
        self.assertTrue(self.calls.rejectCall(self.ring().hex(), "x" * 1_024))

    def test_unknownCalls(self) -> None:
        """With an ID that no call has, or that is none, nothing happens."""
        self.talk()
        for callId in ("00" * 16, "", "call", "é"):
            for use in (accepts, rejects, ends, relays):
                self.assertIs(use(self.calls, callId), False, callId)
            self.assertIsNone(self.calls.getCallSession(callId))
        self.assertTold()

    def test_media(self) -> None:
        """C{relayMediaData} serves both parties; what it drops is counted."""
        callId = self.talk().hex()
        self.assertTrue(self.calls.relayMediaData(callId, "bob", b"\0hm"))
        self.assertTold({"alice": [Message(MEDIA, "bob", b"\0hm")]})
        self.drop("bob")
        before = self.counted()
        for user, of in (("carol", callId), ("nobody", callId), ("alice", "00" * 16), ("alice", callId)):
            self.assertFalse(self.calls.relayMediaData(of, user, b"\0"))
        self.assertTold()
        self.assertEqual(self.counted(), before + 4)

    def test_media_tooLong(self) -> None:
        """C{relayMediaData} returns false for what no frame can hold."""
        callId = self.talk().hex()
        self.assertTrue(self.calls.relayMediaData(callId, "alice", bytes(65_527)))
        self.forgetFrames()
        self.assertIs(self.calls.relayMediaData(callId, "alice", bytes(65_528)), False)
        self.assertTold()

    def test_sessions(self) -> None:
        """C{getCallSession} returns a snapshot of a call in every state, with its times."""
        self.server.advance(1)
        callId = self.calls.initiateCall("alice", "bob", True)
        ringing = CallSession(callId, "alice", "bob", True, "ringing", startedAt=1.0)
        self.assertEqual(self.calls.getCallSession(callId), ringing)
        self.server.advance(1)
        self.calls.acceptCall(callId)
        active = CallSession(callId, "alice", "bob", True, "active", startedAt=1.0, answeredAt=2.0)
        self.assertEqual(self.calls.getCallSession(callId), active)
        self.server.advance(1)
        self.calls.endCall(callId)
        ended = CallSession(callId, "alice", "bob", True, "ended", startedAt=1.0, answeredAt=2.0, endedAt=3.0)
        self.assertEqual(self.calls.getCallSession(callId), ended)

    def test_activeCalls(self) -> None:
        """C{getActiveCalls} returns the calls in which the parties talk, a party in grace or not, oldest first."""
        self.login("dave")
        self.assertEqual(self.calls.getActiveCalls(), [])
        first, second = self.ring(), self.ring("carol", "dave")
        self.assertEqual(self.calls.getActiveCalls(), [])
        self.calls.acceptCall(second.hex())
        self.calls.acceptCall(first.hex())
        self.drop("dave")
        self.assertEqual([s.callId for s in self.calls.getActiveCalls()], [first.hex(), second.hex()])
        self.calls.endCall(first.hex())
        self.assertEqual([s.callId for s in self.calls.getActiveCalls()], [second.hex()])

    def test_inCall(self) -> None:
        """C{isUserInCall} is true for both parties of a ringing or active call, in grace too, and for nobody else."""

        def inCall() -> set[str]:
            return {name for name in ("alice", "bob", "carol", "nobody", "") if self.calls.isUserInCall(name)}

        self.assertEqual(inCall(), set())
        callId = self.ring()
        self.assertEqual(inCall(), {"alice", "bob"})
        self.calls.acceptCall(callId.hex())
        self.drop("bob")
        self.assertEqual(inCall(), {"alice", "bob"})
        self.calls.endCall(callId.hex())
        self.assertEqual(inCall(), set())


class Recorder(ServerObserver):
    """Writes down what happens to calls, and may do something about it."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []
        self.react: dict[str, Callable[[CallSession], object]] = {}

    def _note(self, event: str, session: CallSession, *rest: object) -> None:
        self.events.append((event, session.state, *rest))
        self.react.get(event, lambda s: None)(session)

    def callInitiated(self, session: CallSession) -> None:
        """It rings."""
        self._note("initiated", session)

    def callAccepted(self, session: CallSession) -> None:
        """It was answered."""
        self._note("accepted", session)

    def callRejected(self, session: CallSession, code: int, reason: str) -> None:
        """It was not."""
        self._note("rejected", session, code, reason)

    def callEnded(self, session: CallSession, code: int, reason: str) -> None:
        """It is over."""
        self._note("ended", session, code, reason)


class ObserverTests(CallScene):
    """What an application hears of calls, and that it may act on what it hears."""

    def open(self, **options: Any) -> None:
        """Begin anew, with somebody who listens."""
        self.recorder = Recorder()
        super().open(observers=[self.recorder], **options)

    def test_events(self) -> None:
        """Observers hear that a call rings, is accepted, rejected and ended, once each, however it came about."""
        callId = self.talk()
        self.send("bob", ACCEPT, "alice", callId)
        self.send("alice", END, "bob", callId + b"\0bye \xff")
        self.send("bob", END, "alice", callId)
        self.assertEqual(
            self.recorder.events,
            [("initiated", "ringing"), ("accepted", "active"), ("ended", "ended", EndCode.HUNG_UP, "bye \ufffd")],
        )
        self.recorder.events.clear()
        callId = self.ring()
        self.send("bob", REJECT, "alice", callId + b"\1later")
        self.ring()
        self.server.advance(30)
        self.assertEqual(
            self.recorder.events,
            [
                ("initiated", "ringing"),
                ("rejected", "ended", RejectCode.BUSY, "later"),
                ("initiated", "ringing"),
                ("rejected", "ended", RejectCode.NO_ANSWER, ""),
            ],
        )

    def test_refusal(self) -> None:
        """Observers hear of a request that could not ring."""
        self.send("alice", REQUEST, "nobody", b"\0")
        self.assertEqual(self.recorder.events, [("rejected", "ended", RejectCode.OFFLINE, "")])

    def test_endsWhatWasInitiated(self) -> None:
        """An observer may end a call that begins to ring."""
        self.recorder.react["initiated"] = lambda session: self.calls.endCall(session.callId)
        self.send("alice", REQUEST, "bob", b"\0")
        for client in (self.clients["alice"], self.clients["bob"]):
            self.assertEqual([m.type for m in client.received()], [REQUEST, END])

    def test_endsWhatWasAccepted(self) -> None:
        """An observer may end a call that was just accepted: both get the ACCEPT before the END."""
        callId = self.ring()
        self.recorder.react["accepted"] = lambda session: self.calls.endCall(session.callId)
        self.send("bob", ACCEPT, "alice", callId)
        for client in (self.clients["alice"], self.clients["bob"]):
            self.assertEqual([m.type for m in client.received()], [ACCEPT, END])

    def test_endsWhatWasAcceptedInGrace(self) -> None:
        """An observer may do so also while the caller is in grace, and that fails nowhere."""
        callId = self.ring()
        self.drop("alice")
        self.recorder.react["accepted"] = lambda session: self.calls.endCall(session.callId)
        self.send("bob", ACCEPT, "alice", callId)
        self.assertEqual([m.type for m in self.clients["bob"].received()], [ACCEPT, END])

    def test_speaksWhenAccepted(self) -> None:
        """Media that an observer sends when it hears of an accepted call comes after the ACCEPT."""
        callId = self.ring()
        self.recorder.react["accepted"] = lambda session: self.calls.relayMediaData(session.callId, "alice", b"\0hi")
        self.send("bob", ACCEPT, "alice", callId)
        self.assertEqual([m.type for m in self.clients["bob"].received()], [ACCEPT, MEDIA])

    def test_redials(self) -> None:
        """An observer may call again when a call has ended."""
        callId = self.talk()
        self.recorder.react["ended"] = lambda session: self.calls.initiateCall(session.caller, session.callee)
        self.send("bob", END, "alice", callId)
        for client in (self.clients["alice"], self.clients["bob"]):
            self.assertEqual([m.type for m in client.received()], [END, REQUEST])

    def test_redialsAStoppingServer(self) -> None:
        """An observer that calls again when the server stops leaves neither a call nor a timer behind."""
        self.talk()
        self.recorder.react["ended"] = lambda session: self.calls.initiateCall(session.caller, session.callee)
        stopped = self.server.factory.stopServer()
        self.server.pump()
        self.drop(*self.clients)
        self.successResultOf(stopped)
        self.assertFalse(self.calls.isUserInCall("alice"))
        self.server.advance(1)
        self.assertEqual(self.server.clock.getDelayedCalls(), [])

    def test_redialsWhoLeaves(self) -> None:
        """Nor does one that calls when a stopping server lets its clients go; the server can be used again."""

        def redial(userId: str) -> None:
            self.calls.initiateCall("alice", "bob")

        self.recorder.clientDisconnected = redial  # type: ignore[method-assign]
        stopped = self.server.factory.stopServer()
        self.server.pump()
        self.drop(*self.clients)
        self.successResultOf(stopped)
        self.server.advance(1)
        self.assertEqual(self.server.clock.getDelayedCalls(), [])
        self.open()
        self.talk()

    def test_failing(self) -> None:
        """What an observer raises is logged and harms no call."""
        self.recorder.react = {event: lambda session: [][0] for event in ("initiated", "accepted", "rejected", "ended")}
        callId = self.talk()
        self.assertTrue(self.mediaFlows())
        self.send("bob", END, "alice", callId)
        self.assertBothTold(END, callId, b"\0")
        callId = self.ring()
        self.send("bob", REJECT, "alice", callId)
        self.assertBothTold(REJECT, callId, b"\0")
        self.assertEqual(len(self.flushLoggedErrors(IndexError)), 5)
