const SPECIAL = {
  Enter: "\r", Backspace: "\x7f", Tab: "\t", Escape: "\x1b", Delete: "\x1b[3~",
  ArrowUp: "\x1b[A", ArrowDown: "\x1b[B", ArrowRight: "\x1b[C", ArrowLeft: "\x1b[D",
  Home: "\x1b[H", End: "\x1b[F", PageUp: "\x1b[5~", PageDown: "\x1b[6~",
};

function typed(event) { // what a terminal would send for this key, or nothing
  if (event.metaKey || event.isComposing || (event.shiftKey && event.key === "Tab")) return "";
  if (event.ctrlKey && !event.altKey) {
    const code = event.key.length === 1 ? event.key.toUpperCase().charCodeAt(0) : 0;
    const copies = event.key === "c" && String(getSelection());
    return code >= 64 && code < 96 && !copies ? String.fromCharCode(code & 31) : "";
  }
  return SPECIAL[event.key] ?? (event.key.length === 1 ? event.key : "");
}

function render({ model, el }) {
  el.classList.add("lguest-live");
  el.innerHTML = '<div class="controls"></div><div class="status" role="status"></div><div class="picture"></div>';
  const [controls, status, picture] = el.children;
  let alive = false;
  const view = Math.random().toString(36).slice(2);
  let count = 0; // of what was told: it may arrive in another order
  const tell = (what, value) => {
    try { model.send({ do: what, value, view, at: count }); count += 1; } catch { /* nobody is there */ }
  };

  const paint = () => {
    const atEnd = picture.scrollHeight - picture.scrollTop - picture.clientHeight < 8;
    picture.innerHTML = model.get("picture");
    if (atEnd) picture.scrollTop = picture.scrollHeight;
  };
  const say = () => {
    const text = model.get("status");
    status.textContent = text + (text && !alive ? " (The last picture of an earlier run: run the cell.)" : "");
  };
  const label = (input) => {
    const shown = input.dataset.labels && input.nextElementSibling;
    if (shown) shown.textContent = input.dataset.labels.split("|")[input.value];
  };
  const arrange = () => {
    controls.innerHTML = model.get("controls");
    for (const control of controls.querySelectorAll("[data-do]")) {
      control.disabled = !alive;
      label(control);
      if (control.tagName === "BUTTON") control.onclick = () => tell(control.dataset.do, null);
      else control.oninput = () => { label(control); tell(control.dataset.do, control.value); };
    }
  };
  model.on("change:picture", paint);
  model.on("change:status", say);
  model.on("change:controls", arrange);
  model.on("msg:custom", (message) => {
    if (message.alive && !alive) { alive = true; el.classList.add("alive"); arrange(); say(); }
  });

  picture.setAttribute("aria-label", model.get("label"));
  if (model.get("keyboard")) {
    picture.tabIndex = 0;
    picture.setAttribute("role", "textbox");
    picture.dataset.lmSuppressShortcuts = "true"; // JupyterLab's own keys are not for here
    const send = (event, text) => {
      if (!text) return;
      event.preventDefault();
      event.stopPropagation();
      tell("keys", text);
    };
    picture.onkeydown = (event) => send(event, typed(event));
    picture.onpaste = (event) => send(event, event.clipboardData.getData("text").replace(/\r?\n/g, "\r"));
  }
  arrange(); say(); paint();
  requestAnimationFrame(() => { picture.scrollTop = picture.scrollHeight; }); // once it has a height
  tell("hello", null);
}

export default { render };
