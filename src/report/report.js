"use strict";
// Everything can be read without this: the last grid is then shown, and commands can be selected.
document.documentElement.classList.add("js");

const slider = document.getElementById("epoch");
if (slider) {
  const epochs = slider.dataset.epochs.split(" ").map(Number);
  const show = () => {
    const epoch = epochs[Number(slider.value)];
    slider.setAttribute("aria-valuetext", "epoch " + epoch);
    document.querySelector('output[for="epoch"]').textContent = epoch;
    for (const strip of document.querySelectorAll("#samples .strip")) {
      const frames = [...strip.querySelectorAll(".frame")];
      if (!frames.length) continue;
      // The grid of that epoch, else the one before it, else the first.
      const shown = frames.filter((frame) => Number(frame.dataset.epoch) <= epoch).pop() || frames[0];
      for (const frame of frames) frame.classList.toggle("shown", frame === shown);
      strip.querySelector(".at").textContent = "epoch " + shown.dataset.epoch;
    }
  };
  slider.addEventListener("input", show);
  slider.value = epochs.length - 1; // browsers keep a slider's place over a reload
  show();
}

for (const button of document.querySelectorAll(".copy")) {
  button.addEventListener("click", async () => {
    const code = button.parentElement.querySelector("code");
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(code);
      button.textContent = "Selected";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 2000);
  });
}

// A link to a run opens it.
const open = () => {
  const target = location.hash && document.getElementById(location.hash.slice(1));
  if (target && target.tagName === "DETAILS") target.open = true;
};
addEventListener("hashchange", open);
open();

// Paper cannot be unfolded.
let folded = [];
addEventListener("beforeprint", () => {
  folded = [...document.querySelectorAll("details:not([open])")];
  for (const each of folded) each.open = true;
});
addEventListener("afterprint", () => {
  for (const each of folded) each.open = false;
});
