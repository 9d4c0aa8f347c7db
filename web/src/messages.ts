/** What the page, its worker and the server say to each other. */

export type Task = "fill-mask" | "text-classification" | "question-answering" | "feature-extraction";

/** A model as `models.json` describes it. */
export interface Model {
  /** Name of its folder. */
  name: string;
  /** Where its files are, relative to the page; ends with a slash. */
  path: string;
  /** The ONNX file in there. */
  file: string;
  bytes: number;
  task: Task;
  precision: "float32" | "int8";
  layers: number | null;
  /** Longest text that it reads, in tokens. */
  max_length: number;
  /** Of a classifier, by number; none for one that gives a score. */
  labels: string[];
  /** Whether several labels can hold at once. */
  multi_label: boolean;
  /** Where several labels can hold at once, the probability from which one does; else null. */
  threshold: number | null;
  /** What a sentence encoder reads before each text. */
  prompt: string;
}

/** Where models run: that many threads of the processor, or WebGPU. */
export type Device = { kind: "wasm"; threads: number } | { kind: "webgpu" };

export type Question =
  | { task: "fill-mask"; text: string }
  | { task: "text-classification"; text: string; pair: string | null }
  | { task: "question-answering"; question: string; context: string }
  | { task: "feature-extraction"; text: string; others: string[] };

export interface Share {
  text: string;
  probability: number;
}

export interface Similarity {
  /** Which of the texts that were given it is. */
  place: number;
  text: string;
  cosine: number;
}

export type Answer =
  /** The most similar text first. */
  | { task: "feature-extraction"; similarities: Similarity[] }
  | { task: "fill-mask"; masks: Share[][] }
  /** `threshold` is null where only one label can hold. */
  | { task: "text-classification"; labels: Share[]; score: number | null; threshold: number | null }
  | {
      task: "question-answering";
      text: string;
      /** First character of the context and the one after the last; null where it cannot be told. */
      span: [number, number] | null;
      probability: number;
      /** Probability that the context holds no answer. */
      none: number;
    };

export type ToWorker =
  | { kind: "load"; models: Model[]; device: Device }
  | { kind: "ask"; id: number; question: Question };

export type FromWorker =
  | { kind: "fetched"; model: number; bytes: number }
  | { kind: "starting"; model: number }
  /** All models are loaded; `mask` is what stands for a masked word, where the first model has one. */
  | { kind: "ready"; mask: string | null }
  | { kind: "answer"; id: number; model: number; answer: Answer; tokens: number }
  /** Milliseconds of each warm run, by model. */
  | { kind: "times"; id: number; times: number[][] }
  /** `id` is null where the models could not be loaded. */
  | { kind: "failed"; id: number | null; message: string };
