/** The settings, in a dialog that is made anew whenever it is opened. */

import { chooseDevice, chosenDevices, listDevices } from "./devices.js";
import { byId, iconButton, make, textButton } from "./dom.js";
import { currentLanguage, t, useLanguage } from "./i18n.js";
import { canNotify, notifies, setNotifies } from "./notify.js";

const THEME = "wecompany.theme";

/** Show the page light, dark, or as the system is. */
export function applyTheme(theme = localStorage.getItem(THEME) ?? "system") {
  document.documentElement.dataset.theme = theme;
}

export class SettingsView {
  /** @param on logOut(), erase(), deviceChanged(role), and user(), who is signed in */
  constructor(on) {
    this.on = on;
    this.dialog = byId("settings");
    this.dialog.onclick = (event) => {
      if (event.target === this.dialog) this.dialog.close(); // beside it
    };
  }

  async open() {
    const devices = await listDevices().catch(() => ({ microphone: [], camera: [], speaker: [] }));
    this.#fill(devices);
    if (!this.dialog.open) this.dialog.showModal();
  }

  close() {
    this.dialog.close();
  }

  #fill(devices) {
    const { on } = this;
    const name = on.user();
    const again = () => this.#fill(devices);
    const theme = document.documentElement.dataset.theme;
    const parts = [
      make(
        "header", {}, make("h2", { id: "settings-title" }, t("settings")),
        iconButton("close", "close", () => this.dialog.close()),
      ),
      this.#choice("language", [["en", "English"], ["zh", "中文"]], currentLanguage(), (value) => {
        useLanguage(value);
        again();
      }),
      this.#choice("appearance", ["system", "light", "dark"].map((one) => [one, t(`theme_${one}`)]), theme, (value) => {
        localStorage.setItem(THEME, value);
        applyTheme(value);
      }),
      this.#notifications(again),
    ];
    for (const [role, found] of Object.entries(devices)) {
      if (found.length === 0) continue;
      const options = [["", t("standard")], ...found.map(({ id, label }, i) => [id, label || `${t(role)} ${i + 1}`])];
      parts.push(this.#choice(role, options, chosenDevices()[role], (value) => {
        chooseDevice(role, value);
        on.deviceChanged(role);
      }));
    }
    if (devices.microphone.length === 0) parts.push(make("p", { class: "hint" }, t("noDevices")));
    parts.push(
      make("p", { class: "muted ellipsis" }, t("signedInAs", { name })),
      make("div", { class: "buttons" }, textButton(t("logOut"), on.logOut), textButton(t("erase"), () => {
        if (confirm(t("eraseSure", { name }))) on.erase();
      }, "danger")),
    );
    this.dialog.replaceChildren(make("div", { class: "content" }, ...parts));
  }

  #choice(key, options, chosen, changed) {
    const select = make("select", { onchange: () => changed(select.value) });
    for (const [value, text] of options) select.append(make("option", { value, selected: value === chosen }, text));
    return make("label", { class: "field" }, make("span", {}, t(key)), select);
  }

  #notifications(again) {
    const box = make("input", { type: "checkbox", checked: notifies(), disabled: !canNotify() });
    box.onchange = () => setNotifies(box.checked).then(again);
    const words = make("span", {}, t("notifications"));
    if (!canNotify()) words.append(make("small", { class: "hint" }, ` ${t("notificationsDenied")}`));
    return make("label", { class: "check" }, box, words);
  }
}
