/** The one audio context of the page: browsers allow few, and start each only after the user has done something. */

const RATE = 48_000;

let context = null;
let ready = null;

/** Return the context. */
export function audioContext() {
  context ??= new AudioContext({ sampleRate: RATE, latencyHint: "interactive" });
  if (context.state !== "running") context.resume().catch(() => {}); // later, when the user has clicked somewhere
  return context;
}

/** Return the context with the page's worklets in it. */
export async function callContext() {
  const audio = audioContext();
  ready ??= Promise.all(["./playback-worklet.js", "./capture-worklet.js"].map(
    (module) => audio.audioWorklet.addModule(new URL(module, import.meta.url)),
  ));
  await ready;
  return audio;
}

/** Return the media clock: microseconds since the epoch, which run evenly. */
export const mediaTime = () => Math.round((performance.timeOrigin + performance.now()) * 1000);
