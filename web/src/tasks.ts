/** A question in, what the model reads of it out; logits in, the answer out. One function a task. */

import { align, lastPlace } from "./align";
import { Told } from "./errors";
import type { Answer, Question } from "./messages";
import { type Input, type LoadedModel, type Logits, values } from "./model";
import { cosine, largest, sigmoid, softmax } from "./numbers";

export interface Prepared {
  input: Input;
  answer(logits: Logits): Answer;
}

/** Answers shown for each masked word. */
const TOP = 5;
/** Tokens in the longest answer: as `potstill finetune` scores SQuAD. */
const LONGEST_ANSWER = 30;
/** Texts that one is compared with: they run together, and all their hidden states are in memory. */
const MOST_TEXTS = 64;

/**
 * Prepare what a model is asked.
 *
 * @param mask what stands for a masked word in the text, where that is asked for.
 * @throws Told where the question lacks something or is too long.
 */
export function prepare(model: LoadedModel, question: Question, mask: string | null): Prepared {
  switch (question.task) {
    case "fill-mask":
      return fillMask(model, question.text, mask);
    case "text-classification":
      return classify(model, question.text, question.pair);
    case "question-answering":
      return answerFrom(model, question.question, question.context);
    case "feature-extraction":
      return compare(model, question.text, question.others);
  }
}

function fillMask(model: LoadedModel, text: string, mask: string | null): Prepared {
  const { mask_token, mask_token_id } = model.tokenizer as unknown as { mask_token?: string; mask_token_id?: number };
  if (mask === null || !mask_token || mask_token_id === undefined) {
    throw new Told(`The tokenizer of ${model.model.name} has no token for a masked word.`);
  }
  given(text, "a text");
  const input = model.input(text.replaceAll(mask, mask_token));
  const places = input.ids.flatMap((id, place) => (id === mask_token_id ? [place] : []));
  if (places.length === 0) throw new Told(`There is nothing to fill in: put ${mask} where a word is missing.`);
  return {
    input,
    answer(logits) {
      const all = values(logits, "logits");
      const vocabulary = all.length / input.ids.length;
      const masks = places.map((place) => {
        const shares = softmax(all.subarray(place * vocabulary, (place + 1) * vocabulary));
        return largest(shares, TOP).map((id) => ({
          text: model.tokenizer.decode([id]).trim(),
          probability: shares[id]!,
        }));
      });
      return { task: "fill-mask", masks };
    },
  };
}

function classify(model: LoadedModel, text: string, pair: string | null): Prepared {
  given(text, "a text");
  const { labels, multi_label, threshold } = model.model;
  return {
    input: model.input(text, pair?.trim() ? pair : null),
    answer(logits) {
      const all = values(logits, "logits");
      if (labels.length === 0) return { task: "text-classification", labels: [], score: all[0]!, threshold: null };
      const shares = multi_label ? Float64Array.from(all, sigmoid) : softmax(all);
      return {
        task: "text-classification",
        labels: largest(shares, shares.length).map((i) => ({ text: labels[i] ?? `label ${i}`, probability: shares[i]! })),
        score: null,
        threshold,
      };
    },
  };
}

function answerFrom(model: LoadedModel, question: string, context: string): Prepared {
  given(question, "a question");
  given(context, "the text to find the answer in");
  const input = model.input(question, context);
  const own = model.tokens(context);
  const first = lastPlace(own, input.ids);
  if (first < 0 || own.length === 0) throw new Told("The text cannot be told apart from the question once tokenised.");
  return {
    input,
    answer(logits) {
      const [starts, ends] = [values(logits, "start_logits"), values(logits, "end_logits")];
      // All spans are compared, and the first token stands for no answer, as in Devlin et al. 2019, section 4.3.
      const scores = [starts[0]! + ends[0]!];
      const spans: [number, number][] = [[0, 0]];
      for (let start = first; start < first + own.length; start++) {
        for (let end = start; end < Math.min(start + LONGEST_ANSWER, first + own.length); end++) {
          scores.push(starts[start]! + ends[end]!);
          spans.push([start, end]);
        }
      }
      const shares = softmax(scores);
      const best = 1 + largest(shares.subarray(1), 1)[0]!;
      const [start, end] = spans[best]!;
      const characters = align(context, (text) => model.tokens(text));
      const span: [number, number] | null =
        characters === null ? null : [characters[start - first]![0], characters[end - first]![1]];
      return {
        task: "question-answering",
        text: span === null ? model.tokenizer.decode(input.ids.slice(start, end + 1)).trim() : context.slice(...span),
        span,
        probability: shares[best]!,
        none: shares[0]!,
      };
    },
  };
}

function compare(model: LoadedModel, text: string, others: string[]): Prepared {
  given(text, "a text");
  if (others.length === 0) throw new Told("Write the texts to compare it with, one a line.");
  if (others.length > MOST_TEXTS) {
    throw new Told(`There are ${others.length} texts to compare with, and the page takes ${MOST_TEXTS} at most.`);
  }
  return {
    input: model.batch([text, ...others].map((one) => model.model.prompt + one)),
    answer(outputs) {
      const all = values(outputs, "sentence_embedding");
      const width = all.length / (others.length + 1);
      const vector = (row: number): Float32Array => all.subarray(row * width, (row + 1) * width);
      const cosines = others.map((_, place) => cosine(vector(0), vector(place + 1)));
      return {
        task: "feature-extraction",
        similarities: largest(cosines, cosines.length).map((place) => ({
          place,
          text: others[place]!,
          cosine: cosines[place]!,
        })),
      };
    },
  };
}

function given(text: string, what: string): void {
  if (!text.trim()) throw new Told(`Write ${what} first.`);
}
