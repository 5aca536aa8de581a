/** Who wants to know what happens: the least that can tell several listeners of it. */
export class Events {
  #listeners = new Map();

  /** Call `listener` whenever `name` happens; returns what ends that. */
  on(name, listener) {
    if (!this.#listeners.has(name)) this.#listeners.set(name, new Set());
    this.#listeners.get(name).add(listener);
    return () => this.#listeners.get(name).delete(listener);
  }

  /** Tell of `name`.  What a listener throws is shown in the console and harms nobody else. */
  emit(name, ...details) {
    for (const listener of [...(this.#listeners.get(name) ?? [])]) {
      try {
        listener(...details);
      } catch (error) {
        console.error(error);
      }
    }
  }
}
