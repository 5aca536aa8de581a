/** What goes out in a call: the microphone as Opus, the camera as VP8. */

import { mediaTime } from "./audio.js";
import { OPUS, vp8 } from "./devices.js";
import { Kind, encodeFrame } from "./pieces.js";

/** Bytes that may wait in the browser before pictures, and before sound, are left out. */
const MAX_BACKLOG = { video: 49_152, audio: 196_608 };

/** Pictures that may wait for the encoder, and milliseconds that one may take it: with more the machine is too slow. */
const MAX_ENCODING = 2;
const SLOW = 35;
const SLOW_FOR = 15;

/** Milliseconds between two key frames: at least, and for who cannot ask for one. */
const KEY_AFTER = 300;
const KEY_EVERY = 2_000;

/** Bits a second for each pixel below which only every second picture is sent, and smaller ones had better be. */
const SPARSE = 1;
const TOO_FEW = 0.6;

/** The part by which the bitrate has to change before the encoder is told. */
const WORTH_TELLING = 0.12;

/** The part by which the media clock follows the microphone's, and microseconds by which they may be apart. */
const FOLLOW = 0.02;
const MAX_APART = 60_000;

/** Bits a second for each pixel with which a picture is as good as it gets. */
const ENOUGH = 5;

const PACKET = 20_000;

/** Return the pictures of a track as they come; what takes them closes them. */
function pictures(track, video) {
  if ("MediaStreamTrackProcessor" in window) {
    return new MediaStreamTrackProcessor({ track, maxBufferSize: 2 }).readable;
  }
  // Elsewhere a picture is taken whenever the preview shows a new one.
  let isOver = false;
  return new ReadableStream({
    cancel: () => (isOver = true),
    pull: (controller) => new Promise((resolve) => {
      const give = () => {
        if (!isOver && track.readyState === "ended") controller.close();
        else if (!isOver) controller.enqueue(new VideoFrame(video, { timestamp: mediaTime() }));
        resolve();
      };
      if ("requestVideoFrameCallback" in video) video.requestVideoFrameCallback(give);
      else setTimeout(give, 33);
    }),
  }, { highWaterMark: 1 });
}

export class Sender {
  /** Frames that went out, and pictures that were left out as there was no room for them. */
  sent = { audio: 0, video: 0, keys: 0, bytes: 0, skipped: 0 };
  size = { width: 0, height: 0 };
  #sequences = { audio: 0, video: 0, other: 0 };
  #audioEncoder = null;
  #videoEncoder = null;
  #configured = null;
  #source = null;
  #capture = null;
  #audioTime = null;
  #audioTimes = [];
  #wantsKey = true;
  #keyAt = -Infinity;
  #odd = false;
  #reader = null;
  #encodeTime = 0;
  #encoded = 0;
  #begun = new Map();

  /**
   * @param link send(piece), which returns whether it went out, isReady(), and backlog() in bytes
   * @param rate a RateController
   * @param hasFeedback whether the other side asks for key frames
   * @param tooSlow called when the machine or the network does not keep up with the pictures
   */
  constructor(context, link, rate, hasFeedback, tooSlow) {
    this.tooSlow = tooSlow;
    this.context = context;
    this.link = link;
    this.rate = rate;
    this.hasFeedback = hasFeedback;
  }

  // -- sound

  /** Send this track's sound from now on; null for none. */
  setMicrophone(track) {
    this.#source?.disconnect();
    this.#source = null;
    if (track === null) return;
    this.#audioEncoder ??= this.#makeAudioEncoder();
    if (this.#capture === null) {
      this.#capture = new AudioWorkletNode(this.context, "capture", { channelCountMode: "max" });
      this.#capture.port.onmessage = ({ data }) => this.#sound(data);
      this.#capture.connect(this.context.destination); // it gives silence, but only what is heard is run
    }
    this.#source = this.context.createMediaStreamSource(new MediaStream([track]));
    this.#source.connect(this.#capture);
  }

  #makeAudioEncoder() {
    const encoder = new AudioEncoder({
      // A packet comes for each that goes in.  The encoder's own times take no notice of a hole between them.
      output: (chunk) => this.#send("audio", Kind.AUDIO, chunk, this.#audioTimes.shift()),
      error: (error) => console.error(error),
    });
    encoder.configure(OPUS);
    return encoder;
  }

  #sound(samples) {
    const due = mediaTime() - PACKET;
    const next = this.#audioTime === null ? due : this.#audioTime + PACKET;
    const apart = due - next;
    // The microphone's pace is the even one; the clock's is the one that pictures have too.
    this.#audioTime = Math.abs(apart) > MAX_APART ? due : Math.round(next + apart * FOLLOW);
    if (!this.link.isReady() || this.link.backlog() > MAX_BACKLOG.audio) return;
    const data = new AudioData({
      format: "f32-planar", sampleRate: this.context.sampleRate, numberOfFrames: samples.length, numberOfChannels: 1,
      timestamp: this.#audioTime, data: samples,
    });
    this.#audioTimes.push(this.#audioTime);
    this.#audioEncoder.encode(data);
    data.close();
  }

  // -- pictures

  /**
   * Send this track's pictures from now on; null for none.
   *
   * @param preview a video element that shows the track
   */
  setCamera(track, preview) {
    this.#reader?.cancel().catch(() => {});
    this.#reader = null;
    if (track !== null) this.#read(track, preview);
  }

  /** The other side cannot go on without a key frame. */
  requestKey() {
    this.#wantsKey = true;
  }

  async #read(track, preview) {
    const reader = this.#reader = pictures(track, preview).getReader();
    this.#wantsKey = true;
    for (;;) {
      const { done, value: picture } = await reader.read();
      if (done) return;
      if (this.#reader === reader) this.#picture(picture);
      picture.close();
    }
  }

  #picture(picture) {
    if (!this.link.isReady()) {
      this.#wantsKey = true;
      return;
    }
    const isCongested = this.link.backlog() > MAX_BACKLOG.video;
    if (isCongested) this.rate.congested();
    this.#odd = !this.#odd;
    const density = this.rate.bitrate / (picture.displayWidth * picture.displayHeight);
    if (density < TOO_FEW) this.tooSlow();
    const isSpared = density < SPARSE && this.#odd;
    if (isCongested || isSpared || this.rate.isDraining || (this.#videoEncoder?.encodeQueueSize ?? 0) >= MAX_ENCODING) {
      this.sent.skipped += 1;
      return;
    }
    this.#configure(picture.displayWidth, picture.displayHeight);
    const now = performance.now();
    const age = now - this.#keyAt;
    const isKey = (this.#wantsKey && age > KEY_AFTER) || (!this.hasFeedback && age > KEY_EVERY);
    if (isKey) {
      this.#wantsKey = false;
      this.#keyAt = now;
    }
    // A camera's own time begins anywhere.
    const timestamp = mediaTime();
    const stamped = new VideoFrame(picture, { timestamp });
    this.#begun.set(timestamp, now);
    this.#videoEncoder.encode(stamped, { keyFrame: isKey });
    stamped.close();
  }

  #configure(width, height) {
    const bitrate = Math.min(this.rate.bitrate, width * height * ENOUGH);
    const before = this.#configured;
    const isSameSize = before !== null && before.width === width && before.height === height;
    if (isSameSize && Math.abs(bitrate - before.bitrate) < before.bitrate * WORTH_TELLING) return;
    this.#videoEncoder ??= new VideoEncoder({
      output: (chunk) => {
        this.#noteEncoding(chunk.timestamp);
        const kind = chunk.type === "key" ? Kind.VIDEO_KEY : Kind.VIDEO_DELTA;
        if (!this.#send("video", kind, chunk)) this.#wantsKey = true;
      },
      error: (error) => {
        console.error(error);
        this.#videoEncoder = this.#configured = null; // the next picture makes another
        this.#wantsKey = true;
      },
    });
    this.#configured = vp8(width, height, bitrate, 30);
    this.#videoEncoder.configure(this.#configured);
    this.size = { width, height };
    if (!isSameSize) this.#wantsKey = true;
  }

  #noteEncoding(timestamp) {
    const time = performance.now() - (this.#begun.get(timestamp) ?? performance.now());
    for (const old of this.#begun.keys()) if (old <= timestamp) this.#begun.delete(old);
    this.#encodeTime += (time - this.#encodeTime) / 16;
    this.#encoded += 1;
    if (this.#encodeTime < SLOW || this.#encoded < SLOW_FOR) return;
    this.#encoded = 0;
    this.tooSlow();
  }

  // -- the rest

  /** Say something to the other side's page. */
  tell(message) {
    const data = new TextEncoder().encode(typeof message === "string" ? message : JSON.stringify(message));
    return this.#sendFrame("other", { kind: Kind.OTHER, timestamp: mediaTime(), data });
  }

  /** Milliseconds that the encoder takes for a picture. */
  get encodeTime() {
    return Math.round(this.#encodeTime);
  }

  stop() {
    this.setMicrophone(null);
    this.setCamera(null);
    this.#capture?.disconnect();
    for (const encoder of [this.#audioEncoder, this.#videoEncoder]) {
      if (encoder !== null && encoder.state !== "closed") encoder.close();
    }
  }

  #send(stream, kind, chunk, timestamp = chunk.timestamp) {
    const data = new Uint8Array(chunk.byteLength);
    chunk.copyTo(data);
    const isSent = this.#sendFrame(stream, { kind, timestamp, data });
    if (!isSent) return false;
    this.sent[stream] += 1;
    this.sent.bytes += data.length;
    if (kind === Kind.VIDEO_KEY) this.sent.keys += 1;
    return true;
  }

  #sendFrame(stream, frame) {
    const sequence = this.#sequences[stream];
    this.#sequences[stream] = (sequence + 1) >>> 0;
    return encodeFrame({ ...frame, sequence }).every((piece) => this.link.send(piece));
  }
}
