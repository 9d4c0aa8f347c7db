/** Which characters of a text each of its tokens stands for: what tokenizers for the browser do not tell. */

export type Span = readonly [start: number, end: number];

const WORDS = /\s*\S+/gu;
const PARTS = /\s*(?:[\p{L}\p{M}\p{N}_]+|\S)/gu;

/**
 * Encode a text piece by piece, so that it is known from which piece a token came.
 *
 * @param text to be encoded.
 * @param encode gives the tokens of a text, without special ones.
 * @returns for each token the characters of its word or mark, without the space before it; null where pieces are
 *   encoded differently when they stand alone.
 */
export function align(text: string, encode: (text: string) => readonly number[]): Span[] | null {
  const spans: Span[] = [];
  const found: number[] = [];
  const add = (piece: string, at: number, ids: readonly number[]): void => {
    const start = at + piece.length - piece.trimStart().length;
    for (const id of ids) {
      found.push(id);
      spans.push([start, at + piece.length]);
    }
  };
  for (const word of text.matchAll(WORDS)) {
    const whole = encode(word[0]);
    const parts = [...word[0].matchAll(PARTS)].map((part) => ({ part, ids: encode(part[0]) }));
    // A word may be read otherwise than its parts, such as `can't` or `3.14`; it is then marked as a whole.
    if (equal(parts.flatMap(({ ids }) => ids), whole)) {
      for (const { part, ids } of parts) add(part[0], word.index + part.index, ids);
    } else {
      add(word[0], word.index, whole);
    }
  }
  return equal(found, encode(text)) ? spans : null;
}

/** Where a row of tokens last stands in another, -1 if nowhere. */
export function lastPlace(part: readonly number[], whole: readonly number[]): number {
  for (let at = whole.length - part.length; at >= 0; at--) {
    if (part.every((id, i) => whole[at + i] === id)) return at;
  }
  return -1;
}

function equal(a: readonly number[], b: readonly number[]): boolean {
  return a.length === b.length && a.every((id, i) => id === b[i]);
}
