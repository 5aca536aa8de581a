/**
 * Files on their way, as their sender and their receiver see them.
 *
 * A transfer outlives a connection: when either side was lost, the sender offers the file again under the same ID, and
 * the receiver accepts it from where it stopped.  The ID follows from what is sent to whom, so even a sender who has
 * reloaded the page goes on where it was, by choosing the file again.
 *
 * A pause needs no word of the protocol: a sender who pauses sends no more, and a receiver gives no more credit.
 */

import { Events } from "./events.js";
import { NotConnected, ServerError } from "./connection.js";
import { Sha256 } from "./sha256.js";
import {
  CancelCode, ErrorCode, FILE_WINDOW, FileOp, ID_SIZE, MAX_CHUNK, MAX_FILE_NAME, MessageType, decodeOffer, decodeU64,
  encodeOffer, encodeText, encodeU64, hex, join, splitId, splitReason, unhex,
} from "./wire.js";

/** Bytes that a receiver takes before it tells the sender. */
const CREDIT_EVERY = FILE_WINDOW / 4;

/** Milliseconds between two offers to a receiver who was lost: the first time, doubling, and at most. */
const RETRY = { first: 2_000, most: 30_000, times: 20 };

/** Bytes that may wait in the browser, and of one chunk: what is behind them in a call has to be early. */
const PACE = { calm: { backlog: 1_048_576, chunk: MAX_CHUNK }, inCall: { backlog: 8_192, chunk: 8_192 } };

/** Milliseconds until one looks again whether the network has taken what waits. */
const LOOK_AGAIN = 10;

/** Files that are kept in mind: offered, or on their way. */
const MAX_TRANSFERS = 64;

/** What a transfer can still leave. */
const OPEN = new Set(["hashing", "offered", "running", "paused", "waiting"]);

/** Return a name that any system takes and no program obeys. */
export function safeName(name) {
  return name.replace(/[<>:"|?*/\\]|[\p{Cc}\p{Cf}]/gu, "_").replace(/^[. ]+|[. ]+$/g, "") || "file";
}

/** Return as much of a file's name as fits into an OFFER, with its suffix. */
export function shortName(name) {
  let [, stem, suffix] = /^(.*?)(\.[^.]{1,20})?$/su.exec(safeName(name));
  while (encodeText(stem + (suffix ?? "")).length > MAX_FILE_NAME) stem = [...stem].slice(0, -1).join("");
  return stem + (suffix ?? "");
}

/** Files' bytes, in a thread of their own. */
class Disk {
  #worker = new Worker(new URL("./file-worker.js", import.meta.url), { type: "module" });
  #waiting = new Map();
  #count = 0;

  constructor() {
    this.#worker.onmessage = ({ data: { id, result, error } }) => {
      const { resolve, reject } = this.#waiting.get(id);
      this.#waiting.delete(id);
      if (error === undefined) resolve(result);
      else reject(new Error(error));
    };
  }

  ask(op, details, transfer = []) {
    return new Promise((resolve, reject) => {
      const id = ++this.#count;
      this.#waiting.set(id, { resolve, reject });
      this.#worker.postMessage({ id, op, ...details }, transfer);
    });
  }
}

/** Events: `offered(transfer)`, `changed(transfer)`, `received(transfer, file)`. */
export class Files extends Events {
  #transfers = new Map();
  #confirmed = new Map();
  #disk = null;

  /** @param isInCall returns whether a call goes over the same connection */
  constructor(session, store, isInCall = () => false) {
    super();
    this.session = session;
    this.store = store;
    this.isInCall = isInCall;
    session.on(MessageType.FILE, (peer, data) => this.#frame(peer, data));
    session.on("offline", () => this.#offline());
    session.on("online", () => this.#online());
  }

  get disk() {
    this.#disk ??= new Disk();
    return this.#disk;
  }

  /** What an earlier page left under way: what we sent is gone with it, what we got waits for its sender. */
  async load() {
    for (const message of await this.store.find("file", ({ file }) => OPEN.has(file.state))) {
      const file = message.file;
      const wasAccepted = !message.mine && file.isAccepted;
      Object.assign(file, wasAccepted ? { state: "waiting" } : { state: "failed", reason: "reloaded" });
      await this.store.update(message);
      if (wasAccepted) this.#keep(message);
    }
  }

  /** Return the transfer that a message is about while it is under way, or undefined. */
  of(message) {
    return [...this.#transfers.values()].find((transfer) => transfer.message.id === message.id);
  }

  /** Return what was received with a message, or null where it is no longer there. */
  read(message) {
    return this.disk.ask("read", { name: this.#partName(message) });
  }

  /** Forget all files that came. */
  clear() {
    return this.disk.ask("clear", { prefix: this.#prefix() });
  }

  // -- what a user does

  /** Offer a file to somebody. */
  async send(peer, file) {
    const name = shortName(file.name);
    const message = await this.#note(peer, true, { name, size: file.size, state: "hashing" });
    let sha256;
    try {
      sha256 = await this.disk.ask("hash", { file });
    } catch {
      await this.#end({ message }, "failed", "unreadable");
      return;
    }
    const hash = new Sha256();
    hash.update(join(encodeText([this.session.user, peer, name].join("\0") + "\0"), sha256));
    message.file.id = hex(hash.digest().subarray(0, ID_SIZE));
    message.file.sha256 = hex(sha256);
    const transfer = this.#keep(message);
    if (transfer === null) {
      await this.#end({ message }, "failed", "twice");
      return;
    }
    transfer.blob = file;
    await this.#offer(transfer);
  }

  /** Take a file that is offered. */
  async accept(transfer) {
    transfer.message.file.isAccepted = true;
    transfer.isWanted = true;
    await this.#take(transfer);
  }

  /** Refuse a file, or give up one that is under way. */
  async cancel(transfer) {
    const { file, mine } = transfer.message;
    const isDeclined = !mine && !file.isAccepted;
    const code = isDeclined ? CancelCode.DECLINED : CancelCode.CANCELLED;
    if (file.id !== undefined) this.#tell(transfer, FileOp.CANCEL, Uint8Array.of(code));
    await this.#end(transfer, isDeclined ? "declined" : "cancelled");
  }

  pause(transfer) {
    if (transfer.message.file.state === "running") this.#become(transfer, "paused");
  }

  resume(transfer) {
    if (transfer.message.file.state !== "paused") return;
    this.#become(transfer, "running");
    if (transfer.message.mine) this.#pump(transfer);
    else this.#credit(transfer);
  }

  // -- a transfer's life

  #key(peer, id, mine) {
    return `${mine ? "to" : "from"} ${id} ${peer}`;
  }

  #keep(message) {
    const key = this.#key(message.peer, message.file.id, message.mine);
    if (this.#transfers.has(key) || this.#transfers.size >= MAX_TRANSFERS) return null;
    const transfer = { key, message, done: 0, sent: 0, credit: 0, credited: 0, failures: 0, blob: null, work: null };
    this.#transfers.set(key, transfer);
    return transfer;
  }

  async #note(peer, mine, file) {
    const message = { peer, mine, kind: "file", at: Date.now(), file };
    message.id = await this.store.add(message);
    this.emit("offered", message);
    return message;
  }

  #become(transfer, state, reason) {
    const { message } = transfer;
    Object.assign(message.file, { state, reason });
    this.emit("changed", message);
    // One that the store does not have yet is written by who adds it.
    return message.id === undefined ? Promise.resolve() : this.store.update(message);
  }

  #end(transfer, state, reason) {
    this.#transfers.delete(transfer.key);
    clearTimeout(transfer.timer);
    if (!transfer.message.mine && state !== "done" && transfer.message.file.isAccepted) {
      this.disk.ask("remove", { name: this.#partName(transfer.message) });
    }
    return this.#become(transfer, state, reason);
  }

  #isOver(transfer) {
    return !OPEN.has(transfer.message.file.state);
  }

  #prefix() {
    const hash = new Sha256();
    hash.update(encodeText(this.store.user));
    return hex(hash.digest().subarray(0, ID_SIZE));
  }

  #partName({ peer, file }) {
    // Not the transfer ID alone: that is the sender's choice, and two may choose the same.
    const hash = new Sha256();
    hash.update(encodeText(`${peer}\0${file.id}\0${file.sha256}`));
    return `${this.#prefix()}-${hex(hash.digest().subarray(0, ID_SIZE))}`;
  }

  #data(transfer, op, rest = new Uint8Array()) {
    return join(op, unhex(transfer.message.file.id), rest);
  }

  #tell(transfer, op, rest) {
    this.session.send(MessageType.FILE, transfer.message.peer, this.#data(transfer, op, rest));
  }

  #ask(transfer, op, rest) {
    return this.session.ask(MessageType.FILE, transfer.message.peer, this.#data(transfer, op, rest));
  }

  #progress(transfer, done) {
    transfer.done = done;
    this.emit("changed", transfer.message);
  }

  // -- sending

  async #offer(transfer) {
    const { file } = transfer.message;
    const offer = encodeOffer({ size: file.size, sha256: unhex(file.sha256), name: file.name });
    await this.#become(transfer, "offered");
    try {
      await this.#ask(transfer, FileOp.OFFER, offer);
    } catch (error) {
      if (this.#isOver(transfer)) return;
      // Offline at first is an answer; offline after some of it got through is a bad network.
      const isAway = error.code === ErrorCode.OFFLINE && transfer.hasBegun && transfer.failures < RETRY.times;
      if (error instanceof NotConnected) await this.#become(transfer, "waiting");
      else if (isAway) this.#offerLater(transfer);
      else await this.#end(transfer, "failed", error instanceof ServerError ? error.code : "unreadable");
    }
  }

  #offerLater(transfer) {
    this.#become(transfer, "waiting");
    const wait = Math.min(RETRY.most, RETRY.first * 2 ** transfer.failures);
    transfer.failures += 1;
    clearTimeout(transfer.timer);
    transfer.timer = setTimeout(() => {
      if (transfer.message.file.state === "waiting" && this.session.isOnline) this.#offer(transfer);
    }, wait);
  }

  #online() {
    for (const transfer of this.#transfers.values()) {
      if (transfer.message.mine && transfer.message.file.state === "waiting") this.#offer(transfer);
    }
  }

  #offline() {
    for (const transfer of this.#transfers.values()) {
      const { file, mine } = transfer.message;
      if (mine && file.state !== "hashing") this.#become(transfer, "waiting");
      else if (!mine && file.isAccepted) this.#become(transfer, "waiting");
      else if (!mine) this.#end(transfer, "failed", "withdrawn");
    }
  }

  /** Send as much as the receiver and the network take now. */
  async #pump(transfer) {
    if (transfer.isPumping) return;
    transfer.isPumping = true;
    const { file } = transfer.message;
    try {
      while (file.state === "running" && transfer.sent < Math.min(file.size, transfer.credit + FILE_WINDOW)) {
        const pace = this.isInCall() ? PACE.inCall : PACE.calm;
        if (this.session.backlog > pace.backlog) {
          // A credit calls us too: in a page that is not seen timers are slow.
          setTimeout(() => this.#pump(transfer), LOOK_AGAIN);
          return;
        }
        const at = transfer.sent;
        const end = Math.min(file.size, transfer.credit + FILE_WINDOW, at + pace.chunk);
        const bytes = new Uint8Array(await transfer.blob.slice(at, end).arrayBuffer());
        if (bytes.length !== end - at) throw new Error("the file became shorter");
        if (file.state !== "running" || transfer.sent !== at) return;
        this.#tell(transfer, FileOp.CHUNK, join(encodeU64(at), bytes));
        transfer.sent = end;
      }
      if (file.state === "running" && transfer.sent === file.size && !transfer.isDone) {
        transfer.isDone = true;
        this.#tell(transfer, FileOp.DONE);
      }
    } catch {
      this.#tell(transfer, FileOp.CANCEL, Uint8Array.of(CancelCode.CANCELLED));
      await this.#end(transfer, "failed", "unreadable");
    } finally {
      transfer.isPumping = false;
    }
  }

  // -- receiving

  /** Say from where on we take it. */
  async #take(transfer) {
    const { file } = transfer.message;
    await this.#become(transfer, "running");
    try {
      transfer.done = await this.disk.ask("open", { name: this.#partName(transfer.message), size: file.size });
      transfer.credited = transfer.done;
      transfer.expected = transfer.done;
      this.emit("changed", transfer.message);
      await this.#ask(transfer, FileOp.ACCEPT, encodeU64(transfer.done));
    } catch (error) {
      if (this.#isOver(transfer)) return;
      if (error.code === ErrorCode.OVERLOADED) {
        // Four at once; this one comes after them.
        transfer.timer = setTimeout(() => this.#take(transfer), RETRY.first);
      } else if (error instanceof NotConnected) {
        await this.#become(transfer, "waiting");
      } else {
        await this.#end(transfer, "failed", error.code ?? "unwritable");
      }
    }
  }

  async #chunk(transfer, offset, bytes) {
    const { message } = transfer;
    if (offset !== transfer.expected || offset + bytes.length > message.file.size) return; // of an earlier try
    transfer.expected = offset + bytes.length;
    try {
      const copy = bytes.slice();
      const done = await this.disk.ask("write", { name: this.#partName(message), bytes: copy }, [copy.buffer]);
      if (this.#isOver(transfer)) return;
      this.#progress(transfer, done);
      if (message.file.state === "running") this.#credit(transfer);
    } catch {
      if (this.#isOver(transfer)) return;
      this.#tell(transfer, FileOp.CANCEL, Uint8Array.of(CancelCode.NO_SPACE));
      await this.#end(transfer, "failed", "unwritable");
    }
  }

  #credit(transfer) {
    const { done, credited, message } = transfer;
    if (done === credited || (done - credited < CREDIT_EVERY && done !== message.file.size)) return;
    transfer.credited = done;
    this.#tell(transfer, FileOp.CREDIT, encodeU64(done));
  }

  async #finish(transfer) {
    const { message } = transfer;
    const { sha256, file } = await this.disk.ask("finish", { name: this.#partName(message) });
    if (this.#isOver(transfer)) return;
    if (hex(sha256) !== message.file.sha256) {
      this.#tell(transfer, FileOp.CANCEL, Uint8Array.of(CancelCode.HASH_MISMATCH));
      await this.#end(transfer, "failed", "hash");
      return;
    }
    this.#confirm(transfer);
    await this.#end(transfer, "done");
    this.emit("received", message, file);
  }

  /** Tell the sender that we have it; if that gets lost, tell it when it offers the file again. */
  #confirm(transfer) {
    this.#ask(transfer, FileOp.RECEIVED).then(
      () => this.#confirmed.delete(transfer.key),
      () => this.#confirmed.set(transfer.key, transfer),
    );
  }

  // -- what comes

  #frame(peer, data) {
    const op = data[0];
    const [rawId, rest] = splitId(data.subarray(1));
    const id = hex(rawId);
    const incoming = this.#transfers.get(this.#key(peer, id, false));
    const outgoing = this.#transfers.get(this.#key(peer, id, true));
    if (op === FileOp.OFFER) this.#offered(peer, id, decodeOffer(rest), incoming);
    else if (op === FileOp.ACCEPT && outgoing !== undefined) this.#accepted(outgoing, decodeU64(rest));
    else if (op === FileOp.CREDIT && outgoing !== undefined) this.#credited(outgoing, decodeU64(rest));
    else if (op === FileOp.RECEIVED && outgoing !== undefined) this.#end(outgoing, "done");
    else if (op === FileOp.CHUNK && incoming !== undefined) this.#chunk(incoming, decodeU64(rest), rest.subarray(8));
    else if (op === FileOp.DONE) this.#done(incoming, this.#confirmed.get(this.#key(peer, id, false)));
    else if (op === FileOp.CANCEL) this.#cancelled(incoming ?? outgoing, splitReason(rest).code);
  }

  async #offered(peer, id, offer, known) {
    const sha256 = hex(offer.sha256);
    const key = this.#key(peer, id, false);
    const had = this.#confirmed.get(key);
    if (had?.message.file.sha256 === sha256) {
      this.#tell(had, FileOp.ACCEPT, encodeU64(offer.size));
    } else if (known !== undefined && known.message.file.sha256 === sha256) {
      if (known.message.file.isAccepted) await this.#take(known);
    } else if (known !== undefined || this.#transfers.size >= MAX_TRANSFERS) {
      this.session.send(
        MessageType.FILE, peer, join(FileOp.CANCEL, unhex(id), CancelCode.DECLINED),
      );
    } else {
      const file = { id, sha256, name: safeName(offer.name), size: offer.size, state: "offered" };
      // Kept before anything is awaited: what comes next may be about it.
      const transfer = this.#keep({ peer, mine: false, kind: "file", at: Date.now(), file });
      transfer.message.id = await this.store.add(transfer.message);
      this.emit("offered", transfer.message);
    }
  }

  #accepted(transfer, offset) {
    Object.assign(transfer, { hasBegun: true, isDone: false, failures: 0, sent: offset, credit: offset });
    this.#become(transfer, "running");
    this.#progress(transfer, offset);
    this.#pump(transfer);
  }

  #credited(transfer, offset) {
    transfer.credit = offset;
    this.#progress(transfer, offset);
    this.#pump(transfer);
  }

  #done(incoming, had) {
    // Chunks before it are still being written; the disk does one thing after the other.
    if (incoming !== undefined && incoming.expected === incoming.message.file.size) this.#finish(incoming);
    else if (incoming === undefined && had !== undefined) this.#confirm(had);
  }

  #cancelled(transfer, code) {
    if (transfer === undefined) return;
    const { file, mine } = transfer.message;
    const isLost = code === CancelCode.PEER_LOST;
    if (isLost && mine && transfer.hasBegun) this.#offerLater(transfer);
    else if (isLost && !mine && file.isAccepted) this.#become(transfer, "waiting");
    else if (code === CancelCode.DECLINED) this.#end(transfer, "declined");
    else if (code === CancelCode.CANCELLED) this.#end(transfer, "cancelled");
    else if (!mine && !file.isAccepted) this.#end(transfer, "failed", "withdrawn");
    else this.#end(transfer, "failed", ["", "", "hash", "lost", "rule", "space"][code] ?? "rule");
  }
}
