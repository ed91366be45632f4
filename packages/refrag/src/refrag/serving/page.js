"use strict";
/* base.js */
// The JSON was escaped for the page, so it is read as text and unescaped once.
const unescaped = (text) => new DOMParser().parseFromString(text, "text/html").documentElement.textContent;

const RATES = ["", 4, 8, 16, 32, 64];
const HINT = $("strip-hint").textContent;
let docs = JSON.parse(unescaped($("given").textContent));
let found = [];  // documents of the server's library, for the last question
let chosen = new Map();  // "id number" -> true (pinned) or false (excluded)
let slots = [];
let trace = null, running = null, token = "", sides = {};

// -- documents --------------------------------------------------------------------------------------------------------

const every = () => [...docs, ...found];

function showDocs(span) {
  $("docs").replaceChildren(...every().map((doc) => {
    const box = make("article", undefined, "doc"), head = make("header"), text = make("p");
    text.tabIndex = 0;
    head.append(make("strong", `[${doc.id}] ${doc.title || ""}`));
    if (doc.source) head.append(make("small", `${doc.source} · ${doc.score.toFixed(2)}`));
    else {
      const away = make("button", "Remove");
      away.setAttribute("aria-label", `Remove document ${doc.id}`);
      away.onclick = () => { docs = docs.filter((other) => other !== doc); chosen.clear(); showDocs(); };
      head.append(away);
    }
    if (span && span.doc === doc.id) {
      box.classList.add("cited");
      const parts = [...doc.text];  // offsets count characters, not UTF-16 halves
      const mark = make("mark", parts.slice(span.start, span.end).join(""));
      text.append(parts.slice(0, span.start).join(""), mark, parts.slice(span.end).join(""));
      queueMicrotask(() => { mark.scrollIntoView({ block: "center" }); text.focus({ preventScroll: true }); });
    } else text.textContent = doc.text;
    box.append(head, text);
    return box;
  }));
  $("docs-hint").hidden = every().length > 0 && !docs.length;
}

const free = () => { let n = 1; while (docs.some((doc) => doc.id === String(n))) n++; return String(n); };
function addDoc(title, text) {
  if (text.trim()) { docs.push({ id: free(), title, text }); chosen.clear(); showDocs(); }
}
async function addFiles(files) {
  for (const file of files) {
    if (file.size > 800000) fail(`${file.name} is too large: give texts of up to 200,000 characters`);
    else {
      const text = await file.text();
      if (text.includes("\u0000") || text.includes("\ufffd")) fail(`${file.name} is no UTF-8 text`);
      else addDoc(file.name, text);
    }
  }
}

// -- an answer --------------------------------------------------------------------------------------------------------

function showAnswer(side, text, citations) {
  const home = $(`answer-${side}`), parts = [...text];
  home.classList.remove("idle");
  home.replaceChildren();
  let at = 0;
  for (const citation of citations) {
    const label = `[${citation.doc}]`;
    home.append(parts.slice(at, citation.at).join(""));
    const button = make("button", label, "cite");
    button.setAttribute("aria-label", `Source ${citation.doc}: show the passage`);
    button.onclick = () => showDocs(citation);
    home.append(button);
    at = citation.at + [...label].length;
  }
  home.append(parts.slice(at).join("") || (citations.length ? "" : text));
}

const shown = {
  ttft: (s) => s >= 1 ? `${s.toFixed(2)} s` : `${(1e3 * s).toFixed(s < 0.01 ? 1 : 0)} ms`,
  tokens: (n) => n.toLocaleString("en"),
  kv: (n) => n >= 1e6 ? `${(n / 1e6).toFixed(1)} MB` : `${(n / 1e3).toFixed(1)} kB`,
};
const NAMES = { ttft: "first token", tokens: "decoder tokens", kv: "KV cache" };

function showLive() {
  for (const side of ["refrag", "full"]) {
    const now = sides[side] || {};
    $(`live-${side}`).replaceChildren(...Object.keys(NAMES).map((key) => {
      const box = make("div");
      box.append(make("dt", NAMES[key]), make("dd", now[key] === undefined ? "–" : shown[key](now[key])));
      return box;
    }));
  }
  const { refrag, full } = sides;
  const known = Object.keys(NAMES).filter((key) => refrag && full && refrag[key] && full[key] && (key !== "ttft" || full.first));
  $("ratios-side").hidden = !known.length;
  $("ratios").replaceChildren(...known.map((key) => {
    const box = make("div"), ratio = full[key] / refrag[key];
    box.append(make("b", `${ratio.toFixed(1)} ×`, ratio >= 1 ? "gain" : ""), make("span", NAMES[key]));
    return box;
  }), make("small", "full context ÷ REFRAG"));
}

// -- chunks -----------------------------------------------------------------------------------------------------------

const keyOf = (slot) => `${slot.doc} ${slot.chunk}`;
// Chunks that were pinned or excluded stand at the gate's ends, far beyond its own scores.
const isOwn = (score) => score !== null && Math.abs(score) < 1e8;

function showStrip(focus) {
  const own = slots.map((slot) => slot.score).filter(isOwn);
  const low = Math.min(...own), high = Math.max(...own);
  const groups = new Map();
  slots.forEach((slot, n) => {
    if (!groups.has(slot.doc)) {
      const group = make("div", undefined, "group");
      group.append(make("span", `[${slot.doc}]`));
      groups.set(slot.doc, group);
    }
    const key = keyOf(slot), state = chosen.get(key), cell = make("button");
    const doc = every().find((other) => other.id === slot.doc);
    const text = doc ? [...doc.text].slice(slot.start, slot.end).join("") : "";
    const share = high > low ? (Math.min(high, Math.max(low, slot.score ?? low)) - low) / (high - low) : 0.5;
    cell.style.height = `${12 + 40 * share}px`;
    cell.classList.toggle("tokens", slot.expanded);
    cell.classList.toggle("pin", state === true);
    cell.classList.toggle("out", state === false);
    const read = slot.expanded ? "tokens" : "one vector";
    const told = state === undefined ? "" : state ? ", pinned" : ", excluded";
    cell.title = `[${slot.doc}] ${text}`;
    cell.setAttribute("aria-label", `Document ${slot.doc}, chunk ${slot.chunk}, ${read}${told}: ${text}`);
    cell.setAttribute("aria-pressed", String(state === true));
    cell.tabIndex = n === (focus ?? 0) ? 0 : -1;
    cell.onclick = () => {
      if (state === undefined) chosen.set(key, true); else if (state) chosen.set(key, false); else chosen.delete(key);
      replan(n);
    };
    cell.onfocus = cell.onmouseenter = () => {
      const score = isOwn(slot.score) ? `, score ${slot.score.toFixed(2)}` : "";
      $("strip-hint").textContent = `[${slot.doc}] ${read}${told}${score}: ${text}`;
    };
    groups.get(slot.doc).append(cell);
  });
  $("strip").classList.toggle("many", slots.length > 300);
  $("strip").replaceChildren(...groups.values());
  if (focus !== undefined) $("strip").querySelectorAll("button")[focus].focus();
}

/** What the next question would expand, from the scores at hand: the rule of the server's `choose`. */
function replan(focus) {
  if (!slots.length) return;
  const limit = limits(), value = (slot) => chosen.has(keyOf(slot)) ? (chosen.get(keyOf(slot)) ? 1e9 : -1e9) : slot.own ?? 0;
  if (limit.threshold !== undefined) {
    const p = limit.threshold, least = p <= 0 ? -Infinity : p >= 1 ? Infinity : Math.log(p / (1 - p));
    for (const slot of slots) slot.expanded = value(slot) >= least;
  } else {
    const count = Math.floor(limit.fraction * slots.length + 0.5);
    const order = slots.map((slot, n) => n).sort((a, b) => value(slots[b]) - value(slots[a]) || a - b);
    const taken = new Set(order.slice(0, count));
    slots.forEach((slot, n) => { slot.expanded = taken.has(n); });
  }
  showStrip(focus);
}

$("strip").addEventListener("keydown", (event) => {
  const cells = [...$("strip").querySelectorAll("button")], at = cells.indexOf(document.activeElement);
  const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: cells.length - 1 }[event.key];
  if (at < 0 || to === undefined) return;
  event.preventDefault();
  const next = cells[Math.min(cells.length - 1, Math.max(0, to))];
  cells[at].tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
});

// -- asking -----------------------------------------------------------------------------------------------------------

function limits() {
  const kind = document.querySelector("input[name=limit]:checked").value;
  return kind === "share" ? { fraction: $("share").value / 100 } : { threshold: $("threshold").value / 100 };
}

function body() {
  const cells = { expand: [], exclude: [] };
  for (const [key, pinned] of chosen) {
    const cut = key.lastIndexOf(" ");
    (pinned ? cells.expand : cells.exclude).push({ doc: key.slice(0, cut), chunk: Number(key.slice(cut + 1)) });
  }
  const rate = RATES[$("rate").value];
  return { question: $("question").value, docs, budget: limits(), ...(rate ? { compression: rate } : {}), ...cells };
}

function fail(text) { $("error").textContent = text; $("error").hidden = false; }

const post = (path, data) => fetch(path, {
  method: "POST",
  headers: { "content-type": "application/json", ...(token ? { authorization: `Bearer ${token}` } : {}) },
  body: JSON.stringify(data),
});

function wantToken() {
  $("token").onclose = () => {
    if ($("token").returnValue !== "ok") return fail("This server wants a token.");
    token = $("token-text").value;
    ask();
  };
  $("token").showModal();
}

function heard(name, data, held) {
  const side = data.side, now = sides[side];
  if (name === "assigned") held.began = performance.now();
  if (name === "retrieved") { found = data.docs.filter((doc) => doc.text !== undefined); showDocs(); }
  if (name === "plan") {
    const per = data.kv_bytes_per_position;
    sides[side] = { per, base: data.positions, tokens: data.positions, kv: data.positions * per, text: "", citations: [], began: performance.now() };
    $(`answer-${side}`).textContent = "";
    $(`answer-${side}`).classList.remove("idle");
    if (side === "refrag") {
      slots = data.slots.map((slot) => ({ ...slot, own: isOwn(slot.score) ? slot.score : 0 }));
      showStrip();
    }
  }
  if (name === "token") {
    if (!now.first) { now.first = true; now.ttft = (performance.now() - (side === "refrag" ? held.began : now.began)) / 1e3; }
    now.text += data.text;
    now.tokens = now.base + data.n;
    now.kv = now.tokens * now.per;
    $(`answer-${side}`).textContent = now.text;
  }
  if (name === "citation") now.citations.push(data);
  if (name === "metrics") {
    if (data.ttft_s) now.ttft = data.ttft_s;  // the server's own clock
    now.tokens = data.positions + data.new_tokens;
    now.kv = now.tokens * now.per;
    if (side === "refrag") {
      $("cache").hidden = false;
      $("cache").textContent = data.encoded_rows ? `${data.encoded_rows} rows encoded` : "all vectors from the cache";
    }
    showAnswer(side, now.text, now.citations);
  }
  if (name === "error") fail(data.error);
  if (name === "cancelled") fail("Cancelled.");
  showLive();
}

async function ask() {
  if (running) return;
  $("error").hidden = true;
  const both = $("beside").checked;
  running = crypto.randomUUID ? crypto.randomUUID() : String(Math.random());
  sides = {};
  for (const side of ["refrag", "full"]) {
    $(`answer-${side}`).textContent = side === "full" ? (both ? "Waits for its turn …" : "Not asked for.") : "…";
    $(`answer-${side}`).classList.add("idle");
  }
  $("cache").hidden = true;
  showLive();
  $("go").disabled = true; $("stop").disabled = false;
  trace = { request: { ...body(), id: running }, events: [] };
  const held = { began: performance.now() };
  let last = "";
  try {
    const reply = await post(both ? "/compare" : "/chat", trace.request);
    if (reply.status === 401) return wantToken();
    if (!reply.ok) return fail((await reply.json()).error);
    const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let text = ""; ;) {
      const { value, done } = await reader.read();
      if (done) break;
      text += value;
      const parts = text.split("\n\n");
      text = parts.pop();
      for (const part of parts) {
        if (!part.startsWith("event: ")) continue;  // a comment that keeps the line open
        const [first, second] = part.split("\n");
        last = first.slice(7);
        const data = JSON.parse(second.slice(6));
        trace.events.push({ at_ms: Math.round(performance.now() - held.began), name: last, data });
        heard(last, data, held);
      }
    }
    if (!["done", "cancelled", "error"].includes(last)) fail("The server left in the middle of the answer. Ask again.");
  } catch (error) { fail(`The server cannot be reached (${error.message}).`); }
  finally {
    running = null;
    $("go").disabled = false; $("stop").disabled = true; $("trace").disabled = false;
    for (const side of ["refrag", "full"]) {
      if (!sides[side] && $(`answer-${side}`).classList.contains("idle")) $(`answer-${side}`).textContent = "–";
    }
  }
}

// -- controls ---------------------------------------------------------------------------------------------------------

$("go").onclick = ask;
$("question").addEventListener("keydown", (event) => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) ask(); });
$("stop").onclick = () => running && post("/cancel", { id: running });
$("beside").onchange = () => { $("full-side").hidden = !$("beside").checked; $("ratios-side").hidden = true; };
$("rate").oninput = () => {
  $("rate-is").textContent = RATES[$("rate").value] || "own";
  chosen.clear(); slots = []; $("strip").replaceChildren(); $("strip-hint").textContent = HINT;  // other chunks
};
for (const [id, text] of [["share", (v) => `${v} %`], ["threshold", (v) => (v / 100).toFixed(2)]]) {
  $(id).oninput = () => {
    $(`${id}-is`).textContent = text($(id).value);
    document.querySelector(`input[name=limit][value=${id}]`).checked = true;
    replan();
  };
}
for (const radio of document.querySelectorAll("input[name=limit]")) radio.onchange = () => replan();
$("trace").onclick = () => {
  const link = make("a"), url = URL.createObjectURL(new Blob([JSON.stringify(trace, null, 2)], { type: "application/json" }));
  link.href = url;
  link.download = "refrag-trace.json";
  link.click();
  URL.revokeObjectURL(url);
};
$("add").onclick = () => { $("paste-name").value = $("paste-text").value = ""; $("paste").showModal(); };
$("paste").onclose = () => { if ($("paste").returnValue === "ok") addDoc($("paste-name").value, $("paste-text").value); };
$("load").onclick = () => $("file").click();
$("file").onchange = () => addFiles($("file").files);
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => { event.preventDefault(); addFiles(event.dataTransfer.files); });
showDocs();
showLive();
