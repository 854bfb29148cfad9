"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const block = byId("data");
  const data = JSON.parse(block.textContent);
  block.remove(); // a blind vote must leave no model name in the document

  // All text of models and people passes through these two, which display it only as text.
  const HIDDEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/g;
  const visible = (text) => text.replace(/\r\n?/g, "\n").replace(HIDDEN, "\ufffd");
  const write = (element, text) => { element.textContent = visible(text); };

  const make = (tag, text, ...classes) => {
    const element = document.createElement(tag);
    element.classList.add(...classes);
    write(element, text);
    return element;
  };
  const copy = (id) => byId(id).content.firstElementChild.cloneNode(true);

  // The browser's storage. It may be unavailable, for a file or in private mode; then nothing is stored, and the page says so.
  const store = {
    get(key) { try { return localStorage.getItem(key); } catch { return null; } },
    set(key, value) { try { localStorage.setItem(key, value); return true; } catch { return false; } },
  };

  // ---- Colours ---------------------------------------------------------------------------------------------------------

  const THEMES = { auto: "light", light: "dark", dark: "auto" };
  let theme = "auto";
  function paint(next) {
    theme = next in THEMES ? next : "auto";
    if (theme === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    const name = theme[0].toUpperCase() + theme.slice(1);
    write(byId("theme"), name);
    byId("theme").setAttribute("aria-label", `Colours: ${name}`);
  }
  paint(store.get("theme") ?? "auto");
  byId("theme").addEventListener("click", () => { paint(THEMES[theme]); store.set("theme", theme); });

  // ---- Prompts and answers -----------------------------------------------------------------------------------------------

  const BATCH = 200;
  const places = new Map(data.prompts.map((prompt, place) => [prompt.id, place]));
  const haystacks = data.prompts.map((prompt) =>
    [prompt.id, prompt.prompt, ...prompt.ideas, ...prompt.answers.map((answer) => answer.parts.join(""))].join("\n").toLowerCase());
  const articles = new Map();
  const list = byId("prompts");
  const filters = byId("filters");
  let found = [];
  let limit = BATCH;
  let here = -1;

  function article(place) {
    if (!articles.has(place)) articles.set(place, build(data.prompts[place]));
    return articles.get(place);
  }

  function build(prompt) {
    const element = copy("prompt-template");
    element.id = `p-${prompt.id}`;
    write(element.querySelector("h3"), prompt.prompt);
    const link = element.querySelector("a");
    link.href = `#p-${encodeURIComponent(prompt.id)}`;
    write(link, `#${prompt.id}`);
    write(element.querySelector(".about span"), [prompt.topic, prompt.kind].filter(Boolean).join(", "));
    element.querySelector(".answers").append(...prompt.answers.map((answer, index) => column(answer, index, prompt.ideas)));
    return element;
  }

  function column(answer, index, ideas) {
    const element = copy("answer-template");
    const [name, score] = element.querySelectorAll("h4 span");
    write(name, data.models[index].name);
    name.classList.add(`m${index}`);
    write(score, `${ideas.length ? `${answer.hits} of ${ideas.length}, ` : ""}${answer.words} words`);
    display(element.querySelector(".text"), answer.parts);
    element.querySelector(".ideas").append(...ideas.map((idea, group) => {
      const item = make("li", `${answer.named[group] ? "✓" : "–"} ${idea}`);
      if (answer.named[group]) item.classList.add("named");
      return item;
    }));
    if (answer.flags.length) {
      const flags = element.querySelector(".flags");
      flags.hidden = false;
      write(flags, answer.flags.join(", ") + (answer.flags.includes("stuffed") ? ": its hits do not count" : ""));
    }
    return element;
  }

  // Every second part is marked.
  function display(element, parts) {
    if (parts.join("").trim() === "") element.replaceChildren(make("span", "(empty)", "empty"));
    else element.replaceChildren(...parts.map((part, index) => (index % 2 ? make("mark", part) : document.createTextNode(visible(part)))));
  }

  function matches(place) {
    const prompt = data.prompts[place];
    const words = byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    const [pair, outcome] = byId("outcome").value.split(" ").map(Number);
    return words.every((word) => haystacks[place].includes(word))
      && (byId("topic").value === "" || prompt.topic === choices.topic[byId("topic").value])
      && (byId("kind").value === "" || prompt.kind === choices.kind[byId("kind").value])
      && (byId("outcome").value === "" || prompt.outcomes[pair] === outcome);
  }

  function show() {
    found = data.prompts.map((_, place) => place).filter(matches);
    const next = found.slice(0, limit).map(article);
    const same = next.length === list.children.length && next.every((element, index) => element === list.children[index]);
    if (!same) list.replaceChildren(...next); // an element that is inserted again loses the focus
    write(byId("count"), `${found.length} of ${data.prompts.length} prompts` + (found.length > limit ? `, ${limit} shown` : ""));
    byId("more").hidden = found.length <= limit;
  }

  // Selects hold numbers, not texts: an option's text loses its spaces.
  const choices = {};
  for (const key of ["topic", "kind"]) {
    choices[key] = [...new Set(data.prompts.map((prompt) => prompt[key]).filter(Boolean))].sort();
    byId(key).append(...choices[key].map((text, index) => {
      const option = make("option", text);
      option.value = String(index);
      return option;
    }));
    byId(key).closest("label").hidden = choices[key].length === 0;
  }

  function refresh() {
    limit = Math.max(BATCH, found.indexOf(here) + 1);
    show();
    if (!found.includes(here)) move(-1);
  }
  filters.addEventListener("input", refresh);
  filters.addEventListener("reset", () => setTimeout(refresh));
  filters.addEventListener("submit", (event) => event.preventDefault());
  byId("more").addEventListener("click", () => { limit += BATCH; show(); });

  function move(place) {
    articles.get(here)?.classList.remove("here");
    here = place;
    if (place < 0) return;
    const position = found.indexOf(place);
    if (position >= limit) { limit = position + 1; show(); }
    const element = article(place);
    element.classList.add("here");
    element.focus({ preventScroll: true });
    element.scrollIntoView({ block: "start", behavior: "instant" });
  }

  function step(by) {
    if (!found.length) return;
    const position = found.indexOf(here);
    const next = position < 0 ? (by > 0 ? 0 : found.length - 1) : Math.min(found.length - 1, Math.max(0, position + by));
    move(found[next]);
    history.replaceState(null, "", article(found[next]).querySelector("a").getAttribute("href"));
  }

  // #p-ID opens a prompt, whatever the filters; #vote opens the blind vote without showing the results.
  function follow() {
    let name = location.hash.slice(1);
    try { name = decodeURIComponent(name); } catch { return; }
    if (name === "vote") enter();
    else if (name !== "main") leave(); // the browser's way back, or a link into the report; #main is the skip link
    const place = name.startsWith("p-") ? places.get(name.slice(2)) : undefined;
    if (place === undefined) return;
    if (!found.includes(place)) { filters.reset(); show(); }
    move(place);
  }

  // ---- The blind vote ----------------------------------------------------------------------------------------------------
  // During a vote the report is out of the document; storage holds only aliases, and the seed determines the sides.

  const main = byId("main");
  const report = byId("report");
  const KEY = `votes-${data.run.slice(0, 16)}`;
  const KEYS = { 1: 0, 2: 1, 3: 2, 4: 3, a: 0, b: 1, t: 2, x: 3 };
  let session = null;
  let booth = null;

  // The same as aligner/report/blind.py: FNV-1a, mixed as in MurmurHash3.
  function draw(seed, aliases, id) {
    let bits = 0x811c9dc5;
    for (const byte of new TextEncoder().encode([seed, ...aliases, id].join("\n"))) bits = Math.imul(bits ^ byte, 0x01000193);
    bits = Math.imul(bits ^ (bits >>> 16), 0x85ebca6b);
    bits = Math.imul(bits ^ (bits >>> 13), 0xc2b2ae35);
    return (bits ^ (bits >>> 16)) >>> 0;
  }

  const modelOf = (alias) => data.models.findIndex((model) => model.alias === alias);
  const answerOf = (prompt, alias) => prompt.answers[modelOf(alias)].parts.join("");
  const sidesOf = (id) => (draw(session.seed, session.pair, id) & 1 ? [session.pair[1], session.pair[0]] : session.pair);
  const asked = () => data.prompts
    .filter((prompt) => answerOf(prompt, session.pair[0]) !== answerOf(prompt, session.pair[1]))
    .map((prompt) => ({ prompt, rank: draw(session.seed, session.pair, prompt.id) }))
    .sort((one, other) => one.rank - other.rank || (one.prompt.id < other.prompt.id ? -1 : 1))
    .map((each) => each.prompt);

  function sessions() {
    try {
      const stored = JSON.parse(store.get(KEY) ?? "{}");
      return stored !== null && typeof stored === "object" ? stored : {};
    } catch { return {}; }
  }

  function usable(stored, pair) {
    return stored && Number.isInteger(stored.seed) && Array.isArray(stored.votes) && String(stored.pair) === String(pair)
      && stored.votes.every((vote) => places.has(vote?.id) && data.verdicts.includes(vote.verdict));
  }

  let storable = true;
  function save() { storable = store.set(KEY, JSON.stringify({ ...sessions(), [`${session.rater}\n${session.pair}`]: session })); }

  function stage(id) {
    const next = copy(id);
    if (booth) booth.replaceWith(next); else report.replaceWith(next);
    booth = next;
    byId("sections").hidden = true;
    byId("vote").hidden = true;
    for (const button of booth.querySelectorAll("[data-do]")) button.addEventListener("click", () => acts[button.dataset.do]());
    scrollTo({ top: 0, behavior: "instant" });
  }

  function enter() {
    if (booth) return;
    move(-1);
    stage("setup-template");
    if (location.hash !== "#vote") history.pushState(null, "", "#vote");
    document.title = "Blind vote";
    byId("seed").value = crypto.getRandomValues(new Uint32Array(1))[0];
    byId("pair").append(...data.pairs.map(([first, second], index) => {
      const option = make("option", `${data.models[first].name} and ${data.models[second].name}`);
      option.value = String(index);
      return option;
    }));
    byId("setup").addEventListener("submit", (event) => { event.preventDefault(); begin(); });
    byId("rater").focus();
  }

  function begin() {
    const rater = byId("rater").value.trim();
    if (!rater) { byId("rater").focus(); return; }
    const pair = data.pairs[Number(byId("pair").value)].map((index) => data.models[index].alias).sort();
    const stored = sessions()[`${rater}\n${pair}`];
    session = usable(stored, pair) ? stored : { rater, pair, seed: Number(byId("seed").value) >>> 0, votes: [], ended: false };
    save();
    ask();
  }

  function ask(comment = "") {
    const order = asked();
    const done = new Set(session.votes.map((vote) => vote.id));
    const prompt = order.find((each) => !done.has(each.id));
    if (session.ended || !prompt) { conclude(order.length); return; }
    stage("ballot-template");
    const [left, right] = sidesOf(prompt.id);
    write(byId("question"), prompt.prompt);
    display(byId("left"), [answerOf(prompt, left)]);
    display(byId("right"), [answerOf(prompt, right)]);
    write(byId("progress"), `Prompt ${done.size + 1} of ${order.length}`);
    byId("bar").max = order.length;
    byId("bar").value = done.size;
    byId("comment").value = comment;
    byId("unstored").hidden = storable;
    for (const button of booth.querySelectorAll("[data-verdict]")) button.addEventListener("click", () => cast(prompt.id, button.dataset.verdict));
    acts.current = (verdict) => cast(prompt.id, verdict);
    disable(session.votes.length === 0);
    byId("question").focus({ preventScroll: true });
  }

  function disable(nothing) {
    for (const what of ["undo", "export", "end"]) for (const button of booth.querySelectorAll(`[data-do=${what}]`)) button.disabled = nothing;
  }

  function cast(id, verdict) {
    const comment = byId("comment").value.trim();
    session.votes.push(comment ? { id, verdict, comment } : { id, verdict });
    save();
    ask();
  }

  function conclude(total) {
    stage("done-template");
    acts.current = null;
    const count = session.votes.length;
    write(byId("summary"), `${count} of ${total} prompts have your vote. ` + (session.ended
      ? "This vote has ended, since the models have been revealed."
      : "Export your votes; the models are revealed when you end."));
    disable(count === 0);
    if (session.ended) {
      for (const what of ["undo", "end"]) booth.querySelector(`[data-do=${what}]`).hidden = true;
      const tally = session.pair.map((alias) => [`${data.models[modelOf(alias)].name} is better`, wins(alias)]);
      for (const verdict of ["tie", "both bad"]) tally.push([verdict, session.votes.filter((vote) => vote.verdict === verdict).length]);
      byId("tally").append(...tally.map(([name, number]) => {
        const row = make("div", "");
        row.append(make("dt", name), make("dd", String(number)));
        return row;
      }));
    }
    byId("question").focus({ preventScroll: true });
  }

  const wins = (alias) => session.votes.filter((vote) => sidesOf(vote.id)["AB".indexOf(vote.verdict)] === alias).length;

  function rows() {
    return session.votes.map((vote) => {
      const prompt = data.prompts[places.get(vote.id)];
      const [left, right] = sidesOf(vote.id);
      return {
        version: data.version, run: data.run, rater: session.rater, seed: session.seed, id: vote.id, prompt: prompt.prompt,
        left_answer: answerOf(prompt, left), right_answer: answerOf(prompt, right),
        left_model: data.models[modelOf(left)].name, right_model: data.models[modelOf(right)].name,
        verdict: vote.verdict, ...(vote.comment ? { comment: vote.comment } : {}),
      };
    });
  }

  function leave() {
    if (!booth) return;
    booth.replaceWith(report);
    booth = null;
    session = null;
    acts.current = null;
    document.title = "Post-training report";
    byId("sections").hidden = false;
    byId("vote").hidden = false;
  }

  const acts = {
    current: null,
    leave() { leave(); history.replaceState(null, "", "#results"); byId("vote").focus(); },
    undo() {
      const last = session.votes.pop();
      save();
      ask(last.comment ?? "");
    },
    end() { session.ended = true; save(); ask(); },
    export() {
      const text = rows().map((row) => JSON.stringify(row) + "\n").join("");
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob([text], { type: "application/jsonl" }));
      link.download = `votes-${session.rater.toLowerCase().replace(/[^a-z0-9]+/g, "-").slice(0, 40)}-${data.run.slice(0, 8)}.jsonl`;
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    },
  };

  // ---- Keys --------------------------------------------------------------------------------------------------------------

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.closest("input, select, textarea")) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    const verdict = data.verdicts[KEYS[event.key.toLowerCase()]];
    if (booth) {
      if (acts.current && verdict && !event.repeat) acts.current(verdict);
      else if (event.key === "u" && acts.current && session.votes.length && !event.repeat) acts.undo();
      else return;
    } else if (["j", "ArrowRight"].includes(event.key)) step(1);
    else if (["k", "ArrowLeft"].includes(event.key)) step(-1);
    else if (event.key === "/") byId("search").focus();
    else return;
    event.preventDefault();
  });

  byId("vote").addEventListener("click", enter);
  addEventListener("hashchange", follow);
  show();
  follow();
})();
