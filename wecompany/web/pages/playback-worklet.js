/** Plays what comes, in the audio thread. */

import { JitterBuffer } from "./jitter.js";

/** Blocks of 128 samples between two reports to the page. */
const REPORT_EVERY = 16;

class Playback extends AudioWorkletProcessor {
  #buffer = new JitterBuffer(sampleRate);
  #blocks = 0;
  #power = 0;

  constructor() {
    super();
    this.port.onmessage = ({ data: { time, samples } }) => this.#buffer.put(time, samples);
  }

  process(_, [[output, ...others]]) {
    const buffer = this.#buffer;
    buffer.pull(output);
    for (const other of others) other.set(output);
    for (const sample of output) this.#power += sample * sample;
    this.#blocks += 1;
    if (this.#blocks === REPORT_EVERY) {
      const { position, isPlaying, depth, target, dry, skipped, filled, played } = buffer;
      const level = Math.sqrt(this.#power / (REPORT_EVERY * output.length));
      this.port.postMessage({ position, isPlaying, depth, target, dry, skipped, filled, played, level });
      this.#blocks = this.#power = 0;
    }
    return true;
  }
}

registerProcessor("playback", Playback);
