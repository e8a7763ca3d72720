// Between require.js and the widget manager: where a widget of our own finds what draws it, and, on a page with formulas
// too, the one call of an older MathJax which the manager makes.
(function () {
  const here = document.currentScript.src.replace(/widgets\.js.*$/, "");
  require.config({ paths: { anywidget: here + "vendor/anywidget" } });
  document.addEventListener("DOMContentLoaded", () => {
    if (window.MathJax && !MathJax.Hub) {
      MathJax.Hub = { Queue: ([, , element]) => MathJax.startup.promise.then(() => MathJax.typesetPromise([element])) };
    }
  });
})();
