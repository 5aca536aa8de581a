/**
 * Calls, as one of their parties sees them.  The server owns every transition; here is what it has said so far, and
 * what of it the user has to know.
 *
 * A call's `state` is one of: preparing (the devices are being opened), calling (the request is on its way), ringing
 * (at the other side), incoming (it rings here), accepting, active, ended.
 */

import { NotConnected } from "./connection.js";
import { Events } from "./events.js";
import { decodeDescription } from "./pieces.js";
import {
  EndCode, ErrorCode, MessageType, RejectCode, VIDEO_FLAG, hex, join, splitId, splitReason, unhex,
} from "./wire.js";

/** Calls that rang here of which it is remembered, so that none of them is told as missed. */
const MAX_TOLD = 256;

/** How a request that the server answers with an ERROR is told. */
const REFUSED = { [ErrorCode.FORBIDDEN]: RejectCode.FORBIDDEN, [ErrorCode.OVERLOADED]: RejectCode.OVERLOADED };

/** Events: `changed(call)`, `ended(call)`, `missed(peer, at, id)`. */
export class Calls extends Events {
  #told = [];
  #frames = 0;
  #abandoned = null;

  /**
   * @param makeMedia makes the media of a call: prepare(), start(), feed(), connectionLost(), stop()
   * @param canCall returns what makes calls impossible here, or null
   */
  constructor(session, makeMedia, canCall) {
    super();
    this.session = session;
    this.makeMedia = makeMedia;
    this.canCall = canCall;
    this.current = null;
    session.on(MessageType.CALL_REQUEST, (peer, data) => this.#requested(peer, ...splitId(data)));
    session.on(MessageType.CALL_ACCEPT, (peer, data) => this.#accepted(peer, ...splitId(data)));
    session.on(MessageType.CALL_REJECT, (peer, data, at) => this.#finished(true, peer, ...splitId(data), at));
    session.on(MessageType.CALL_END, (peer, data) => this.#finished(false, peer, ...splitId(data), null));
    session.on(MessageType.MEDIA_DATA, (peer, data) => {
      if (this.current?.state === "active" && this.current.peer === peer) this.current.media.feed(data);
    });
    session.on("online", () => this.#online());
    session.on("offline", () => this.#offline());
    session.on("stopped", () => this.#over({ rejected: false, code: EndCode.PEER_LOST }));
  }

  // -- what a user does

  /** Call somebody. */
  async dial(peer, isVideo) {
    if (this.current !== null) return;
    const call = this.#begin({ peer, isVideo, isIncoming: false, state: "preparing" });
    const offer = await this.#prepare(call, isVideo);
    if (offer === null) return;
    if (call.id !== null) {
      // Meanwhile the other one has called us.
      this.#say(call, MessageType.CALL_ACCEPT, offer);
      return;
    }
    this.#become(call, "calling");
    try {
      await this.session.ask(MessageType.CALL_REQUEST, peer, join(isVideo ? VIDEO_FLAG : 0, offer));
      this.#abandoned = null;
    } catch (error) {
      if (this.current !== call || call.state !== "calling") return;
      if (error instanceof NotConnected) this.#over({ rejected: false, code: EndCode.PEER_LOST });
      else this.#over({ rejected: true, code: REFUSED[error.code] ?? RejectCode.OFFLINE });
    }
  }

  /** Take the call that rings. */
  async accept(isVideo) {
    const call = this.current;
    if (call?.state !== "incoming") return;
    this.#become(call, "accepting");
    const answer = await this.#prepare(call, isVideo);
    if (answer !== null) this.#say(call, MessageType.CALL_ACCEPT, answer);
  }

  /** Decline what rings, take back what was begun, or hang up. */
  hangUp() {
    const call = this.current;
    if (call === null) return;
    if (call.id === null) {
      if (call.state === "calling") this.#abandoned = call.peer;
      this.#over({ rejected: false, code: EndCode.CANCELLED });
    } else if (call.state === "incoming" || call.state === "accepting") {
      this.#say(call, MessageType.CALL_REJECT, Uint8Array.of(RejectCode.DECLINED));
    } else {
      this.#say(call, MessageType.CALL_END, Uint8Array.of(EndCode.HUNG_UP));
    }
    // Without a connection nobody answers; the server learns of it when there is one.
    if (this.current === call && !this.session.isOnline) {
      this.#abandoned = call.peer;
      this.#over({ rejected: false, code: EndCode.HUNG_UP });
    }
  }

  // -- a call's life

  #begin(details) {
    const call = {
      id: null, offer: null, media: null, outcome: null, startedAt: null, begunAt: Date.now(), isLinkDown: false,
      lastWord: null, ...details,
    };
    this.current = call;
    this.session.hurry(true);
    this.emit("changed", call);
    return call;
  }

  #become(call, state) {
    call.state = state;
    this.emit("changed", call);
  }

  /** Open the devices; returns what is to be said of them, or null if the call is over meanwhile. */
  async #prepare(call, isVideo) {
    const media = call.media = this.makeMedia(call);
    try {
      const description = await media.prepare(isVideo);
      return this.current === call ? description : null;
    } catch (error) {
      console.error(error);
      if (this.current === call) this.hangUp();
      return null;
    }
  }

  #say(call, type, rest) {
    call.lastWord = [type, rest];
    this.session.send(type, call.peer, join(unhex(call.id), rest));
  }

  /** The server says again how the call stands, so what was said last may have been lost. */
  #stands(call) {
    if (call.lastWord === null) return;
    const [type, rest] = call.lastWord;
    if (call.state !== "active" || type !== MessageType.CALL_ACCEPT) this.#say(call, type, rest);
  }

  #over(outcome) {
    const call = this.current;
    if (call === null) return;
    this.current = null;
    this.session.hurry(false);
    call.media?.stop();
    call.outcome = outcome;
    call.seconds = call.startedAt === null ? 0 : Math.round((Date.now() - call.startedAt) / 1000);
    call.state = "ended";
    this.emit("changed", call);
    this.emit("ended", call);
  }

  // -- what the server says

  #requested(peer, rawId, rest) {
    const id = hex(rawId);
    const call = this.current;
    if (call?.id === id) {
      this.#frames += 1;
      call.isLinkDown = false;
      this.#stands(call);
      this.emit("changed", call);
    } else if (rest.length === 1 && call?.state === "calling" && call.peer === peer && call.id === null) {
      call.id = id;
      this.#become(call, "ringing");
    } else if (rest.length === 1 && this.#abandoned === peer) {
      this.#endOrphan(peer, rawId);
    } else if (rest.length > 0) {
      this.#rings(peer, id, rest);
    }
  }

  #rings(peer, id, rest) {
    this.#told.push(id);
    if (this.#told.length > MAX_TOLD) this.#told.shift();
    const isVideo = (rest[0] & VIDEO_FLAG) !== 0;
    let offer;
    try {
      offer = decodeDescription(rest.subarray(1));
    } catch {
      this.#refuse(peer, id);
      return;
    }
    const call = this.current;
    if (call !== null && call.id === null && call.peer === peer) {
      // Both call each other: that is one call, which the server takes for accepted when it has our request.
      Object.assign(call, { id, offer, isIncoming: true });
      return;
    }
    if (this.canCall() !== null) {
      this.#refuse(peer, id);
      this.emit("missed", peer, Date.now(), id);
      return;
    }
    if (call !== null) this.#over({ rejected: false, code: EndCode.CANCELLED });
    this.#begin({ peer, id, isVideo, offer, isIncoming: true, state: "incoming" });
  }

  #refuse(peer, id) {
    this.session.send(MessageType.CALL_REJECT, peer, join(unhex(id), RejectCode.UNSUPPORTED));
  }

  #accepted(peer, rawId, rest) {
    const call = this.current;
    if (call?.id !== hex(rawId) || call.media === null) {
      this.#endOrphan(peer, rawId);
      return;
    }
    this.#frames += 1;
    call.isLinkDown = false;
    if (call.state === "active") {
      call.media.connectionLost();
      this.#stands(call);
      this.emit("changed", call);
      return;
    }
    let theirs;
    try {
      theirs = call.isIncoming ? call.offer : decodeDescription(rest);
    } catch {
      this.#say(call, MessageType.CALL_END, Uint8Array.of(EndCode.HUNG_UP));
      return;
    }
    call.startedAt = Date.now();
    call.theirs = theirs;
    call.media.start(theirs);
    this.#become(call, "active");
    this.#stands(call);
  }

  #finished(rejected, peer, rawId, rest, at) {
    const call = this.current;
    const id = hex(rawId);
    const { code, text } = splitReason(rest);
    if (call !== null && (call.id === id || (call.id === null && rejected && call.peer === peer && at === null))) {
      this.#frames += 1;
      this.#over({ rejected, code, text });
    } else if (at !== null && rejected && code === RejectCode.NO_ANSWER && !this.#told.includes(id)) {
      this.#told.push(id);
      this.emit("missed", peer, at, id);
    }
  }

  /** End a call that nobody here knows of: of a page before this one, or given up. */
  #endOrphan(peer, rawId) {
    this.#abandoned = null;
    this.session.send(MessageType.CALL_END, peer, rawId);
  }

  // -- the connection

  #offline() {
    const call = this.current;
    if (call === null) return;
    call.isLinkDown = true;
    call.media?.connectionLost();
    if (call.state === "calling") {
      this.#abandoned = call.peer;
      this.#over({ rejected: false, code: EndCode.PEER_LOST });
    } else {
      this.emit("changed", call);
    }
  }

  /** After a registration the call's frame follows at once; where none follows the call is over. */
  async #online() {
    const call = this.current;
    if (call?.id == null && this.#abandoned === null) return;
    const before = this.#frames;
    try {
      await this.session.ask(null);
    } catch {
      return; // lost again
    }
    this.#abandoned = null;
    const isForgotten = call?.id != null && this.current === call && this.#frames === before;
    if (isForgotten) this.#over({ rejected: false, code: EndCode.PEER_LOST });
  }
}
