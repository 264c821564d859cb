"use strict";
// Search and filters of the dataset's page. All text goes in as text, never as markup.
const records = JSON.parse(document.getElementById("records").textContent);
const form = document.getElementById("filters");
const cards = document.getElementById("cards");
const counter = document.getElementById("told");
const end = document.getElementById("end"); // comes into view: more cards are made
const PAGE = 48;
const SVG = "http://www.w3.org/2000/svg";
let matches = [];
let shown = 0;

function element(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

const textOf = (turn) => turn.text.replaceAll("<image>", "").trim();

for (const record of records) {
  record.words = [
    String(record.image_id),
    record.file_name,
    ...record.captions,
    ...record.talks.flat().map((turn) => turn.text),
    ...record.predictions.flatMap((said) => [said.question, said.prediction, ...said.references]),
  ]
    .join("\n")
    .toLowerCase();
}

function offer(name, values) {
  const select = form.elements[name];
  const known = [...new Set(values)].filter((value) => value).sort();
  for (const value of known) select.append(new Option(value.replaceAll("_", " "), value));
  select.closest("label").hidden = known.length < 1;
}

const every = (key) => records.flatMap((record) => record[key]);
offer("split", records.map((record) => record.split));
offer("source", records.map((record) => record.source));
offer("category", every("boxes").map((box) => box.name));
offer("reason", every("drops").map((drop) => drop.reason));
offer("kind", every("predictions").map((said) => said.kind));
offer("condition", every("predictions").map((said) => said.condition));
for (const label of form.querySelectorAll(".of-predictions")) {
  label.hidden = every("predictions").length === 0;
}

function number(name) {
  const text = form.elements[name].value;
  return text === "" ? null : Number(text);
}

// The predictions of an image that the filters ask for.
function predictionsOf(record, wanted) {
  return record.predictions.filter(
    (said) =>
      (!wanted.kind || said.kind === wanted.kind) &&
      (!wanted.condition || said.condition === wanted.condition) &&
      (!wanted.right ||
        (said.kind !== "caption" &&
          said.score !== null &&
          said.score >= 0.5 === (wanted.right === "right"))) &&
      (wanted.least === null || (said.score !== null && said.score >= wanted.least)) &&
      (wanted.most === null || (said.score !== null && said.score <= wanted.most)),
  );
}

function find() {
  const wanted = Object.fromEntries(new FormData(form));
  Object.assign(wanted, { least: number("least"), most: number("most") });
  const text = wanted.text.trim().toLowerCase();
  const limited =
    wanted.kind || wanted.condition || wanted.right || wanted.least !== null || wanted.most !== null;
  matches = [];
  for (const record of records) {
    if (wanted.split && record.split !== wanted.split) continue;
    if (wanted.source && record.source !== wanted.source) continue;
    if (wanted.category && !record.boxes.some((box) => box.name === wanted.category)) continue;
    if (wanted.reason && !record.drops.some((drop) => drop.reason === wanted.reason)) continue;
    if (text && !record.words.includes(text)) continue;
    const said = predictionsOf(record, wanted);
    if (limited && said.length === 0) continue;
    matches.push({ record, said });
  }
  order(wanted.order);
  counter.textContent = `${matches.length.toLocaleString("en")} of ${records.length.toLocaleString("en")} images`;
  cards.replaceChildren();
  shown = 0;
  more();
}

function order(by) {
  if (!by) return;
  const sign = by === "best" ? -1 : 1;
  const scores = (match) => match.said.map((said) => said.score).filter((score) => score !== null);
  for (const match of matches) {
    const all = scores(match);
    match.mean = all.length ? all.reduce((a, b) => a + b) / all.length : null;
  }
  matches = matches.filter((match) => match.mean !== null);
  matches.sort((a, b) => sign * (a.mean - b.mean));
}

function more() {
  for (const match of matches.slice(shown, shown + PAGE)) cards.append(card(match));
  shown = Math.min(shown + PAGE, matches.length);
}

function picture(record) {
  const frame = element("div", "frame");
  if (record.image === null || record.image === undefined) {
    frame.append(element("span", "image none", "no image to show"));
    return frame;
  }
  const image = element("img", "image");
  image.src = record.image;
  image.alt = record.captions[0] || record.file_name;
  frame.append(image);
  if (record.boxes.length) frame.append(boxesOf(record));
  return frame;
}

function boxesOf(record) {
  const drawing = document.createElementNS(SVG, "svg");
  drawing.setAttribute("class", "boxes");
  drawing.setAttribute("viewBox", `0 0 ${record.width} ${record.height}`);
  drawing.setAttribute("aria-hidden", "true"); // the names are in the text of the card
  const chosen = form.elements.category.value;
  for (const box of record.boxes) {
    const rect = document.createElementNS(SVG, "rect");
    for (const side of ["x", "y", "width", "height"]) rect.setAttribute(side, box[side]);
    if (box.name === chosen) rect.setAttribute("class", "chosen");
    const title = document.createElementNS(SVG, "title");
    title.textContent = box.name;
    rect.append(title);
    drawing.append(rect);
  }
  return drawing;
}

function folded(summary, parts) {
  const details = element("details");
  details.append(element("summary", "", summary), ...parts);
  return details;
}

function card({ record, said }) {
  const made = element("div", "card");
  const size = `${record.width}×${record.height}`;
  made.append(
    picture(record),
    element("p", "label", `image ${record.image_id} · ${record.split} · ${size}`),
  );
  const names = [...new Set(record.boxes.map((box) => box.name))];
  if (names.length) made.append(element("p", "label", names.join(", ")));
  const [first, ...others] = record.captions;
  made.append(first === undefined ? element("p", "soft", "no caption") : element("p", "", first));
  if (others.length) {
    const list = element("ul");
    list.append(...others.map((text) => element("li", "", text)));
    made.append(folded(`${others.length} more captions`, [list]));
  }
  for (const talk of record.talks) made.append(folded(`conversation of ${talk.length} turns`, turns(talk)));
  if (said.length) made.append(predictions(said));
  for (const drop of record.drops) {
    made.append(element("p", "bad", `left out: ${drop.kind}, ${drop.reason}`));
    if (drop.detail) made.append(element("p", "soft", drop.detail));
  }
  return made;
}

function turns(talk) {
  return talk.map((turn) => {
    const line = element("p");
    line.append(element("span", "label", turn.speaker), ` ${textOf(turn)}`);
    return line;
  });
}

function predictions(said) {
  const limited = ["kind", "condition", "right", "least", "most"].some((name) => form.elements[name].value);
  const parts = said.map((each) => {
    const part = element("div", "said");
    const right = each.score !== null && each.score >= 0.5;
    if (each.score !== null) {
      part.append(element("span", `score ${right ? "good" : "bad"}`, each.score.toFixed(2)));
    }
    part.append(element("p", "label", `${each.condition.replaceAll("_", " ")} · ${each.kind}`));
    if (each.question) part.append(element("p", "", each.question));
    part.append(element("b", "", each.prediction || "(nothing)"));
    part.append(element("p", "soft", `people: ${each.references[0] ?? "nothing"}`));
    return part;
  });
  const details = folded(`${said.length} predictions`, parts);
  details.open = limited || form.elements.order.value !== "";
  return details;
}

form.addEventListener("input", (event) => {
  if (event.target.name === "boxes") cards.classList.toggle("unboxed", !event.target.checked);
  else find();
});
form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("reset", () => setTimeout(() => {
  cards.classList.remove("unboxed");
  find();
}));
new IntersectionObserver(
  (entries) => {
    if (entries.some((entry) => entry.isIntersecting)) more();
  },
  { rootMargin: "1500px" },
).observe(end);
find();
