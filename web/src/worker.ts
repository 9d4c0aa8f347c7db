/** Runs the models away from the page, so that it stays alive under the user's hands. */

import { sentence } from "./errors";
import type { FromWorker, Question, ToWorker } from "./messages";
import { LoadedModel, startRuntime } from "./model";
import { prepare } from "./tasks";

/** Runs of each model before the clock counts, the one that answers among them. */
const WARM_UPS = 2;
/** Timed runs of each model: as many as fit into the time, within these bounds. */
const FEWEST = 5;
const MOST = 20;
const BUDGET_MS = 5000;

let models: LoadedModel[] = [];
let newest = 0;
let queue: Promise<void> = Promise.resolve();

self.onmessage = ({ data }: MessageEvent<ToWorker>): void => {
  if (data.kind === "ask") newest = data.id;
  const id = data.kind === "ask" ? data.id : null;
  const work = (): Promise<void> => (data.kind === "load" ? load(data) : ask(data.id, data.question));
  queue = queue.then(work).catch((error: unknown) => post({ kind: "failed", id, message: sentence(error) }));
};

async function load({ models: described, device }: Extract<ToWorker, { kind: "load" }>): Promise<void> {
  const ort = await startRuntime(device);
  for (const [model, description] of described.entries()) {
    const fetched = (bytes: number): void => post({ kind: "fetched", model, bytes });
    const starting = (): void => post({ kind: "starting", model });
    models.push(await LoadedModel.load(description, ort, device, fetched, starting));
  }
  post({ kind: "ready", mask: mask() });
}

/** Answer with each model, then time them in turn, so that what slows the machine down slows all of them. */
async function ask(id: number, question: Question): Promise<void> {
  if (id !== newest) return;
  const prepared = models.map((model) => prepare(model, question, mask()));
  const run = (model: number): ReturnType<LoadedModel["run"]> => models[model]!.run(prepared[model]!.input);
  for (const [model, { input, answer }] of prepared.entries()) {
    post({ kind: "answer", id, model, answer: answer(await run(model)), tokens: input.ids.length });
  }
  const times: number[][] = models.map(() => []);
  const start = performance.now();
  for (let round = 1; round < WARM_UPS + MOST; round++) {
    await messages();
    if (id !== newest) return; // something else has been asked
    const order = [...models.keys()];
    if (round % 2) order.reverse(); // neither always follows the other
    for (const model of order) {
      const before = performance.now();
      await run(model);
      if (round >= WARM_UPS) times[model]!.push(performance.now() - before);
    }
    if (times[0]!.length >= FEWEST && performance.now() - start > BUDGET_MS) break;
  }
  post({ kind: "times", id, times });
}

function mask(): string | null {
  return models[0]?.tokenizer.mask_token ?? null;
}

/** Let what the page has sent meanwhile arrive. */
function messages(): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve));
}

function post(message: FromWorker): void {
  self.postMessage(message);
}
