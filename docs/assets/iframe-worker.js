// Browsers start no workers for pages that are opened from the disk. There, search runs in a hidden frame instead.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      this.onmessage = this.onerror = null
      this.frame = document.createElement("iframe")
      this.frame.hidden = true
      document.body.append(this.frame)
      const inner = this.frame.contentWindow
      inner.postMessage = data => setTimeout(() => this.tell("message", new MessageEvent("message", { data })))
      this.ready = new Promise((resolve, reject) => {
        const script = inner.document.createElement("script")
        script.onload = resolve
        script.onerror = reject
        script.src = url
        inner.document.body.append(script)
      })
      this.ready.catch(() => this.tell("error", new Event("error")))
    }
    tell(name, event) {
      this.dispatchEvent(event)
      this[`on${name}`]?.(event)
    }
    postMessage(data) {
      const inner = this.frame.contentWindow
      this.ready.then(() => inner.dispatchEvent(new inner.MessageEvent("message", { data })), () => {})
    }
    terminate() {
      this.frame.remove()
    }
  }
}
