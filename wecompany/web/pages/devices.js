/** Camera, microphone and loudspeaker, and what a browser lacks for calls. */

const KEY = "wecompany.devices";

export const OPUS = {
  codec: "opus", sampleRate: 48_000, numberOfChannels: 1, bitrate: 32_000, opus: { frameDuration: 20_000 },
};
export const OPUS_DECODER = { codec: "opus", sampleRate: 48_000, numberOfChannels: 1 };
export const VP8_DECODER = { codec: "vp8", optimizeForLatency: true };

/** Return what the encoder is to do with pictures of that size. */
export const vp8 = (width, height, bitrate, framerate) => ({
  codec: "vp8", width, height, bitrate, framerate, latencyMode: "realtime", bitrateMode: "variable",
});

const PICTURE = { width: { ideal: 640 }, height: { ideal: 480 }, frameRate: { ideal: 30, max: 30 } };
const SOUND = { echoCancellation: true, noiseSuppression: true, autoGainControl: true, channelCount: 1 };

async function isSupported(codec, config) {
  try {
    return (await globalThis[codec].isConfigSupported(config)).supported === true;
  } catch {
    return false;
  }
}

/**
 * Return what this browser can do: `{why, sendsAudio, sendsVideo, receives}`.  `why` names what makes calls impossible:
 * "insecure", "webcodecs", "worklet", or null.
 */
export async function capabilities() {
  const none = { sendsAudio: false, sendsVideo: false, receives: [] };
  if (!window.isSecureContext) return { why: "insecure", ...none };
  if (!("AudioDecoder" in window) && !("VideoDecoder" in window)) return { why: "webcodecs", ...none };
  if (!("AudioWorkletNode" in window)) return { why: "worklet", ...none };
  const [opusOut, opusIn, vp8Out, vp8In] = await Promise.all([
    isSupported("AudioEncoder", OPUS),
    isSupported("AudioDecoder", OPUS_DECODER),
    isSupported("VideoEncoder", vp8(640, 480, 500_000, 30)),
    isSupported("VideoDecoder", VP8_DECODER),
  ]);
  const receives = [...(opusIn ? ["opus"] : []), ...(vp8In ? ["vp8"] : [])];
  return { why: receives.length > 0 ? null : "webcodecs", sendsAudio: opusOut, sendsVideo: vp8Out, receives };
}

/** Return the devices that the user chose: `{microphone, camera, speaker}`, each an ID or "". */
export function chosenDevices() {
  try {
    return { microphone: "", camera: "", speaker: "", ...JSON.parse(localStorage.getItem(KEY)) };
  } catch {
    return { microphone: "", camera: "", speaker: "" };
  }
}

export function chooseDevice(role, id) {
  localStorage.setItem(KEY, JSON.stringify({ ...chosenDevices(), [role]: id }));
}

/** Return the devices there are, as `{microphone: [{id, label}], camera: [...], speaker: [...]}`. */
export async function listDevices() {
  const roles = { audioinput: "microphone", videoinput: "camera", audiooutput: "speaker" };
  const found = { microphone: [], camera: [], speaker: [] };
  for (const { kind, deviceId, label } of await navigator.mediaDevices?.enumerateDevices() ?? []) {
    if (deviceId !== "") found[roles[kind]].push({ id: deviceId, label });
  }
  return found;
}

const withDevice = (constraints, id) => (id === "" ? constraints : { ...constraints, deviceId: { ideal: id } });

async function openTrack(constraints) {
  const stream = await navigator.mediaDevices.getUserMedia(constraints);
  return stream.getTracks()[0];
}

/** Open the microphone; fails where there is none or the user does not want it. */
export const openMicrophone = () => openTrack({ audio: withDevice(SOUND, chosenDevices().microphone) });

/** Open the camera; fails where there is none or the user does not want it. */
export const openCamera = () => openTrack({ video: withDevice(PICTURE, chosenDevices().camera) });
