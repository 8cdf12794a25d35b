// Times in the browser's zone, with UTC in the title.
const format = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });
const showTimes = (part) => {
  for (const time of part.querySelectorAll("time[datetime]")) {
    const moment = new Date(time.dateTime);
    if (!Number.isNaN(moment.getTime())) {
      time.title = time.textContent;
      time.textContent = format.format(moment);
    }
  }
};
showTimes(document);

// Parts that the server keeps up to date: each message holds, by the ids of elements, what now stands in them.
for (const part of document.querySelectorAll("[data-live]")) {
  new EventSource(part.dataset.live).addEventListener("message", (message) => {
    for (const [id, html] of Object.entries(JSON.parse(message.data))) {
      const element = document.getElementById(id);
      element.innerHTML = html;
      showTimes(element);
    }
  });
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
