/** A call: the dialog in which it rings, the view while it lasts, and the bar that leads back to it. */

import { avatar, byId, icon, iconButton, make, setIcon } from "./dom.js";
import { duration, label, onLanguage, outcomeText, t } from "./i18n.js";

/** Milliseconds for which it is shown how a call ended. */
const ENDED_FOR = 2_500;

export class CallView {
  #call = null;
  #isSmall = false;
  #hasPlayed = false;
  #timer = null;

  /** @param on devices(), which opens the choice of devices, and calls, the Calls */
  constructor(calls, on) {
    this.calls = calls;
    this.view = byId("call");
    this.dialog = byId("incoming");
    this.bar = byId("call-bar");
    this.canvas = make("canvas", { class: "remote", role: "img" });
    this.preview = make("video", { class: "preview", muted: true, playsInline: true, autoplay: true });
    this.face = make("div", { class: "big-face" });
    this.name = make("h2", { id: "call-name", class: "ellipsis" });
    this.state = make("p", { class: "call-state", role: "status" });
    this.quality = make("p", { class: "quality" });
    this.notes = make("p", { class: "notes", role: "status" });
    this.mute = iconButton("mic", "mute", () => this.#media?.mute(!this.#media.isMuted), "round-button");
    const turn = () => this.#media?.showCamera(this.#media.camera === null);
    this.camera = iconButton("video", "cameraOff", turn, "round-button");
    const full = iconButton("full", "fullScreen", () => this.#toggleFull(), "round-button");
    const devices = iconButton("sliders", "devices", on.devices, "round-button");
    const small = iconButton("chat", "minimise", () => this.shrink(true), "round-button");
    const hangUp = iconButton("hangup", "hangUp", () => calls.hangUp(), "round-button bad");
    this.full = full;
    this.view.replaceChildren(
      this.canvas, this.face,
      make("header", {}, this.name, this.state, this.quality), this.notes, this.preview,
      make("div", { class: "controls", role: "toolbar" }, this.mute, this.camera, devices, full, small, hangUp),
    );
    this.#makeBar();
    this.#makeDialog();
    calls.on("changed", (call) => this.#changed(call));
    onLanguage(() => this.#call !== null && this.#changed(this.#call));
    setInterval(() => this.#tick(), 500);
  }

  get #media() {
    return this.#call?.media ?? null;
  }

  /** Show the messages again while the call goes on, or the call. */
  shrink(isSmall) {
    this.#isSmall = isSmall;
    this.#draw();
  }

  #makeBar() {
    this.barText = make("span", { class: "ellipsis" });
    const properties = { class: "bar-button", type: "button", onclick: () => this.shrink(false) };
    const open = make("button", properties, icon("phone"), this.barText);
    this.bar.replaceChildren(open, iconButton("hangup", "hangUp", () => this.calls.hangUp(), "icon-button bad"));
  }

  #makeDialog() {
    this.dialogFace = make("div", {});
    this.dialogName = make("h2", { id: "incoming-name" });
    this.dialogKind = make("p", { class: "muted" });
    const choice = (name, key, className, act) => {
      const button = iconButton(name, key, act, `round-button ${className}`);
      const words = make("span", { ariaHidden: "true" });
      words.dataset.t = key;
      return make("div", { class: "choice" }, button, words);
    };
    const voice = choice("phone", "answerVoice", "good", () => this.calls.accept(false));
    this.withVideo = choice("video", "answerVideo", "good", () => this.calls.accept(true));
    const decline = choice("hangup", "decline", "bad", () => this.calls.hangUp());
    this.dialog.replaceChildren(
      this.dialogFace, this.dialogName, this.dialogKind,
      make("div", { class: "choices" }, decline, voice, this.withVideo),
    );
    this.dialog.tabIndex = -1;
    this.dialog.oncancel = (event) => event.preventDefault(); // Escape is too easily pressed while one writes
  }

  #changed(call) {
    const isNew = call !== this.#call;
    if (isNew && call.state === "ended") return;
    this.#call = call;
    if (isNew) {
      this.#hasPlayed = this.#isSmall = false;
      this.canvas.width = this.canvas.height = 0;
      this.face.replaceChildren(avatar(call.peer, "avatar big"));
      this.dialogFace.replaceChildren(avatar(call.peer, "avatar big"));
      this.name.textContent = this.dialogName.textContent = call.peer;
    }
    if (call.media !== null && call.watched !== call.media) {
      call.watched = call.media;
      call.media.on("changed", () => this.#draw());
      call.media.on("end", () => {
        this.#hasPlayed = true;
        this.#draw();
      });
    }
    clearTimeout(this.#timer);
    if (call.state === "ended") {
      if (document.fullscreenElement) document.exitFullscreen();
      this.#timer = setTimeout(() => {
        this.#call = null;
        this.#draw();
      }, ENDED_FOR);
    }
    this.#draw();
    if (isNew && call.state !== "incoming") this.mute.focus();
  }

  #draw() {
    const call = this.#call;
    const media = this.#media;
    const rings = call?.state === "incoming";
    this.#showDialog(rings);
    const wasOver = call?.state === "ended" && call.isIncoming && call.startedAt === null;
    const isOpen = call !== null && !rings && !wasOver;
    this.view.hidden = !isOpen || this.#isSmall;
    this.bar.hidden = !isOpen || !this.#isSmall || call.state === "ended";
    if (!isOpen) return;
    const isShown = media?.peer.camera === true && this.canvas.width > 0 && call.state === "active";
    this.canvas.hidden = !isShown;
    this.face.hidden = isShown;
    this.canvas.ariaLabel = t("theirCamera", { name: call.peer });
    this.preview.hidden = !media?.camera;
    this.preview.ariaLabel = t("yourCamera");
    this.view.classList.toggle("ended", call.state === "ended");
    this.#toggle(this.mute, media?.isMuted, "mic-off", "unmute", "mic", "mute");
    this.#toggle(this.camera, media?.camera === null, "video-off", "cameraOn", "video", "cameraOff");
    this.mute.disabled = !media?.microphone;
    this.camera.disabled = !media || (media.camera === null && !media.canAddCamera);
    this.full.hidden = !document.fullscreenEnabled;
    this.#tick();
    this.#set(this.notes, this.#remarks().join(" "));
  }

  #toggle(button, isOff, offIcon, offKey, onIcon, onKey) {
    setIcon(button, isOff ? offIcon : onIcon);
    label(button, isOff ? offKey : onKey);
    button.ariaPressed = String(Boolean(isOff));
  }

  #remarks() {
    const { peer, isLinkDown, state } = this.#call;
    const media = this.#media;
    const name = peer;
    if (media === null || state === "ended") return [];
    const remarks = [];
    if (isLinkDown) remarks.push(t("linkDown"));
    else if (state === "active" && media.quality.isSilent && !this.#hasPlayed) remarks.push(t("peerSilent", { name }));
    else if (state === "active" && !media.peer.microphone) remarks.push(t("peerMuted", { name }));
    if (this.#hasPlayed) remarks.push(t("playedAll", { name }));
    for (const role of ["microphone", "camera"]) {
      if (media.trouble[role] !== "") remarks.push(t(`${role}_${media.trouble[role]}`));
    }
    if (media.camera !== null && !media.canShowCamera) remarks.push(t("cannotShow"));
    return remarks;
  }

  #tick() {
    const call = this.#call;
    if (call === null || (this.view.hidden && this.bar.hidden)) return;
    const time = duration(Math.floor((Date.now() - call.startedAt) / 1000));
    const ended = () => outcomeText(call.outcome) + (call.seconds > 0 ? ` · ${duration(call.seconds)}` : "");
    const words = call.state === "ended" ? ended() : call.state === "active" ? time : t(`call_${call.state}`);
    // A screen reader need not be told every second.
    this.state.ariaLive = call.state === "active" ? "off" : "polite";
    this.#set(this.state, words);
    this.#set(this.barText, `${call.peer} · ${words}`);
    this.#set(this.quality, call.state === "active" ? this.#qualityWords() : "");
  }

  #qualityWords() {
    const { roundTrip, loss, size, rate } = this.#media.quality;
    const rtt = roundTrip === null ? "– ms" : `${roundTrip} ms`;
    const values = { rtt, loss: (loss * 100).toFixed(1), size: `${size.width}×${size.height}`, fps: rate };
    return t(this.canvas.hidden ? "qualityVoice" : "quality", values);
  }

  #set(node, text) {
    if (node.textContent !== text) node.textContent = text;
  }

  #showDialog(rings) {
    if (!rings) {
      if (this.dialog.open) this.dialog.close();
      return;
    }
    const { isVideo } = this.#call;
    this.dialogKind.textContent = t(isVideo ? "incomingVideo" : "incomingVoice");
    this.withVideo.hidden = !isVideo;
    for (const words of this.dialog.querySelectorAll("[data-t]")) words.textContent = t(words.dataset.t);
    if (this.dialog.open) return;
    this.dialog.showModal();
    this.dialog.focus(); // a key that was meant for a text neither takes the call nor declines it
  }

  #toggleFull() {
    if (document.fullscreenElement) document.exitFullscreen();
    else this.view.requestFullscreen().catch(() => {}); // the user, or the device, does not want it
  }
}
