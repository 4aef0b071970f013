// Starts the page of the admin port: asks for the token, then shows its three parts.

import { ask, useKey } from "../api.js";
import { byId, say } from "../dom.js";
import { EvaluationsPage } from "./evaluations.js";
import { NowPage } from "./now.js";
import { VersionsPage } from "./versions.js";

const pages = { now: new NowPage(), versions: new VersionsPage(), evaluations: new EvaluationsPage() };

function show() {
  const wanted = location.hash.slice(1);
  const shown = wanted in pages ? wanted : "now";
  for (const [name, page] of Object.entries(pages)) {
    byId(`page-${name}`).hidden = name !== shown;
    if (name !== shown) page.leave();
  }
  for (const link of document.querySelectorAll("nav [data-page]")) {
    if (link.dataset.page === shown) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (!byId("parts").hidden) pages[shown].show();
}

byId("token").addEventListener("submit", async (event) => {
  event.preventDefault();
  useKey(new FormData(event.target).get("token"));
  try {
    await ask("admin/v1/models");
  } catch (error) {
    return say(byId("token-status"), error.status === 401 ? "That is not the admin token." : error.message, true);
  }
  byId("token").reset();
  byId("token").hidden = true;
  byId("parts").hidden = false;
  show();
});
window.addEventListener("hashchange", show);
show();
