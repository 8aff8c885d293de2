// Which addresses a text may link to: whole ones of the web and of mail, nothing else.

const KNOWN = new Set(["http:", "https:", "mailto:"]);

export function linkTo(text) {
  if (/[\u0000-\u0020\u007f\u200b-\u200f\u202a-\u202e\u2060-\u2069]/.test(text) || !/^(https?:\/\/|mailto:)/i.test(text)) return null;
  try {
    const url = new URL(text);
    return KNOWN.has(url.protocol) && !url.username && !url.password ? url.href : null;
  } catch {
    return null;
  }
}

export function host(text) {
  try {
    return new URL(/^https?:/i.test(text) ? text : `https://${text}`).host;
  } catch {
    return "";
  }
}
