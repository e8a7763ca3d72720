// Between require.js and the widget manager: where a widget of our own finds what draws it.
(function () {
  const here = document.currentScript.src.replace(/widgets\.js.*$/, "");
  require.config({ paths: { anywidget: here + "vendor/anywidget" } });
})();
