/**
 * The buffer between the network and the loudspeaker: as short as the network allows, and never without a plan for
 * what is missing.  It runs in the audio thread and has neither a clock nor a codec.
 *
 * What comes has a time on the sender's clock.  What is played next has one too; pictures are shown by that.
 */

/** Milliseconds that wait before playing begins: at first, at least and at most. */
export const TARGET = { first: 40, least: 40, most: 400 };

/** Milliseconds by which that grows when the buffer has run dry, and the part that stays after a while without that. */
const GROW = 20;
const SHRINK = 0.9;
const SHRINK_AFTER = 2_000;

/** Milliseconds over which one looks how much was never needed, and how much of that may stay. */
const LOOK_BACK = 1_000;
const SPARE = 22;

/** Milliseconds of a hole that is filled with silence; behind a longer one the sender has begun anew. */
const MAX_HOLE = 500;

/** Milliseconds of the crossfade where something is left out, and of the fade where nothing is left. */
const FADE = 4;

/** Milliseconds that may wait beyond what should: more comes behind a stall, and is worth nothing any more. */
const MAX_EXCESS = 200;

export class JitterBuffer {
  #chunks = [];
  #offset = 0;
  #held = 0;
  #isPlaying = false;
  #least = Infinity;
  #lookedBack = 0;
  #sinceDry = 0;
  #last = 0;
  #fade;

  constructor(rate) {
    this.perMs = rate / 1000;
    this.target = TARGET.first;
    /** Times that there was nothing to play, and milliseconds that were left out or filled with silence. */
    this.dry = 0;
    this.skipped = 0;
    this.filled = 0;
    /** Samples of what came that have been played. */
    this.played = 0;
    this.#fade = Math.round(FADE * this.perMs);
  }

  /** Milliseconds that wait. */
  get depth() {
    return this.#held / this.perMs;
  }

  get isPlaying() {
    return this.#isPlaying;
  }

  /** The time on the sender's clock, in microseconds, of what is played next; null if nothing is there. */
  get position() {
    const chunk = this.#chunks[0];
    return chunk === undefined ? null : chunk.time + (this.#offset / this.perMs) * 1000;
  }

  /** Take samples, and their time in microseconds. */
  put(time, samples) {
    const end = this.#end();
    if (end !== null) {
      const hole = (time - end) / 1000;
      if (hole > 5 && hole <= MAX_HOLE) {
        this.#push(end, new Float32Array(Math.round(hole * this.perMs)));
        this.filled += hole;
      }
    }
    this.#push(time, samples);
    const excess = this.depth - this.target;
    if (excess > MAX_EXCESS) this.#skip(Math.round(excess * this.perMs));
  }

  /** Fill `output` with what is to be played now. */
  pull(output) {
    const ms = output.length / this.perMs;
    this.#adapt(ms);
    if (!this.#isPlaying && this.depth >= this.target) this.#isPlaying = true;
    let written = this.#isPlaying ? this.#read(output) : 0;
    this.played += written;
    if (this.#isPlaying && written < output.length) {
      this.#isPlaying = false;
      this.dry += 1;
      this.#sinceDry = 0;
      this.target = Math.min(TARGET.most, this.target + GROW);
    }
    // A silence that begins from nothing clicks.
    for (; written < output.length; written += 1) output[written] = this.#last *= 0.9;
    this.#last = output[output.length - 1];
  }

  #end() {
    const chunk = this.#chunks.at(-1);
    return chunk === undefined ? null : chunk.time + (chunk.samples.length / this.perMs) * 1000;
  }

  #push(time, samples) {
    this.#chunks.push({ time, samples });
    this.#held += samples.length;
  }

  #read(output) {
    let written = 0;
    while (written < output.length && this.#chunks.length > 0) {
      const { samples } = this.#chunks[0];
      const part = samples.subarray(this.#offset, this.#offset + output.length - written);
      output.set(part, written);
      written += part.length;
      this.#advance(part.length);
    }
    return written;
  }

  #advance(count) {
    this.#offset += count;
    this.#held -= count;
    while (this.#chunks.length > 0 && this.#offset >= this.#chunks[0].samples.length) {
      this.#offset -= this.#chunks.shift().samples.length;
    }
    if (this.#chunks.length === 0) this.#offset = 0;
  }

  /** Leave samples out, and make the seam inaudible. */
  #skip(count) {
    const before = new Float32Array(this.#fade);
    let at = this.#offset;
    for (let i = 0; i < before.length; i += 1, at += 1) before[i] = this.#chunks[0].samples[at] ?? 0;
    this.#advance(Math.min(count, this.#held));
    this.skipped += count / this.perMs;
    const next = this.#chunks[0];
    if (next === undefined) return;
    const samples = next.samples.slice();
    for (let i = 0; i < before.length && this.#offset + i < samples.length; i += 1) {
      const weight = i / before.length;
      samples[this.#offset + i] = samples[this.#offset + i] * weight + before[i] * (1 - weight);
    }
    next.samples = samples;
  }

  #adapt(ms) {
    if (!this.#isPlaying) return;
    this.#least = Math.min(this.#least, this.depth);
    this.#lookedBack += ms;
    this.#sinceDry += ms;
    if (this.#sinceDry >= SHRINK_AFTER) {
      this.#sinceDry = 0;
      this.target = Math.max(TARGET.least, Math.floor(this.target * SHRINK));
    }
    if (this.#lookedBack < LOOK_BACK) return;
    // What never got used in all that time is delay and nothing else.
    const spare = this.#least - SPARE - (this.target - TARGET.least);
    if (spare > 1) this.#skip(Math.round(Math.min(spare, 60) * this.perMs));
    this.#least = Infinity;
    this.#lookedBack = 0;
  }
}
