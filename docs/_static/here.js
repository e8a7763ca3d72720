// The list of chapters is longer than the window: begin where the reader is.
addEventListener("DOMContentLoaded", () => {
  const list = document.querySelector(".sidebar-scroll");
  const here = document.querySelector(".sidebar-tree .current-page > .reference");
  if (!list || !here) return;
  const way = here.getBoundingClientRect().top - list.getBoundingClientRect().top;
  if (way > list.clientHeight * 0.8) list.scrollTop += way - list.clientHeight / 3;
});
