// What the theme leaves out for those who read with a keyboard or a screen reader.
document.addEventListener("DOMContentLoaded", () => {
  // What scrolls can be reached by the keyboard.
  const reach = () => {
    for (const box of document.querySelectorAll("article pre, article div.highlight, article .pst-scrollable-table-container, article .cell_output, article .output")) {
      if (box.scrollWidth > box.clientWidth || box.scrollHeight > box.clientHeight) box.tabIndex = 0;
    }
  };
  reach();
  addEventListener("load", reach);
  addEventListener("resize", reach);
  // Entries of a bibliography are no list items, so what holds them is no list.
  for (const list of document.querySelectorAll(".citation-list[role=list]")) list.removeAttribute("role");
});
