"""
One-to-one calls: the table of calls, and who may do what in one.

Each call is a machine with three states; the server owns every transition.  Names are those of SIP (RFC 3261): a call
rings, is accepted or rejected, or is cancelled by the caller.

::

                    calleeAccepts, or the callee's own request (glare)
        RINGING ------------------------------------------------------> ACTIVE
           |                                                              |
           | calleeRejects, calleeEnds: REJECT                            | callerEnds, calleeEnds: END hungUp
           | callerEnds, callerRejects: END cancelled                     | graceOver: END peerLost
           | ringTimedOut: REJECT noAnswer                                | lastedTooLong: END maxDuration
           | graceOver: END cancelled, REJECT offline                     | serverStops: END shuttingDown
           | serverStops: END shuttingDown                                |
           +---------------------------> ENDED <--------------------------+

A machine does no IO and raises nothing: it leaves effects, and L{VideoCallServer} brings them about when the input has
returned.  Media never passes through a machine; it follows the routes that the table keeps for active calls.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

from attrs import Factory, define, frozen
from automat import TypeMachineBuilder
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from wecompany.interfaces import CallSession, IRouter
from wecompany.limits import RateLimit
from wecompany.wire import (
    ID_SIZE,
    MAX_DESCRIPTION,
    MAX_REASON,
    VIDEO_FLAG,
    EndCode,
    ErrorCode,
    MessageType,
    RejectCode,
    WireError,
    checkLength,
    checkUserId,
    splitId,
    splitReason,
)

RING_TIMEOUT = 30
"""Seconds that a call rings."""

RINGING_GRACE = 5.0
"""Seconds that a party of a ringing call may be away, at most."""

CALL_GRACE = 15
"""Seconds that a party of an active call may be away."""

MAX_CALL = 12 * 3600
"""Seconds that a call may last."""

REMEMBERED_FOR = 32.0
"""Seconds that an ended call answers late packets: SIP's 64 times T1 (RFC 3261, 17.1.2.2)."""

MAX_REMEMBERED = 10_000
"""Ended calls that are remembered at once."""

_REJECT_CODES_OF_CLIENTS = {
    RejectCode.DECLINED,
    RejectCode.BUSY,
    RejectCode.FORBIDDEN,
    RejectCode.UNSUPPORTED,
}

_RECORDED_REFUSALS = {RejectCode.BUSY, RejectCode.OFFLINE}
"""
Those that go into the history, as they are tested behind the rate of requests.  The others come as fast as a client
sends, and would push out of the history what is worth knowing.
"""


# -- What a machine wants done -------------------------------------------------------------------------------------


@frozen
class Tell:
    """Send a frame of this call to one party."""

    party: bytes
    messageType: MessageType
    data: bytes


@frozen
class Refuse:
    """Answer the input with an ERROR."""

    code: ErrorCode
    text: str


@frozen
class Answered:
    """The call is active: let media flow, and tell the observers, who may act at once."""


@frozen
class Over:
    """The call has ended: tell both, and remember it for a while."""

    messageType: MessageType
    code: int
    text: bytes


@frozen
class AwaitReturn:
    """A party is away: wait for it, at most so many seconds from when it was lost."""

    party: bytes
    seconds: float


@frozen
class Ignored:
    """The input came too late to matter: count it."""


Effect = Tell | Refuse | Answered | Over | AwaitReturn | Ignored


@define(eq=False)
class Call:
    """
    What a call's machine knows, and what the table keeps beside it.

    @ivar lostAt: the parties that are away, and since when.
    """

    callId: bytes
    caller: bytes
    callee: bytes
    flags: int
    offer: bytes
    grace: float
    startedAt: float
    answer: bytes = b""
    answeredAt: float | None = None
    endedAt: float | None = None
    lastWord: Over | None = None
    lostAt: dict[bytes, float] = Factory(dict)
    effects: list[Effect] = Factory(list)
    timer: IDelayedCall | None = None
    graces: dict[bytes, IDelayedCall] = Factory(dict)

    def peerOf(self, party: bytes) -> bytes:
        """Return the other party."""
        return self.callee if party == self.caller else self.caller

    def snapshot(self) -> CallSession:
        """Return what an application may see of it."""
        state = "ringing" if self.answeredAt is None else "active"
        return CallSession(
            callId=self.callId.hex(),
            caller=self.caller.decode(),
            callee=self.callee.decode(),
            isVideo=bool(self.flags & VIDEO_FLAG),
            state=state if self.endedAt is None else "ended",
            startedAt=self.startedAt,
            answeredAt=self.answeredAt,
            endedAt=self.endedAt,
        )


# -- The machine ---------------------------------------------------------------------------------------------------


class CallInputs(Protocol):
    """All that can happen to a call.  Every state answers every input, since late packets are normal."""

    def callerAccepts(self, answer: bytes) -> None:
        """An ACCEPT came from the caller."""

    def calleeAccepts(self, answer: bytes) -> None:
        """An ACCEPT came from the callee."""

    def callerRejects(self, code: int, text: bytes) -> None:
        """A REJECT came from the caller."""

    def calleeRejects(self, code: int, text: bytes) -> None:
        """A REJECT came from the callee."""

    def callerEnds(self, text: bytes) -> None:
        """An END came from the caller."""

    def calleeEnds(self, text: bytes) -> None:
        """An END came from the callee."""

    def lost(self, party: bytes) -> None:
        """A party's connection is gone."""

    def returned(self, party: bytes) -> None:
        """A party has registered again."""

    def graceOver(self, party: bytes) -> None:
        """A party has been away for too long."""

    def ringTimedOut(self) -> None:
        """Nobody answered."""

    def lastedTooLong(self) -> None:
        """The maximum duration is reached."""

    def serverStops(self) -> None:
        """The server goes away."""


def _request(call: Call, party: bytes) -> Tell:
    """The CALL_REQUEST in the form that it has for that party."""
    data = call.callId + bytes((call.flags,))
    return Tell(party, MessageType.CALL_REQUEST, data if party == call.caller else data + call.offer)


def _acceptance(call: Call, party: bytes) -> Tell:
    return Tell(party, MessageType.CALL_ACCEPT, call.callId + call.answer)


def _ending(call: Call, over: Over, party: bytes) -> Tell:
    return Tell(party, over.messageType, call.callId + bytes((over.code,)) + over.text)


def _rejected(code: RejectCode, text: bytes = b"") -> Over:
    return Over(MessageType.CALL_REJECT, code, text)


def _ended(code: EndCode, text: bytes = b"") -> Over:
    return Over(MessageType.CALL_END, code, text)


def _makeMachine() -> Callable[[Call], CallInputs]:
    machine = TypeMachineBuilder(CallInputs, Call)
    ringing = machine.state("ringing")
    active = machine.state("active")
    ended = machine.state("ended")
    I = CallInputs  # noqa: E741 - the table below reads as one with a short name

    # -- ringing

    @ringing.upon(I.calleeAccepts).to(active)
    def answered(_: CallInputs, call: Call, answer: bytes) -> None:
        call.answer = answer
        call.effects += [_acceptance(call, call.caller), _acceptance(call, call.callee)]
        # Whoever is away now has the longer grace of an active call.
        call.effects += [AwaitReturn(party, call.grace) for party in call.lostAt]
        call.effects.append(Answered())

    @ringing.upon(I.callerAccepts).loop()
    def notYours(_: CallInputs, call: Call, answer: bytes) -> None:
        call.effects.append(Refuse(ErrorCode.FORBIDDEN, "only the callee can accept a call"))

    @ringing.upon(I.calleeRejects).to(ended)
    def declined(_: CallInputs, call: Call, code: int, text: bytes) -> None:
        known = RejectCode(code) if code in _REJECT_CODES_OF_CLIENTS else RejectCode.DECLINED
        call.effects.append(_rejected(known, text))

    @ringing.upon(I.callerRejects).to(ended)
    def withdrawn(_: CallInputs, call: Call, code: int, text: bytes) -> None:
        call.effects.append(_ended(EndCode.CANCELLED, text))

    @ringing.upon(I.callerEnds).to(ended)
    def cancelled(_: CallInputs, call: Call, text: bytes) -> None:
        call.effects.append(_ended(EndCode.CANCELLED, text))

    @ringing.upon(I.calleeEnds).to(ended)
    def declinedByEnd(_: CallInputs, call: Call, text: bytes) -> None:
        call.effects.append(_rejected(RejectCode.DECLINED, text))

    @ringing.upon(I.lost).loop()
    def lostInRinging(_: CallInputs, call: Call, party: bytes) -> None:
        call.effects.append(AwaitReturn(party, min(RINGING_GRACE, call.grace)))

    @ringing.upon(I.returned).loop()
    def ringAgain(_: CallInputs, call: Call, party: bytes) -> None:
        call.effects.append(_request(call, party))

    @ringing.upon(I.graceOver).to(ended)
    def gaveUpRinging(_: CallInputs, call: Call, party: bytes) -> None:
        byCaller = party == call.caller
        call.effects.append(_ended(EndCode.CANCELLED) if byCaller else _rejected(RejectCode.OFFLINE))

    @ringing.upon(I.ringTimedOut).to(ended)
    def notAnswered(_: CallInputs, call: Call) -> None:
        call.effects.append(_rejected(RejectCode.NO_ANSWER))

    # -- active

    @active.upon(I.calleeAccepts).loop()
    def acceptedAlready(_: CallInputs, call: Call, answer: bytes) -> None:
        call.effects.append(_acceptance(call, call.callee))

    @active.upon(I.callerRejects).loop()
    @active.upon(I.calleeRejects).loop()
    def tooLateToReject(_: CallInputs, call: Call, code: int, text: bytes) -> None:
        call.effects.append(Refuse(ErrorCode.BAD_REQUEST, "the call is active: end it instead"))

    @active.upon(I.callerEnds).to(ended)
    @active.upon(I.calleeEnds).to(ended)
    def hungUp(_: CallInputs, call: Call, text: bytes) -> None:
        call.effects.append(_ended(EndCode.HUNG_UP, text))

    @active.upon(I.lost).loop()
    def lostInCall(_: CallInputs, call: Call, party: bytes) -> None:
        call.effects.append(AwaitReturn(party, call.grace))

    @active.upon(I.returned).loop()
    def rejoined(_: CallInputs, call: Call, party: bytes) -> None:
        call.effects.append(_acceptance(call, party))

    @active.upon(I.graceOver).to(ended)
    def peerLost(_: CallInputs, call: Call, party: bytes) -> None:
        call.effects.append(_ended(EndCode.PEER_LOST))

    @active.upon(I.lastedTooLong).to(ended)
    def wasLongEnough(_: CallInputs, call: Call) -> None:
        call.effects.append(_ended(EndCode.MAX_DURATION))

    @ringing.upon(I.serverStops).to(ended)
    @active.upon(I.serverStops).to(ended)
    def stopped(_: CallInputs, call: Call) -> None:
        call.effects.append(_ended(EndCode.SHUTTING_DOWN))

    # -- ended

    @ended.upon(I.callerAccepts).loop()
    @ended.upon(I.calleeAccepts).loop()
    def tooLateToAccept(_: CallInputs, call: Call, answer: bytes) -> None:
        call.effects.append(Refuse(ErrorCode.NO_SUCH_CALL, "this call is over"))

    @ended.upon(I.returned).loop()
    def learnsOfTheEnd(_: CallInputs, call: Call, party: bytes) -> None:
        assert call.lastWord is not None
        call.effects.append(_ending(call, call.lastWord, party))

    # -- what comes too late

    @active.upon(I.callerAccepts).loop()
    def acceptIgnored(_: CallInputs, call: Call, answer: bytes) -> None:
        call.effects.append(Ignored())

    @ended.upon(I.callerRejects).loop()
    @ended.upon(I.calleeRejects).loop()
    def rejectIgnored(_: CallInputs, call: Call, code: int, text: bytes) -> None:
        call.effects.append(Ignored())

    @ended.upon(I.callerEnds).loop()
    @ended.upon(I.calleeEnds).loop()
    def endIgnored(_: CallInputs, call: Call, text: bytes) -> None:
        call.effects.append(Ignored())

    # -- what does not happen there

    ringing.upon(I.lastedTooLong).loop().returns(None)
    active.upon(I.ringTimedOut).loop().returns(None)
    ended.upon(I.lost).loop().returns(None)
    ended.upon(I.graceOver).loop().returns(None)
    ended.upon(I.ringTimedOut).loop().returns(None)
    ended.upon(I.lastedTooLong).loop().returns(None)
    ended.upon(I.serverStops).loop().returns(None)

    return machine.build()


_newMachine = _makeMachine()


# -- The table -----------------------------------------------------------------------------------------------------


class VideoCallServer:
    """
    All calls of one server: each user is in one at most.

    The methods that an application calls obey the same rules as the frames of a client.

    @ivar routes: for each user in an active call, the other party.  The hub sends media along them.
    """

    def __init__(
        self,
        router: IRouter,
        clock: IReactorTime,
        *,
        ringTimeout: float = RING_TIMEOUT,
        callGrace: float = CALL_GRACE,
        maxCall: float = MAX_CALL,
        requests: RateLimit | None = None,
    ) -> None:
        """
        @param router: how users are reached.
        @param ringTimeout: seconds until a call that nobody answers is over.
        @param callGrace: seconds that a party of an active call may be away; of a ringing one, this or
            L{RINGING_GRACE}, whichever is less.
        @param maxCall: seconds that a call may last; 0 for any time.
        @param requests: how often a user may request a call; any number if not given.
        """
        self._router = router
        self._clock = clock
        self._ringTimeout = ringTimeout
        self._callGrace = callGrace
        self._maxCall = maxCall
        self._calls: dict[bytes, tuple[Call, CallInputs]] = {}
        self._callOf: dict[bytes, bytes] = {}
        # Who was away when its call ended.  One call at most, as no new one reaches the absent.
        self._untold: dict[bytes, bytes] = {}
        self._ended: OrderedDict[bytes, float] = OrderedDict()
        self._forgetting: IDelayedCall | None = None
        self._requests = requests
        self._isStopped = False
        self.routes: dict[bytes, bytes] = {}

    # -- for applications

    def initiateCall(self, caller: str, callee: str, isVideo: bool = False, offer: bytes = b"") -> str:
        """
        Let C{caller} call C{callee}.

        @return: the ID of the call that rings, or was ringing already between the two; empty if it cannot ring, which
            the caller has then been told by a CALL_REJECT.
        """
        callerId, calleeId = caller.encode(), callee.encode()
        if not self._router.isOnline(callerId) or len(offer) > MAX_DESCRIPTION:
            return ""
        try:
            checkUserId(calleeId)
        except WireError:
            return ""
        return self._request(callerId, calleeId, VIDEO_FLAG if isVideo else 0, offer).hex()

    def acceptCall(self, callId: str, answer: bytes = b"") -> bool:
        """
        Accept a ringing call for its callee.

        @return: whether it was ringing.
        """
        found = self._find(callId)
        if found is None or found[0].answeredAt is not None or len(answer) > MAX_DESCRIPTION:
            return False
        call, machine = found
        machine.calleeAccepts(answer)
        self._perform(call)
        return True

    def rejectCall(self, callId: str, reason: str = "", code: int = RejectCode.DECLINED) -> bool:
        """
        Reject a ringing call for its callee.

        @param reason: told to both; at most 1,024 bytes of UTF-8.
        @param code: a L{RejectCode}; those that only the server gives become C{DECLINED}.
        @return: whether it was ringing.
        """
        found = self._find(callId)
        text = reason.encode()
        if found is None or found[0].answeredAt is not None or len(text) > MAX_REASON:
            return False
        call, machine = found
        machine.calleeRejects(code, text)
        self._perform(call)
        return True

    def endCall(self, callId: str, reason: str = "") -> bool:
        """
        End an active call, or cancel a ringing one for its caller.

        @param reason: told to both; at most 1,024 bytes of UTF-8.
        @return: whether it was ringing or active.
        """
        found = self._find(callId)
        text = reason.encode()
        if found is None or len(text) > MAX_REASON:
            return False
        call, machine = found
        machine.callerEnds(text)
        self._perform(call)
        return True

    def relayMediaData(self, callId: str, fromUser: str, mediaData: bytes) -> bool:
        """
        Send media to the other party of an active call.

        @return: whether it was sent; if not, it is dropped and counted.
        """
        found = self._find(callId)
        sender = fromUser.encode()
        if found is None or sender not in (found[0].caller, found[0].callee):
            self._router.count("media dropped: no call, or the party is away")
            return False
        peer = found[0].peerOf(sender)
        try:
            isSent = sender in self.routes and self._router.deliver(peer, MessageType.MEDIA_DATA, sender, mediaData)
        except WireError:
            self._router.count("media dropped: too long")
            return False
        if not isSent:
            self._router.count("media dropped: no call, or the party is away")
        return isSent

    def getCallSession(self, callId: str) -> CallSession | None:
        """Return that call as it is now, also for 32 s after its end; C{None} if there is none."""
        try:
            found = self._calls.get(bytes.fromhex(callId))
        except ValueError:
            return None
        return None if found is None else found[0].snapshot()

    def getActiveCalls(self) -> list[CallSession]:
        """Return the calls in which the parties talk, oldest first."""
        live = (call for call, _ in self._calls.values() if call.endedAt is None and call.answeredAt is not None)
        return [call.snapshot() for call in live]

    def countCalls(self) -> tuple[int, int]:
        """Return how many calls ring, and how many are active."""
        live = [self._calls[callId][0] for callId in set(self._callOf.values())]
        active = sum(call.answeredAt is not None for call in live)
        return len(live) - active, active

    def isUserInCall(self, userId: str) -> bool:
        """Return whether that user is a party of a ringing or active call."""
        return userId.encode() in self._callOf

    # -- for the hub

    def frameReceived(self, sender: bytes, messageType: int, peer: bytes, data: bytes) -> None:
        """
        Take a CALL frame from a client.

        @raise WireError: what the client is to be told by an ERROR.
        """
        checkUserId(peer)
        if messageType == MessageType.CALL_REQUEST:
            if not data:
                raise WireError(ErrorCode.BAD_REQUEST, "a call request has flags")
            self._request(sender, peer, data[0], checkLength(data[1:], MAX_DESCRIPTION, "an offer"))
            return
        callId, rest = splitId(data)
        if messageType == MessageType.CALL_ACCEPT:
            checkLength(rest, MAX_DESCRIPTION, "an answer")
        else:
            code, text = splitReason(rest)
        found = self._calls.get(callId)
        if found is None or (sender, peer) not in (
            (found[0].caller, found[0].callee),
            (found[0].callee, found[0].caller),
        ):
            raise WireError(ErrorCode.NO_SUCH_CALL, "there is no such call with that user")
        call, machine = found
        byCaller = sender == call.caller
        if messageType == MessageType.CALL_ACCEPT:
            (machine.callerAccepts if byCaller else machine.calleeAccepts)(rest)
        elif messageType == MessageType.CALL_REJECT:
            (machine.callerRejects if byCaller else machine.calleeRejects)(code, text)
        else:
            (machine.callerEnds if byCaller else machine.calleeEnds)(text)
        self._perform(call)

    def userLost(self, userId: bytes) -> None:
        """C{userId} has no connection any more: its call waits for it for a while."""
        found = self._current(userId)
        if found is not None:
            call, machine = found
            call.lostAt[userId] = self._clock.seconds()
            machine.lost(userId)
            self._perform(call)

    def userRegistered(self, userId: bytes) -> None:
        """C{userId} has registered: tell it how its call stands, or how it ended."""
        callId = self._callOf.get(userId) or self._untold.pop(userId, None)
        if callId is not None:
            call, machine = self._calls[callId]
            self._isBack(call, userId)
            machine.returned(userId)
            self._perform(call)

    def stop(self) -> None:
        """End all calls and forget them; none rings until L{start}."""
        self._isStopped = True
        for callId in set(self._callOf.values()):
            call, machine = self._calls[callId]
            machine.serverStops()
            self._perform(call)
        if self._forgetting is not None:
            self._forgetting.cancel()
            self._forgetting = None
        self._ended.clear()
        self._untold.clear()
        self._calls.clear()

    def start(self) -> None:
        """Let calls ring again after L{stop}."""
        self._isStopped = False

    # -- requests

    def _request(self, caller: bytes, callee: bytes, flags: int, offer: bytes) -> bytes:
        """Ring, and return the call's ID; or tell the caller why not, and return nothing."""
        found = self._current(caller)
        if found is not None and found[0].answeredAt is None and callee == found[0].peerOf(caller):
            call, machine = found
            if caller == call.caller:
                self._tell(call, _request(call, caller))
            else:
                machine.calleeAccepts(offer)  # glare: both want to talk, so they do
                self._perform(call)
            return call.callId

        refusal: RejectCode | None = None
        why = b""
        if caller == callee:
            refusal = RejectCode.TO_SELF
        elif self._router.isBlocked(callee, caller):
            refusal = RejectCode.FORBIDDEN
        elif self._isStopped:
            refusal, why = RejectCode.OVERLOADED, b"the server is going away"
        elif not self._mayRequest(caller):
            refusal, why = RejectCode.OVERLOADED, b"too many calls: try again in a minute (limit calls)"
        elif caller in self._callOf or callee in self._callOf:
            refusal = RejectCode.BUSY
        elif not self._router.isOnline(callee):
            refusal = RejectCode.OFFLINE
        call = Call(
            callId=secrets.token_bytes(ID_SIZE),
            caller=caller,
            callee=callee,
            flags=flags,
            offer=offer,
            grace=self._callGrace,
            startedAt=self._clock.seconds(),
        )
        if refusal is not None:
            over = _rejected(refusal, why)
            call.endedAt = call.startedAt
            self._tell(call, _ending(call, over, caller))
            self._router.count(f"calls refused: {refusal.name}")
            if refusal in _RECORDED_REFUSALS:
                self._router.recordCall(call.snapshot(), refusal)
            self._router.tell("callRejected", call.snapshot(), int(refusal), why.decode())
            return b""
        machine = _newMachine(call)
        self._calls[call.callId] = call, machine
        self._callOf[caller] = self._callOf[callee] = call.callId
        call.timer = self._clock.callLater(self._ringTimeout, self._ringTimedOut, call, machine)
        self._tell(call, _request(call, caller))
        self._tell(call, _request(call, callee))
        self._router.tell("callInitiated", call.snapshot())
        return call.callId

    def _mayRequest(self, caller: bytes) -> bool:
        if self._requests is None or self._requests.allow(caller):
            return True
        self._router.count("limits hit: calls")
        return False

    def _find(self, callId: str) -> tuple[Call, CallInputs] | None:
        """Return the call with that ID if it is not over."""
        try:
            found = self._calls.get(bytes.fromhex(callId))
        except ValueError:
            return None
        return None if found is None or found[0].endedAt is not None else found

    def _current(self, userId: bytes) -> tuple[Call, CallInputs] | None:
        """Return the call that the user is in."""
        callId = self._callOf.get(userId)
        return None if callId is None else self._calls[callId]

    # -- effects

    def _perform(self, call: Call) -> None:
        """Bring about what the machine left to do."""
        effects, call.effects = call.effects, []
        for effect in effects:
            match effect:
                case Tell():
                    self._tell(call, effect)
                case Answered():
                    self._answered(call)
                case Over():
                    self._over(call, effect)
                case AwaitReturn():
                    self._awaitReturn(call, effect)
                case Ignored():
                    self._router.count("call frames ignored: too late")
                case Refuse():  # pragma: no branch - there is no other
                    raise WireError(effect.code, effect.text)

    def _tell(self, call: Call, effect: Tell) -> bool:
        return self._router.deliver(effect.party, effect.messageType, call.peerOf(effect.party), effect.data)

    def _answered(self, call: Call) -> None:
        call.answeredAt = self._clock.seconds()
        assert call.timer is not None
        call.timer.cancel()
        machine = self._calls[call.callId][1]
        call.timer = self._clock.callLater(self._maxCall, self._lastedTooLong, call, machine) if self._maxCall else None
        self.routes[call.caller] = call.callee
        self.routes[call.callee] = call.caller
        for party in (call.caller, call.callee):
            self._router.routesChanged(party)
        self._router.tell("callAccepted", call.snapshot())

    def _over(self, call: Call, over: Over) -> None:
        call.endedAt = self._clock.seconds()
        call.lastWord = over
        if call.timer is not None and call.timer.active():
            call.timer.cancel()
        call.timer = None
        for party in (call.caller, call.callee):
            self._isBack(call, party)
            del self._callOf[party]
            if self.routes.pop(party, None) is not None:
                self._router.routesChanged(party)
            if not self._tell(call, _ending(call, over, party)):
                self._untold[party] = call.callId
        call.offer = call.answer = b""  # 32 KiB that nobody will ask for again
        self._remember(call)
        isReject = over.messageType == MessageType.CALL_REJECT
        self._router.recordCall(call.snapshot(), RejectCode(over.code) if isReject else EndCode(over.code))
        event = "callRejected" if isReject else "callEnded"
        self._router.tell(event, call.snapshot(), int(over.code), over.text.decode("utf-8", "replace"))

    def _awaitReturn(self, call: Call, effect: AwaitReturn) -> None:
        party = effect.party
        waiting = call.graces.pop(party, None)
        if waiting is not None:
            waiting.cancel()
        left = max(0.0, call.lostAt[party] + effect.seconds - self._clock.seconds())
        call.graces[party] = self._clock.callLater(left, self._graceOver, call, self._calls[call.callId][1], party)

    def _isBack(self, call: Call, party: bytes) -> None:
        call.lostAt.pop(party, None)
        waiting = call.graces.pop(party, None)
        if waiting is not None:
            waiting.cancel()

    # -- time

    def _ringTimedOut(self, call: Call, machine: CallInputs) -> None:
        machine.ringTimedOut()
        self._perform(call)

    def _lastedTooLong(self, call: Call, machine: CallInputs) -> None:
        machine.lastedTooLong()
        self._perform(call)

    def _graceOver(self, call: Call, machine: CallInputs, party: bytes) -> None:
        del call.graces[party]
        machine.graceOver(party)
        self._perform(call)

    def _remember(self, call: Call) -> None:
        self._ended[call.callId] = self._clock.seconds() + REMEMBERED_FOR
        if len(self._ended) > MAX_REMEMBERED:
            self._forgetOldest()
        if self._forgetting is None:
            self._forgetting = self._clock.callLater(REMEMBERED_FOR, self._forget)

    def _forget(self) -> None:
        self._forgetting = None
        now = self._clock.seconds()
        while self._ended:
            until = next(iter(self._ended.values()))
            if until > now:
                self._forgetting = self._clock.callLater(until - now, self._forget)
                return
            self._forgetOldest()

    def _forgetOldest(self) -> None:
        callId, _ = self._ended.popitem(last=False)
        call, _ = self._calls.pop(callId)
        for party in (call.caller, call.callee):
            if self._untold.get(party) == callId:
                del self._untold[party]
