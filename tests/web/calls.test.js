import assert from "node:assert/strict";
import test from "node:test";

import { Calls } from "../../wecompany/web/pages/calls.js";
import { Events } from "../../wecompany/web/pages/events.js";
import { encodeDescription } from "../../wecompany/web/pages/pieces.js";
import { MessageType, RejectCode, hex, join } from "../../wecompany/web/pages/wire.js";
import { settled } from "./helpers.js";

const { CALL_REQUEST, CALL_ACCEPT, CALL_REJECT, CALL_END, MEDIA_DATA } = MessageType;
const ID = new Uint8Array(16).fill(5);
const OTHER_ID = new Uint8Array(16).fill(6);
const OFFER = encodeDescription({ audio: { rate: 48_000, channels: 1 }, video: null, receives: ["opus"] });

class FakeSession extends Events {
  isOnline = true;
  sent = [];

  hurry(isHurried) {
    this.isHurried = isHurried;
  }

  send(type, user, data) {
    this.sent.push([type, user, hex(data)]);
    return this.isOnline;
  }

  ask(type, user, data) {
    if (type !== null) this.send(type, user, data);
    return new Promise((resolve, reject) => Object.assign(this, { resolve, reject }));
  }
}

class FakeMedia {
  log = [];
  prepare = async (isVideo) => {
    this.log.push(isVideo ? "video" : "voice");
    return OFFER;
  };
  start = () => this.log.push("start");
  feed = (media) => this.log.push(hex(media));
  connectionLost = () => this.log.push("lost");
  stop = () => this.log.push("stop");
}

function begin(why = null) {
  const session = new FakeSession();
  const calls = new Calls(session, () => new FakeMedia(), () => why);
  const told = { ended: [], missed: [] };
  calls.on("ended", (call) => told.ended.push(call));
  calls.on("missed", (...missed) => told.missed.push(missed));
  const say = (type, peer, ...parts) => session.emit(type, peer, join(...parts), null);
  return { session, calls, told, say };
}

/** The same in an active call with bob, whom we have called. */
async function active() {
  const all = begin();
  all.calls.dial("bob", false);
  await settled();
  all.say(CALL_REQUEST, "bob", ID, 0);
  all.say(CALL_ACCEPT, "bob", ID, OFFER);
  all.session.sent = [];
  return { ...all, call: all.calls.current };
}

test("A call that one makes rings when the server says so, and is active when the other takes it.", async () => {
  const { session, calls, say } = begin();
  calls.dial("bob", true);
  assert.equal(calls.current.state, "preparing");
  await settled();
  assert.deepEqual(session.sent, [[CALL_REQUEST, "bob", `01${hex(OFFER)}`]]);
  say(CALL_REQUEST, "bob", ID, 1);
  assert.equal(calls.current.state, "ringing");
  say(CALL_ACCEPT, "bob", ID, OFFER);
  assert.equal(calls.current.state, "active");
  assert.deepEqual(calls.current.media.log, ["video", "start"]);
});

test("A call that comes can be taken with voice or video, and the answer says what is sent.", async () => {
  for (const isVideo of [false, true]) {
    const { session, calls, say } = begin();
    say(CALL_REQUEST, "bob", ID, 1, OFFER);
    assert.equal(calls.current.state, "incoming");
    calls.accept(isVideo);
    await settled();
    assert.deepEqual(session.sent, [[CALL_ACCEPT, "bob", hex(ID) + hex(OFFER)]]);
    say(CALL_ACCEPT, "bob", ID, OFFER);
    assert.deepEqual(calls.current.media.log, [isVideo ? "video" : "voice", "start"]);
  }
});

test("Declining what rings is a CALL_REJECT, hanging up what is active a CALL_END.", async () => {
  const { session, calls, say } = begin();
  say(CALL_REQUEST, "bob", ID, 0, OFFER);
  calls.hangUp();
  assert.deepEqual(session.sent, [[CALL_REJECT, "bob", `${hex(ID)}00`]]);
  const talking = await active();
  talking.calls.hangUp();
  assert.deepEqual(talking.session.sent, [[CALL_END, "bob", `${hex(ID)}00`]]);
});

test("A request that is refused ends under whatever call ID the server gives it.", async () => {
  const { calls, told, say } = begin();
  calls.dial("bob", false);
  await settled();
  say(CALL_REJECT, "bob", OTHER_ID, RejectCode.BUSY);
  assert.equal(calls.current, null);
  assert.deepEqual(told.ended.map(({ outcome }) => outcome.code), [RejectCode.BUSY]);
});

test("Media of the call is played, and that of anyone else is not.", async () => {
  const { call, say } = await active();
  say(MEDIA_DATA, "bob", 1, 2);
  say(MEDIA_DATA, "mallory", 3);
  assert.deepEqual(call.media.log, ["voice", "start", "0102"]);
});

test("The end of another call changes nothing.", async () => {
  const { calls, call, say } = await active();
  say(CALL_END, "bob", OTHER_ID, 0);
  assert.equal(calls.current, call);
  say(CALL_END, "bob", ID, 0);
  assert.equal(calls.current, null);
  assert.equal(call.media.log.at(-1), "stop");
});

test("When the connection is back the call goes on where the server says that it stands.", async () => {
  const { session, calls, call, say } = await active();
  session.emit("offline");
  assert.equal(call.isLinkDown, true);
  session.emit("online");
  say(CALL_ACCEPT, "bob", ID, OFFER);
  session.resolve();
  await settled();
  assert.equal(calls.current, call);
  assert.equal(call.isLinkDown, false);
  assert.deepEqual(call.media.log, ["voice", "start", "lost", "lost"]);
});

test("When the server says nothing of the call after a registration, it is over.", async () => {
  const { session, calls } = await active();
  session.emit("offline");
  session.emit("online");
  session.resolve();
  await settled();
  assert.equal(calls.current, null);
});

test("What was last said is said again when the server tells that the call still rings.", async () => {
  const { session, calls, say } = begin();
  say(CALL_REQUEST, "bob", ID, 0, OFFER);
  calls.accept(false);
  await settled();
  session.sent = [];
  say(CALL_REQUEST, "bob", ID, 0, OFFER);
  assert.deepEqual(session.sent.map(([type]) => type), [CALL_ACCEPT]);
});

test("Two who call each other are in one call.", async () => {
  const { calls, say } = begin();
  calls.dial("bob", false);
  await settled();
  say(CALL_REQUEST, "bob", ID, 0, OFFER);
  say(CALL_ACCEPT, "bob", ID, OFFER);
  assert.equal(calls.current.state, "active");
  assert.equal(hex(ID), calls.current.id);
});

test("A call of a page before this one is ended.", () => {
  const { session, say } = begin();
  say(CALL_ACCEPT, "bob", ID, OFFER);
  assert.deepEqual(session.sent, [[CALL_END, "bob", hex(ID)]]);
});

test("A call taken back before the server has answered is ended as soon as it rings.", async () => {
  const { session, calls, say } = begin();
  calls.dial("bob", false);
  await settled();
  calls.hangUp();
  assert.equal(calls.current, null);
  session.sent = [];
  say(CALL_REQUEST, "bob", ID, 0);
  assert.deepEqual(session.sent, [[CALL_END, "bob", hex(ID)]]);
});

test("Where calls are impossible one that comes is refused as unsupported, and told as missed.", () => {
  const { session, told, say } = begin("insecure");
  say(CALL_REQUEST, "bob", ID, 0, OFFER);
  assert.deepEqual(session.sent, [[CALL_REJECT, "bob", `${hex(ID)}07`]]);
  assert.equal(told.missed[0][0], "bob");
});

test("An offer that is not understood is refused as unsupported.", () => {
  const { session, calls, say } = begin();
  say(CALL_REQUEST, "bob", ID, 0, 120);
  assert.deepEqual(session.sent, [[CALL_REJECT, "bob", `${hex(ID)}07`]]);
  assert.equal(calls.current, null);
});

test("A missed call is told once, and one that rang here is not.", () => {
  const { session, told, say } = begin();
  say(CALL_REQUEST, "bob", ID, 0, OFFER);
  say(CALL_END, "bob", ID, 1);
  session.emit(CALL_REJECT, "bob", join(ID, RejectCode.NO_ANSWER), 1_000);
  session.emit(CALL_REJECT, "bob", join(OTHER_ID, RejectCode.NO_ANSWER), 2_000);
  session.emit(CALL_REJECT, "bob", join(OTHER_ID, RejectCode.NO_ANSWER), 2_000);
  assert.deepEqual(told.missed, [["bob", 2_000, hex(OTHER_ID)]]);
});

test("The connection is watched more closely in a call, and no longer after it.", async () => {
  const { session, say } = await active();
  assert.equal(session.isHurried, true);
  say(CALL_END, "bob", ID, 0);
  assert.equal(session.isHurried, false);
});
