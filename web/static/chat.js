// The playground: asks without leaving the page, shows the answer as it comes, keeps the conversation in the form.
const form = document.getElementById("chat");
const [said, answer, question, send, stop, anew, conversation] = ["said", "answer", "question", "send", "stop", "anew", "conversation"]
  .map((id) => document.getElementById(id));
const LOGGED_OUT = "Your session has ended. Log in again in another tab, then send this once more.";
const BROKEN = "The connection to this site broke off: the answer is not whole.";
let running = null;

const copyOf = (id) => document.getElementById(id).content.firstElementChild.cloneNode(true);

const addSaid = (role, text) => {
  const one = copyOf("one-said");
  one.classList.add(role);
  one.querySelector("h3").textContent = role === "user" ? "You" : "Model";
  one.querySelector(".text").textContent = text;
  said.append(one);
  said.scrollTop = said.scrollHeight;
  return one;
};

const showProblem = (message, code) => {
  const one = copyOf("one-problem");
  one.firstElementChild.textContent = message;
  if (code) {
    const name = document.createElement("code");
    name.textContent = code;
    one.firstElementChild.append(" ", name);
  }
  answer.replaceChildren(one);
};

// What an answer's stream of events says, one message at a time.
async function* messagesOf(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const events = (held + value).split("\n\n");
    held = events.pop();
    for (const event of events) if (event.startsWith("data: ")) yield JSON.parse(event.slice(6));
  }
}

// Fills in the model's turn; returns whether the answer is whole.
const receive = async (reply, turn) => {
  const text = turn.querySelector(".text");
  for await (const message of messagesOf(reply.body)) {
    if (message.text) {
      const atEnd = said.scrollHeight - said.scrollTop - said.clientHeight < 40;
      text.append(message.text);
      if (atEnd) said.scrollTop = said.scrollHeight;
    }
    if (message.outcome) {
      // Rendered by this site's own template, which escapes what others wrote.
      answer.innerHTML = message.outcome;
      return message.ok;
    }
  }
  showProblem(BROKEN);
  return false;
};

const exchange = async (turn) => {
  const fields = new URLSearchParams(new FormData(form));
  const reply = await fetch(form.action, { method: "POST", body: fields, headers: { Accept: "text/event-stream" }, signal: running.signal });
  if (reply.redirected) {
    showProblem(LOGGED_OUT);
  } else if (!reply.headers.get("Content-Type").startsWith("text/event-stream")) {
    const { error } = await reply.json();
    showProblem(error.message, error.code);
  } else {
    return receive(reply, turn);
  }
  return false;
};

const setRunning = (is) => {
  send.disabled = is;
  stop.hidden = !is;
  said.setAttribute("aria-busy", is);
};

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  if (running) return;
  const asked = question.value;
  running = new AbortController();
  setRunning(true);
  answer.replaceChildren();
  for (const failed of said.querySelectorAll(".failed")) failed.remove();
  const turns = [addSaid("user", asked), addSaid("assistant", "")];
  let isKept = false;
  try {
    const reading = exchange(turns[1]);
    question.value = "";
    isKept = await reading;
  } catch (error) {
    const stopped = error.name === "AbortError";
    isKept = stopped && turns[1].querySelector(".text").textContent !== "";
    if (stopped) turns[1].querySelector("h3").textContent = "Model, stopped";
    // A new conversation may have begun meanwhile.
    if (turns[0].isConnected) showProblem(stopped ? "Stopped. The provider’s call has ended too." : BROKEN);
  }
  running = null;
  setRunning(false);
  question.focus();
  if (!turns[0].isConnected) return;
  anew.hidden = false;
  const text = turns[1].querySelector(".text").textContent;
  if (isKept) {
    const before = JSON.parse(conversation.value || "[]");
    conversation.value = JSON.stringify([...before, { role: "user", content: asked }, { role: "assistant", content: text }]);
  } else {
    // It can be sent again as it is; then what stands of this attempt goes.
    for (const turn of turns) turn.classList.add("failed");
    turns[1].classList.add("broken");
    turns[1].querySelector("h3").textContent = "Model, broken off";
    if (!text) turns[1].remove();
    question.value ||= asked;
  }
});

stop.addEventListener("click", () => running?.abort());

anew.addEventListener("click", (event) => {
  event.preventDefault();
  running?.abort();
  conversation.value = "";
  said.replaceChildren();
  answer.replaceChildren();
  anew.hidden = true;
  question.focus();
});

question.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    form.requestSubmit();
  }
});
document.getElementById("keys").hidden = false;

// Another project has other models: the page itself knows which.
document.getElementById("project_id")?.addEventListener("change", async ({ target }) => {
  const reply = await fetch(`/admin/chat?project_id=${encodeURIComponent(target.value)}`);
  const page = new DOMParser().parseFromString(await reply.text(), "text/html");
  const [here, there] = [document, page].map((one) => one.getElementById("models"));
  if (there) here.replaceChildren(...there.children);
});
