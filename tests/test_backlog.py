"""What waits for one receiver: which of it comes first, and which is too late to come at all."""

from __future__ import annotations

import tracemalloc
from collections import Counter, deque

from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from twisted.trial.unittest import SynchronousTestCase

from wecompany.backlog import (
    MAX_AGE,
    MAX_MEDIA,
    MAX_MEDIA_PIECES,
    MAX_PIECE,
    MIN_MEDIA,
    QUANTUM,
    SHARES,
    Backlog,
    Class,
    classOf,
)
from wecompany.wire import (
    CONTINUATION,
    ID_SIZE,
    MAX_CHUNK,
    MAX_USER_ID,
    FileOp,
    MediaKind,
    MessageType,
    decodeFrames,
    encodeFrame,
    encodeOffset,
    splitOffset,
)

AUDIO, KEY, DELTA, OTHER = MediaKind.AUDIO, MediaKind.VIDEO_KEY, MediaKind.VIDEO_DELTA, MediaKind.OTHER
MORE = CONTINUATION
"""Added to a kind: it continues what is before it."""

PEER = b"alice"
HEAD = 2 + 1 + 2 + len(PEER)
"""Bytes of a frame besides its data."""

EVERYTHING = 1 << 30
"""More than ever waits."""

TRANSFER = b"the transfer ID."

KINDS = {"AUDIO": AUDIO, "VIDEO": KEY}


def frame(messageType: int, data: bytes = b"", size: int = 0) -> bytes:
    """Return a frame, of so many bytes in all if that is more."""
    return encodeFrame(messageType, PEER, data.ljust(max(0, size - HEAD), b"."))


def media(kind: int, data: bytes = b"", size: int = 0) -> bytes:
    """Return media of that kind, of so many bytes in all if that is more."""
    return frame(MessageType.MEDIA_DATA, bytes((kind,)) + data, size)


def chunk(offset: int, part: bytes, userId: bytes = PEER) -> bytes:
    """Return a part of a file."""
    return encodeFrame(MessageType.FILE, userId, bytes((FileOp.CHUNK,)) + TRANSFER + encodeOffset(offset) + part)


def whole(stream: bytes) -> list[bytes]:
    """Return the frames that a stream is."""
    frames, start = [], 0
    for *_, end in decodeFrames(stream):
        frames.append(stream[start:end])
        start = end
    assert start == len(stream), "a frame is torn"
    return frames


class BacklogTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.counters: Counter[str] = Counter()
        self.backlog = self.make()

    def make(self, isInCall: bool = False) -> Backlog:
        return Backlog(lambda what: self.counters.update([what]), isInCall)

    def put(self, *frames: bytes, at: float = 0) -> None:
        """Put these, each by itself."""
        for each in frames:
            self.backlog.put(each, at)

    def assertTaken(self, *expected: bytes, at: float = 0) -> None:
        """This is all that is sent, in this order, and nothing is left."""
        self.assertEqual(whole(self.backlog.take(EVERYTHING, at)), list(expected))
        self.assertEqual((self.backlog.size, self.backlog.textSize), (0, 0))

    def assertDropped(self, **expected: int) -> None:
        """So many frames have been dropped, and no others: C{AUDIO_TOO_OLD=3}."""
        reasons = {"TOO_OLD": "waited too long", "TOO_MUCH": "too much waits", "AFTER_A_GAP": "after a gap"}
        self.assertEqual(
            self.counters,
            {
                f"media dropped: {key.split('_', 1)[0].lower()}, {reasons[key.split('_', 1)[1]]}": n
                for key, n in expected.items()
            },
        )


class OrderTests(BacklogTestCase):
    """Which is sent first."""

    def test_nothing(self) -> None:
        """Where nothing waits there is nothing to send."""
        self.assertEqual((self.backlog.take(EVERYTHING, 0), self.backlog.takeAll()), (b"", b""))
        self.assertEqual(self.backlog.takeTexts(), [])
        self.assertEqual((self.backlog.size, self.backlog.textSize, self.backlog.hasGap), (0, 0, False))

    def test_classes(self) -> None:
        """Each type of message has its class; media has that of its kind, whether or not it continues something."""
        expected = dict.fromkeys(MessageType, Class.SIGNALS)
        expected |= {MessageType.TEXT: Class.TEXTS, MessageType.PRESENCE: Class.TEXTS, MessageType.FILE: Class.FILES}
        del expected[MessageType.MEDIA_DATA], expected[MessageType.DELAY]
        for messageType, where in expected.items():
            self.assertIs(classOf(frame(messageType, b"\0")), where, messageType)
            if messageType != MessageType.GROUP:
                self.assertIs(classOf(frame(MessageType.DELAY, bytes(8)) + frame(messageType)), where, messageType)
        self.assertIs(classOf(frame(200)), Class.SIGNALS)
        for kind in range(256):
            where = Class.AUDIO if kind in (AUDIO, AUDIO + MORE) else Class.VIDEO
            self.assertIs(classOf(media(kind)), where, kind)
        self.assertIs(classOf(frame(MessageType.MEDIA_DATA)), Class.VIDEO, "media without a kind is other media")

    def test_order(self) -> None:
        """Signals come first, then audio, then what shares the rest; in each class the first comes first."""
        others = (MessageType.MEDIA_DATA, MessageType.DELAY, MessageType.TEXT, MessageType.PRESENCE, MessageType.FILE)
        signals = [frame(t, b"%d" % t) for t in MessageType if t not in others]
        self.assertEqual(len(signals), 11)
        audio = [media(AUDIO, b"%d" % i) for i in range(3)]
        video = [media(KEY, b"%d" % i, 2048) for i in range(3)]
        texts = [frame(MessageType.TEXT, b"%d" % i, 3072) for i in range(2)]
        files = [frame(MessageType.FILE, b"file", 1024)]
        self.put(*files, *texts, *video, *audio, *signals)
        self.assertEqual(self.backlog.size, sum(map(len, files + texts + video + audio + signals)))
        self.assertEqual(self.backlog.textSize, 2 * 3072)
        self.assertTaken(*signals, *audio, *video, texts[0], files[0], texts[1])

    def test_signalsAtAnyTime(self) -> None:
        """What comes later and is of an earlier class is sent before what waits already, also in the middle of it."""
        video = [media(KEY, b"%d" % i, 1000) for i in range(3)]
        signal, voice = frame(MessageType.ERROR), media(AUDIO)
        self.put(*video)
        self.assertEqual(self.backlog.take(1, 0), video[0])
        self.put(voice, signal)
        self.assertTaken(signal, voice, *video[1:])

    def test_size(self) -> None:
        """Whole pieces are taken as far as they fit, but one at least."""
        texts = [frame(MessageType.TEXT, b"%d" % i, MAX_PIECE) for i in range(4)]
        self.put(*texts)
        self.assertEqual(self.backlog.take(2 * MAX_PIECE, 0), b"".join(texts[:2]))
        self.assertEqual(self.backlog.take(2 * MAX_PIECE - 1, 0), texts[2])
        self.assertEqual(self.backlog.take(1, 0), texts[3])
        self.assertEqual(self.backlog.take(1, 0), b"")
        self.put(*texts)
        self.assertEqual(self.backlog.take(0, 0), b"")
        self.assertEqual(self.backlog.size, 4 * MAX_PIECE)

    def test_delay(self) -> None:
        """A DELAY sticks to its TEXT, and to a CALL_REJECT, whatever else waits."""
        delay = frame(MessageType.DELAY, bytes(8))
        text, reject = frame(MessageType.TEXT, b"late", 3000), frame(MessageType.CALL_REJECT, bytes(17))
        self.put(delay + text, frame(MessageType.FILE, b"f"), delay + reject, frame(MessageType.ERROR))
        self.assertEqual(self.backlog.textSize, len(delay + text))
        self.assertTaken(delay, reject, frame(MessageType.ERROR), delay, text, frame(MessageType.FILE, b"f"))

    def test_all(self) -> None:
        """All that waits can be had at once, old media too."""
        self.put(*(media(AUDIO, size=MIN_MEDIA) for _ in range(3)))
        self.put(frame(MessageType.TEXT), frame(MessageType.FILE), frame(MessageType.ACK), at=100)
        everything = whole(self.backlog.takeAll())
        self.assertEqual(len(everything), 6)
        self.assertEqual((everything[0], self.backlog.size), (frame(MessageType.ACK), 0))

    def test_texts(self) -> None:
        """The texts can be taken out, without their DELAYs; what else there is stays where it was."""
        delay, presence = frame(MessageType.DELAY, bytes(8)), frame(MessageType.PRESENCE, b"\1")
        others = [media(AUDIO), presence, presence, frame(MessageType.FILE, b"f")]
        self.put(frame(MessageType.TEXT, b"one"), *others[:2], delay + frame(MessageType.TEXT, b"two"), *others[2:])
        self.put(frame(MessageType.TEXT, b"", MAX_PIECE))
        self.assertEqual(self.backlog.takeTexts(), [(PEER, b"one"), (PEER, b"two"), (PEER, b"." * (MAX_PIECE - HEAD))])
        self.assertEqual(self.backlog.takeTexts(), [])
        self.assertEqual((self.backlog.size, self.backlog.textSize), (sum(map(len, others)), 2 * len(presence)))
        self.assertTaken(*others)


SIZES = st.one_of(st.integers(HEAD + 1, 300), st.integers(HEAD + 1, 8_000), st.integers(HEAD + 1, 60_000))


class ShareTests(BacklogTestCase):
    """How video, texts and files share what is left to them."""

    FRAMES = {
        Class.VIDEO: lambda size: media(OTHER, size=size),
        Class.TEXTS: lambda size: frame(MessageType.TEXT, size=size),
        Class.FILES: lambda size: frame(MessageType.FILE, size=size),
    }

    def serve(self, sizes: dict[Class, list[int]], total: int) -> list[tuple[Class, int]]:
        """Take so many bytes while these classes always have something waiting; return the pieces."""
        waiting = dict.fromkeys(sizes, 0)
        turns = {where: deque(each) for where, each in sizes.items()}
        pieces: list[tuple[Class, int]] = []
        taken = 0
        while taken < total:
            for where, n in waiting.items():
                while n <= 0 or (n < 2 * MAX_PIECE and where is not Class.VIDEO):
                    size = turns[where][0]
                    turns[where].rotate(-1)
                    self.put(self.FRAMES[where](size))
                    n += size
                waiting[where] = n
            piece = self.backlog.take(1, 0)
            where = classOf(piece)
            waiting[where] -= len(piece)
            pieces.append((where, len(piece)))
            taken += len(piece)
        return pieces

    @settings(max_examples=40)
    @given(st.dictionaries(st.sampled_from(list(SHARES)), st.lists(SIZES, min_size=1, max_size=5), min_size=2))
    @example({Class.VIDEO: [1_000], Class.TEXTS: [60_000], Class.FILES: [60_000]})
    @example({Class.VIDEO: [60_000], Class.TEXTS: [11], Class.FILES: [60_000, 11]})
    def test_shares(self, sizes: dict[Class, list[int]]) -> None:
        """
        They share by bytes as 6 : 3 : 1, whatever sizes their pieces have: at any time, for a share of one, none is
        ahead of another by more than a round and that one's longest piece.  So none starves either.
        """
        self.backlog = self.make()
        self.assertShared(sizes)

    def assertShared(self, sizes: dict[Class, list[int]]) -> None:
        """See L{test_shares}."""
        sent = dict.fromkeys(sizes, 0.0)
        for where, size in self.serve(sizes, 600_000):
            sent[where] += size
            for one in sizes:
                for other in sizes:
                    longest = max(MAX_PIECE, *sizes[other])
                    ahead = sent[one] / SHARES[one] - sent[other] / SHARES[other]
                    self.assertLessEqual(ahead, QUANTUM + longest / SHARES[other], (one, other, sent))

    def test_alone(self) -> None:
        """Who waits alone gets everything, and has saved nothing up for later when others come."""
        for alone in SHARES:
            self.backlog = self.make()
            pieces = self.serve({alone: [1_000]}, 500_000)
            self.assertEqual({where for where, _ in pieces}, {alone})
            self.backlog.takeAll()
            self.assertShared({where: [1_000] for where in SHARES})

    def test_nothingSaved(self) -> None:
        """What a class was spared while something large of it waited is not spent on others, if that is taken out."""
        self.put(frame(MessageType.TEXT, size=60_000))
        for _ in range(16):
            for _ in range(6):
                self.put(media(OTHER, size=QUANTUM))
            self.backlog.take(6 * QUANTUM, 0)
        self.assertEqual(len(self.backlog.takeTexts()), 1)
        self.put(*(media(OTHER, size=QUANTUM) for _ in range(48)))
        self.backlog.take(12 * QUANTUM, 0)
        self.put(*(frame(MessageType.TEXT, size=MAX_PIECE) for _ in range(12)))
        texts = [each for each in whole(self.backlog.take(24 * QUANTUM, 0)) if classOf(each) is Class.TEXTS]
        self.assertLessEqual(sum(map(len, texts)), 12 * QUANTUM)

    def test_exactly(self) -> None:
        """The exact order with pieces of one size: six, three, one."""
        served = [where for where, _ in self.serve({where: [QUANTUM] for where in SHARES}, 1)]
        self.assertEqual(served, [Class.VIDEO])
        self.backlog = self.make()
        for _ in range(20):
            self.put(media(OTHER, size=QUANTUM))
        texts = [frame(MessageType.TEXT, size=3 * QUANTUM) for _ in range(6)]
        files = [frame(MessageType.FILE, size=4 * QUANTUM) for _ in range(2)]
        self.put(*texts, *files)
        order = "".join(classOf(each).name[0] for each in whole(self.backlog.take(EVERYTHING, 0)))
        self.assertEqual(order, "VVVVVVTVVVVVVTVVVVVVTVVTFTTF")

    def test_voiceFirst(self) -> None:
        """A voice that never stops is not kept up by anything that shares the rest, and a signal not by a voice."""
        self.serve({where: [5_000] for where in SHARES}, 1)
        for i in range(100):
            self.put(media(AUDIO, b"%d" % i), frame(MessageType.HEARTBEAT, b"%d" % i))
            self.assertEqual(self.backlog.take(1, 0), frame(MessageType.HEARTBEAT, b"%d" % i))
            self.assertEqual(self.backlog.take(1, 0), media(AUDIO, b"%d" % i))


class AgeTests(BacklogTestCase):
    """Media that has waited for too long."""

    def voices(self, n: int, size: int = 1024) -> list[bytes]:
        return [media(AUDIO, b"%d " % i, size) for i in range(n)]

    def test_age(self) -> None:
        """What has waited for 100 ms is sent, what has waited for longer is dropped; each kind is counted."""
        for kind in KINDS:
            for age, dropped in ((MAX_AGE, 0), (MAX_AGE + 0.001, 1)):
                self.setUp()
                old, young = media(KINDS[kind], b"old"), media(KINDS[kind], b"young", MIN_MEDIA)
                self.put(old)
                self.put(young, at=MAX_AGE)
                self.assertTaken(*[old, young][dropped:], at=age)
                self.assertDropped(**({f"{kind}_TOO_OLD": 1} if dropped else {}))

    def test_atAnyTime(self) -> None:
        """What is too old goes when something comes, and does not wait for the receiver to take anything."""
        self.put(*self.voices(32))
        self.put(media(AUDIO, size=1024), at=0.2)
        self.assertEqual(self.backlog.size, MIN_MEDIA)
        self.assertDropped(AUDIO_TOO_OLD=25)

    def test_least(self) -> None:
        """8 KiB may wait for any time: of more, the oldest goes; a frame without which less would be left stays."""
        for size, dropped in ((1024, 1), (1023, 0)):
            self.setUp()
            first, *others = self.voices(9)
            others[-1] = media(AUDIO, size=size)
            self.put(first, *others)
            self.assertTaken(*([] if dropped else [first]), *others, at=1000)
            self.assertDropped(**({"AUDIO_TOO_OLD": 1} if dropped else {}))

    def test_whole(self) -> None:
        """Media is dropped as a whole frame: a large old one stays if without it less than 8 KiB would be left."""
        picture = [media(KEY, b"0", 4000), *(media(KEY + MORE, b"%d" % i, 4000) for i in range(1, 9))]
        for size, dropped in ((MIN_MEDIA - 1, False), (MIN_MEDIA, True)):
            self.setUp()
            self.put(*picture)
            voice = media(AUDIO, size=size)
            self.put(voice, at=0.95)
            self.assertTaken(voice, *([] if dropped else picture), at=1)
            self.assertDropped(**({"VIDEO_TOO_OLD": 1} if dropped else {}))
            self.assertEqual(self.backlog.hasGap, dropped)

    def test_voiceStaysWithVideo(self) -> None:
        """No sound is dropped while video waits that is as old: where that may not go, the sound may not."""
        voices = [media(AUDIO, b"%d" % i, 200) for i in range(10)]
        picture = media(KEY, size=30_000)
        self.put(picture, *voices)
        self.assertTaken(*voices, picture, at=0.2)
        self.assertDropped()

    def test_oldestFirst(self) -> None:
        """The oldest are dropped, as many as are too old."""
        voices = self.voices(40)
        for i, voice in enumerate(voices):
            self.put(voice, at=i / 128)
        self.assertTaken(*voices[-12:], at=40 / 128)
        self.assertDropped(AUDIO_TOO_OLD=28)

    def test_videoFirst(self) -> None:
        """Video goes before audio that is older."""
        voices = self.voices(8)
        self.put(*voices)
        self.put(media(KEY, size=5000), media(OTHER, size=5000), at=0.01)
        self.assertTaken(*voices, at=1)
        self.assertDropped(VIDEO_TOO_OLD=2)

    def test_nothingElse(self) -> None:
        """Nothing but media is ever too old."""
        others = [frame(t, b"\7", 5000) for t in (MessageType.ERROR, MessageType.TEXT, MessageType.FILE)]
        self.put(*others)
        self.assertTaken(*others, at=1e9)
        self.assertDropped()

    def test_begun(self) -> None:
        """Of a frame of which a part has been sent, the rest follows however old it is, and what comes to it later."""
        pieces = [media(KEY, b"0", 5000), media(KEY + MORE, b"1", 5000), media(KEY + MORE, b"2", 5000)]
        next_ = media(DELTA, b"next", MIN_MEDIA)
        self.put(*pieces[:2])
        self.assertEqual(self.backlog.take(1, 0), pieces[0])
        self.put(pieces[2], at=50)
        self.put(next_, at=100)
        self.assertTaken(*pieces[1:], next_, at=100)
        self.assertDropped()

    def test_begunBefore(self) -> None:
        """What continues a frame that did not have to wait follows it, however old it is."""
        for kind in (AUDIO, KEY, DELTA, OTHER):
            self.setUp()
            pieces = [media(kind + MORE, b"%d" % i, 5000) for i in range(3)]
            self.put(*pieces)
            self.assertTaken(*pieces, at=1000)
            self.assertDropped()

    def test_begunAndNext(self) -> None:
        """Behind the rest of a frame that has begun, the next ones are dropped as ever."""
        rest, old, young = media(KEY + MORE, size=5000), media(DELTA, size=5000), media(KEY, size=5000)
        self.put(rest, old)
        self.put(young, at=0.1)
        self.assertTaken(rest, young, at=0.11)
        self.assertDropped(VIDEO_TOO_OLD=1)

    def test_continuations(self) -> None:
        """A frame goes with its continuations, those that have come and those that come yet, and counts once."""
        for kind in (AUDIO, OTHER):
            self.setUp()
            self.put(media(kind, size=500), media(kind + MORE, size=500))
            self.put(media(KEY, size=MIN_MEDIA), at=0.1)
            self.assertEqual(self.backlog.size, MIN_MEDIA + 1000)
            self.put(media(kind + MORE, size=500), at=0.11)
            self.assertEqual(self.backlog.size, MIN_MEDIA)
            self.put(media(kind + MORE, size=500), at=0.11)
            voice = media(kind, b"next")
            self.put(voice, media(kind + MORE, b"its rest"), at=0.11)
            expected = [voice, media(kind + MORE, b"its rest"), media(KEY, size=MIN_MEDIA)]
            self.assertEqual(sorted(whole(self.backlog.take(EVERYTHING, 0.11))), sorted(expected))
            self.assertDropped(**{("AUDIO" if kind == AUDIO else "VIDEO") + "_TOO_OLD": 1})


class MostTests(BacklogTestCase):
    """How much media may wait at all."""

    def test_most(self) -> None:
        """128 KiB may wait; with a byte more, the oldest frame goes."""
        for size, dropped in ((1024, 0), (1025, 1)):
            for kind in KINDS:
                self.setUp()
                self.put(*(media(KINDS[kind], size=1024) for _ in range(127)))
                self.put(media(KINDS[kind], b"last", size))
                self.assertEqual(self.backlog.size, MAX_MEDIA if not dropped else MAX_MEDIA - 1023)
                self.assertEqual(len(whole(self.backlog.take(EVERYTHING, 0))), 128 - dropped)
                self.assertDropped(**({f"{kind}_TOO_MUCH": 1} if dropped else {}))

    def test_pieces(self) -> None:
        """1,024 pieces may wait, however small; with one more, the oldest frame goes."""
        for kind in KINDS:
            self.setUp()
            pieces = [media(KINDS[kind], b"%d" % i) for i in range(MAX_MEDIA_PIECES + 1)]
            self.put(*pieces[:-1])
            self.assertDropped()
            self.put(pieces[-1])
            self.assertDropped(**{f"{kind}_TOO_MUCH": 1})
            self.assertTaken(*pieces[1:])

    def test_mostContinuations(self) -> None:
        """A frame of endless continuations has no more room than others, and goes as a whole; it counts once."""
        self.put(media(AUDIO), *(media(AUDIO + MORE) for _ in range(5000)))
        self.assertEqual(self.backlog.size, 0)
        self.assertDropped(AUDIO_TOO_MUCH=1)

    def test_videoFirst(self) -> None:
        """Video goes before audio, also if it is what came last."""
        voices = [media(AUDIO, b"%d" % i, 4096) for i in range(32)]
        self.put(*voices, media(KEY, size=100))
        self.assertDropped(VIDEO_TOO_MUCH=1)
        self.assertTaken(*voices)
        self.setUp()
        self.put(media(KEY, size=50_000), media(OTHER, size=40_000), *voices)
        self.assertDropped(VIDEO_TOO_MUCH=2)
        self.assertTaken(*voices)

    def test_onlyVoice(self) -> None:
        """Where no video is left, the oldest sound goes."""
        voices = [media(AUDIO, b"%d" % i, 4096) for i in range(40)]
        self.put(media(KEY), *voices)
        self.assertTaken(*voices[8:])
        self.assertDropped(VIDEO_TOO_MUCH=1, AUDIO_TOO_MUCH=8)

    def test_begun(self) -> None:
        """The rest of a frame that has begun is the last of its class to go; then what continues it goes too."""
        rest = media(KEY + MORE, size=30_000)
        self.put(rest, *(media(OTHER, size=30_000) for _ in range(4)))
        self.assertDropped(VIDEO_TOO_MUCH=1)
        self.put(*(media(AUDIO, size=30_000) for _ in range(3)))
        self.assertDropped(VIDEO_TOO_MUCH=4)
        self.assertEqual(self.backlog.size, 4 * 30_000)
        self.put(media(AUDIO, size=30_000))
        self.assertDropped(VIDEO_TOO_MUCH=5)
        self.put(media(KEY + MORE), media(DELTA))
        self.assertDropped(VIDEO_TOO_MUCH=5, VIDEO_AFTER_A_GAP=1)
        self.assertTaken(*[media(AUDIO, size=30_000)] * 4)

    def test_other(self) -> None:
        """Other classes have no part in the bound."""
        self.put(*(frame(MessageType.TEXT, size=60_000) for _ in range(10)), media(KEY, size=60_000))
        self.assertDropped()
        self.assertEqual(self.backlog.size, 660_000)


class GapTests(BacklogTestCase):
    """A picture that builds on one that was dropped means nothing."""

    def drop(self, kind: int) -> None:
        """Let a picture of that kind be dropped, and nothing else wait."""
        self.put(media(kind, size=MIN_MEDIA))
        self.put(media(AUDIO, size=MIN_MEDIA), at=1)
        self.assertTaken(media(AUDIO, size=MIN_MEDIA), at=1)
        self.assertDropped(VIDEO_TOO_OLD=1)
        self.counters.clear()

    def test_upToTheNextKey(self) -> None:
        """When a key or a delta frame is dropped, those that come later are too, up to the next key frame."""
        for kind in (KEY, DELTA):
            self.setUp()
            self.drop(kind)
            self.assertTrue(self.backlog.hasGap)
            self.put(media(DELTA), media(DELTA + MORE), media(DELTA), at=1)
            self.assertEqual(self.backlog.size, 0)
            self.assertDropped(VIDEO_AFTER_A_GAP=2)
            whole_ = media(KEY), media(KEY + MORE), media(DELTA), media(DELTA + MORE)
            self.put(whole_[0], at=1)
            self.assertFalse(self.backlog.hasGap)
            self.put(*whole_[1:], at=1)
            self.assertTaken(*whole_, at=1)
            self.assertDropped(VIDEO_AFTER_A_GAP=2)

    def test_restOfTheDropped(self) -> None:
        """What continues the dropped picture itself is dropped too, and counts no more."""
        self.drop(KEY)
        self.put(media(KEY + MORE), media(KEY + MORE), media(DELTA + MORE), at=1)
        self.assertTaken(at=1)
        self.assertDropped()
        self.assertTrue(self.backlog.hasGap)

    def test_waitingAlready(self) -> None:
        """Those that wait already go at once, also young ones, up to the key frame that waits behind them."""
        self.put(media(KEY, size=MIN_MEDIA))
        young = [media(DELTA, b"1"), media(DELTA + MORE, b"1"), media(DELTA, b"2")]
        after = [media(KEY, b"3"), media(DELTA, b"4", MIN_MEDIA)]
        self.put(*young, *after, at=0.1)
        self.put(media(DELTA, b"5"), at=0.2)
        self.assertDropped(VIDEO_TOO_OLD=1, VIDEO_AFTER_A_GAP=2)
        self.assertFalse(self.backlog.hasGap)
        self.assertTaken(*after, media(DELTA, b"5"), at=0.2)

    def test_behindTheKey(self) -> None:
        """When one is dropped behind the last key frame that waits there is a gap; before it, there is none."""
        self.put(media(KEY, b"1", 30_000), media(DELTA, b"2", 30_000), media(KEY, b"3", 30_000))
        self.assertEqual(self.backlog.take(1, 0), media(KEY, b"1", 30_000))
        self.put(media(DELTA, b"4", 30_000), media(DELTA, b"5", 30_000), at=0)
        self.put(media(AUDIO, size=20_000), at=0)
        self.assertDropped(VIDEO_TOO_MUCH=1)
        self.assertFalse(self.backlog.hasGap)
        self.put(media(AUDIO, size=60_000), at=0)
        self.assertDropped(VIDEO_TOO_MUCH=2, VIDEO_AFTER_A_GAP=2)
        self.assertTrue(self.backlog.hasGap)
        self.assertTaken(media(AUDIO, size=20_000), media(AUDIO, size=60_000))

    def test_behindTheBegun(self) -> None:
        """When a delta goes because too much waits, those behind it go too, and the rest of the one before it stays."""
        rest = media(KEY + MORE, size=40_000)
        self.put(rest, media(DELTA, b"1", 40_000), media(DELTA, b"2", 40_000), media(AUDIO, size=40_000))
        self.assertDropped(VIDEO_TOO_MUCH=1, VIDEO_AFTER_A_GAP=1)
        self.assertTaken(media(AUDIO, size=40_000), rest)
        self.assertTrue(self.backlog.hasGap)

    def test_otherMedia(self) -> None:
        """Sound and other media build on nothing: they stay when a picture goes, and no picture goes with them."""
        others = [media(OTHER, b"1"), media(OTHER + MORE, b"2"), media(AUDIO, b"3"), media(4, b"4"), media(OTHER, b"5")]
        self.put(media(KEY, size=MIN_MEDIA))
        self.put(*others, media(DELTA), at=0.1)
        self.put(media(OTHER, b"6", MIN_MEDIA), at=0.2)
        self.assertDropped(VIDEO_TOO_OLD=1, VIDEO_AFTER_A_GAP=1)
        self.assertTaken(others.pop(2), *others, media(OTHER, b"6", MIN_MEDIA), at=0.2)
        self.put(*others, media(AUDIO), at=1)
        self.assertTaken(media(AUDIO), *others, at=1)
        self.put(media(OTHER, size=100), at=2)
        self.put(media(KEY), media(DELTA, size=MIN_MEDIA), at=2.1)
        self.assertTaken(media(KEY), media(DELTA, size=MIN_MEDIA), at=2.15)
        self.assertFalse(self.backlog.hasGap)

    def test_forgotten(self) -> None:
        """A gap can be forgotten, as when another call begins."""
        self.drop(KEY)
        self.backlog.hasGap = False
        self.put(media(DELTA), at=1)
        self.assertTaken(media(DELTA), at=1)

    def test_orderWithOthers(self) -> None:
        """Other media that is continued behind a picture does not overtake it: within a class order is kept."""
        pieces = [media(OTHER, b"1"), media(KEY, b"2"), media(OTHER + MORE, b"3"), media(KEY + MORE, b"4")]
        self.put(*pieces)
        self.assertTaken(*pieces)


class ChunkTests(BacklogTestCase):
    """Chunks of a file, which are cut for a receiver in a call."""

    def cut(self, offset: int, part: bytes, userId: bytes = PEER) -> list[tuple[int, bytes]]:
        """Let a chunk be sent to somebody in a call; return (offset, bytes) of each piece."""
        self.backlog = self.make(isInCall=True)
        self.put(chunk(offset, part, userId))
        pieces = []
        while self.backlog.size:
            piece = self.backlog.take(1, 0)
            self.assertLessEqual(len(piece), MAX_PIECE)
            ((messageType, about, data, end),) = decodeFrames(piece)
            self.assertEqual((messageType, about, end), (MessageType.FILE, userId, len(piece)))
            self.assertEqual(data[: 1 + ID_SIZE], bytes((FileOp.CHUNK,)) + TRANSFER)
            pieces.append(splitOffset(data[1 + ID_SIZE :]))
        return pieces

    @settings(max_examples=60)
    @given(st.integers(0, (1 << 64) - MAX_CHUNK), st.integers(1, MAX_CHUNK), st.integers(1, MAX_USER_ID))
    @example(0, 1, 1)
    @example(0, MAX_CHUNK, 1)
    @example(0, MAX_CHUNK, MAX_USER_ID)
    @example((1 << 64) - MAX_CHUNK, MAX_CHUNK, MAX_USER_ID)
    @example(0, MAX_PIECE - HEAD - 25, len(PEER))
    @example(0, MAX_PIECE - HEAD - 24, len(PEER))
    def test_cut(self, offset: int, size: int, idSize: int) -> None:
        """In a call a chunk comes as consecutive ones of at most 4 KiB, none empty, with the same bytes in all."""
        part = (bytes(range(251)) * (size // 251 + 1))[:size]
        pieces = self.cut(offset, part, b"u" * idSize)
        self.assertEqual(b"".join(p for _, p in pieces), part)
        at = offset
        for pieceOffset, piece in pieces:
            self.assertEqual(pieceOffset, at)
            self.assertTrue(piece)
            at += len(piece)

    def test_few(self) -> None:
        """A chunk that is small enough stays as it is, and a larger one is cut into no more than needed."""
        room = MAX_PIECE - HEAD - 25
        for size, n in ((1, 1), (room, 1), (room + 1, 2), (2 * room, 2), (2 * room + 1, 3)):
            self.assertEqual(len(self.cut(7, bytes(size))), n, size)

    def test_noCall(self) -> None:
        """For anybody else it stays whole; and one that waits already is cut when a call begins."""
        self.put(chunk(0, bytes(MAX_CHUNK)), chunk(MAX_CHUNK, bytes(MAX_CHUNK)))
        self.assertEqual(self.backlog.take(1, 0), chunk(0, bytes(MAX_CHUNK)))
        self.backlog.isInCall = True
        self.assertEqual(len(self.backlog.take(1, 0)), MAX_PIECE)
        self.backlog.isInCall = False
        self.put(chunk(2 * MAX_CHUNK, bytes(MAX_CHUNK)))
        rest = whole(self.backlog.take(EVERYTHING, 0))
        self.assertEqual(rest[-1], chunk(2 * MAX_CHUNK, bytes(MAX_CHUNK)))
        self.assertTrue(all(len(piece) <= MAX_PIECE for piece in rest[:-1]))
        self.assertEqual(self.backlog.size, 0)

    def test_otherOps(self) -> None:
        """Nothing but a CHUNK is cut."""
        self.backlog = self.make(isInCall=True)
        offer = frame(MessageType.FILE, bytes((FileOp.OFFER,)) + TRANSFER, 60_000)
        text = frame(MessageType.TEXT, bytes((FileOp.CHUNK,)) + TRANSFER, 60_000)
        self.put(offer, text)
        self.assertTaken(text, offer)

    def test_size(self) -> None:
        """What a cut adds is in the size."""
        self.backlog = self.make(isInCall=True)
        self.put(chunk(0, bytes(MAX_CHUNK)), frame(MessageType.TEXT))
        taken = 0
        while self.backlog.size:
            before, n = self.backlog.size, len(self.backlog.take(1, 0))
            self.assertGreaterEqual(self.backlog.size, before - n)
            taken += n
        pieces = -(-MAX_CHUNK // (MAX_PIECE - HEAD - 25))
        self.assertEqual(taken, MAX_CHUNK + pieces * (HEAD + 25) + HEAD)


class MemoryTests(BacklogTestCase):
    """What it costs besides the bytes."""

    @settings(max_examples=40)
    @given(st.lists(st.one_of(st.integers(HEAD, 200), st.integers(HEAD, 9_000)), max_size=100))
    def test_joined(self, sizes: list[int]) -> None:
        """Small frames that are joined arrive as they were."""
        for messageType in (MessageType.TEXT, MessageType.FILE, MessageType.ACK):
            self.backlog = self.make()
            frames = [frame(messageType, b"%d" % i, size) for i, size in enumerate(sizes)]
            self.put(*frames)
            self.assertEqual(self.backlog.size, sum(map(len, frames)))
            self.assertTaken(*frames)

    def test_many(self) -> None:
        """However small the frames are, no more than a small multiple of their bytes is held."""
        for messageType in (MessageType.TEXT, MessageType.FILE, MessageType.HEARTBEAT):
            small = encodeFrame(messageType, b"a")
            n = 262_144 // len(small)
            held = self.held(lambda i, small=small: bytes(memoryview(small)), n)
            self.assertLess(held, 1.2 * n * len(small), messageType)

    def test_media(self) -> None:
        """However small the packets are, 128 KiB and some hundred bytes for each of 1,024 is all that is held."""
        for kind in (AUDIO, KEY, KEY + MORE, OTHER):
            for size in (0, 128):
                held = self.held(lambda i, kind=kind, size=size: media(kind, b"%d" % i, size), 5_000)
                self.assertLess(held, MAX_MEDIA + MAX_MEDIA_PIECES * 1_024, (kind, size))

    def held(self, make: object, n: int) -> int:
        """Return the bytes that so many frames cost while they wait."""
        assert callable(make)
        self.backlog = self.make()
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            for i in range(n):
                self.backlog.put(make(i), 0)
            return tracemalloc.get_traced_memory()[0] - before
        finally:
            tracemalloc.stop()


class _Frame:
    """A frame of media in its pieces, each of which has a number."""

    def __init__(self, kind: int, n: int) -> None:
        self.kind = kind
        self.put = [n]
        self.taken: list[int] = []


class MediaModel:
    """What has been sent of media, and what may come of it."""

    def __init__(self) -> None:
        self.n = 0
        self._streams: dict[str, list[_Frame]] = {"audio": [], "video": [], "other": []}

    def _stream(self, kind: int) -> list[_Frame]:
        kind &= ~CONTINUATION
        return self._streams["audio" if kind == AUDIO else "video" if kind in (KEY, DELTA) else "other"]

    def make(self, kind: int, size: int) -> bytes:
        """Return the data of the next piece, of about that size."""
        self.n += 1
        stream = self._stream(kind)
        if stream and kind & CONTINUATION:
            stream[-1].put.append(self.n)
        else:
            stream.append(_Frame(kind & ~CONTINUATION, self.n))
        return bytes((kind,)) + b"%d " % self.n + b"." * size

    def take(self, data: bytes) -> None:
        """This has come: may it?"""
        stream = self._stream(data[0])
        n = int(data[1:].split(b" ")[0])
        index = next(i for i, each in enumerate(stream) if n in each.put)
        which = stream[index]
        assert not any(each.taken for each in stream[index + 1 :]), "a stream keeps its order"
        assert which.put[: len(which.taken) + 1] == [*which.taken, n], "a frame is not torn"
        which.taken.append(n)
        if which.kind == DELTA:
            for each in reversed(stream[:index]):
                assert each.taken == each.put, "no delta frame after a gap"
                if each.kind == KEY:
                    break

    def missing(self) -> int:
        """Return how many frames have not come, or not wholly."""
        return sum(each.taken != each.put for stream in self._streams.values() for each in stream)


class BacklogMachine(RuleBasedStateMachine):
    """Anything is put and taken, in any order and at any time."""

    TYPES = (MessageType.TEXT, MessageType.PRESENCE, MessageType.FILE, MessageType.ACK, MessageType.ERROR)

    @initialize(isInCall=st.booleans())
    def begin(self, isInCall: bool) -> None:
        self.counters: Counter[str] = Counter()
        self.backlog = Backlog(lambda what: self.counters.update([what]), isInCall)
        self.isInCall = isInCall
        self.now = 0.0
        self.n = 0
        self.offset = self.fileTaken = 0
        self.files: deque[tuple[int, int]] = deque()  # (offset, size) of CHUNKs
        self.kept: dict[Class, deque[bytes]] = {Class.SIGNALS: deque(), Class.TEXTS: deque()}
        self.model = MediaModel()

    # -- in

    @rule(messageType=st.sampled_from([t for t in TYPES if t != MessageType.FILE]), size=SIZES, isLate=st.booleans())
    def keep(self, messageType: int, size: int, isLate: bool) -> None:
        """Put what is never lost."""
        self.n += 1
        one = frame(messageType, b"%d " % self.n, size)
        if isLate and messageType == MessageType.TEXT:
            one = frame(MessageType.DELAY, b"%8d" % self.n) + one
        self.kept[classOf(one)].extend(whole(one))
        self.backlog.put(one, self.now)

    @rule(size=st.one_of(st.integers(1, 200), st.integers(1, MAX_CHUNK)))
    def file(self, size: int) -> None:
        """Put a part of a file."""
        self.backlog.put(chunk(self.offset, bytes(size)), self.now)
        self.files.append((self.offset, size))
        self.offset += size

    @rule(
        kinds=st.lists(
            st.sampled_from([AUDIO, KEY, DELTA, DELTA, OTHER, *(k + MORE for k in (AUDIO, KEY, DELTA, OTHER))]),
            min_size=1,
            max_size=8,
        ),
        size=st.one_of(st.integers(0, 200), st.integers(2_000, 20_000)),
        times=st.sampled_from([1, 1, 1, 200]),
    )
    def media(self, kinds: list[int], size: int, times: int) -> None:
        """Put media, and the same again."""
        for kind in kinds * times:
            self.backlog.put(frame(MessageType.MEDIA_DATA, self.model.make(kind, size)), self.now)
            assert self.backlog.size - self.otherSize() <= MAX_MEDIA + self.slack()

    def otherSize(self) -> int:
        """Return the bytes that wait and are no media, as far as they were put."""
        files = sum(size + HEAD + 25 for _, size in self.files)
        return files + sum(len(one) for kept in self.kept.values() for one in kept)

    def slack(self) -> int:
        """Return what the headers of one chunk that has been cut may add."""
        return (HEAD + 25) * 20 if self.isInCall else 0

    @rule(seconds=st.sampled_from([0.001, 0.02, 0.05, 0.1, 0.101, 3.0]))
    def wait(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds

    # -- out

    @rule(size=st.one_of(st.just(1), st.integers(1, 100_000)))
    def take(self, size: int) -> None:
        """Take some."""
        before = self.backlog.size
        data = self.backlog.take(size, self.now)
        assert data or not self.backlog.size
        assert before + self.slack() >= self.backlog.size + len(data)
        self.check(data)

    @rule()
    def takeTexts(self) -> None:
        """Take the texts out."""
        kept = self.kept[Class.TEXTS]
        texts = [one for one in kept if one[2] == MessageType.TEXT]
        self.kept[Class.TEXTS] = deque(one for one in kept if one[2] == MessageType.PRESENCE)
        assert self.backlog.takeTexts() == [(PEER, one[HEAD:]) for one in texts]

    def check(self, data: bytes) -> None:
        """What has been taken is what was to come."""
        for one in whole(data):
            where = classOf(one) if one[2] != MessageType.DELAY else Class.TEXTS
            if where in self.kept:
                assert one == self.kept[where].popleft(), "a class keeps its order, and nothing is lost"
            elif where is Class.FILES:
                self.checkChunk(one)
            else:
                self.model.take(one[HEAD:])

    def checkChunk(self, one: bytes) -> None:
        at, part = splitOffset(one[HEAD + 1 + ID_SIZE :])
        offset, size = self.files[0]
        assert at == offset
        assert 1 <= len(part) <= size
        assert self.isInCall or len(part) == size
        if len(part) == size:
            self.files.popleft()
        else:
            self.files[0] = offset + len(part), size - len(part)

    @invariant()
    def sums(self) -> None:
        """The size is that of what waits."""
        if hasattr(self, "backlog"):
            assert self.backlog.textSize == sum(map(len, self.kept[Class.TEXTS]))
            assert self.backlog.size >= self.otherSize()

    @rule()
    def all(self) -> None:
        """Take all: it is as much as was said, nothing but media is missing, and each frame that is is counted."""
        size = self.backlog.size
        self.backlog.isInCall = False
        data = self.backlog.takeAll()
        self.backlog.isInCall = self.isInCall
        wasCall, self.isInCall = self.isInCall, True  # some may have been cut before
        self.check(data)
        self.isInCall = wasCall
        assert len(data) == size
        assert not self.backlog.size
        assert not self.files
        assert not any(self.kept.values())
        assert sum(self.counters.values()) == self.model.missing()

    def teardown(self) -> None:
        """In the end everything is accounted for."""
        if hasattr(self, "backlog"):
            self.all()


class MachineTests(SynchronousTestCase):
    """See L{BacklogMachine}."""

    def test_machine(self) -> None:
        """
        Whatever is put and taken: each class keeps its order, nothing but media is lost, no frame of media is torn, no
        delta frame follows a gap, media stays within its bound, every drop is counted, and the size is right.
        """
        run_state_machine_as_test(BacklogMachine, settings=settings(max_examples=60, stateful_step_count=40))
