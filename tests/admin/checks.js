// What is wrong with the page that is shown; run by test_in_chromium.py.
() => {
  const wrong = [];
  const name = (element) => `${element.tagName.toLowerCase()}${element.id ? "#" + element.id : ""} "${element.textContent.trim().slice(0, 40)}"`;
  const shown = (element) => element.checkVisibility({ visibilityProperty: true }) && element.getClientRects().length > 0;

  const wide = document.documentElement.scrollWidth;
  if (wide > innerWidth) wrong.push(`the page is ${wide} px wide`);

  for (const field of document.querySelectorAll("input:not([type=hidden]), select, textarea, meter"))
    if (shown(field) && !field.labels?.length && !field.ariaLabel) wrong.push(`no label: ${name(field)}`);
  for (const button of document.querySelectorAll("button, a[href]"))
    if (shown(button) && !button.textContent.trim() && !button.ariaLabel) wrong.push(`no text: ${name(button)}`);
  for (const id of [...document.querySelectorAll("[aria-describedby], [aria-labelledby]")].flatMap((element) =>
    [...(element.getAttribute("aria-describedby") ?? "").split(" "), ...(element.getAttribute("aria-labelledby") ?? "").split(" ")]))
    if (id && !document.getElementById(id)) wrong.push(`nothing has the id ${id}`);
  const ids = [...document.querySelectorAll("[id]")].map((element) => element.id);
  if (new Set(ids).size !== ids.length) wrong.push(`an id twice: ${ids.filter((id, place) => ids.indexOf(id) !== place)}`);

  if (document.querySelectorAll("main").length !== 1) wrong.push("not one main");
  if (!document.title.trim() || !document.documentElement.lang) wrong.push("no title or no language");
  const headings = [...document.querySelectorAll("h1, h2, h3, h4")].map((heading) => Number(heading.tagName[1]));
  if (headings.filter((level) => level === 1).length !== 1) wrong.push("not one h1");
  headings.forEach((level, place) => { if (place && level > headings[place - 1] + 1) wrong.push("a heading skips a level"); });
  for (const nav of document.querySelectorAll("nav")) if (!nav.ariaLabel) wrong.push("a nav without a name");
  for (const header of document.querySelectorAll("th")) if (!header.scope) wrong.push(`no scope: ${name(header)}`);

  const parse = (color) => { const [r, g, b, a = 1] = color.match(/[\d.]+/g).map(Number); return { r, g, b, a }; };
  const light = ({ r, g, b }) => [r, g, b].map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, place) => sum + v * [0.2126, 0.7152, 0.0722][place], 0);
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const color = parse(getComputedStyle(at).backgroundColor);
      if (color.a === 1) return color;
    }
    return { r: 255, g: 255, b: 255 };
  };
  for (const element of document.querySelectorAll("body *")) {
    const says = [...element.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.data.trim()) || element.value;
    if (!says || !shown(element) || element.tagName === "OPTION" || element.tagName === "METER" || element.type === "checkbox") continue;
    const [high, low] = [light(parse(getComputedStyle(element).color)), light(behind(element))].sort((a, b) => b - a);
    const ratio = (high + 0.05) / (low + 0.05);
    if (ratio < 4.5) wrong.push(`contrast ${ratio.toFixed(2)}: ${name(element)}`);
  }
  return wrong.length ? wrong : null;
}
