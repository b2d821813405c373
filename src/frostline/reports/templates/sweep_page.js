"use strict";
// A run that is chosen stands out in the charts and in the table; a second choice lets it go.
const marks = [...document.querySelectorAll(".run[data-run]")];
const buttons = [...document.querySelectorAll("button[data-run]")];
const chosen = new Set();

function show() {
  document.body.classList.toggle("choosing", chosen.size > 0);
  for (const mark of marks) mark.classList.toggle("chosen", chosen.has(mark.dataset.run));
  for (const button of buttons) button.setAttribute("aria-pressed", String(chosen.has(button.dataset.run)));
  const named = document.querySelector("#chosen");
  if (named) named.textContent = chosen.size ? "chosen: run " + [...chosen].join(", ") : "";
}

function turn(run) {
  if (!chosen.delete(run)) chosen.add(run);
  show();
}

for (const button of buttons) button.addEventListener("click", () => turn(button.dataset.run));
for (const mark of marks) if (mark.ownerSVGElement) mark.addEventListener("click", () => turn(mark.dataset.run));
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") {
    chosen.clear();
    show();
  }
});
