/**
 * A scope ends what was begun in it: timers, frames, listeners, observers, requests. Every view has one, so that
 * nothing runs on after it closes; no other module calls setTimeout, setInterval, requestAnimationFrame or
 * addEventListener.
 */
export class Scope {
  /** @type {Set<() => void>} */
  #endings = new Set();
  #controller = new AbortController();

  /** @param {Scope} [parent] Ends this one too. */
  constructor(parent) {
    if (parent) this.onClose(parent.onClose(() => this.close()));
  }

  /** Aborted when the scope closes; for fetch and for listeners. */
  get signal() {
    return this.#controller.signal;
  }

  get closed() {
    return this.signal.aborted;
  }

  /** A scope that ends with this one, or before. */
  child() {
    return new Scope(this);
  }

  /**
   * Calls `ending` when the scope closes, at once if it has.
   * @param {() => void} ending
   * @returns {() => void} Takes it back.
   */
  onClose(ending) {
    if (this.closed) {
      ending();
      return () => {};
    }
    this.#endings.add(ending);
    return () => this.#endings.delete(ending);
  }

  /** Ends everything; does nothing the second time. */
  close() {
    if (this.closed) return;
    this.#controller.abort();
    const endings = [...this.#endings];
    this.#endings.clear();
    for (const ending of endings) ending();
  }

  /**
   * @param {EventTarget} target
   * @param {string} type
   * @param {(event: any) => void} listener
   * @param {AddEventListenerOptions} [options]
   */
  listen(target, type, listener, options) {
    target.addEventListener(type, listener, { ...options, signal: this.signal });
  }

  /**
   * Calls once, after some milliseconds.
   * @returns {() => void} Cancels it.
   */
  after(milliseconds, callback) {
    return this.#timed((done) => setTimeout(() => (done(), callback()), milliseconds), clearTimeout);
  }

  /**
   * Calls again and again.
   * @returns {() => void} Ends it.
   */
  every(milliseconds, callback) {
    return this.#timed(() => setInterval(callback, milliseconds), clearInterval);
  }

  /**
   * Calls once before the next painting, with its time in milliseconds.
   * @param {(time: number) => void} callback
   * @returns {() => void} Cancels it.
   */
  frame(callback) {
    return this.#timed((done) => requestAnimationFrame((time) => (done(), callback(time))), cancelAnimationFrame);
  }

  /** Resolves after some milliseconds; never if the scope closes before. */
  pause(milliseconds) {
    return new Promise((resolve) => this.after(milliseconds, resolve));
  }

  /** Resolves in a task of its own, so that the page can answer its user in between; never once the scope is closed. */
  breath() {
    return new Promise((resolve) => {
      const channel = new MessageChannel();
      channel.port1.onmessage = () => {
        channel.port1.close();
        if (!this.closed) resolve(undefined);
      };
      channel.port2.postMessage(0);
    });
  }

  /**
   * @template {{observe: Function, disconnect: Function}} T
   * @param {T} observer ResizeObserver, IntersectionObserver or MutationObserver.
   * @returns {T}
   */
  observer(observer) {
    this.onClose(() => observer.disconnect());
    return observer;
  }

  #timed(begin, cancel) {
    if (this.closed) return () => {};
    let forget = () => {};
    const id = begin(() => forget());
    forget = this.onClose(() => cancel(id));
    return () => {
      forget();
      cancel(id);
    };
  }
}
