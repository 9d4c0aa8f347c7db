// Bundles src/ into dist/: a folder of static files that needs nothing else, ready for any web server.
import { build } from "esbuild";
import { cp, mkdir, readFile, readdir, rm, writeFile } from "node:fs/promises";
import path from "node:path";

// Plain wasm for processors; the variant with WebGPU in it is twice as large and fetched only by those who ask for it.
const RUNTIMES = ["ort-wasm-simd-threaded", "ort-wasm-simd-threaded.asyncify"];

await rm("dist", { recursive: true, force: true });
await mkdir("dist/ort", { recursive: true });

const { metafile } = await build({
  entryPoints: ["src/page.ts", "src/worker.ts"],
  outdir: "dist",
  bundle: true,
  splitting: true,
  format: "esm",
  minify: true,
  target: ["es2022"],
  conditions: ["onnxruntime-web-use-extern-wasm"], // the runtime comes from dist/ort, not out of the bundle or from a CDN
  legalComments: "none", // licenses.txt has them whole
  chunkNames: "chunk-[hash]",
  metafile: true,
});

for (const file of ["index.html", "style.css"]) await cp(`src/${file}`, `dist/${file}`);
for (const name of RUNTIMES)
  for (const ending of ["mjs", "wasm"])
    await cp(`node_modules/onnxruntime-web/dist/${name}.${ending}`, `dist/ort/${name}.${ending}`);
await writeFile("dist/licenses.txt", await licenses(Object.keys(metafile.inputs)));

/** The licence of every package that something of is in the bundle. */
async function licenses(inputs) {
  const folders = new Set(
    inputs.flatMap((input) => input.match(/^node_modules\/(?:@[^/]+\/)?[^/]+/)?.[0] ?? []),
  );
  // Both are bundled already in what transformers.js publishes.
  for (const name of ["tokenizers", "jinja"]) folders.add(`node_modules/@huggingface/${name}`);
  const parts = [];
  for (const folder of [...folders].sort()) {
    const { name, version } = JSON.parse(await readFile(`${folder}/package.json`, "utf8"));
    const file = (await readdir(folder)).find((entry) => /^licen[cs]e/i.test(entry));
    // The packages of ONNX Runtime name their licence and come without its text.
    const text = await readFile(file ? path.join(folder, file) : "licenses/onnxruntime.txt", "utf8");
    if (!file && !name.startsWith("onnxruntime")) throw new Error(`${name} comes without a licence`);
    parts.push(`${name} ${version}\n${"-".repeat(60)}\n${text.trim()}\n`);
  }
  return parts.join("\n\n");
}
