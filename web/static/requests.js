// The live tail: rows are made of the page's own templates, and all text of others goes in as text.
const tail = document.getElementById("tail");
const MOST_ROWS = 200;
const RETRY_MS = 2000;

const fill = (row, given) => {
  row.dataset.id = given.id;
  for (const place of row.querySelectorAll("[data-text]")) {
    const text = given[place.dataset.text];
    if (place.dataset.text === "time") {
      if (place.dateTime === given.at) continue;
      place.dateTime = given.at;
    }
    if (place.textContent !== text) place.textContent = text;
  }
  for (const link of row.querySelectorAll("[data-link]")) {
    const value = given[link.dataset.link];
    if (value) link.href = link.dataset.base ? link.dataset.base + encodeURIComponent(value) : value;
    else link.removeAttribute("href");
  }
  for (const field of row.querySelectorAll("[data-value]")) field.value = given[field.dataset.value];
  for (const badge of row.querySelectorAll(".badge")) badge.className = `badge ${given.tone}`;
};

const made = (template, given) => {
  const row = template.content.firstElementChild.cloneNode(true);
  fill(row, given);
  showTimes(row);
  return row;
};

const follow = () => {
  const part = (name) => tail.querySelector(`[data-${name}]`);
  const running = part("running").querySelector("tbody"), ended = part("ended").querySelector("tbody");
  const amount = (value) => new Intl.NumberFormat("en").format(value).replaceAll(",", "\u202f");
  const say = (text) => { document.getElementById("live").textContent = text; };
  let { newest, number } = tail.dataset, source = null, paused = false, skipped = 0, missed = 0;

  const showRunning = ({ rows, count }) => {
    const left = new Map([...running.children].map((row) => [row.dataset.id, row]));
    for (const given of rows) {
      const row = left.get(given.id);
      if (row) fill(row, given);
      else running.append(made(part("running-row"), given));
      left.delete(given.id);
    }
    for (const row of left.values()) row.remove();
    part("running-count").textContent = amount(count);
    part("running").hidden = count === 0;
    part("idle").hidden = count > 0;
    part("more-running").hidden = count <= rows.length;
  };

  const showEnded = (message) => {
    ({ newest, number } = message);
    for (const given of message.ended) {
      for (const row of running.children) if (row.dataset.id === given.id) row.remove();
      ended.prepend(made(part("ended-row"), given));
    }
    while (ended.children.length > MOST_ROWS) ended.lastElementChild.remove();
    part("ended").hidden = ended.children.length === 0;
    part("none").hidden = ended.children.length > 0;
    // The next page begins where this one ends now.
    const next = tail.querySelector("a[rel=next]");
    if (next) {
      const url = new URL(next.href);
      url.searchParams.set("after", ended.lastElementChild.dataset.id);
      next.href = url;
    }
    skipped += message.skipped;
    missed += message.missed;
    part("skipped").hidden = skipped + missed === 0;
    part("skipped").textContent = `So many calls ended that ${amount(skipped)} of these are not shown` +
      (missed ? `, and ${amount(missed)} were gone before they could be looked at.` : "; load again to see the newest.");
  };

  const close = () => {
    source?.close();
    source = null;
  };

  const open = () => {
    if (source || paused || document.hidden) return;
    const url = new URL(tail.dataset.tail, location.href);
    url.searchParams.set("after", newest);
    url.searchParams.set("number", number);
    source = new EventSource(url);
    source.addEventListener("open", () => say("Live"));
    source.addEventListener("message", ({ data }) => {
      const message = JSON.parse(data);
      if (message.ended) showEnded(message);
      if (message.running) showRunning(message.running);
    });
    source.addEventListener("error", () => {
      // Closed for good means that the session has ended: what was asked for led to the login.
      const over = source.readyState === EventSource.CLOSED;
      close();
      say(over ? "Not live any more: load again" : "Connecting again…");
      if (!over) setTimeout(open, RETRY_MS);
    });
  };

  const pause = document.getElementById("pause");
  pause.hidden = false;
  pause.addEventListener("click", () => {
    paused = !paused;
    pause.textContent = paused ? "Go on" : "Pause";
    if (paused) {
      close();
      say("Paused");
    } else open();
  });
  // A page that nobody sees costs nothing; browsers allow few open streams to one site.
  document.addEventListener("visibilitychange", () => (document.hidden ? close() : open()));
  open();
};

if (tail) follow();
