// The examples of one round: filters, search, pages, and a state in the address that can be linked.
// Text becomes text nodes and nothing else.
"use strict";

(() => {
  const PER_PAGE = 20;
  const SHOWN = 2000; // characters of a text that are shown before one asks for all of it
  const MARKS = {
    "fixed": "✓", "still flagged": "✗", "newly flagged": "!", "clean and unchanged": "=", "clean but changed": "≠",
  };

  const $ = (id) => document.getElementById(id);
  const data = JSON.parse($("data").textContent);
  const browser = $("browser");
  const examples = data.examples;
  const byId = new Map(examples.map((example) => [example.id, example]));
  const buttons = [...$("kinds").querySelectorAll("button")];

  let state = { kind: "", set: "", q: "", page: 1, example: "" };
  let found = examples;

  // What is shown

  const textOf = (piece) => (typeof piece === "string" ? piece : piece[0]);
  const joined = (pieces) => pieces.map(textOf).join("");

  function haystack(example) {
    example.haystack ??= [example.input, joined(example.before), joined(example.after)].join("\n").toLowerCase();
    return example.haystack;
  }

  function refresh() {
    const query = state.q.toLowerCase();
    const others = examples.filter(
      (example) => (!state.set || example.set === state.set) && (!query || haystack(example).includes(query)));
    found = state.kind ? others.filter((example) => example.kind === state.kind) : others;
    const pages = Math.max(1, Math.ceil(found.length / PER_PAGE));
    const place = state.example ? found.indexOf(byId.get(state.example)) : -1;
    if (place >= 0) state.page = Math.floor(place / PER_PAGE) + 1;
    state.page = Math.min(Math.max(1, state.page), pages);

    for (const button of buttons) {
      const kind = button.dataset.kind;
      const count = kind ? others.filter((example) => example.kind === kind).length : others.length;
      button.setAttribute("aria-pressed", String(kind === state.kind));
      button.querySelector(".count").textContent = count;
    }
    $("set").value = state.set;
    if ($("query").value !== state.q) $("query").value = state.q;
    $("count").textContent = `${found.length} of ${examples.length}`;
    $("place").textContent = `Page ${state.page} of ${pages}`;
    $("back").disabled = state.page === 1;
    $("forth").disabled = state.page === pages;
    $("pages").hidden = pages === 1;
    const first = (state.page - 1) * PER_PAGE;
    $("rows").replaceChildren(...found.slice(first, first + PER_PAGE).map(article));
    if (place >= 0) visit($("rows").children[place - first]);
  }

  function element(name, attributes = {}, ...children) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  }

  function article(example, number) {
    const link = element("a", { href: "#" + new URLSearchParams({ example: example.id }), title: "Link to this example" },
      element("bdi", {}, example.id));
    const mark = element("span", { "aria-hidden": "true" }, MARKS[example.kind] ?? "");
    const badge = element("span", { class: "badge " + example.kind.replaceAll(" ", "-") }, mark, " " + example.kind);
    const made = element("article", { tabindex: "-1", "aria-labelledby": `example-${number}` },
      element("h3", { id: `example-${number}` }, badge, " ", link),
      side("Prompt", "input", [example.input]),
      answers(example));
    made.dataset.id = example.id;
    return made;
  }

  function answers(example) {
    const { before, after } = browser.dataset;
    if (JSON.stringify(example.before) === JSON.stringify(example.after)) {
      const words = example.kind === "clean but changed" ? "the same text, by other tokens" : "the same";
      return side(`Before and after · ${before} and ${after} say ${words}`, "both", example.after);
    }
    return element("div", { class: "sides" },
      side(`Before · ${before}`, "before", example.before), side(`After · ${after}`, "after", example.after));
  }

  function side(title, name, pieces) {
    const text = element("div", { class: "text", dir: "auto" });
    const made = element("div", { class: "side " + name }, element("h4", {}, title), text);
    const length = pieces.reduce((sum, piece) => sum + textOf(piece).length, 0);
    if (!length) {
      text.classList.add("empty");
      text.append("nothing");
    } else if (length > SHOWN) {
      fill(text, shortened(pieces), name);
      const button = element("button", { type: "button" }, `Show all ${length.toLocaleString("en")} characters`);
      button.addEventListener("click", () => {
        fill(text, pieces, name);
        button.remove();
        made.closest("article").focus({ preventScroll: true });
      });
      text.classList.add("cut");
      made.append(button);
    } else {
      fill(text, pieces, name);
    }
    return made;
  }

  function shortened(pieces) {
    const kept = [];
    let left = SHOWN;
    for (const piece of pieces) {
      if (left <= 0) break;
      let text = textOf(piece);
      if (text.length > left) {
        const half = text.charCodeAt(left - 1) >> 10 === 0x36; // of two that make one character
        text = text.slice(0, half ? left - 1 : left);
      }
      left -= text.length;
      kept.push(typeof piece === "string" ? text : [text, ...piece.slice(1)]);
      if (text.length < textOf(piece).length) break;
    }
    return kept;
  }

  function fill(text, pieces, name) {
    text.classList.remove("cut");
    text.replaceChildren();
    let mark = null;
    let open = [];
    const close = () => {
      for (const flag of open) {
        mark.append(element("span", { class: "by" }, element("span", { class: "aside" }, " flagged by "), data.detectors[flag]));
      }
      mark = null;
    };
    for (const piece of pieces) {
      const [words, changed, ...flags] = typeof piece === "string" ? [piece, 0] : piece;
      if (String(flags) !== String(open)) close();
      open = flags;
      if (open.length && !mark) {
        mark = element("mark");
        text.append(mark);
      }
      (mark ?? text).append(changed ? element(name === "before" ? "del" : "ins", {}, words) : words);
    }
    close();
  }

  function visit(row) {
    if (!row) return;
    row.focus({ preventScroll: true });
    row.scrollIntoView({ block: "start" });
  }

  // The address

  function read() {
    const given = new URLSearchParams(location.hash.slice(1));
    const known = (key, among) => (among.includes(given.get(key)) ? given.get(key) : "");
    return {
      kind: known("kind", data.kinds),
      set: known("set", data.sets),
      q: given.get("q") ?? "",
      page: Number.parseInt(given.get("page"), 10) || 1,
      example: byId.has(given.get("example")) ? given.get("example") : "",
    };
  }

  function change(changes) {
    state = { ...state, page: 1, example: "", ...changes };
    refresh();
    const kept = Object.entries(state).filter(([key, value]) => value && !(key === "page" && value === 1));
    history.replaceState(null, "", "#" + new URLSearchParams(kept));
  }

  function turn(pages) {
    const last = Math.ceil(found.length / PER_PAGE);
    const page = state.page + pages;
    if (page < 1 || page > last) return false;
    change({ page });
    return true;
  }

  function step(rows) {
    const shown = [...$("rows").children];
    const at = shown.indexOf(document.activeElement?.closest("article"));
    const next = at < 0 && rows < 0 ? -1 : at + rows;
    if (next >= 0 && next < shown.length) visit(shown[next]);
    else if (at >= 0 && turn(rows)) visit(rows > 0 ? $("rows").firstElementChild : $("rows").lastElementChild);
  }

  function leaf(pages) {
    if (turn(pages)) visit($("rows").firstElementChild);
  }

  const KEYS = {
    "/": () => $("query").focus(),
    "j": () => step(1), "ArrowRight": () => step(1),
    "k": () => step(-1), "ArrowLeft": () => step(-1),
    "n": () => leaf(1), "p": () => leaf(-1),
    "0": () => change({ kind: "" }),
  };
  data.kinds.forEach((kind, number) => { KEYS[number + 1] = () => change({ kind }); });

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey || event.isComposing) return;
    if (event.target.closest("input:not([type=checkbox]), select, textarea, [contenteditable]")) {
      if (event.key === "Escape" && event.target === $("query")) {
        event.preventDefault(); // which would empty the field
        event.target.blur();
      }
      return;
    }
    if (!$("keys").checked || !Object.hasOwn(KEYS, event.key)) return;
    event.preventDefault();
    KEYS[event.key]();
  });

  for (const button of buttons) button.addEventListener("click", () => change({ kind: button.dataset.kind }));
  $("set").append(...data.sets.map((name) => element("option", { value: name }, name)));
  $("set").addEventListener("change", () => change({ set: $("set").value }));
  $("query").addEventListener("input", () => change({ q: $("query").value }));
  $("filters").addEventListener("submit", (event) => event.preventDefault());
  $("back").addEventListener("click", () => leaf(-1));
  $("forth").addEventListener("click", () => leaf(1));
  addEventListener("hashchange", () => {
    if (document.getElementById(location.hash.slice(1))) return; // a place on the page
    state = read();
    refresh();
  });

  browser.hidden = false;
  state = read();
  refresh();
})();
