// What the Tab key does not reach on the page that is shown, or not visibly; run by test_in_chromium.py.
{
  usable() {
    const all = "a[href], button, input:not([type=hidden]), select, textarea, summary, [tabindex='0']";
    return [...document.querySelectorAll(all)].filter((element) =>
      !element.disabled && element.checkVisibility({ visibilityProperty: true }) && element.getClientRects().length);
  },
  // Live parts may put another element in the place of one, so that they are told apart by what they are.
  name(element) {
    const said = element.ariaLabel || element.textContent.trim().replace(/\s+/g, " ").slice(0, 60);
    return `${element.tagName.toLowerCase()} ${element.getAttribute("href") ?? element.id ?? ""} "${said}"`;
  },
  color(text) { return text.match(/[\d.]+/g).map(Number); },
  light(color) {
    return color.slice(0, 3).map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
      .reduce((sum, v, place) => sum + v * [0.2126, 0.7152, 0.0722][place], 0);
  },
  // An outline is drawn on what is around the element; WCAG 2.2 asks for 3:1.
  contrast(element) {
    let behind = [255, 255, 255];
    for (let at = element.parentElement; at; at = at.parentElement) {
      const [r, g, b, a = 1] = this.color(getComputedStyle(at).backgroundColor);
      if (a === 1) { behind = [r, g, b]; break; }
    }
    const [high, low] = [this.light(this.color(getComputedStyle(element).outlineColor)), this.light(behind)].sort((a, b) => b - a);
    return (high + 0.05) / (low + 0.05);
  },
  seen(element) {
    const style = getComputedStyle(element), box = element.getBoundingClientRect();
    const drawn = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2 && this.contrast(element) >= 3;
    return drawn && box.bottom > 0 && box.top < innerHeight && box.right > 0 && box.left < innerWidth;
  },
  // Begins to watch at the top of the page; how often Tab is to be pressed.
  begin() {
    for (const details of document.querySelectorAll("details")) details.open = true;
    document.activeElement?.blur();
    getSelection().collapse(document.body, 0);
    window.reached = new Map();
    document.addEventListener("focusin", ({ target }) => window.reached.set(this.name(target), this.seen(target)));
    return this.usable().length + 1;
  },
  end() {
    const missed = this.usable().map((element) => this.name(element)).filter((name) => !window.reached.has(name));
    const unseen = [...window.reached].filter(([, seen]) => !seen).map(([name]) => name);
    return missed.length || unseen.length ? { missed, unseen } : null;
  },
}
