// Draw each fence once in the colours of the page, and again when the reader turns the light on or off.
(function () {
  const drawings = Array.from(document.querySelectorAll("pre.mermaid"), (place) => ({
    place,
    text: place.textContent,
  }));
  const dark = () => {
    const chosen = document.body.dataset.theme;
    return chosen === "dark" || (chosen !== "light" && matchMedia("(prefers-color-scheme: dark)").matches);
  };
  async function draw() {
    const style = getComputedStyle(document.body);
    const colour = (name) => style.getPropertyValue(name).trim();
    mermaid.initialize({
      startOnLoad: false,
      theme: "base",
      darkMode: dark(),
      fontFamily: colour("--font-stack"),
      sequence: { actorMargin: 26, width: 118, messageFontSize: 17, actorFontSize: 17, noteFontSize: 15 },
      themeVariables: {
        darkMode: dark(),
        background: colour("--color-background-primary"),
        primaryColor: colour("--book-box"),
        primaryTextColor: colour("--color-foreground-primary"),
        primaryBorderColor: colour("--book-line"),
        lineColor: colour("--book-line"),
        textColor: colour("--color-foreground-primary"),
        noteBkgColor: colour("--book-accent-box"),
        noteTextColor: colour("--color-foreground-primary"),
        noteBorderColor: colour("--color-brand-primary"),
      },
    });
    for (const { place, text } of drawings) {
      const { svg } = await mermaid.render("drawing-" + drawings.findIndex((d) => d.place === place), text);
      place.innerHTML = svg;
      place.dataset.drawn = dark() ? "dark" : "light";
    }
  }
  draw();
  new MutationObserver(draw).observe(document.body, { attributeFilter: ["data-theme"] });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
})();
