"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const data = JSON.parse(byId("data").textContent);
  const LETTERS = ["A", "B", "C"];
  const KEY = `chat-votes-${data.run.slice(0, 16)}`;

  // All text of models and people is displayed as text only, and hidden characters are shown as U+FFFD.
  const HIDDEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/g;
  const write = (element, text) => { element.textContent = text.replace(/\r\n?/g, "\n").replace(HIDDEN, "\ufffd"); };
  const make = (tag, text, ...classes) => {
    const element = document.createElement(tag);
    element.classList.add(...classes);
    write(element, text);
    return element;
  };
  const store = {
    get(key) { try { return localStorage.getItem(key); } catch { return null; } },
    set(key, value) { try { localStorage.setItem(key, value); } catch { /* kept in memory only */ } },
  };

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

  // ---- The session: one seed, the number of the next prompt, and the votes ------------------------------------------------

  const fresh = () => ({ seed: crypto.getRandomValues(new Uint32Array(1))[0], number: 0, votes: [] });
  function stored() {
    try {
      const found = JSON.parse(store.get(KEY));
      return Number.isInteger(found?.seed) && Number.isInteger(found.number) && Array.isArray(found.votes) ? found : fresh();
    } catch { return fresh(); }
  }
  let session = stored();
  const save = () => { store.set(KEY, JSON.stringify(session)); tally(); };

  function tally() {
    byId("tally-section").hidden = session.votes.length === 0;
    const ids = new Set(session.votes.map((vote) => vote.id)).size;
    write(byId("count"), `${ids} ${ids === 1 ? "question" : "questions"}, ${session.votes.length} ${session.votes.length === 1 ? "comparison" : "comparisons"} of two answers.`);
    write(byId("command"), `python src/votes.py FILE --run ${data.run}`);
  }

  byId("models").append(...data.models.map((name, index) => {
    const label = make("label", "");
    const box = document.createElement("input");
    box.type = "checkbox";
    box.value = name;
    box.checked = index >= data.models.length - Math.min(2, data.models.length);
    label.append(box, make("span", name));
    return label;
  }));
  const chosen = () => [...byId("models").querySelectorAll("input:checked")].map((box) => box.value);

  function complain(text) {
    byId("problem").hidden = !text;
    write(byId("problem"), text);
  }

  // ---- Requests ----------------------------------------------------------------------------------------------------------

  async function post(path, body, signal) {
    const response = await fetch(path, {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal,
    });
    if (!response.ok) {
      const found = await response.json().catch(() => null);
      throw new Error(found?.error?.message ?? `the server answered ${response.status}`);
    }
    return response;
  }

  // Reads a stream of server-sent events and hands each piece of text on; returns the whole answer.
  async function stream(model, prompt, temperature, signal, show) {
    const messages = [{ role: "user", content: prompt }];
    const response = await post("/v1/chat/completions", { model, messages, temperature, stream: true }, signal);
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    let answer = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return answer.trim();
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        if (!line.startsWith("data: ") || line === "data: [DONE]") continue;
        const event = JSON.parse(line.slice(6));
        if (event.error) throw new Error(event.error);
        answer += event.choices?.[0]?.delta?.content ?? "";
        show(answer);
      }
    }
  }

  // ---- One question ------------------------------------------------------------------------------------------------------

  let stopping = null;
  let round = null;

  function busy(on) {
    byId("send").disabled = on;
    byId("stop").hidden = !on;
  }

  function columns(count) {
    const cards = LETTERS.slice(0, count).map((letter) => {
      const card = make("div", "", "answer");
      const heading = make("h4", "");
      heading.append(make("span", `Answer ${letter}`), make("span", "", "score"));
      const text = make("p", "", "text");
      text.dir = "auto";
      card.append(heading, text);
      return card;
    });
    byId("answers").replaceChildren(...cards);
    return cards;
  }

  async function ask(event) {
    event.preventDefault();
    const models = chosen();
    if (models.length < 2 || models.length > data.most) { complain(`Choose two or three models, not ${models.length}.`); return; }
    const prompt = byId("prompt").value.trim();
    const rater = byId("rater").value.trim();
    if (!prompt || !rater) { complain("Write a question and your name."); return; }
    complain("");
    stopping = new AbortController();
    busy(true);
    round = null;
    byId("verdicts").hidden = true;
    write(byId("outcome"), "");
    const turn = { prompt, number: session.number, seed: session.seed, models };
    session.number += 1;
    save();
    try {
      const { order } = await (await post("/page/order", turn, stopping.signal)).json();
      byId("round").hidden = false;
      write(byId("question"), prompt);
      const cards = columns(order.length);
      const temperature = Number(byId("temperature").value);
      const texts = await Promise.all(order.map((model, index) => stream(model, prompt, temperature, stopping.signal,
        (answer) => write(cards[index].querySelector(".text"), answer))));
      const answers = Object.fromEntries(order.map((model, index) => [model, texts[index]]));
      cards.forEach((card, index) => { if (!texts[index]) card.querySelector(".text").replaceWith(make("p", "(empty)", "text", "empty")); });
      round = { ...turn, rater, answers, cards };
      if (new Set(texts).size === 1) reveal(order, "All answers are the same, so there is nothing to choose.");
      else offer(order.length);
    } catch (error) {
      complain(error.name === "AbortError" ? "Stopped." : `No answer: ${error.message}`);
    } finally {
      busy(false);
    }
  }

  function offer(count) {
    const choices = [...LETTERS.slice(0, count).map((letter) => [letter, count === 2 ? `${letter} is better` : `${letter} is best`]),
      ["tie", "Tie"], ["both bad", count === 2 ? "Both bad" : "All bad"]];
    byId("verdicts").replaceChildren(...choices.map(([choice, text]) => {
      const button = make("button", text);
      button.type = "button";
      button.addEventListener("click", () => vote(choice));
      return button;
    }));
    byId("verdicts").hidden = false;
  }

  async function vote(choice) {
    const { cards, ...ballot } = round;
    byId("verdicts").hidden = true;
    try {
      const { shown, votes } = await (await post("/page/vote", { ...ballot, choice })).json();
      session.votes.push(...votes);
      save();
      const best = LETTERS.indexOf(choice);
      if (best >= 0) cards[best].classList.add("best");
      reveal(shown, best >= 0 ? `You chose ${shown[best]}.` : choice === "tie" ? "A tie." : "None was good.");
    } catch (error) {
      complain(`The vote was not counted: ${error.message}`);
      byId("verdicts").hidden = false;
    }
  }

  function reveal(order, text) {
    round.cards.forEach((card, index) => {
      const name = card.querySelector(".score");
      write(name, order[index]);
      name.classList.add(`m${Math.min(2, data.models.indexOf(order[index]))}`);
    });
    write(byId("outcome"), text);
  }

  byId("ask").addEventListener("submit", ask);
  byId("prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); byId("ask").requestSubmit(byId("send")); }
  });
  byId("stop").addEventListener("click", () => stopping?.abort());
  byId("forget").addEventListener("click", () => { session = fresh(); save(); });
  byId("export").addEventListener("click", () => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([session.votes.map((vote) => `${JSON.stringify(vote)}\n`).join("")], { type: "application/jsonl" }));
    link.download = `votes-chat-${data.run.slice(0, 8)}.jsonl`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  });
  tally();
})();
