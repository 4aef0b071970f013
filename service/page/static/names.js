// What the pages call things.

export function title({ name, version, engine, precision }) {
  return `${name}@${version} (${engine} ${precision})`;
}
