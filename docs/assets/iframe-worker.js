/*
 * A stand-in for Worker on pages that are opened from a folder: browsers start no worker for file://, and without one
 * the site's search has nobody to ask. The script runs in a hidden frame instead; messages go to and fro as usual. The
 * theme's worker looks for the name IFrameWorker to learn where it runs.
 */
if (location.protocol === "file:") {
  window.IFrameWorker = window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      this.onmessage = this.onerror = null
      this.frame = document.createElement("iframe")
      this.frame.hidden = true
      document.body.appendChild(this.frame)
      const inner = this.frame.contentWindow
      const inside = this.frame.contentDocument
      const base = new URL(url, document.baseURI).href
      const heard = data => {
        const event = new MessageEvent("message", { data })
        this.dispatchEvent(event)
        if (this.onmessage) this.onmessage(event)
      }
      inner.postMessage = data => setTimeout(() => heard(data))
      /* importScripts gives a promise here: the worker awaits it. */
      inner.importScripts = (...scripts) => scripts.reduce(
        (before, script) => before.then(() => new Promise((done, failed) => {
          const tag = inside.createElement("script")
          tag.src = new URL(script, base).href
          tag.onload = () => done()
          tag.onerror = () => failed(new Error(script))
          inside.body.appendChild(tag)
        })),
        Promise.resolve()
      )
      this.inner = inner
      this.ready = inner.importScripts(base)
    }

    postMessage(data) {
      this.ready.then(() => this.inner.dispatchEvent(new MessageEvent("message", { data })))
    }

    terminate() {
      this.frame.remove()
    }
  }
}
