/** Answers and timings as elements of the page. Text of users and models only ever becomes text nodes. */

import type { Answer, Model, Share } from "./messages";
import { quantile } from "./numbers";

/** Keeps a number and its unit on one line. */
const NARROW = "\u202f";

export function element<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  className = "",
  ...children: (Node | string)[]
): HTMLElementTagNameMap[K] {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.append(...children);
  return made;
}

/** What is known of a model before it runs. */
export function facts(model: Model): string {
  const precision = model.precision === "int8" ? "int8 weights" : "float32";
  const layers = model.layers === null ? [] : [`${model.layers} ${model.layers === 1 ? "layer" : "layers"}`];
  return [...layers, precision, megabytes(model.bytes)].join(" · ");
}

export function megabytes(bytes: number): string {
  return `${(bytes / 1e6).toLocaleString("en", { maximumFractionDigits: 1 })} MB`;
}

/** An answer; `context` is what it was looked for in, where that is a task's. */
export function answerNodes(answer: Answer, context: string): Node[] {
  switch (answer.task) {
    case "fill-mask":
      return answer.masks.flatMap((shares, i) =>
        answer.masks.length === 1 ? [list(shares)] : [element("h3", "", `Missing word ${i + 1}`), list(shares)],
      );
    case "text-classification":
      if (answer.score === null) return [list(answer.labels, answer.threshold), ...meantWords(answer.labels, answer.threshold)];
      return [element("p", "found score", answer.score.toFixed(3)), element("p", "hint", "score")];
    case "feature-extraction": {
      const items = answer.similarities.map(({ text, cosine }) => {
        const item = element("li", "", element("span", "", text), element("span", "", cosine.toFixed(3)));
        item.style.setProperty("--share", `${100 * Math.max(0, cosine)}%`);
        return item;
      });
      return [element("ol", "shares ranked", ...items), element("p", "hint", "cosine, the most similar text first")];
    }
    case "question-answering": {
      const nodes: Node[] = [
        element("p", "found", answer.text),
        element("p", "hint", `probability ${percent(answer.probability)}; that the text has no answer ${percent(answer.none)}`),
      ];
      if (answer.span !== null) nodes.push(marked(context, answer.span));
      return nodes;
    }
  }
}

/** Median and spread of a model's warm runs. */
export function timeWords(times: readonly number[]): [string, string] {
  const [low, middle, high] = [0.25, 0.5, 0.75].map((share) => quantile(times, share)) as [number, number, number];
  return [milliseconds(middle), `median; half of the runs took ${digits(low)} to ${milliseconds(high)}`];
}

export function milliseconds(value: number): string {
  return `${digits(value)}${NARROW}ms`;
}

export function percent(share: number): string {
  return `${(100 * share).toFixed(1)}${NARROW}%`;
}

/** In words, how many texts two encoders put in another place. */
export function orderWords(answers: readonly Answer[]): string {
  const orders = answers.map((answer) => (answer.task === "feature-extraction" ? answer.similarities : []));
  const [own, other] = orders;
  if (own === undefined || other === undefined || own.length === 0) return "";
  const moved = own.filter(({ place }, rank) => other[rank]?.place !== place).length;
  const texts = `${own.length} ${own.length === 1 ? "text" : "texts"}`;
  return moved === 0 ? `Both put the ${texts} in the same order. ` : `${moved} of ${texts} have another place in the order. `;
}

function digits(value: number): string {
  return value.toFixed(value < 10 ? 2 : value < 100 ? 1 : 0);
}

/** How many labels hold where each has a probability of its own; the list is in the order of these. */
function meantWords(labels: readonly Share[], threshold: number | null): Node[] {
  if (threshold === null) return [];
  const meant = labels.filter(({ probability }) => probability >= threshold).length;
  const count = `${meant} of ${labels.length} labels ${meant === 1 ? "reaches" : "reach"}`;
  return [element("p", "hint", `${count} the threshold of ${percent(threshold)}; each has a probability of its own`)];
}

function list(shares: readonly Share[], threshold: number | null = null): HTMLElement {
  const items = shares.map(({ text, probability }) => {
    const meant = threshold !== null && probability >= threshold;
    const item = element("li", meant ? "meant" : "", element("span", "", text), element("span", "", percent(probability)));
    item.style.setProperty("--share", `${100 * probability}%`);
    return item;
  });
  return element("ol", "shares", ...items);
}

function marked(context: string, [start, end]: [number, number]): HTMLElement {
  const mark = element("mark", "", context.slice(start, end));
  const box = element("p", "context", context.slice(0, start), mark, context.slice(end));
  box.tabIndex = 0; // it may have to be scrolled by keys
  box.setAttribute("role", "region");
  box.setAttribute("aria-label", "The text with the answer marked");
  return box;
}
