// What the theme leaves out for those who read with a keyboard or a screen reader.
document.addEventListener("DOMContentLoaded", () => {
  // What scrolls can be reached by the keyboard.
  const reach = () => {
    for (const box of document.querySelectorAll("article pre, article figure, article div.highlight, article .pst-scrollable-table-container, article .cell_output, article .output")) {
      if (box.scrollWidth > box.clientWidth || box.scrollHeight > box.clientHeight) box.tabIndex = 0;
    }
  };
  reach();
  addEventListener("load", reach);
  addEventListener("resize", reach);
  // A film can be stopped, and for those who asked for less motion it begins so.
  for (const film of document.querySelectorAll('figure > img:is([src^="data:image/webp"], [src$=".webp"])')) {
    const still = document.createElement("canvas");
    const button = document.createElement("button");
    still.setAttribute("role", "img");
    still.setAttribute("aria-label", film.alt);
    still.style.maxWidth = "100%";
    const stop = (stopped) => {
      if (stopped) {
        [still.width, still.height] = [film.naturalWidth, film.naturalHeight];
        still.getContext("2d").drawImage(film, 0, 0);
      }
      film.hidden = stopped;
      still.hidden = !stopped;
      button.textContent = stopped ? "Play the film" : "Stop the film";
    };
    button.type = "button";
    button.addEventListener("click", () => stop(!film.hidden));
    film.after(still, button);
    film.decode().then(() => stop(matchMedia("(prefers-reduced-motion: reduce)").matches));
  }
  // Who follows a link to a folded box finds it open.
  const unfold = () => {
    const box = document.getElementById(location.hash.slice(1));
    const folded = box?.matches(".dropdown") ? box : box?.querySelector(":scope > .dropdown") ?? box?.nextElementSibling;
    if (folded?.matches(".admonition.toggle-hidden")) folded.querySelector(".toggle-button").click();
  };
  addEventListener("hashchange", unfold);
  addEventListener("load", unfold);
  // Entries of a bibliography are no list items, so what holds them is no list.
  for (const list of document.querySelectorAll(".citation-list[role=list]")) list.removeAttribute("role");
});
