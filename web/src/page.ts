/** The page: the form, what it asks of the worker, and where answers go. */

import { checkBrowser, deviceName, devices } from "./devices";
import { sentence, Told } from "./errors";
import type { Answer, Device, FromWorker, Model, Question, Task, ToWorker } from "./messages";
import { median, quantile } from "./numbers";
import { answerNodes, facts, megabytes, orderWords, timeWords } from "./view";

const TASKS: Record<Task, string> = {
  "fill-mask": "fill in the missing word",
  "text-classification": "classify a text",
  "question-answering": "find the answer",
  "feature-extraction": "compare meanings",
};

const EXAMPLES: Record<string, string> = {
  text: "A warm, funny and beautifully acted film that never once outstays its welcome.",
  question: "Why is the spirit boiled in copper?",
  context:
    "A pot still is a kettle in which a fermented liquid is boiled, one batch after another. It is made of copper, " +
    "because copper takes the sulphur out of the vapour. What rises first is the strongest; it is led through the " +
    "swan neck into a worm of cold water and comes out as spirit, of less than half the volume.",
  query: "How do I get my money back?",
  others: [
    "Refunds are paid within five days.",
    "You can return the goods and are paid what they cost.",
    "Our shops are open from nine to six.",
    "The bank lends money to small firms.",
    "Where can I change my password?",
  ].join("\n"),
};

const form = byId("form", HTMLFormElement);
const run = byId("run", HTMLButtonElement);
const select = byId("device", HTMLSelectElement);
const second = byId("pair-part", HTMLDetailsElement);

let models: Model[] = [];
let choices: Device[] = [];
let worker: Worker | null = null;
let ready = false;
let mask: string | null = null;
let asked = 0;
let tokens: number[] = [];
let answers: Answer[] = [];

try {
  await start();
} catch (error) {
  fail(sentence(error));
}

async function start(): Promise<void> {
  checkBrowser();
  models = await described();
  const task = models[0]!.task;
  byId("task").textContent = `· ${TASKS[task]}`;
  document.title = `${models.map(({ name }) => name).join(" and ")} · potstill`;
  for (const fields of form.querySelectorAll("fieldset")) {
    fields.hidden = fields.disabled = fields.dataset.task !== task;
  }
  for (const [id, text] of Object.entries(EXAMPLES)) field(id).value = text;
  byId("keys").textContent = `or ${/Mac|iP/.test(navigator.platform) ? "⌘" : "Ctrl"} + Enter`;
  byId("models").append(...models.map(card));
  choices = await devices(models);
  select.append(...choices.map((device) => new Option(deviceName(device))));
  form.hidden = false;
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    ask();
  });
  form.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
    event.preventDefault();
    ask();
  });
  select.addEventListener("change", load);
  byId("insert-mask").addEventListener("click", insertMask);
  load();
}

async function described(): Promise<Model[]> {
  const response = await fetch("models.json").catch(() => null);
  if (response === null || !response.ok) {
    throw new Told("The model is missing: there is no models.json beside this page; start it by `potstill serve`.");
  }
  const { models } = (await response.json()) as { models: Model[] };
  return models;
}

function card(model: Model): Node {
  const made = byId("model", HTMLTemplateElement).content.cloneNode(true) as DocumentFragment;
  made.querySelector("h2")!.textContent = model.name;
  made.querySelector(".facts")!.textContent = facts(model);
  made.querySelector("article")!.setAttribute("aria-label", model.name);
  return made;
}

/** Start anew on the chosen device: what a runtime took of it is given back only when its worker ends. */
function load(): void {
  worker?.terminate();
  setReady(false);
  byId("alert").hidden = true;
  clearAnswers();
  worker = new Worker("worker.js", { type: "module" });
  worker.onmessage = ({ data }: MessageEvent<FromWorker>) => receive(data);
  worker.onerror = (event) => fail(`The models cannot be started: ${event.message || "worker.js cannot be loaded"}`);
  for (const progress of document.querySelectorAll("progress")) {
    progress.hidden = false;
    progress.removeAttribute("value");
  }
  say("Loading …");
  send({ kind: "load", models, device: choices[select.selectedIndex]! });
}

function receive(message: FromWorker): void {
  if ("id" in message && ![null, asked].includes(message.id)) return; // of what was asked before
  switch (message.kind) {
    case "fetched": {
      const { bytes, name } = models[message.model]!;
      part(message.model, "progress").setAttribute("value", String(message.bytes / bytes));
      return say(`Loading ${name}: ${megabytes(message.bytes)} of ${megabytes(bytes)}`, true);
    }
    case "starting":
      part(message.model, "progress").removeAttribute("value");
      return say(`Preparing ${models[message.model]!.name} …`);
    case "ready":
      for (const progress of document.querySelectorAll("progress")) progress.hidden = true;
      return begin(message.mask);
    case "answer":
      tokens[message.model] = message.tokens;
      answers[message.model] = message.answer;
      part(message.model, ".answer").replaceChildren(...answerNodes(message.answer, field("context").value));
      return say("Timing …");
    case "times":
      return showTimes(message.times);
    case "failed":
      return fail(message.message);
  }
}

function begin(token: string | null): void {
  if (models[0]!.task === "fill-mask" && token !== null) {
    const text = field("masked");
    if (mask === null && !text.value) text.value = `Paris is the ${token} of France.`;
    byId("mask").textContent = mask = token;
  }
  setReady(true);
  say("Ready.");
}

function ask(): void {
  if (!ready) return;
  byId("alert").hidden = true;
  clearAnswers();
  say("Running …");
  send({ kind: "ask", id: ++asked, question: question() });
}

function question(): Question {
  const task = models[0]!.task;
  switch (task) {
    case "fill-mask":
      return { task, text: field("masked").value };
    case "text-classification":
      return { task, text: field("text").value, pair: second.open ? field("pair").value : null };
    case "question-answering":
      return { task, question: field("question").value, context: field("context").value };
    case "feature-extraction": {
      const lines = field("others").value.split("\n").map((line) => line.trim());
      return { task, text: field("query").value, others: lines.filter((line) => line) };
    }
  }
}

function showTimes(times: readonly number[][]): void {
  for (const [model, runs] of times.entries()) {
    const [middle, spread] = timeWords(runs);
    const line = part(model, ".time");
    line.querySelector("strong")!.textContent = middle;
    line.querySelector("span")!.textContent = spread;
    line.dataset.times = JSON.stringify(runs);
    line.hidden = false;
  }
  const device = deviceName(choices[select.selectedIndex]!);
  const length = [...new Set(tokens)].map(String).join(" and ");
  const runs = `${times[0]!.length} warm runs${times.length > 1 ? " of each, in turn" : ""}`;
  const [words, spread] = ratioWords(times);
  byId("ratio").replaceChildren(...words);
  const together = models[0]!.task === "feature-extraction" ? " of all texts, which run together" : "";
  byId("method").textContent =
    `${orderWords(answers)}${spread}${runs}; ${length} tokens${together}; ${device}; without tokenising.`;
  byId("comparison").hidden = false;
  say("Done.");
}

/** How much faster one model is, and how sure that is. */
function ratioWords(times: readonly number[][]): [(Node | string)[], string] {
  const [own, other] = times as [number[], number[] | undefined];
  if (other === undefined) return [[`${models[0]!.name} answers in ${timeWords(own)[0]}.`], ""];
  // Two runs in turn meet the same machine, be it busy or not: the ratio is taken of each two, then the median.
  const faster = median(own.map((time, round) => other[round]! / time)) >= 1;
  const [fast, slow] = faster ? [own, other] : [other, own];
  const ratios = fast.map((time, round) => slow[round]! / time);
  const shown = document.createElement("strong");
  shown.textContent = `${median(ratios).toFixed(2)} ×`;
  const [first, second] = (faster ? models : [...models].reverse()).map(({ name }) => name);
  const spread = `Half of the ratios lay from ${quantile(ratios, 0.25).toFixed(2)} to ${quantile(ratios, 0.75).toFixed(2)}; `;
  return [[`${first} is `, shown, ` as fast as ${second}.`], spread];
}

function clearAnswers(): void {
  byId("comparison").hidden = true;
  tokens = [];
  answers = [];
  for (const answer of document.querySelectorAll(".answer")) answer.replaceChildren();
  for (const time of document.querySelectorAll<HTMLElement>(".time")) time.hidden = true;
}

function insertMask(): void {
  const text = field("masked");
  text.setRangeText(mask ?? "", text.selectionStart ?? 0, text.selectionEnd ?? 0, "end");
  text.focus();
}

function setReady(now: boolean): void {
  ready = now;
  run.setAttribute("aria-disabled", String(!now)); // not `disabled`, which would take the focus away
}

function fail(message: string): void {
  const alert = byId("alert");
  alert.textContent = message;
  alert.hidden = false;
  for (const progress of document.querySelectorAll("progress")) progress.hidden = true;
  say("");
}

/** Tell what is going on; what changes many times a second is shown, not read out. */
function say(text: string, often = false): void {
  const status = byId("status");
  status.setAttribute("aria-live", often ? "off" : "polite");
  status.textContent = text;
}

function send(message: ToWorker): void {
  worker!.postMessage(message);
}

function part(model: number, selector: string): HTMLElement {
  return document.querySelectorAll("article")[model]!.querySelector(selector)!;
}

function field(id: string): HTMLInputElement | HTMLTextAreaElement {
  return byId(id) as HTMLInputElement | HTMLTextAreaElement;
}

function byId(id: string): HTMLElement;
function byId<T extends HTMLElement>(id: string, type: new () => T): T;
function byId(id: string, _type?: unknown): HTMLElement {
  return document.getElementById(id)!;
}
