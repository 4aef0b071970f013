// Small helpers for the page. Text from the service becomes text nodes, never markup.

export const byId = (id) => document.getElementById(id);

/** Return a new element with properties and children; strings become text. */
export function element(tag, properties = {}, ...children) {
  const { dataset, style, ...rest } = properties;
  const made = Object.assign(document.createElement(tag), rest);
  Object.assign(made.dataset, dataset);
  Object.assign(made.style, style);
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

export function swatch([red, green, blue]) {
  return element("span", { className: "swatch", style: { background: `rgb(${red} ${green} ${blue})` } });
}

export function percent(share) {
  if (share === 0) return "0 %";
  return share < 0.0005 ? "< 0.1 %" : `${(100 * share).toFixed(1)} %`;
}

export function say(target, text, isBad = false) {
  target.textContent = text;
  target.classList.toggle("bad", isBad);
}

/** Settings that outlive the picture and the page; a browser that keeps nothing forgets them. */
export const settings = {
  read(name, fallback) {
    try {
      return JSON.parse(localStorage.getItem(`bisenet.${name}`)) ?? fallback;
    } catch {
      return fallback;
    }
  },
  write(name, value) {
    try {
      localStorage.setItem(`bisenet.${name}`, JSON.stringify(value));
    } catch {
      // Private windows may refuse.
    }
  },
};

/** Let a slider be applied at once, and keep its value under a name for the next visit. */
export function slider(input, name, fallback, apply) {
  input.value = settings.read(name, fallback);
  input.addEventListener("input", () => apply(Number(input.value)));
  input.addEventListener("change", () => settings.write(name, Number(input.value)));
  apply(Number(input.value));
}
