/** Something the user can mend or has to know, told in one sentence. */
export class Told extends Error {}

/** What to show of anything that was thrown. */
export function sentence(error: unknown): string {
  const text = error instanceof Error ? error.message : String(error);
  return (text.split("\n")[0] ?? "").trim() || "Something failed without saying why.";
}
