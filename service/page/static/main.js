// Starts the page: which part is shown, and the key where the service asks for one.

import { models, useKey } from "./api.js";
import { CameraPage } from "./camera.js";
import { byId, say } from "./dom.js";
import { showModels } from "./models.js";
import { TryPage } from "./try.js";

const PAGES = ["try", "camera", "models"];
const tryPage = new TryPage();
const cameraPage = new CameraPage();

function show() {
  const wanted = location.hash.slice(1);
  const page = PAGES.includes(wanted) ? wanted : "try";
  for (const name of PAGES) byId(`page-${name}`).hidden = name !== page;
  for (const link of document.querySelectorAll("nav [data-page]")) {
    if (link.dataset.page === page) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (page === "models") showModels();
  if (page !== "camera") cameraPage.leave();
}

async function start() {
  try {
    const served = await models();
    byId("key").hidden = true;
    if (served.length) {
      tryPage.setModels(served);
      cameraPage.setModels(served);
      say(byId("status"), "");
    } else {
      say(byId("status"), "No model is served yet. Load one on the admin port, or start with --model NAME.", true);
    }
    show();
  } catch (error) {
    byId("key").hidden = error.status !== 401;
    show();
    say(byId("status"), error.message, true);
  }
}

byId("key").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey(new FormData(event.target).get("key"));
  start();
});
window.addEventListener("hashchange", show);
start();
