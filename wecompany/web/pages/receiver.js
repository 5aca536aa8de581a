/** What comes in a call: sound to the loudspeaker, pictures to a canvas, both at the same time as they were taken. */

import { mediaTime } from "./audio.js";
import { VP8_DECODER } from "./devices.js";
import { END_OF_MEDIA, Kind, Reassembler } from "./pieces.js";
import { decodeText } from "./wire.js";

/** Milliseconds between two requests for a key frame. */
const ASK_AGAIN = 500;

/** Pictures that may wait for the decoder; with more it would only fall further behind. */
const MAX_DECODING = 15;

/** Milliseconds that a picture may wait for its sound; one that is further ahead has another clock. */
const MAX_WAIT = 500;

/** Milliseconds that a picture is shown before its sound: nobody sees so little, and the delay is lower by them. */
const LEAD = 40;

/** Milliseconds after which what the audio thread has said of its time is no longer believed. */
const STALE = 300;

/** Measurements of the delay that are kept, and milliseconds above which the two clocks are not the same. */
const DELAYS = 150;
const MAX_DELAY = 10_000;

/** Pixels of a picture's side: a stranger may not make the page hold more. */
const MAX_SIDE = 4_096;

/** Seconds over which the earliest frame is remembered, to know how late the others are. */
const EARLIEST_OF = 20;

/** How many frames of a stream came, and how many are missing between them. */
class Count {
  received = 0;
  lost = 0;
  #last = null;

  /** A connection was lost: what was missed meanwhile says nothing of the network. */
  beginAnew() {
    this.#last = null;
  }

  /** Take a frame's number; returns whether it follows the one before it. */
  take(sequence) {
    const gap = this.#last === null ? 0 : (sequence - this.#last - 1) >>> 0;
    this.#last = sequence;
    this.received += 1;
    if (gap > 0 && gap < 1_000) this.lost += gap;
    return gap === 0;
  }
}

export class Receiver {
  audio = new Count();
  video = new Count();
  /** Frames that were decoded, and pictures that were shown. */
  decoded = { audio: 0, video: 0 };
  shown = 0;
  /** Bytes of all frames that came. */
  bytes = 0;
  size = { width: 0, height: 0 };
  #reassembler = new Reassembler();
  #audioDecoder = null;
  #audioTimes = [];
  #videoDecoder = null;
  #playback = null;
  #clock = null;
  #needsKey = true;
  #askedAt = -Infinity;
  #pictures = [];
  #timer = null;
  #delays = [];
  #earliest = [];
  #late = 0;
  #sound = {};
  #isStopped = false;

  /**
   * @param canvas where pictures are shown
   * @param tell says something to the other side's page
   * @param heard called with what the other side's page says, and with "end" when it has no more to play
   * @param receives which codecs this browser decodes
   */
  constructor(context, canvas, tell, heard, receives) {
    this.context = context;
    this.canvas = canvas;
    this.tell = tell;
    this.heard = heard;
    this.receives = receives;
    this.analyser = context.createAnalyser();
    this.analyser.fftSize = 4096;
    this.analyser.connect(context.destination);
    this.#playback = new AudioWorkletNode(context, "playback", { numberOfInputs: 0, outputChannelCount: [1] });
    this.#playback.port.onmessage = ({ data }) => this.#played(data);
    this.#playback.connect(this.analyser);
  }

  /** Milliseconds that frames are later than the earliest one lately was: what waits on the way. */
  get late() {
    return Math.round(this.#late);
  }

  /** Milliseconds from capture to display, the middle one of the last ones; null if the clocks are not the same. */
  get delay() {
    if (this.#delays.length === 0) return null;
    const sorted = [...this.#delays].sort((a, b) => a - b);
    return sorted[sorted.length >> 1];
  }

  /** What the audio thread says of its buffer. */
  get sound() {
    return this.#sound;
  }

  /** Take one MEDIA_DATA. */
  feed(media) {
    const frame = this.#reassembler.feed(media);
    if (frame === null) return;
    this.bytes += frame.data.length;
    if (frame.kind === Kind.OTHER) {
      this.#said(decodeText(frame.data));
      return;
    }
    this.#noteArrival(frame.timestamp);
    if (frame.kind === Kind.AUDIO) this.#takeSound(frame);
    else this.#takePicture(frame);
  }

  /** What was under way when a connection broke will not be completed. */
  connectionLost() {
    this.#reassembler = new Reassembler();
    this.#earliest = [];
    this.#needsKey = true;
    for (const count of [this.audio, this.video]) count.beginAnew();
  }

  stop() {
    this.#isStopped = true;
    clearTimeout(this.#timer);
    for (const { picture } of this.#pictures.splice(0)) picture.close();
    for (const decoder of [this.#audioDecoder, this.#videoDecoder]) {
      if (decoder !== null && decoder.state !== "closed") decoder.close();
    }
    this.#playback.disconnect();
    this.analyser.disconnect();
  }

  #said(text) {
    if (text === END_OF_MEDIA) {
      this.heard({ t: "end" });
      return;
    }
    try {
      const message = JSON.parse(text);
      if (message !== null && typeof message === "object") this.heard(message);
    } catch {
      // Of a client that says other things than we know.
    }
  }

  #noteArrival(timestamp) {
    const now = performance.now();
    const travelled = now - timestamp / 1000;
    const second = Math.floor(now / 1000);
    const last = this.#earliest.at(-1);
    if (last?.second === second) last.least = Math.min(last.least, travelled);
    else this.#earliest.push({ second, least: travelled });
    while (this.#earliest.length > EARLIEST_OF) this.#earliest.shift();
    const least = Math.min(...this.#earliest.map((one) => one.least));
    this.#late += (travelled - least - this.#late) / 16;
  }

  // -- sound

  #takeSound({ sequence, timestamp, data }) {
    this.audio.take(sequence);
    if (!this.receives.includes("opus") || data.length === 0) return;
    if (this.#audioDecoder === null || this.#audioDecoder.state === "closed") {
      this.#audioDecoder = new AudioDecoder({
        output: (sound) => this.#play(sound),
        error: (error) => console.error(error), // closed by it; the next packet makes another
      });
      this.#audioTimes = [];
      this.#audioDecoder.configure({ codec: "opus", sampleRate: 48_000, numberOfChannels: data[0] & 4 ? 2 : 1 });
    }
    this.#audioTimes.push(timestamp);
    this.#audioDecoder.decode(new EncodedAudioChunk({ type: "key", timestamp, data }));
  }

  #play(sound) {
    // Sound comes for each packet that goes in.  The decoder's own times take no notice of a hole between them.
    const time = this.#audioTimes.shift() ?? sound.timestamp;
    if (!this.#isStopped) {
      const samples = new Float32Array(sound.numberOfFrames);
      sound.copyTo(samples, { planeIndex: 0, format: "f32-planar" });
      this.decoded.audio += 1;
      this.#playback.port.postMessage({ time, samples }, [samples.buffer]);
    }
    sound.close();
  }

  #played(report) {
    this.#sound = report;
    const isRunning = report.isPlaying && report.position !== null;
    this.#clock = isRunning ? { position: report.position, at: performance.now() } : null;
  }

  /** Return the time, on the sender's clock, of the sound that is heard now; null if there is none. */
  #heardNow() {
    const now = performance.now();
    if (this.#clock === null || now - this.#clock.at > STALE) return null;
    const latency = (this.context.outputLatency || this.context.baseLatency || 0) * 1_000_000;
    return this.#clock.position + (now - this.#clock.at) * 1000 - latency;
  }

  // -- pictures

  #takePicture({ kind, sequence, timestamp, data }) {
    const follows = this.video.take(sequence);
    if (!this.receives.includes("vp8") || data.length === 0) return;
    const isKey = kind === Kind.VIDEO_KEY;
    const isBehind = (this.#videoDecoder?.decodeQueueSize ?? 0) > MAX_DECODING;
    if (!isKey && (!follows || isBehind)) this.#needsKey = true;
    if (!isKey && this.#needsKey) {
      this.askForKey();
      return;
    }
    this.#needsKey = false;
    if (this.#videoDecoder === null || this.#videoDecoder.state === "closed") this.#makeVideoDecoder();
    this.#videoDecoder.decode(new EncodedVideoChunk({ type: isKey ? "key" : "delta", timestamp, data }));
  }

  #makeVideoDecoder() {
    this.#videoDecoder = new VideoDecoder({
      output: (picture) => this.#decoded(picture),
      error: (error) => {
        console.error(error);
        this.#needsKey = true;
        this.askForKey();
      },
    });
    this.#videoDecoder.configure(VP8_DECODER);
  }

  /** Without a key frame there is no going on. */
  askForKey() {
    const now = performance.now();
    if (now - this.#askedAt < ASK_AGAIN) return;
    this.#askedAt = now;
    this.tell({ t: "key" });
  }

  #decoded(picture) {
    if (this.#isStopped || Math.max(picture.displayWidth, picture.displayHeight) > MAX_SIDE) {
      picture.close();
      return;
    }
    this.decoded.video += 1;
    this.#pictures.push({ picture, time: picture.timestamp });
    this.#showDue();
  }

  /** Show the last picture that is due, and come back for the next. */
  #showDue() {
    clearTimeout(this.#timer);
    const now = this.#heardNow();
    let due = null;
    let wait = null;
    while (this.#pictures.length > 0) {
      const ahead = now === null ? 0 : (this.#pictures[0].time - now) / 1000 - LEAD;
      if (ahead > 1 && ahead < MAX_WAIT) {
        wait = ahead;
        break;
      }
      due?.close();
      due = this.#pictures.shift().picture;
    }
    if (due !== null) this.#show(due);
    if (wait !== null) this.#timer = setTimeout(() => this.#showDue(), wait);
  }

  #show(picture) {
    const { displayWidth: width, displayHeight: height, timestamp } = picture;
    if (this.canvas.width !== width || this.canvas.height !== height) Object.assign(this.canvas, { width, height });
    this.canvas.getContext("2d", { alpha: false }).drawImage(picture, 0, 0);
    picture.close();
    this.size = { width, height };
    this.shown += 1;
    const delay = (mediaTime() - timestamp) / 1000;
    if (Math.abs(delay) > MAX_DELAY) return;
    this.#delays.push(delay);
    if (this.#delays.length > DELAYS) this.#delays.shift();
  }
}
