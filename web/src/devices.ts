/** Where models can run in this browser. */

import { Told } from "./errors";
import type { Device, Model } from "./messages";

// The smallest module that only a wasm with SIMD takes: a function that makes a vector of four zeros.
const SIMD = [
  ...[0, 97, 115, 109, 1, 0, 0, 0], // wasm, version 1
  ...[1, 5, 1, 96, 0, 1, 123], // types: () → v128
  ...[3, 2, 1, 0], // functions: one, of that type
  ...[10, 8, 1, 6, 0, 65, 0, 253, 17, 11], // code: i32.const 0, i32x4.splat, end
];

/** @throws Told where the browser cannot run any model. */
export function checkBrowser(): void {
  const advice = "use a current Chrome, Edge, Firefox or Safari, and no lockdown mode.";
  if (typeof WebAssembly !== "object") throw new Told(`This browser has no WebAssembly, by which models run: ${advice}`);
  if (!WebAssembly.validate(new Uint8Array(SIMD))) throw new Told(`This browser's WebAssembly has no SIMD: ${advice}`);
  if (typeof Worker !== "function") throw new Told(`This browser has no workers, in which models run: ${advice}`);
}

/** The devices there are, the one to begin with first. */
export async function devices(models: readonly Model[]): Promise<Device[]> {
  const cores = navigator.hardwareConcurrency || 1;
  // Without isolation (two headers that the server sends) there is no memory that threads can share.
  const most = self.crossOriginIsolated ? Math.min(cores, 8) : 1;
  const counts = [...new Set([1, 2, 4, 8, most])].filter((count) => count <= most).sort((a, b) => a - b);
  // Two of what the system calls processors are often one core: half of them is what ONNX Runtime takes too.
  const usual = Math.max(1, Math.min(4, Math.ceil(most / 2)));
  counts.sort((a, b) => Number(b === usual) - Number(a === usual) || a - b);
  const found: Device[] = counts.map((threads) => ({ kind: "wasm", threads }));
  const gpu = await adapter();
  if (gpu === null) return found;
  const webgpu: Device = { kind: "webgpu" };
  // WebGPU runs only parts of a model in int8, and a browser without a GPU may only act as if it had one.
  const slow = models.some(({ precision }) => precision === "int8") || gpu.info?.isFallbackAdapter === true;
  return slow ? [...found, webgpu] : [webgpu, ...found];
}

export function deviceName(device: Device): string {
  if (device.kind === "webgpu") return "GPU (WebGPU)";
  return device.threads === 1 ? "processor, 1 thread" : `processor, ${device.threads} threads`;
}

interface Adapter {
  info?: { isFallbackAdapter?: boolean };
}

async function adapter(): Promise<Adapter | null> {
  const { gpu } = navigator as unknown as { gpu?: { requestAdapter(): Promise<Adapter | null> } };
  return (await gpu?.requestAdapter().catch(() => null)) ?? null;
}
