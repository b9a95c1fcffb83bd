// Limits parallel tasks. A browser has six connections to a host, and uploads must leave some for the page.

export class Stopped extends Error {}

export class TaskLimit {
  #busy = 0;
  #waiting = [];

  constructor(limit) {
    this.limit = limit;
  }

  /** Run a task when a slot is free. Throws Stopped if the signal is aborted before. */
  async run(signal, task) {
    await this.#enter(signal);
    try {
      return await task();
    } finally {
      this.#busy -= 1;
      this.#next();
    }
  }

  #enter(signal) {
    return new Promise((resolve, reject) => {
      if (signal.aborted) return reject(new Stopped());
      const one = { enter: () => (signal.removeEventListener("abort", leave), resolve()) };
      const leave = () => {
        this.#waiting = this.#waiting.filter((other) => other !== one);
        reject(new Stopped());
      };
      signal.addEventListener("abort", leave);
      this.#waiting.push(one);
      this.#next();
    });
  }

  #next() {
    while (this.#waiting.length && this.#busy < this.limit) {
      this.#busy += 1;
      this.#waiting.shift().enter();
    }
  }
}
