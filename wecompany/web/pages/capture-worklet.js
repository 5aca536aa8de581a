/** Cuts what the microphone gives into the 20 ms of one packet, in the audio thread. */

const PACKET = 0.02;

class Capture extends AudioWorkletProcessor {
  #packet = new Float32Array(Math.round(sampleRate * PACKET));
  #size = 0;

  process([channels]) {
    // Without a source there are no channels, and then there is nothing to send.
    if (channels.length === 0) return true;
    for (let i = 0; i < channels[0].length; i += 1) {
      let sample = 0;
      for (const channel of channels) sample += channel[i];
      this.#packet[this.#size] = sample / channels.length;
      this.#size += 1;
      if (this.#size === this.#packet.length) {
        this.port.postMessage(this.#packet, [this.#packet.buffer]);
        this.#packet = new Float32Array(Math.round(sampleRate * PACKET));
        this.#size = 0;
      }
    }
    return true;
  }
}

registerProcessor("capture", Capture);
