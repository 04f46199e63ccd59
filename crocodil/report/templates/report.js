"use strict";
(() => {
  const picture = document.getElementById("picture");
  const slider = document.getElementById("step");
  const play = document.getElementById("play");
  const said = document.getElementById("said");
  const counts = picture.dataset.counts.split(",").map(Number);
  const parts = picture.querySelectorAll(".written [data-step], .whole [data-step]");
  const frames = picture.querySelectorAll(".film button");
  const last = Number(slider.max);
  let timer = 0;

  function show(step) {
    for (const part of parts) part.classList.toggle("hidden", Number(part.dataset.step) > step);
    for (const frame of frames) frame.setAttribute("aria-current", Number(frame.dataset.go) === step);
    slider.value = step;
    const revealed = counts[step] === counts[last] ? "all revealed" : `${counts[step]} of ${counts[last]} revealed`;
    said.textContent = `step ${step} of ${last}, ${revealed}`;
  }

  function stop() {
    clearInterval(timer);
    timer = 0;
    play.textContent = "▶";
    play.setAttribute("aria-label", "Play the steps");
  }

  function start() {
    let step = Number(slider.value) >= last ? 0 : Number(slider.value);
    show(step);
    play.textContent = "❚❚";
    play.setAttribute("aria-label", "Pause");
    timer = setInterval(() => {
      step += 1;
      show(step);
      if (step >= last) stop();
    }, Math.max(60, Math.min(450, 7000 / last)));
  }

  play.addEventListener("click", () => (timer ? stop() : start()));
  slider.addEventListener("input", () => {
    stop();
    show(Number(slider.value));
  });
  for (const frame of frames) {
    frame.addEventListener("click", () => {
      stop();
      show(Number(frame.dataset.go));
    });
  }
  document.documentElement.classList.add("live");
  show(last);
})();
