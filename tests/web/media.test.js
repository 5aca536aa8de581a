import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import test from "node:test";

import { JitterBuffer, TARGET } from "../../wecompany/web/pages/jitter.js";
import { BITRATE, RateController } from "../../wecompany/web/pages/rate.js";
import { Sha256 } from "../../wecompany/web/pages/sha256.js";

const RATE = 48_000;
const PACKET = 960;

/** Let the buffer play for some milliseconds; `put` is called before each 20 of them. */
function play(buffer, ms, put = () => {}) {
  const output = new Float32Array(PACKET);
  for (let at = 0; at < ms; at += 20) {
    put(at);
    buffer.pull(output);
  }
  return output;
}

const packet = (value = 0.5) => new Float32Array(PACKET).fill(value);

test("Nothing is played until as much waits as should.", () => {
  const buffer = new JitterBuffer(RATE);
  buffer.put(0, packet());
  assert.equal(play(buffer, 20)[0], 0);
  assert.equal(buffer.isPlaying, false);
  buffer.put(20_000, packet());
  assert.equal(play(buffer, 20)[0], 0.5);
});

test("What is played next has its sender's time.", () => {
  const buffer = new JitterBuffer(RATE);
  assert.equal(buffer.position, null);
  for (let i = 0; i < 4; i += 1) buffer.put(1_000_000 + i * 20_000, packet());
  play(buffer, 20);
  assert.equal(buffer.position, 1_020_000);
});

test("A buffer that runs dry is counted, waits for more, and then holds more.", () => {
  const buffer = new JitterBuffer(RATE);
  buffer.put(0, packet());
  buffer.put(20_000, packet());
  play(buffer, 60);
  assert.equal(buffer.dry, 1);
  assert.equal(buffer.isPlaying, false);
  assert.equal(buffer.target, TARGET.first + 20);
});

test("Silence behind what was played fades and does not click.", () => {
  const buffer = new JitterBuffer(RATE);
  buffer.put(0, packet());
  buffer.put(20_000, packet());
  const output = play(buffer, 60);
  assert.ok(Math.abs(output[0]) < 0.5 && Math.abs(output[0]) > 0.4);
  assert.ok(Math.abs(output[200]) < 0.001);
});

test("A hole that the server left is filled, so that sound and pictures stay together.", () => {
  const buffer = new JitterBuffer(RATE);
  buffer.put(0, packet());
  buffer.put(60_000, packet());
  assert.equal(buffer.depth, 80);
  assert.equal(buffer.filled, 40);
});

test("A hole of more than half a second is a new beginning, and nothing is filled.", () => {
  const buffer = new JitterBuffer(RATE);
  buffer.put(0, packet());
  buffer.put(5_000_000, packet());
  assert.equal(buffer.depth, 40);
});

test("What never gets used is left out after a while, so that the delay is low again.", () => {
  const buffer = new JitterBuffer(RATE);
  let time = 0;
  const put = () => buffer.put((time += 20_000), packet());
  for (let i = 0; i < 8; i += 1) put();
  play(buffer, 10_000, put);
  assert.ok(buffer.depth <= 65, `${buffer.depth} ms`);
  assert.equal(buffer.dry, 0);
});

test("What comes in a heap behind a stall is not played for ever behind.", () => {
  const buffer = new JitterBuffer(RATE);
  for (let i = 0; i < 200; i += 1) buffer.put(i * 20_000, packet());
  assert.ok(buffer.depth <= 260, `${buffer.depth} ms`);
});

test("Less is sent when frames are lost or late, and again only when that could show.", () => {
  let now = 0;
  const rate = new RateController(() => now);
  rate.report(0.1, 0);
  const less = rate.bitrate;
  assert.ok(less < BITRATE.first);
  rate.report(0.1, 0);
  assert.equal(rate.bitrate, less);
  now += 2_000;
  rate.report(0, 200);
  assert.ok(rate.bitrate < less);
});

test("What arrives bounds what is sent when less has to be, and so a slow network is found at once.", () => {
  const rate = new RateController(() => 0);
  rate.report(0, 300, 160_000);
  assert.equal(rate.bitrate, 120_000);
});

test("An encoder that needs little does not make the bitrate grow, nor shrink.", () => {
  let now = 0;
  const rate = new RateController(() => now);
  for (; now < 60_000; now += 1_000) rate.report(0, 0, 50_000);
  assert.equal(rate.bitrate, BITRATE.first);
});

test("While far too much waits on the way nothing is added, and then again.", () => {
  const rate = new RateController(() => 0);
  rate.report(0, 2_000);
  assert.equal(rate.isDraining, true);
  rate.report(0, 100);
  assert.equal(rate.isDraining, false);
});

test("The bitrate grows while all is well, and stays within its bounds either way.", () => {
  let now = 0;
  const rate = new RateController(() => now);
  for (let i = 0; i < 100; i += 1, now += 1_000) rate.report(0, 0, 10_000_000);
  assert.equal(rate.bitrate, BITRATE.most);
  for (let i = 0; i < 100; i += 1, now += 2_000) rate.congested();
  assert.equal(rate.bitrate, BITRATE.least);
});

test("The SHA-256 is that of everybody else, in whatever pieces the bytes come.", () => {
  for (const size of [0, 1, 55, 56, 63, 64, 65, 119, 120, 1_000, 100_003]) {
    const bytes = Uint8Array.from({ length: size }, (_, i) => (i * 31 + size) & 255);
    const expected = createHash("sha256").update(bytes).digest("hex");
    for (const step of [1, 63, 64, 65, size + 1]) {
      const hash = new Sha256();
      for (let at = 0; at < size; at += step) hash.update(bytes.subarray(at, at + step));
      assert.equal(Buffer.from(hash.digest()).toString("hex"), expected, `${size} bytes by ${step}`);
    }
  }
});
