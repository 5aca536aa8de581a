import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import test from "node:test";

import * as wire from "../../wecompany/web/pages/wire.js";
import { Reassembler, decodeDescription, encodeDescription, encodeFrame } from "../../wecompany/web/pages/pieces.js";

// What the Python side says of the same things; tests/test_pages.py writes it.
const python = JSON.parse(readFileSync(process.env.WECOMPANY_VECTORS, "utf8"));

test("Payloads are those that wecompany.wire makes, and are read as they were written.", () => {
  for (const { type, user, data, payload } of python.payloads) {
    const made = wire.encodePayload(type, user, wire.unhex(data));
    assert.equal(wire.hex(made), payload);
    const read = wire.decodePayload(made.buffer);
    assert.deepEqual([read.type, read.user, wire.hex(read.data)], [type, user, data]);
  }
});

test("A user may be called what wecompany.wire says that a user may.", () => {
  for (const { name, isGood } of python.names) assert.equal(wire.isUserId(name), isGood, JSON.stringify(name));
});

test("What is no payload is refused, however short it is.", () => {
  for (const bytes of ["", "00", "0000", "000001", "00000561"]) {
    assert.throws(() => wire.decodePayload(wire.unhex(bytes).buffer), wire.WireError, bytes);
  }
});

test("A payload has at most 65,535 bytes.", () => {
  assert.equal(wire.encodePayload(0, "bob", new Uint8Array(wire.MAX_PAYLOAD - 6)).length, wire.MAX_PAYLOAD);
  assert.throws(() => wire.encodePayload(0, "bob", new Uint8Array(wire.MAX_PAYLOAD - 5)), wire.WireError);
});

test("A file's offer is the one that wecompany.wire makes.", () => {
  const { size, sha256, name, data } = python.offer;
  assert.equal(wire.hex(wire.encodeOffer({ size, sha256: wire.unhex(sha256), name })), data);
  const read = wire.decodeOffer(wire.unhex(data));
  assert.deepEqual({ ...read, sha256: wire.hex(read.sha256) }, { size, sha256, name });
});

test("Data that is cut is refused.", () => {
  for (const decode of [wire.decodeU32, wire.decodeU64, wire.splitId, wire.decodeError, wire.decodeOffer]) {
    assert.throws(() => decode(new Uint8Array(1)), wire.WireError, decode.name);
  }
});

test("Frames are cut into the pieces that wecompany.media makes, and put together again.", () => {
  for (const { kind, sequence, timestamp, data, pieces } of python.frames) {
    const frame = { kind, sequence, timestamp, data: wire.unhex(data) };
    const made = encodeFrame(frame);
    assert.deepEqual(made.map(wire.hex), pieces);
    const reassembler = new Reassembler();
    const read = made.map((piece) => reassembler.feed(piece));
    assert.deepEqual(read.slice(0, -1), Array(made.length - 1).fill(null));
    assert.deepEqual(read.at(-1), frame);
  }
});

test("Pieces that are lost, late, doubled or mixed come out as they do in wecompany.media.", () => {
  for (const { pieces, frames, dropped, ignored } of python.streams) {
    const reassembler = new Reassembler();
    const read = pieces.map((piece) => reassembler.feed(wire.unhex(piece)));
    assert.deepEqual(read.map((frame) => frame && [frame.kind, frame.sequence, wire.hex(frame.data)]), frames);
    assert.deepEqual([reassembler.dropped, reassembler.ignored], [dropped, ignored]);
  }
});

test("Descriptions of the terminal's are understood here.", () => {
  const said = decodeDescription(wire.encodeText(python.description));
  assert.deepEqual([said.audio.channels, said.video.width, said.video.height], [1, 320, 240]);
  assert.equal(said.hasFeedback, false);
  assert.deepEqual(said.receives, ["opus", "vp8"]);
});

test("Descriptions of this page's are understood by itself, and an empty one describes nothing.", () => {
  const data = encodeDescription({
    audio: { rate: 48_000, channels: 1 }, video: { width: 640, height: 480, rate: "30" }, receives: ["opus"],
  });
  const said = decodeDescription(data);
  assert.equal(wire.decodeText(data), python.page);
  assert.deepEqual([said.video.width, said.receives, said.hasFeedback], [640, ["opus"], true]);
  const nothing = decodeDescription(new Uint8Array());
  assert.deepEqual([nothing.audio, nothing.video], [null, null]);
});

test("What is no description, or one of other codecs, is refused.", () => {
  for (const text of [
    "x", "null", "[]", "{}", '{"v":2}', '{"v":1,"audio":{"codec":"aac","rate":48000,"channels":1}}',
    '{"v":1,"video":{"codec":"vp8","width":0,"height":1}}', `{"v":1,"x":"${"y".repeat(wire.MAX_DESCRIPTION)}"}`,
  ]) assert.throws(() => decodeDescription(wire.encodeText(text)), text.slice(0, 40));
});
