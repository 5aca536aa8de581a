/**
 * What stands in a call's MEDIA_DATA, offer and answer: frames cut into pieces and put together again, and what a side
 * says of its streams.  docs/media.rst describes it for people; wecompany/media.py does the same for the terminal.
 */

import { MAX_DESCRIPTION, decodeText, encodeText } from "./wire.js";

export const Kind = Object.freeze({ AUDIO: 0, VIDEO_KEY: 1, VIDEO_DELTA: 2, OTHER: 3 });

/** Bit 7 of the first byte: the piece continues the frame before it. */
const CONTINUATION = 0x80;

/** Bit 0 of a piece's flags: its frame is complete with it. */
const LAST_PIECE = 1;

/** Bytes of a piece with its header: sound never waits behind more of a picture than that. */
export const MAX_PIECE = 4_096;

/** Bytes of a frame: a sender may not make a receiver hold more. */
export const MAX_FRAME = 1_048_576;

/** Frames by which a late one may be behind; one that is further behind is from a sender who has begun anew. */
const LATE_WINDOW = 1_000;

/** What a frame of kind OTHER says when its sender has no more to play. */
export const END_OF_MEDIA = "end";

const HEADER = 14;
const TRACKS = ["audio", "video", "video", "other"];

/** Return the `media` of each MEDIA_DATA that together carry the frame `{kind, sequence, timestamp, data}`. */
export function encodeFrame({ kind, sequence, timestamp, data }) {
  const room = MAX_PIECE - HEADER;
  const pieces = [];
  for (let start = 0; start < Math.max(data.length, 1); start += room) {
    const part = data.subarray(start, start + room);
    const piece = new Uint8Array(HEADER + part.length);
    const view = new DataView(piece.buffer);
    view.setUint8(0, start > 0 ? kind | CONTINUATION : kind);
    view.setUint8(1, start + room >= data.length ? LAST_PIECE : 0);
    view.setUint32(2, sequence);
    view.setBigUint64(6, BigInt(timestamp));
    piece.set(part, HEADER);
    pieces.push(piece);
  }
  return pieces;
}

/** Return by how many frames `sequence` comes after `last`; 0 or less if it is late. */
function ahead(sequence, last) {
  if (last === null) return 1;
  const distance = (sequence - last) >>> 0;
  if (distance === 0) return 0;
  return distance < 2 ** 32 - LATE_WINDOW ? distance : -1;
}

/**
 * Puts the pieces together that one sender's frames were cut into; there is one for each connection.
 *
 * It takes whatever a stranger may send, and holds at most one frame of each stream.
 */
export class Reassembler {
  /** Frames of which a part has come, and another has not or was too much. */
  dropped = 0;
  /** Pieces that are late, doubled, or none. */
  ignored = 0;
  #assemblies = { audio: this.#empty(), video: this.#empty(), other: this.#empty() };

  #empty() {
    return { sequence: null, head: null, parts: [], size: 0 };
  }

  /** Take the `media` of one MEDIA_DATA; returns the frame that is complete with it, or null. */
  feed(piece) {
    const kind = piece[0] & ~CONTINUATION;
    const track = TRACKS[kind];
    if (piece.length < HEADER || track === undefined) return this.#ignore();
    const isContinuation = (piece[0] & CONTINUATION) !== 0;
    const view = new DataView(piece.buffer, piece.byteOffset, piece.byteLength);
    const sequence = view.getUint32(2);
    const timestamp = Number(view.getBigUint64(6));
    const assembly = this.#assemblies[track];
    const head = `${kind} ${sequence} ${timestamp}`;
    if (ahead(sequence, assembly.sequence) > 0) {
      if (assembly.head !== null) this.#drop(assembly);
      assembly.sequence = sequence;
      if (isContinuation) return this.#drop(assembly);
      assembly.head = head;
    } else if (assembly.head === null || sequence !== assembly.sequence || !isContinuation) {
      return this.#ignore();
    }
    if (head !== assembly.head || assembly.size + piece.length - HEADER > MAX_FRAME) return this.#drop(assembly);
    assembly.parts.push(piece.subarray(HEADER));
    assembly.size += piece.length - HEADER;
    if (!(piece[1] & LAST_PIECE)) return null;
    const data = new Uint8Array(assembly.size);
    let at = 0;
    for (const part of assembly.parts) {
      data.set(part, at);
      at += part.length;
    }
    this.#forget(assembly);
    return { kind, sequence, timestamp, data };
  }

  #ignore() {
    this.ignored += 1;
    return null;
  }

  #drop(assembly) {
    this.dropped += 1;
    this.#forget(assembly);
    return null;
  }

  #forget(assembly) {
    Object.assign(assembly, { head: null, parts: [], size: 0 });
  }
}

// -- What a side says of its streams ----------------------------------------------------------------------------------

const isWhole = (number, least, most) => Number.isInteger(number) && number >= least && number <= most;

/** Return the offer or answer that says this. */
export function encodeDescription({ audio, video, receives }) {
  return encodeText(JSON.stringify({
    v: 1,
    ...(audio && { audio: { codec: "opus", ...audio } }),
    ...(video && { video: { codec: "vp8", ...video } }),
    receives,
    feedback: 1,
  }));
}

/**
 * Return `{audio, video, receives, hasFeedback}` of an offer or answer; throws where it is none, or one of codecs that
 * are not known.
 */
export function decodeDescription(data) {
  if (data.length === 0) return { audio: null, video: null, receives: ["opus", "vp8"], hasFeedback: false };
  if (data.length > MAX_DESCRIPTION) throw new Error(`a description has at most ${MAX_DESCRIPTION} bytes`);
  const said = JSON.parse(decodeText(data));
  if (said === null || typeof said !== "object" || said.v !== 1) throw new Error("a description has version 1");
  const audio = said.audio ?? null;
  const video = said.video ?? null;
  const isAudio = ({ codec, rate, channels }) =>
    codec === "opus" && isWhole(rate, 8_000, 48_000) && isWhole(channels, 1, 2);
  const isVideo = ({ codec, width, height }) =>
    codec === "vp8" && isWhole(width, 1, 16_383) && isWhole(height, 1, 16_383);
  if (audio !== null && !isAudio(audio)) throw new Error("audio is Opus of one or two channels");
  if (video !== null && !isVideo(video)) throw new Error("video is VP8 of some size");
  const receives = Array.isArray(said.receives) ? said.receives.map(String) : ["opus", "vp8"];
  return { audio, video, receives, hasFeedback: said.feedback === 1 };
}
