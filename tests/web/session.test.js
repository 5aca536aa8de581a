import assert from "node:assert/strict";
import test from "node:test";

import { Connection, NotConnected, ServerError, realClock } from "../../wecompany/web/pages/connection.js";
import { Presence } from "../../wecompany/web/pages/presence.js";
import { Session, backoff } from "../../wecompany/web/pages/session.js";
import { Texts } from "../../wecompany/web/pages/texts.js";
import { ErrorCode, MessageType, decodeU32, encodeText, encodeU32, hex } from "../../wecompany/web/pages/wire.js";
import { FakeClock, FakeSocket, FakeStore, settled } from "./helpers.js";

const { ACK, DELAY, ERROR, HEARTBEAT, LOGIN, PRESENCE, TEXT, AUTH_RESPONSE } = MessageType;
const ID = new Uint8Array(16).fill(7);
const NEXT_ID = new Uint8Array(16).fill(8);

/** A session of alice's, its sockets, and what it has told. */
async function begin(store = new FakeStore()) {
  const clock = new FakeClock();
  const sockets = [];
  const told = { changed: [], came: [], offline: [], stopped: [], error: [] };
  const texts = new Texts(store, (message) => told.changed.push({ ...message }), (message) => told.came.push(message));
  await texts.load();
  const open = () => {
    sockets.push(new FakeSocket());
    return sockets.at(-1);
  };
  const session = new Session(open, "alice", "secret", texts, clock);
  for (const name of ["offline", "stopped", "error"]) session.on(name, (error) => told[name].push(error));
  const started = session.start();
  started.catch(() => {});
  await settled();
  return { session, texts, store, clock, sockets, told, started };
}

/** The same, when the server has answered the registration. */
async function registered(store, count = 0) {
  const all = await begin(store);
  const [socket] = all.sockets;
  socket.open();
  socket.say(HEARTBEAT, "alice", ID);
  if (count !== null) socket.say(ACK, "", encodeU32(count));
  socket.answer();
  await settled();
  return { ...all, socket };
}

test("The first message registers with reliable delivery, nothing taken yet and the credential.", async () => {
  const { sockets: [socket] } = await begin();
  assert.deepEqual(socket.sent, []);
  socket.open();
  const [first] = socket.sent;
  assert.deepEqual([first.type, first.user], [ACK, "alice"]);
  assert.equal(hex(first.data), "00".repeat(20) + hex(encodeText("secret")));
});

test("A text is marked as stored when the server acknowledges it, and not before.", async () => {
  const { texts, socket, told } = await registered();
  const message = await texts.add("bob", "hello");
  assert.deepEqual(socket.take(TEXT).map(({ user }) => user), ["bob"]);
  assert.equal(message.state, "waiting");
  socket.say(ACK, "", encodeU32(1));
  await settled();
  assert.equal(told.changed.at(-1).state, "stored");
});

test("An ERROR about a text is the answer to the first that is not acknowledged.", async () => {
  const { texts, socket } = await registered();
  const one = await texts.add("bob", "one");
  const two = await texts.add("nobody", "two");
  socket.say(ACK, "", encodeU32(1));
  socket.say(ERROR, "nobody", [ErrorCode.OFFLINE, TEXT]);
  await settled();
  assert.deepEqual([one.state, two.state, two.error], ["stored", "failed", ErrorCode.OFFLINE]);
});

test("After a lost connection the session is resumed, and what the server does not have is sent again.", async () => {
  const { texts, socket, sockets, clock } = await registered();
  await texts.add("bob", "one");
  await texts.add("bob", "two");
  socket.say(TEXT, "bob", encodeText("hi"));
  await settled();
  socket.lose();
  const three = await texts.add("bob", "three");
  assert.equal(three.state, "waiting");
  clock.advance(1_000);
  await settled();
  const again = sockets[1];
  again.open();
  assert.equal(hex(again.sent[0].data), `00000001${hex(ID)}${hex(encodeText("secret"))}`);
  again.say(HEARTBEAT, "alice", NEXT_ID);
  assert.deepEqual(again.take(TEXT), []);
  again.say(ACK, "", encodeU32(1));
  await settled();
  assert.deepEqual(again.take(TEXT).map(({ data }) => String.fromCharCode(...data)), ["two", "three"]);
});

test("A resumed session says nothing until the server's count is there, or 5 s have passed.", async () => {
  const { socket, sockets, clock } = await registered();
  socket.lose();
  clock.advance(1_000);
  await settled();
  sockets[1].open();
  sockets[1].sent = [];
  sockets[1].say(HEARTBEAT, "alice", NEXT_ID);
  clock.advance(4_999);
  assert.deepEqual(sockets[1].sent, []);
  clock.advance(1);
  assert.equal(sockets[1].sent.length, 1);
});

test("A reloaded page goes on with the session and the texts that an earlier one left.", async () => {
  const store = new FakeStore();
  const before = await registered(store);
  await before.texts.add("bob", "unsent");
  const { sockets: [socket] } = await begin(store);
  socket.open();
  assert.equal(hex(socket.sent[0].data).slice(8, 40), hex(ID));
  socket.say(HEARTBEAT, "alice", NEXT_ID);
  socket.say(ACK, "", encodeU32(0));
  await settled();
  assert.equal(socket.take(TEXT).length, 1);
});

test("A text counts as taken when it is in the store, and several are acknowledged at once.", async () => {
  const { socket, told, store } = await registered();
  socket.say(TEXT, "bob", encodeText("one"));
  socket.say(TEXT, "bob", encodeText("two"));
  assert.deepEqual(socket.take(ACK).slice(1), []);
  await settled();
  assert.equal(decodeU32(socket.take(ACK).at(-1).data), 2);
  assert.deepEqual(told.came.map(({ text }) => text), ["one", "two"]);
  assert.equal(store.kept.taken, 2);
});

test("A DELAY tells when the next text of that user was sent, and no other.", async () => {
  const { socket, told } = await registered();
  socket.say(DELAY, "bob", [0, 0, 0, 0, 0, 0, 0, 9]);
  socket.say(TEXT, "bob", encodeText("late"));
  socket.say(TEXT, "bob", encodeText("live"));
  await settled();
  assert.equal(told.came[0].at, 9);
  assert.ok(told.came[1].at > 1e12);
});

test("Without a store a text is stored as far as anyone knows when the server has handled it.", async () => {
  const { texts, socket, session } = await registered(new FakeStore(), null);
  assert.equal(texts.isReliable, false);
  const good = await texts.add("bob", "one");
  socket.answer();
  await settled();
  const bad = await texts.add("nobody", "two");
  socket.say(ERROR, "nobody", [ErrorCode.OFFLINE, TEXT]);
  socket.answer();
  await settled();
  assert.deepEqual([good.state, bad.state, bad.error], ["stored", "failed", ErrorCode.OFFLINE]);
  assert.ok(session.isOnline);
});

test("After replaced, idInUse, forbidden and badCredential nothing is tried again.", async () => {
  for (const code of [ErrorCode.REPLACED, ErrorCode.BAD_CREDENTIAL, ErrorCode.ID_IN_USE, ErrorCode.FORBIDDEN]) {
    const { started, sockets: [socket], sockets, clock } = await begin();
    socket.open();
    socket.say(ERROR, "alice", [code, ACK]);
    socket.lose();
    await assert.rejects(started, { code });
    clock.advance(600_000);
    await settled();
    assert.equal(sockets.length, 1);
  }
});

test("Who is replaced while online is told so, once.", async () => {
  const { socket, told, clock, sockets } = await registered();
  socket.say(ERROR, "alice", [ErrorCode.REPLACED, 255]);
  socket.lose();
  clock.advance(600_000);
  assert.deepEqual(told.stopped.map(({ code }) => code), [ErrorCode.REPLACED]);
  assert.equal(sockets.length, 1);
});

test("A connection on which nothing comes for 75 s is given up, and sooner in a call.", async () => {
  for (const [isHurried, least, most] of [[false, 75_000, 105_000], [true, 7_000, 9_000]]) {
    const { session, told, clock } = await registered();
    session.hurry(isHurried);
    clock.advance(least - 1);
    assert.equal(told.offline.length, 0);
    clock.advance(most - least + 1);
    assert.equal(told.offline.length, 1);
  }
});

test("The server's question whether one lives is answered at once.", async () => {
  const { socket } = await registered();
  socket.sent = [];
  socket.say(HEARTBEAT, "alice", []);
  assert.deepEqual(socket.sent.map(({ type, data }) => [type, data.length]), [[HEARTBEAT, 0]]);
});

test("An ERROR belongs to the request before whose HEARTBEAT it comes.", async () => {
  const { session, socket } = await registered();
  const bad = session.ask(MessageType.PRESENCE, "", Uint8Array.of(1));
  const good = session.ask(MessageType.PRESENCE, "", Uint8Array.of(0));
  socket.say(ERROR, "", [ErrorCode.OVERLOADED, MessageType.PRESENCE]);
  socket.answer();
  await assert.rejects(bad, { code: ErrorCode.OVERLOADED });
  await good;
});

test("One is in the list of everyone, and no contact of one's own.", async () => {
  const { session, socket } = await registered();
  const presence = new Presence(session);
  for (const [user, state] of [["bob", 0], ["alice", 1], ["carol", 1]]) socket.say(PRESENCE, user, [state]);
  socket.say(PRESENCE, "", encodeU32(3));
  assert.deepEqual(presence.users, [["bob", false], ["carol", true]]);
});

test("What waits for an answer when the connection is lost is told so.", async () => {
  const { session, socket } = await registered();
  const asked = session.ask(MessageType.PRESENCE, "", Uint8Array.of(1));
  socket.lose();
  await assert.rejects(asked, NotConnected);
  await assert.rejects(session.ask(MessageType.PRESENCE, ""), NotConnected);
});

test("Commands for one's account are sent one at a time, and each gets its own answer.", async () => {
  const { session, socket } = await registered();
  const token = session.newToken();
  const refused = session.command(0);
  assert.equal(socket.take(LOGIN).length, 1);
  socket.say(AUTH_RESPONSE, "", [1, ...encodeText("wct")]);
  assert.equal(socket.take(LOGIN).length, 1);
  socket.say(AUTH_RESPONSE, "", [0, ...encodeText("no")]);
  assert.equal(await token, "wct");
  await assert.rejects(refused, ServerError);
});

test("A message that is none ends the connection.", async () => {
  const { socket, told } = await registered();
  socket.onmessage({ data: new ArrayBuffer(2) });
  assert.equal(told.offline.length, 1);
  assert.equal(socket.readyState, 3);
});

test("One waits longer after every try, half of it by chance, and never longer than the most.", () => {
  assert.equal(backoff(1, 30_000, 0), 500);
  assert.equal(backoff(1, 30_000, 1), 1_000);
  assert.equal(backoff(4, 30_000, 1), 8_000);
  assert.equal(backoff(1_000, 30_000, 1), 30_000);
});

test("The clock of the machine is the one that is used.", () => {
  const connection = new Connection(new FakeSocket(), "alice", {});
  assert.equal(connection.clock, realClock);
});
