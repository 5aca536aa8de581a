/** The view in which one signs in. */

import { byId } from "./dom.js";
import { currentLanguage, errorText, t, useLanguage } from "./i18n.js";
import { isUserId } from "./wire.js";

export class SignInView {
  /** @param enter called with (user, password, isKept, isNew); fails with what the server says */
  constructor(enter) {
    this.enter = enter;
    this.message = byId("sign-in-message");
    this.language = byId("sign-in-language");
    byId("sign-in-form").onsubmit = (event) => {
      event.preventDefault();
      this.#submit(false);
    };
    byId("sign-up-button").onclick = () => {
      if (byId("sign-in-form").reportValidity()) this.#submit(true);
    };
    this.language.onchange = () => useLanguage(this.language.value);
  }

  /** @param error why one has to sign in, if something happened */
  show(error = null, user = "") {
    byId("sign-in").hidden = false;
    byId("sign-in-name").value ||= user;
    this.language.value = currentLanguage();
    this.message.textContent = error === null ? "" : errorText(error);
    byId(user === "" ? "sign-in-name" : "sign-in-password").focus();
  }

  hide() {
    byId("sign-in").hidden = true;
    byId("sign-in-password").value = "";
  }

  async #submit(isNew) {
    const user = byId("sign-in-name").value.trim().normalize("NFC");
    if (!isUserId(user)) {
      this.message.textContent = t("badName");
      return;
    }
    const buttons = [byId("sign-in-button"), byId("sign-up-button")];
    for (const button of buttons) button.disabled = true;
    this.message.textContent = t("signingIn");
    try {
      await this.enter(user, byId("sign-in-password").value, byId("sign-in-keep").checked, isNew);
      this.message.textContent = "";
    } catch (error) {
      this.message.textContent = error.key === undefined ? errorText(error) : t(error.key);
    } finally {
      for (const button of buttons) button.disabled = false;
    }
  }
}
