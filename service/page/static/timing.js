// The server's own split of the time, as a bar.

import { byId, element } from "./dom.js";

const COLORS = { receive: "#7f8c9b", decode: "#c98500", queue: "#b00020", infer: "#0b7a55", post: "#5b4bb7", encode: "#0b5cad" };

export function showTiming(stages) {
  const total = stages.reduce((sum, [, ms]) => sum + ms, 0);
  byId("timing").hidden = total === 0;
  byId("timing-total").textContent = `${total.toFixed(1)} ms in the service`;
  byId("timing-bar").replaceChildren(
    ...stages.map(([name, ms]) =>
      element("span", { style: { width: `${(100 * ms) / total}%`, background: COLORS[name] ?? "#888" } }),
    ),
  );
  byId("timing-list").replaceChildren(
    ...stages.map(([name, ms]) =>
      element(
        "li",
        {},
        element("span", { className: "swatch", style: { background: COLORS[name] ?? "#888" } }),
        `${name} ${ms.toFixed(1)} ms`,
      ),
    ),
  );
}
