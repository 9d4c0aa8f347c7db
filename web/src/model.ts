/** A model in the browser: its tokenizer by transformers.js, its weights by ONNX Runtime. */

import { AutoTokenizer, env, type PreTrainedTokenizer } from "@huggingface/transformers";
import type { InferenceSession, Tensor, TypedTensor } from "onnxruntime-common";

import { sentence, Told } from "./errors";
import type { Device, Model } from "./messages";

type Runtime = typeof import("onnxruntime-web/wasm");

export interface Input {
  /** All tokens that are read, without padding. */
  ids: number[];
  feeds: Record<string, Tensor>;
}

/** Logits by name of output. */
export type Logits = Record<string, Tensor>;

const BASE = new URL(".", self.location.href);

env.allowRemoteModels = false;
env.allowLocalModels = true;
env.localModelPath = BASE.pathname;
env.useBrowserCache = false; // it would keep the tokenizer of another model that was served here before
env.useWasmCache = false;

/** Load ONNX Runtime for a device, from the files beside this page. */
export async function startRuntime(device: Device): Promise<Runtime> {
  const gpu = device.kind === "webgpu";
  const ort: Runtime = gpu ? await import("onnxruntime-web/webgpu") : await import("onnxruntime-web/wasm");
  const name = `ort/ort-wasm-simd-threaded${gpu ? ".asyncify" : ""}`;
  ort.env.wasm.wasmPaths = { mjs: new URL(`${name}.mjs`, BASE).href, wasm: new URL(`${name}.wasm`, BASE).href };
  ort.env.wasm.numThreads = gpu ? 1 : device.threads;
  ort.env.logLevel = "error";
  return ort;
}

export class LoadedModel {
  private constructor(
    readonly model: Model,
    readonly tokenizer: PreTrainedTokenizer,
    private readonly ort: Runtime,
    private readonly session: InferenceSession,
  ) {}

  /**
   * Fetch a model and make it ready to run.
   *
   * @param fetched is called as bytes arrive, with how many there are.
   * @param starting is called when all have.
   * @throws Told where a file is missing, damaged, or more than the device can hold.
   */
  static async load(
    model: Model,
    ort: Runtime,
    device: Device,
    fetched: (bytes: number) => void,
    starting: () => void,
  ): Promise<LoadedModel> {
    const tokenizer = await loadTokenizer(model);
    const weights = await fetchWhole(model, fetched);
    starting();
    let session: InferenceSession;
    try {
      session = await ort.InferenceSession.create(weights, {
        executionProviders: [device.kind],
        logSeverityLevel: 3, // errors: what it warns of is meant for who wrote the model
      });
    } catch (error) {
      const where = device.kind === "webgpu" ? "WebGPU" : "the processor";
      throw new Told(`ONNX Runtime cannot run ${model.name}/${model.file} on ${where}: ${sentence(error)}`);
    }
    const unknown = session.inputNames.find((name) => !INPUTS.includes(name));
    if (unknown !== undefined) throw new Told(`${model.name} reads ${unknown}, which this page does not know how to make.`);
    return new LoadedModel(model, tokenizer, ort, session);
  }

  /** The tokens of a text alone, without special ones. */
  tokens(text: string): number[] {
    return encode(this.tokenizer, text, { add_special_tokens: false }).input_ids;
  }

  /**
   * What the model reads of a text, or of two.
   *
   * @throws Told where that is longer than the model.
   */
  input(text: string, pair: string | null = null): Input {
    const row = this.row(text, pair);
    return { ids: row.input_ids!, feeds: this.feeds([row]) };
  }

  /**
   * What the model reads of several texts at once, padded to the longest.
   *
   * @throws Told where one is longer than the model.
   */
  batch(texts: readonly string[]): Input {
    const rows = texts.map((text) => this.row(text, null));
    return { ids: rows.flatMap((row) => row.input_ids!), feeds: this.feeds(rows) };
  }

  private row(text: string, pair: string | null): Record<string, number[]> {
    const encoded = encode(this.tokenizer, text, { text_pair: pair, return_token_type_ids: true });
    const ids = encoded.input_ids;
    const most = this.model.max_length;
    if (ids.length > most) {
      throw new Told(
        `The text is too long: ${ids.length.toLocaleString("en")} tokens, and ${this.model.name} reads ` +
          `${most.toLocaleString("en")} at most. Leave out about ${Math.ceil(100 * (1 - most / ids.length))} % of it.`,
      );
    }
    return {
      input_ids: ids,
      attention_mask: ids.map(() => 1),
      token_type_ids: encoded.token_type_ids ?? ids.map(() => 0),
    };
  }

  private feeds(rows: readonly Record<string, number[]>[]): Record<string, Tensor> {
    const longest = Math.max(...rows.map((row) => row.input_ids!.length));
    const padding = (this.tokenizer as unknown as { pad_token_id?: number }).pad_token_id ?? 0;
    return Object.fromEntries(
      this.session.inputNames.map((name) => {
        const all = new BigInt64Array(rows.length * longest).fill(BigInt(name === "input_ids" ? padding : 0));
        rows.forEach((row, number) => all.set(BigInt64Array.from(row[name]!, BigInt), number * longest));
        return [name, new this.ort.Tensor("int64", all, [rows.length, longest])];
      }),
    );
  }

  async run(input: Input): Promise<Logits> {
    try {
      return await this.session.run(input.feeds);
    } catch (error) {
      throw new Told(`${this.model.name} failed: ${sentence(error)}`);
    }
  }
}

/** The logits of an output as they lie in memory. */
export function values(logits: Logits, name: string): Float32Array {
  const tensor = logits[name];
  if (tensor === undefined) throw new Told(`The model gives no ${name}: its file is for another task than its config says.`);
  if (tensor.type !== "float32") throw new Told(`The model gives ${tensor.type} logits; this page reads float32.`);
  return (tensor as TypedTensor<"float32">).data;
}

const INPUTS: readonly string[] = ["input_ids", "attention_mask", "token_type_ids"];

interface Encoded {
  input_ids: number[];
  token_type_ids?: number[];
}

function encode(tokenizer: PreTrainedTokenizer, text: string, options: Record<string, unknown>): Encoded {
  return tokenizer(text, { ...options, return_tensor: false }) as unknown as Encoded;
}

async function loadTokenizer(model: Model): Promise<PreTrainedTokenizer> {
  try {
    return await AutoTokenizer.from_pretrained(model.path.replace(/\/$/, ""));
  } catch (error) {
    throw new Told(`The tokenizer of ${model.name} cannot be loaded: ${sentence(error)}`);
  }
}

async function fetchWhole(model: Model, fetched: (bytes: number) => void): Promise<Uint8Array> {
  const what = `${model.name}/${model.file}`;
  const response = await fetch(new URL(model.path + model.file, BASE)).catch(() => null);
  if (response === null) throw new Told(`${what} cannot be fetched: is the server still running?`);
  if (!response.ok || response.body === null) {
    throw new Told(`The model is missing: the server has no ${what} (${response.status}).`);
  }
  const size = Number(response.headers.get("content-length") ?? model.bytes);
  let bytes: Uint8Array;
  try {
    bytes = new Uint8Array(size);
  } catch {
    throw new Told(`This browser has no memory left for the ${size.toLocaleString("en")} bytes of ${what}.`);
  }
  let length = 0;
  try {
    for (const reader = response.body.getReader(); ; ) {
      const { done, value } = await reader.read();
      if (done) break;
      bytes.set(value, length);
      length += value.length;
      fetched(length);
    }
  } catch (error) {
    throw new Told(`${what} broke off after ${length.toLocaleString("en")} bytes: ${sentence(error)}`);
  }
  if (length !== bytes.length) throw new Told(`${what} is cut short: ${length} bytes of ${bytes.length} came.`);
  return bytes;
}
