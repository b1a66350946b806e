/** Short names for the kinds of weights, where they head a narrow column. */

/** @type {[RegExp, string][]} tried in this order */
const SHORT = [
  [/query\W+key\W+value|qkv/i, "QKV"],
  [/\b(attention|attn|self)\b.*\b(query|q)\b|^(query|q)$/i, "Q"],
  [/\b(attention|attn|self)\b.*\b(key|k)\b|^(key|k)$/i, "K"],
  [/\b(attention|attn|self)\b.*\b(value|v)\b|^(value|v)$/i, "V"],
  [/\b(attention|attn|self)\b.*\b(output|out|o|proj|projection)\b|^(output|o)$/i, "O"],
  [/\b(mlp|feed.?forward|ffn|intermediate)\b.*\b(gate)\b/i, "MLP gate"],
  [/\b(mlp|feed.?forward|ffn)\b.*\b(in|input|up|fc1|hidden|1)\b|^intermediate$/i, "MLP in"],
  [/\b(mlp|feed.?forward|ffn)\b.*\b(out|output|down|fc2|proj|2)\b/i, "MLP out"],
  [/norm/i, "norm"],
  [/embed/i, "embed"],
  [/bias/i, "bias"],
];

/**
 * Unknown kinds are cut, never dropped: the full name stays in the tooltip.
 * @param {string} kind
 * @param {number} [longest]
 */
export function shortKind(kind, longest = 8) {
  const found = SHORT.find(([pattern]) => pattern.test(kind));
  return found ? found[1] : ellipsis(kind, longest);
}

/** @param {string} text @param {number} longest */
export function ellipsis(text, longest) {
  return text.length <= longest ? text : `${text.slice(0, longest - 1)}…`;
}
