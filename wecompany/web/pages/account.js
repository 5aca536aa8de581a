/** Who is signed in on this device: the name and a token, never the password. */

const KEY = "wecompany.account";

/** Return `{user, token, isKept}` of who is signed in here, or null. */
export function savedAccount() {
  for (const storage of [sessionStorage, localStorage]) {
    try {
      const account = JSON.parse(storage.getItem(KEY));
      if (typeof account?.user === "string" && typeof account.token === "string") {
        return { ...account, isKept: storage === localStorage };
      }
    } catch {
      storage.removeItem(KEY); // somebody else's
    }
  }
  return null;
}

/**
 * Remember who is signed in.
 *
 * @param isKept whether beyond this tab: then anyone who uses this device is signed in
 */
export function saveAccount(user, token, isKept) {
  forgetAccount();
  (isKept ? localStorage : sessionStorage).setItem(KEY, JSON.stringify({ user, token }));
}

export function forgetAccount() {
  sessionStorage.removeItem(KEY);
  localStorage.removeItem(KEY);
}
