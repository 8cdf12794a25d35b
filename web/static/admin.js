// Times in the browser's zone, with UTC in the title.
const formats = {
  full: new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" }),
  step: new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" }),
  second: new Intl.DateTimeFormat(undefined, { timeStyle: "medium" }),
  minute: new Intl.DateTimeFormat(undefined, { timeStyle: "short" }),
  // The server's days are those of UTC.
  day: new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short", timeZone: "UTC" }),
};
const showTimes = (part) => {
  for (const time of part.querySelectorAll("time[datetime]")) {
    const moment = new Date(time.dateTime);
    if (!Number.isNaN(moment.getTime())) {
      time.title = time.textContent;
      time.textContent = (formats[time.dataset.as] ?? formats.full).format(moment);
    }
  }
  // What a chart says when it is pointed at begins with the time.
  for (const title of part.querySelectorAll("title[data-at]")) {
    const said = title.textContent.slice(title.textContent.indexOf(" – "));
    title.textContent = formats.step.format(new Date(title.dataset.at)) + said;
  }
};
showTimes(document);

// Makes one piece of a page like another, touching only what differs: what is pointed at, open, scrolled or focused stays so.
const become = (old, fresh) => {
  if (old.nodeName !== fresh.nodeName) return old.replaceWith(fresh);
  if (old.nodeType === Node.TEXT_NODE && old.data !== fresh.data) old.data = fresh.data;
  for (const { name } of [...(old.attributes ?? [])])
    if (!fresh.hasAttribute(name) && name !== "open") old.removeAttribute(name);
  for (const { name, value } of fresh.attributes ?? [])
    if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  becomeLike(old, fresh);
};
const becomeLike = (old, fresh) => {
  const [before, after] = [[...old.childNodes], [...fresh.childNodes]];
  before.slice(after.length).forEach((node) => node.remove());
  after.forEach((node, place) => (before[place] ? become(before[place], node) : old.append(node)));
};

// Parts that the server keeps up to date: each message holds, by the ids of elements, what now stands in them.
for (const part of document.querySelectorAll("[data-live]")) {
  const over = part.querySelector("[data-over]");
  let source = null;
  const show = ({ data }) => {
    for (const [id, html] of Object.entries(JSON.parse(data))) {
      const fresh = document.createElement("template");
      fresh.innerHTML = html;
      showTimes(fresh.content);
      becomeLike(document.getElementById(id), fresh.content);
    }
  };
  const follow = () => {
    // Browsers open six connections to a site, for all tabs together: tabs in the background would use them up.
    if (document.hidden) {
      source?.close();
      source = null;
    } else if (!source) {
      source = new EventSource(part.dataset.live);
      source.addEventListener("message", show);
      source.addEventListener("open", () => { over.hidden = true; });
      // The browser tries again by itself, unless what it asked for led to the login, or to an error.
      source.addEventListener("error", ({ target }) => { over.hidden = target.readyState !== EventSource.CLOSED; });
    }
  };
  document.addEventListener("visibilitychange", follow);
  follow();
}

// Copy buttons; without this script the fields can be selected.
for (const button of document.querySelectorAll("button[data-copy]")) {
  const field = document.getElementById(button.dataset.copy);
  button.hidden = false;
  button.addEventListener("click", async () => {
    field.select();
    try {
      await navigator.clipboard.writeText(field.value);
    } catch {
      // Browsers offer the clipboard to secure pages only; over plain HTTP there is the old way.
      document.execCommand("copy");
    }
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 2000);
  });
}
