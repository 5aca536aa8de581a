/** The media of one call: devices, what goes out, what comes in, and the two sides' reports to each other. */

import { callContext } from "./audio.js";
import { chosenDevices, openCamera, openMicrophone } from "./devices.js";
import { Events } from "./events.js";
import { encodeDescription } from "./pieces.js";
import { RateController } from "./rate.js";
import { Receiver } from "./receiver.js";
import { Sender } from "./sender.js";

/** Milliseconds between two reports. */
const REPORT_EVERY = 1_000;

/** Milliseconds without anything from the other side after which that is shown. */
const SILENT_AFTER = 2_500;

const PICTURE_RATE = "30";

/** Milliseconds for a camera to give smaller pictures, before still smaller ones are asked for. */
const SHRINK_AGAIN = 4_000;

/** Pixels below which no smaller pictures are asked for, however slow the machine is. */
const LEAST_WIDTH = 320;

/** Events: `changed()`, and `end()` when the other side has no more to play. */
export class Media extends Events {
  /** What the other side's microphone and camera do, as far as it says. */
  peer = { microphone: true, camera: null };
  /** What became of opening a device: "", "denied" or "missing". */
  trouble = { microphone: "", camera: "" };
  microphone = null;
  camera = null;
  isMuted = false;
  roundTrip = null;
  loss = 0;
  #sender = null;
  #receiver = null;
  #rate = new RateController(() => performance.now());
  #timer = null;
  #heardAt = performance.now();
  #lastReport = null;
  #before = { received: 0, lost: 0 };
  #shownBefore = 0;
  #picturesBefore = -1;
  #framesNow = 0;
  #isStopped = false;
  #context = null;
  #theirs = null;
  #shrunkAt = -Infinity;

  /**
   * @param abilities what devices.capabilities() gave
   * @param link send(piece), isReady() and backlog()
   * @param canvas shows what comes; preview, a video element, what goes
   */
  constructor(abilities, link, canvas, preview) {
    super();
    this.abilities = abilities;
    this.link = link;
    this.canvas = canvas;
    this.preview = preview;
  }

  /** Open the devices; returns the offer or the answer that says what is going to be sent. */
  async prepare(isVideo) {
    this.#context = await callContext();
    this.#useSpeaker();
    const [microphone, camera] = await Promise.all([
      this.abilities.sendsAudio ? this.#open("microphone", openMicrophone) : null,
      isVideo && this.abilities.sendsVideo ? this.#open("camera", openCamera) : null,
    ]);
    if (this.#isStopped) {
      microphone?.stop();
      camera?.stop();
    } else {
      this.microphone = microphone;
      this.#setCamera(camera);
    }
    const { width = 640, height = 480 } = camera?.getSettings() ?? {};
    return encodeDescription({
      audio: microphone && { rate: this.#context.sampleRate, channels: 1 },
      video: camera && { width, height, rate: PICTURE_RATE },
      receives: this.abilities.receives,
    });
  }

  /** The call is active: send and receive from now on. */
  start(theirs) {
    this.#theirs = theirs;
    this.#sender = new Sender(this.#context, this.link, this.#rate, theirs.hasFeedback, () => this.#shrink());
    this.#receiver = new Receiver(
      this.#context, this.canvas, (message) => this.#tell(message), (message) => this.#heard(message),
      this.abilities.receives,
    );
    this.peer.camera = theirs.video !== null;
    if (theirs.receives.includes("opus")) this.#sender.setMicrophone(this.microphone);
    if (this.canShowCamera) this.#sender.setCamera(this.camera, this.preview);
    this.#timer = setInterval(() => this.#report(), REPORT_EVERY);
    this.#heardAt = performance.now();
    this.#report();
  }

  /** Whether the other side can show a camera's pictures. */
  get canShowCamera() {
    return this.#theirs?.receives.includes("vp8") ?? true;
  }

  /** Whether a camera that was not announced may be turned on: a client that records counts on what was said. */
  get canAddCamera() {
    return this.abilities.sendsVideo && this.canShowCamera && (this.#theirs?.hasFeedback ?? true);
  }

  feed(media) {
    this.#heardAt = performance.now();
    this.#receiver?.feed(media);
  }

  /** A connection was lost; frames begin anew when it is back. */
  connectionLost() {
    this.#receiver?.connectionLost();
    this.#sender?.requestKey();
  }

  mute(isMuted) {
    this.isMuted = isMuted;
    if (this.microphone !== null) this.microphone.enabled = !isMuted;
    this.#report();
    this.emit("changed");
  }

  /** Turn the camera on or off; off, its light goes out. */
  async showCamera(isOn) {
    const camera = isOn ? await this.#open("camera", openCamera) : null;
    if (this.#isStopped) {
      camera?.stop();
      return;
    }
    this.#setCamera(camera);
    if (this.canShowCamera) this.#sender?.setCamera(camera, this.preview);
    this.#report();
    this.emit("changed");
  }

  /** Use the devices that the user has chosen meanwhile. */
  async changeDevice(role) {
    if (role === "speaker") {
      await this.#useSpeaker();
    } else if (role === "camera") {
      if (this.camera !== null) await this.showCamera(true);
    } else if (this.microphone !== null) {
      const microphone = await this.#open("microphone", openMicrophone);
      if (microphone === null) return;
      this.microphone.stop();
      this.microphone = microphone;
      microphone.enabled = !this.isMuted;
      this.#sender?.setMicrophone(microphone);
    }
    this.emit("changed");
  }

  stop() {
    this.#isStopped = true;
    clearInterval(this.#timer);
    this.#sender?.stop();
    this.#receiver?.stop();
    this.microphone?.stop();
    this.#setCamera(null);
  }

  /** What a person wants to know of the connection. */
  get quality() {
    return {
      roundTrip: this.roundTrip,
      loss: this.loss,
      size: this.#receiver?.size ?? { width: 0, height: 0 },
      rate: this.#framesNow,
      isSilent: performance.now() - this.#heardAt > SILENT_AFTER,
    };
  }

  /** What tests want to know: see debug.js. */
  stats() {
    const receiver = this.#receiver;
    return {
      sent: {
        ...this.#sender?.sent, ...this.#sender?.size, bitrate: this.#rate.bitrate, encodeTime: this.#sender?.encodeTime,
      },
      received: {
        audio: receiver?.audio.received ?? 0, audioLost: receiver?.audio.lost ?? 0,
        video: receiver?.video.received ?? 0, videoLost: receiver?.video.lost ?? 0,
      },
      decoded: { ...receiver?.decoded },
      shown: receiver?.shown ?? 0,
      delay: receiver?.delay ?? null,
      late: receiver?.late ?? null,
      sound: { ...receiver?.sound },
      peak: receiver === null ? null : peakFrequency(receiver.analyser),
      ...this.quality,
    };
  }

  async #open(role, open) {
    try {
      const track = await open();
      this.trouble[role] = "";
      return track;
    } catch (error) {
      this.trouble[role] = error.name === "NotAllowedError" ? "denied" : "missing";
      return null;
    }
  }

  #setCamera(track) {
    this.camera?.stop();
    this.camera = track;
    this.preview.srcObject = track === null ? null : new MediaStream([track]);
    if (track !== null) this.preview.play().catch(() => {}); // stopped before it began
  }

  /** The machine or the network is too slow for such pictures: take smaller ones. */
  #shrink() {
    const { width, height } = this.camera?.getSettings() ?? {};
    const now = performance.now();
    if (!(width > LEAST_WIDTH) || now - this.#shrunkAt < SHRINK_AGAIN) return;
    this.#shrunkAt = now;
    const size = { width: Math.round(width / 2), height: Math.round(height / 2) };
    this.camera.applyConstraints({ ...size, frameRate: Number(PICTURE_RATE) }).catch(() => {}); // it cannot
  }

  async #useSpeaker() {
    const { speaker } = chosenDevices();
    // One that is unplugged is as good as none chosen.
    if (this.#context.sinkId !== undefined) await this.#context.setSinkId(speaker).catch(() => {});
  }

  // -- reports

  #tell(message) {
    return this.#theirs?.hasFeedback === true && this.#sender.tell(message);
  }

  #report() {
    if (this.#receiver === null) return;
    const { audio, video, shown, late, bytes } = this.#receiver;
    this.#framesNow = shown - this.#shownBefore;
    this.#shownBefore = shown;
    const received = audio.received + video.received;
    const lost = audio.lost + video.lost;
    const all = received + lost - this.#before.received - this.#before.lost;
    this.loss = all > 0 ? (lost - this.#before.lost) / all : 0;
    this.#before = { received, lost };
    // Once the server has dropped a picture it drops all up to the next key frame, so that nothing tells of it.
    if (this.peer.camera && video.received === this.#picturesBefore) this.#receiver.askForKey();
    this.#picturesBefore = video.received;
    const now = performance.now();
    this.#tell({
      t: "report",
      at: Math.round(now),
      ...(this.#lastReport && { echo: this.#lastReport.at, held: Math.round(now - this.#lastReport.heardAt) }),
      audio: [audio.received, audio.lost],
      video: [video.received, video.lost],
      bytes,
      late,
      microphone: this.microphone !== null && !this.isMuted,
      camera: this.camera !== null && this.canShowCamera,
    });
    this.emit("changed");
  }

  #heard(message) {
    if (message.t === "end") this.emit("end");
    else if (message.t === "key") this.#sender.requestKey();
    else if (message.t === "report") this.#reportHeard(message);
  }

  #reportHeard(report) {
    const now = performance.now();
    const before = this.#lastReport;
    this.#lastReport = { at: Number(report.at), heardAt: now, video: report.video, bytes: Number(report.bytes) };
    if (Number.isFinite(report.echo) && Number.isFinite(report.held)) {
      this.roundTrip = Math.max(0, Math.round(now - report.echo - report.held));
    }
    this.peer = { microphone: report.microphone !== false, camera: report.camera === true };
    const [received, lost] = Array.isArray(report.video) ? report.video : [0, 0];
    const [receivedBefore, lostBefore] = Array.isArray(before?.video) ? before.video : [0, 0];
    const all = received - receivedBefore + lost - lostBefore;
    const seconds = (report.at - before?.at) / 1000;
    const arrived = seconds > 0.2 ? ((report.bytes - before.bytes) * 8) / seconds : Infinity;
    if (all > 0 || this.#rate.isDraining) {
      this.#rate.report(all > 0 ? (lost - lostBefore) / all : 0, Number(report.late) || 0, arrived || Infinity);
    }
  }
}

/** Return `{frequency, level}` of the loudest tone that is heard, in Hz and dB. */
function peakFrequency(analyser) {
  const bins = new Float32Array(analyser.frequencyBinCount);
  analyser.getFloatFrequencyData(bins);
  let loudest = 0;
  for (let i = 1; i < bins.length; i += 1) if (bins[i] > bins[loudest]) loudest = i;
  return { frequency: (loudest * analyser.context.sampleRate) / analyser.fftSize, level: bins[loudest] };
}
