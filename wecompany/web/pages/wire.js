/**
 * The wire: what a message looks like in bytes, and nothing else.
 *
 * It has the shape of wecompany/wire.py, and knows no socket, no clock and no page.  Over WebSocket one binary message
 * is one payload:
 *
 *     payload = type:u8  idLength:u16  userId[idLength]  data
 *
 * All integers are unsigned and big-endian; texts are UTF-8.
 */

// -- Names ----------------------------------------------------------------------------------------------------------

export const MessageType = Object.freeze({
  TEXT: 0, FILE: 1, CALL_REQUEST: 2, CALL_ACCEPT: 3, CALL_REJECT: 4, CALL_END: 5, MEDIA_DATA: 6, HEARTBEAT: 7,
  LOGIN: 8, SIGNUP: 9, AUTH_RESPONSE: 10, ERROR: 11, PRESENCE: 12, ACK: 13, DELAY: 14,
});

export const ErrorCode = Object.freeze({
  MALFORMED: 1, NOT_REGISTERED: 2, BAD_CREDENTIAL: 3, ID_IN_USE: 4, OFFLINE: 5, NO_SUCH_CALL: 6, OVERLOADED: 7,
  BAD_REQUEST: 8, FORBIDDEN: 9, SHUTTING_DOWN: 10, REPLACED: 11, IDLE: 12, TOO_SLOW: 13, INTERNAL: 14,
});

export const RejectCode = Object.freeze({
  DECLINED: 0, BUSY: 1, OFFLINE: 2, NO_ANSWER: 3, TO_SELF: 4, OVERLOADED: 5, FORBIDDEN: 6, UNSUPPORTED: 7,
});

export const EndCode = Object.freeze({
  HUNG_UP: 0, CANCELLED: 1, PEER_LOST: 2, MAX_DURATION: 3, SHUTTING_DOWN: 4, ANSWERED_ELSEWHERE: 5,
});

export const FileOp = Object.freeze({ OFFER: 0, ACCEPT: 1, CHUNK: 2, DONE: 3, RECEIVED: 4, CANCEL: 5, CREDIT: 6 });

export const CancelCode = Object.freeze({
  DECLINED: 0, CANCELLED: 1, HASH_MISMATCH: 2, PEER_LOST: 3, RULE_BROKEN: 4, NO_SPACE: 5,
});

export const PresenceOp = Object.freeze({ LIST: 0, SUBSCRIBE: 1, UNSUBSCRIBE: 2, LIST_ALL: 3 });

export const AccountOp = Object.freeze({
  LOG_OUT: 0, CHANGE_PASSWORD: 1, BLOCK: 2, UNBLOCK: 3, LIST_BLOCKED: 4, NEW_TOKEN: 5,
});

/** Bit 0 of a CALL_REQUEST's flags: the call is a video call. */
export const VIDEO_FLAG = 1;

// -- Bounds ---------------------------------------------------------------------------------------------------------

/** Bytes of a payload, and so of a relayed one. */
export const MAX_PAYLOAD = 65_535;

/** Bytes of a user ID. */
export const MAX_USER_ID = 128;

/** Bytes of an offer or an answer of a call. */
export const MAX_DESCRIPTION = 16_384;

/** Bytes of one text: leaves room for the longest user ID in the relayed payload. */
export const MAX_TEXT = MAX_PAYLOAD - 3 - MAX_USER_ID;

/** Bytes of a file in one CHUNK. */
export const MAX_CHUNK = 60_000;

/** Bytes of a file that its sender may have under way. */
export const FILE_WINDOW = 1_048_576;

/** Bytes of a file's name. */
export const MAX_FILE_NAME = 255;

/** Bytes of a call ID, a transfer ID and a session ID. */
export const ID_SIZE = 16;

const SHA256_SIZE = 32;
const encoder = new TextEncoder();
const decoder = new TextDecoder();

/** What came breaks a rule of the protocol. */
export class WireError extends Error {}

// -- Payloads -------------------------------------------------------------------------------------------------------

/** Return the UTF-8 of a text. */
export const encodeText = (text) => encoder.encode(text);

/** Return the text that bytes are; what is no UTF-8 in them is replaced. */
export const decodeText = (bytes) => decoder.decode(bytes);

/** Return several byte arrays, or single bytes given as numbers, as one. */
export function join(...parts) {
  const arrays = parts.map((part) => (typeof part === "number" ? Uint8Array.of(part) : part));
  const whole = new Uint8Array(arrays.reduce((size, array) => size + array.length, 0));
  let at = 0;
  for (const array of arrays) {
    whole.set(array, at);
    at += array.length;
  }
  return whole;
}

/** Return a whole payload; throws WireError where it would be too long. */
export function encodePayload(type, user, data = new Uint8Array()) {
  const id = encoder.encode(user);
  const size = 3 + id.length + data.length;
  if (size > MAX_PAYLOAD) throw new WireError(`too long by ${size - MAX_PAYLOAD} bytes to be passed on`);
  const payload = new Uint8Array(size);
  payload[0] = type;
  payload[1] = id.length >> 8;
  payload[2] = id.length & 255;
  payload.set(id, 3);
  payload.set(data, 3 + id.length);
  return payload;
}

/** Return `{type, user, data}` of a payload; throws WireError. */
export function decodePayload(buffer) {
  const payload = new Uint8Array(buffer);
  if (payload.length < 3) throw new WireError("a payload has at least 3 bytes");
  const body = 3 + (payload[1] << 8 | payload[2]);
  if (body > payload.length) throw new WireError("the user ID is longer than the payload");
  return { type: payload[0], user: decoder.decode(payload.subarray(3, body)), data: payload.subarray(body) };
}

/** Return whether a user may be called that. */
export function isUserId(text) {
  return (
    text.length > 0 && text.isWellFormed?.() !== false && encoder.encode(text).length <= MAX_USER_ID &&
    text.normalize("NFC") === text && text.trim() === text && !/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}/]|^#/u.test(text)
  );
}

// -- The data of each type ------------------------------------------------------------------------------------------

function viewOf(data, size) {
  if (data.length < size) throw new WireError(`there are ${data.length} bytes where ${size} belong`);
  return new DataView(data.buffer, data.byteOffset, data.byteLength);
}

export function encodeU32(number) {
  const data = new Uint8Array(4);
  new DataView(data.buffer).setUint32(0, number);
  return data;
}

export const decodeU32 = (data) => viewOf(data, 4).getUint32(0);

/** Return a u64.  Every offset and time fits into the 53 bits that a number has. */
export function encodeU64(number) {
  const data = new Uint8Array(8);
  new DataView(data.buffer).setBigUint64(0, BigInt(number));
  return data;
}

export const decodeU64 = (data) => Number(viewOf(data, 8).getBigUint64(0));

/** Return `[id, rest]`; throws WireError. */
export function splitId(data) {
  viewOf(data, ID_SIZE);
  return [data.slice(0, ID_SIZE), data.subarray(ID_SIZE)];
}

/** Return `{code, text}` of a CALL_REJECT, CALL_END or CANCEL; a code that was left out is 0. */
export const splitReason = (data) => ({ code: data[0] ?? 0, text: decodeText(data.subarray(1)) });

/** Return `{code, type, text}` of an ERROR; throws WireError. */
export function decodeError(data) {
  viewOf(data, 2);
  return { code: data[0], type: data[1], text: decodeText(data.subarray(2)) };
}

/** Return what follows the transfer ID of an OFFER. */
export const encodeOffer = ({ size, sha256, name }) => join(encodeU64(size), sha256, encodeText(name));

/** Return `{size, sha256, name}`; throws WireError. */
export function decodeOffer(data) {
  viewOf(data, 9 + SHA256_SIZE);
  const name = decodeText(data.subarray(8 + SHA256_SIZE));
  return { size: decodeU64(data), sha256: data.slice(8, 8 + SHA256_SIZE), name };
}

/** Return bytes in hexadecimal. */
export const hex = (bytes) => Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");

/** Return the bytes that hexadecimal digits stand for. */
export const unhex = (digits) => Uint8Array.from(digits.match(/../g) ?? [], (pair) => parseInt(pair, 16));
