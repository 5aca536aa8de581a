import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import test from "node:test";

import { Events } from "../../wecompany/web/pages/events.js";
import { Sha256 } from "../../wecompany/web/pages/sha256.js";
import { FILE_WINDOW, FileOp, MAX_CHUNK, MAX_FILE_NAME, MessageType } from "../../wecompany/web/pages/wire.js";

/** What file-worker.js is to the page, in memory; what is written outlives the worker, as in a browser. */
class FakeWorker {
  static disk = new Map();

  postMessage({ id, op, ...details }) {
    Promise.resolve(this[op](details)).then(
      (result) => this.onmessage({ data: { id, result } }),
      (error) => this.onmessage({ data: { id, error: error.message } }),
    );
  }

  hash = async ({ file }) => {
    const hash = new Sha256();
    hash.update(new Uint8Array(await file.arrayBuffer()));
    return hash.digest();
  };

  open = ({ name }) => {
    if (!FakeWorker.disk.has(name)) FakeWorker.disk.set(name, Buffer.alloc(0));
    return FakeWorker.disk.get(name).length;
  };

  write = ({ name, bytes }) => {
    if (FakeWorker.isFull) throw new Error("no space");
    FakeWorker.disk.set(name, Buffer.concat([FakeWorker.disk.get(name), bytes]));
    return FakeWorker.disk.get(name).length;
  };

  finish = ({ name }) => {
    const file = FakeWorker.disk.get(name);
    return { sha256: createHash("sha256").update(file).digest(), file };
  };

  remove = ({ name }) => FakeWorker.disk.delete(name);
}

globalThis.Worker = FakeWorker;
const { Files, safeName, shortName } = await import("../../wecompany/web/pages/files.js");

class FakeStore {
  count = 0;
  user = "somebody";
  find = async () => [];
  update = async () => {};
  add = async () => (this.count += 1);
}

/** A session whose messages go to the other one, changed by what a test puts between. */
class Wire extends Events {
  isOnline = true;
  backlog = 0;
  ops = [];

  constructor(user) {
    super();
    this.user = user;
  }

  send(type, to, data) {
    this.ops.push(data[0]);
    const passed = this.between === undefined ? data : this.between(data);
    if (passed !== null) setImmediate(() => this.other.emit(MessageType.FILE, this.user, passed));
    return true;
  }

  ask = async (type, to, data) => void this.send(type, to, data);
}

function begin() {
  FakeWorker.disk.clear();
  FakeWorker.isFull = false;
  const [alice, bob] = [new Wire("alice"), new Wire("bob")];
  Object.assign(alice, { other: bob });
  Object.assign(bob, { other: alice });
  const [from, to] = [new Files(alice, new FakeStore()), new Files(bob, new FakeStore())];
  const received = new Promise((resolve) => to.on("received", (message, file) => resolve(file)));
  return { alice, bob, from, to, received };
}

const named = (bytes, name = "a.bin") => Object.assign(new Blob([bytes]), { name });
const contents = (size) => Uint8Array.from({ length: size }, (_, i) => (i * 7 + (i >> 9)) & 255);
const offered = (files) => new Promise((resolve) => files.on("offered", resolve));

/** Wait until a message's file is in a state. */
const become = (files, state) => new Promise((resolve) => {
  files.on("changed", (message) => message.file.state === state && resolve(message));
});

test("A file comes as it was sent, whatever its size, and both sides say so.", async () => {
  for (const size of [0, 1, MAX_CHUNK, MAX_CHUNK + 1, 3 * FILE_WINDOW + 5]) {
    const { from, to, received } = begin();
    const offer = offered(to);
    const sent = become(from, "done");
    const bytes = contents(size);
    from.send("bob", named(bytes));
    const message = await offer;
    assert.deepEqual([message.file.name, message.file.size], ["a.bin", size]);
    await to.accept(to.of(message));
    assert.ok(Buffer.from(bytes).equals(await received));
    await sent;
    assert.equal(message.file.state, "done");
  }
});

test("A receiver who pauses gets no more than the window, and all of it when that is over.", async () => {
  const { alice, from, to, received } = begin();
  const offer = offered(to);
  const bytes = contents(4 * FILE_WINDOW);
  from.send("bob", named(bytes));
  const message = await offer;
  await to.accept(to.of(message));
  to.pause(to.of(message));
  await new Promise((resolve) => setTimeout(resolve, 100));
  const sent = alice.ops.filter((op) => op === FileOp.CHUNK).length;
  assert.ok(sent <= Math.ceil(FILE_WINDOW / MAX_CHUNK), `${sent} chunks`);
  assert.equal(message.file.state, "paused");
  to.resume(to.of(message));
  assert.ok(Buffer.from(bytes).equals(await received));
});

test("After a lost connection the file is offered again, and goes on where it was.", async () => {
  const { alice, bob, from, to, received } = begin();
  const offer = offered(to);
  const bytes = contents(2 * FILE_WINDOW);
  from.send("bob", named(bytes));
  const message = await offer;
  let chunks = 0;
  alice.between = (data) => (data[0] === FileOp.CHUNK && ++chunks > 10 ? null : data);
  await to.accept(to.of(message));
  await new Promise((resolve) => setTimeout(resolve, 50));
  const before = to.of(message).done;
  assert.equal(before, 10 * MAX_CHUNK);
  alice.between = undefined;
  for (const session of [alice, bob]) session.emit("offline");
  assert.equal(message.file.state, "waiting");
  bob.ops = [];
  for (const session of [bob, alice]) session.emit("online");
  assert.ok(Buffer.from(bytes).equals(await received));
  assert.equal(bob.ops[0], FileOp.ACCEPT);
});

test("What arrives changed is given up by both, and nothing of it is kept.", async () => {
  const { alice, from, to } = begin();
  const offer = offered(to);
  const failed = become(from, "failed");
  alice.between = (data) => {
    if (data[0] === FileOp.CHUNK) data[40] ^= 1;
    return data;
  };
  from.send("bob", named(contents(1_000)));
  const message = await offer;
  await to.accept(to.of(message));
  assert.equal((await failed).file.reason, "hash");
  assert.deepEqual([message.file.state, message.file.reason, FakeWorker.disk.size], ["failed", "hash", 0]);
});

test("A file that is declined, cancelled or has no space ends at both sides with that reason.", async () => {
  const endings = [
    ["declined", undefined, ({ to }, message) => to.cancel(to.of(message))],
    ["failed", "space", ({ to }, message) => {
      FakeWorker.isFull = true;
      return to.accept(to.of(message));
    }],
  ];
  for (const [state, reason, act] of endings) {
    const all = begin();
    const offer = offered(all.to);
    const ended = become(all.from, state);
    all.from.send("bob", named(contents(1_000)));
    const message = await offer;
    await act(all, message);
    assert.equal((await ended).file.reason, reason);
    assert.equal(message.file.state, state);
  }
  const { from, to } = begin();
  const offer = offered(to);
  const taken = become(to, "cancelled");
  const mine = offered(from);
  from.send("bob", named(contents(10)));
  await offer;
  await from.cancel(from.of(await mine));
  await taken;
});

test("Chunks that nobody asked for, or past the size, change nothing.", async () => {
  const { from, to } = begin();
  const offer = offered(to);
  from.send("bob", named(contents(10)));
  const message = await offer;
  for (const at of [0, 5, 11]) {
    const data = new Uint8Array(17 + 8 + 20);
    data[0] = FileOp.CHUNK;
    data.set(Buffer.from(message.file.id, "hex"), 1);
    data[24] = at;
    to.session.emit(MessageType.FILE, "alice", data);
  }
  await new Promise((resolve) => setTimeout(resolve, 20));
  assert.equal(FakeWorker.disk.size, 0);
  assert.equal(message.file.state, "offered");
});

test("A file's name is one that any system takes, and fits into an offer with its suffix.", () => {
  assert.equal(safeName("../a\\b:c\n.txt"), "_a_b_c_.txt");
  assert.equal(safeName(" .. "), "file");
  for (const name of ["报告".repeat(100) + ".pdf", "x".repeat(300), `${"y".repeat(300)}.tar.gz`, "short.txt"]) {
    const short = shortName(name);
    assert.ok(Buffer.byteLength(short) <= MAX_FILE_NAME, short);
    assert.equal(short.slice(-3), name.slice(-3));
  }
});
